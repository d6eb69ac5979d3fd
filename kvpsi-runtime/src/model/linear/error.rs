//! What can be wrong with a weight or with the choice of kernels.

use super::isa::Isa;

/// A weight that cannot be used, or kernels that cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum LinearError {
    /// A block scale or minimum, or a float, is infinite or not a number.
    #[error(
        "tensor {tensor}: row {row} holds a number that is not finite; the file is damaged, fetch it again"
    )]
    NonFiniteScale {
        /// The tensor's name in the file.
        tensor: String,
        /// The first row with such a scale.
        row: usize,
    },
    /// The tensor is not a matrix whose rows are whole blocks.
    #[error(
        "tensor {tensor}: shape {shape:?} and {bytes} bytes do not make a matrix of {format} blocks"
    )]
    Shape {
        /// The tensor's name in the file.
        tensor: String,
        /// The shape as read.
        shape: Vec<usize>,
        /// Bytes of data that came with it.
        bytes: usize,
        /// The format's name.
        format: &'static str,
    },
    /// The system refuses memory for it.
    #[error(
        "tensor {tensor}: no memory for its {bytes} bytes; use a smaller file, or a higher limit (`ulimit -v`)"
    )]
    Memory {
        /// The tensor's name in the file.
        tensor: String,
        /// Bytes that it takes.
        bytes: usize,
    },
    /// `KVPSI_ISA` names no instruction set.
    #[error(
        "KVPSI_ISA={0}: there are no such kernels (auto, scalar, avx2, avxvnni, avx512, neon, neondot); this processor has auto, {here}",
        here = here()
    )]
    UnknownIsa(String),
    /// `KVPSI_ISA` names an instruction set that this processor lacks.
    #[error("KVPSI_ISA={0}: this processor does not have it; unset the variable, or take one of {here}", here = here())]
    IsaMissing(&'static str),
    /// The family's kernels do not compute what the reference does.
    #[error(
        "the {0} kernels compute something else than the reference on this processor, and are not used: please report it with /proc/cpuinfo"
    )]
    IsaWrong(&'static str),
}

/// What this processor has, by the names that `KVPSI_ISA` takes.
fn here() -> String {
    let names: Vec<_> = Isa::all().map(Isa::name).collect();
    names.join(", ")
}
