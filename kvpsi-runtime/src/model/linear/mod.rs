//! A linear layer over weights that stay quantized.
//!
//! Owns the matrix kernels and which one a weight gets. Weights are repacked
//! once into tiles and the file's copy is let go, so that a weight is resident
//! once, in as many bits as in the file; or were repacked by another process
//! and are mapped ([`Packed::mapped`]). A scale that is infinite or not a
//! number is refused here, at load. Out of scope: what a layer is for.
//!
//! Invariant: every family of kernels gives the same bits as the scalar
//! reference (see `format::Layout::reference`).
//!
//! A format is a file in `format`, a processor family one in `cpu`; [`table`]
//! brings them together.

pub mod acts;
pub mod choose;
mod cpu;
mod error;
mod format;
mod into;
pub mod isa;
mod layout;
mod matmul;
pub mod packed;
mod rows;
mod simd;
pub mod table;

#[cfg(test)]
mod tests;

pub use error::LinearError;
pub use into::products_into;
pub use isa::Isa;
pub use layout::fingerprint;
pub use packed::Packed;
pub use rows::QuantizedRows;
pub use table::Format;

use std::sync::Arc;

/// `y = x W^T` with `W` of shape `[out, in]`, quantized. Clones share it.
#[derive(Clone, Debug)]
pub struct Linear {
    isa: Isa,
    packed: Arc<Packed>,
}

impl Linear {
    /// Repacks the rows of a weight `[out, in]` as a GGUF file has them, for
    /// the kernels of this process.
    ///
    /// # Errors
    /// Names `tensor` where a scale is not finite or the shape is no matrix of
    /// whole blocks; `KVPSI_ISA` asks for what is not there.
    pub fn from_rows(
        tensor: &str,
        format: &'static Format,
        (n, k): (usize, usize),
        rows: &[u8],
    ) -> Result<Self, LinearError> {
        Self::with_isa(choose::active()?, tensor, format, (n, k), rows)
    }

    /// [`Linear::from_rows`] with kernels of one family.
    ///
    /// # Errors
    /// The shape or a scale, as there.
    pub fn with_isa(
        isa: Isa,
        tensor: &str,
        format: &'static Format,
        (n, k): (usize, usize),
        rows: &[u8],
    ) -> Result<Self, LinearError> {
        let packed = Packed::new(tensor, format, (n, k), rows)?;
        Ok(Self::over(isa, packed))
    }

    /// A weight that is packed already.
    pub fn over(isa: Isa, packed: Packed) -> Self {
        let packed = Arc::new(packed);
        Self { isa, packed }
    }

    /// The weight.
    pub fn packed(&self) -> &Packed {
        &self.packed
    }
}
