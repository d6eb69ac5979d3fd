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
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod error;
mod into;
pub mod isa;
pub mod matmul;
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
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Module, Result, Shape, Tensor};
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

    /// `x`: f32 `[.., in]`; returns f32 `[.., out]`.
    ///
    /// # Errors
    /// The shapes do not fit, `x` is not f32 on the CPU.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Candle(weight) => weight.forward(x),
            Weight::Packed { isa, packed } => {
                let op = Product { isa: *isa, packed };
                x.contiguous()?.apply_op1_no_bwd(&op)
            }
        }
    }

    /// Rows `ids` of the weight as f32 `[ids, in]`: the embedding lookup of a
    /// model whose output weight is its embedding.
    ///
    /// # Errors
    /// An id is not a row.
    pub fn dequantize_rows(&self, ids: &[u32]) -> Result<Tensor> {
        let packed = match &self.weight {
            Weight::Candle(weight) => {
                return weight.embedding(&Tensor::new(ids, &Device::Cpu)?);
            }
            Weight::Packed { packed, .. } => packed,
        };
        let k = packed.k();
        let mut out = vec![0.0; ids.len() * k];
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(k)) {
            let row = id as usize;
            if row >= packed.n() {
                candle_core::bail!("row {id} of a weight with {} rows", packed.n());
            }
            packed.dequantize_row(row, out);
        }
        Tensor::from_vec(out, (ids.len(), k), &Device::Cpu)
    }
}

/// The products of one input with several weights, its rows quantized once for
/// all weights of the same kind: q, k and v, or gate and up.
///
/// # Errors
/// As [`Linear::forward`].
pub fn forward_all<const N: usize>(layers: [&Linear; N], x: &Tensor) -> Result<[Tensor; N]> {
    let x = x.contiguous()?;
    let mut rows: Option<QuantizedRows> = None;
    let mut out = Vec::with_capacity(N);
    for layer in layers {
        let Weight::Packed { isa, packed } = &layer.weight else {
            out.push(layer.forward(&x)?);
            continue;
        };
        let kind = ActKind::of(packed.format());
        let reusable = rows.take().filter(|r| r.kind() == kind);
        let quantized = match reusable {
            Some(rows) => rows,
            None => {
                let (storage, layout) = x.storage_and_layout();
                let candle_core::Storage::Cpu(storage) = &*storage else {
                    candle_core::bail!("packed weights multiply tensors on the CPU");
                };
                quantize(*isa, packed, storage, layout)?
            }
        };
        let dims = output_dims(packed, x.dims())?;
        let product = matmul::matmul(*isa, packed, &quantized);
        out.push(Tensor::from_vec(product, dims, &Device::Cpu)?);
        rows = Some(quantized);
    }
    let count = out.len();
    out.try_into()
        .map_err(|_| candle_core::Error::Msg(format!("{count} products of {N} weights")))
}

/// `[.., in]` to `[.., out]`.
fn output_dims(packed: &Packed, input: &[usize]) -> Result<Vec<usize>> {
    let mut dims = input.to_vec();
    match dims.last_mut() {
        Some(last) if *last == packed.k() => *last = packed.n(),
        _ => candle_core::bail!(
            "input {input:?} does not fit a weight [{}, {}]",
            packed.n(),
            packed.k()
        ),
    }
    Ok(dims)
}

/// Quantizes a contiguous f32 tensor whose last dimension is the weight's `k`.
fn quantize(
    isa: Isa,
    packed: &Packed,
    storage: &CpuStorage,
    layout: &Layout,
) -> Result<QuantizedRows> {
    output_dims(packed, layout.dims())?;
    let Some((from, until)) = layout.contiguous_offsets() else {
        candle_core::bail!("packed weights multiply contiguous tensors");
    };
    if storage_dtype(storage) != DType::F32 {
        candle_core::bail!(
            "packed weights multiply f32, not {:?}",
            storage_dtype(storage)
        );
    }
    let x = &storage.as_slice::<f32>()?[from..until];
    Ok(QuantizedRows::new(
        isa,
        ActKind::of(packed.format()),
        x,
        packed.k(),
    ))
}

fn storage_dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// The product as a candle operation.
struct Product<'a> {
    isa: Isa,
    packed: &'a Packed,
}

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = quantize(self.isa, self.packed, storage, layout)?;
        let dims = output_dims(self.packed, layout.dims())?;
        let product = matmul::matmul(self.isa, self.packed, &rows);
        Ok((CpuStorage::F32(product), Shape::from(dims)))
    }
}
