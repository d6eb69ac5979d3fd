//! What can be wrong with a quantized weight or with the choice of kernels.

use super::isa::Isa;

/// A weight that cannot be used, or kernels that cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum LinearError {
    /// A block scale or minimum is infinite or not a number.
    #[error(
        "tensor {tensor}: row {row} holds a scale that is not finite; the file is damaged, fetch it again"
    )]
    NonFiniteScale {
        /// The tensor's name in the file.
        tensor: String,
        /// The first row with such a scale.
        row: usize,
    },
    /// The tensor is not a matrix whose rows are whole blocks.
    #[error(
        "tensor {tensor}: shape {shape:?} and {bytes} bytes do not make a matrix of {dtype} blocks"
    )]
    Shape {
        /// The tensor's name in the file.
        tensor: String,
        /// The shape as read.
        shape: Vec<usize>,
        /// Bytes of data that came with it.
        bytes: usize,
        /// The quantization.
        dtype: String,
    },
    /// `KVPSI_ISA` names no instruction set.
    #[error("KVPSI_ISA={0}: not one of auto, scalar, avx2, avxvnni, avx512, neon, neondot")]
    UnknownIsa(String),
    /// `KVPSI_ISA` names an instruction set that this processor lacks.
    #[error("KVPSI_ISA={}: this processor does not have it; unset the variable or choose another", .0.name())]
    IsaMissing(Isa),
    /// The family's kernels do not compute what the reference does.
    #[error(
        "the {} kernels compute something else than the reference on this processor, and are not used: please report it with /proc/cpuinfo",
        .0.name()
    )]
    IsaWrong(Isa),
    /// candle's product would die of an illegal instruction.
    #[error(
        "tensor {tensor}: candle multiplies {dtype} by dot product instructions that this processor lacks (ARMv8.2 has them); take a Q4_0, Q8_0, Q4_K or Q6_K file"
    )]
    NeedsDotProduct {
        /// The tensor's name in the file.
        tensor: String,
        /// The quantization.
        dtype: String,
    },
    /// candle refused the weight.
    #[error("tensor {tensor}: {source}")]
    Candle {
        /// The tensor's name in the file.
        tensor: String,
        /// What candle said.
        source: candle_core::Error,
    },
}
