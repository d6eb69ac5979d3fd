//! A linear layer over weights that stay quantized.
//!
//! Owns the matrix kernels and which one a weight gets. Weights of
//! [`pack::Format`] are repacked once into tiles and the file's copy is let
//! go, so that a weight is resident once; any other type goes through candle's
//! `QMatMul`, which [`fallbacks`] counts. A scale that is infinite or not a
//! number is refused here, at load. Refuses to know what a layer is for.
//!
//! Invariant: every family of kernels gives the same bits as the scalar
//! reference (see [`scalar`]).

pub mod acts;
#[cfg(target_arch = "x86_64")]
mod acts_avx2;
#[cfg(target_arch = "aarch64")]
mod acts_neon;
mod agrees;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod error;
mod into;
pub mod isa;
mod matmul;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_128;
#[cfg(target_arch = "aarch64")]
mod neon_dot;
pub mod pack;
pub mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile_kernels;
#[cfg(target_arch = "x86_64")]
mod x86_256;

#[cfg(test)]
mod tests;

pub use acts::{ActKind, QuantizedRows};
pub use error::LinearError;
pub use into::products_into;
pub use isa::Isa;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Result};
use pack::{Format, Packed};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

static FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// Weights of this process that have no kernel here and go through candle's.
pub fn fallbacks() -> u64 {
    FALLBACKS.load(Ordering::Relaxed)
}

/// `y = x W^T` with `W` of shape `[out, in]`, quantized. Clones share it.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
}

#[derive(Clone, Debug)]
enum Weight {
    Packed { isa: Isa, packed: Arc<Packed> },
    Candle(QMatMul),
}

impl Linear {
    /// [`Linear::from_rows`] of a tensor that is in memory already.
    ///
    /// # Errors
    /// As [`Linear::from_rows`].
    pub fn new(weight: Arc<QTensor>) -> Result<Self> {
        let isa = Isa::active().map_err(candle_core::Error::wrap)?;
        Self::with_isa(isa, "weight", weight).map_err(candle_core::Error::wrap)
    }

    /// Repacks the rows of a weight `[out, in]` as a GGUF file has them. What
    /// has no kernels here is copied for candle; f16 and bf16 become f32.
    ///
    /// # Errors
    /// Names `tensor` where a scale is not finite or the shape is no matrix of
    /// whole blocks; `KVPSI_ISA` asks for what is not there.
    pub fn from_rows(
        tensor: &str,
        dtype: GgmlDType,
        (n, k): (usize, usize),
        rows: &[u8],
    ) -> std::result::Result<Self, LinearError> {
        let isa = Isa::active()?;
        if let Some(format) = Format::of(dtype) {
            return Self::packed(isa, tensor, format, dtype, (n, k), rows);
        }
        // candle wants values where their type may lie, which a file need not.
        let aligned = Cow::Owned(rows.to_vec());
        let weight = QStorage::from_data(aligned, &Device::Cpu, dtype)
            .and_then(|data| QTensor::new(data, (n, k)))
            .map_err(|source| LinearError::Candle {
                tensor: tensor.to_owned(),
                source,
            })?;
        Self::with_isa(isa, tensor, Arc::new(weight))
    }

    fn packed(
        isa: Isa,
        tensor: &str,
        format: Format,
        dtype: GgmlDType,
        shape: (usize, usize),
        rows: &[u8],
    ) -> std::result::Result<Self, LinearError> {
        let packed = Arc::new(Packed::new(tensor, format, dtype, shape, rows)?);
        let weight = Weight::Packed { isa, packed };
        Ok(Self { weight })
    }

    /// [`Linear::new`] with kernels of one family, which is available.
    ///
    /// # Errors
    /// As [`Linear::from_rows`]; the family is not available.
    pub fn with_isa(
        isa: Isa,
        tensor: &str,
        weight: Arc<QTensor>,
    ) -> std::result::Result<Self, LinearError> {
        if !isa.available() {
            return Err(LinearError::IsaMissing(isa));
        }
        let wrap = |source| LinearError::Candle {
            tensor: tensor.to_owned(),
            source,
        };
        let dtype = weight.dtype();
        let data = weight.data().map_err(wrap)?;
        if let (Some(format), &[n, k]) = (Format::of(dtype), weight.shape().dims()) {
            return Self::packed(isa, tensor, format, dtype, (n, k), &data);
        }
        if let Some(block) = pack::first_bad_block(dtype, dtype.type_size(), &data) {
            let k = weight.shape().dims().last().copied().unwrap_or(1).max(1);
            return Err(LinearError::NonFiniteScale {
                tensor: tensor.to_owned(),
                row: block * dtype.block_size() / k,
            });
        }
        if !isa::candle_can_multiply(dtype) {
            return Err(LinearError::NeedsDotProduct {
                tensor: tensor.to_owned(),
                dtype: format!("{dtype:?}"),
            });
        }
        drop(data);
        FALLBACKS.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(tensor, ?dtype, "no kernel of ours: candle's QMatMul");
        let weight = Weight::Candle(QMatMul::from_arc(weight).map_err(wrap)?);
        Ok(Self { weight })
    }

    /// Bytes of the weight that stay resident, where it has kernels here.
    pub fn packed_bytes(&self) -> Option<usize> {
        match &self.weight {
            Weight::Packed { packed, .. } => Some(packed.bytes()),
            Weight::Candle(_) => None,
        }
    }
}
