//! Attention over KV blocks, in place, as a candle operation.
//!
//! Owns the arithmetic of attention and how it is spread over cores. Keys and
//! values are read from the pool's blocks as f16: no concatenation, no copy of
//! the cache, no repeated heads. Dropped blocks are not there; positions stay
//! absolute, so causality and windows hold over holes. Every call leaves the
//! attention mass of each block with the pool. Refuses to know why a block is
//! gone, what a model is, and how positions were encoded.

mod decode;
mod into;
mod job;
mod kernels;
mod prefill;
mod scalar;
mod split;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_tile;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_tile;
#[cfg(test)]
mod op_tests;
#[cfg(test)]
mod tests;

pub use into::{AttnMemory, Qkv, attend_into};

use crate::kv::{KvPool, SeqId};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// Consecutive rows of one sequence within a batch: many in prefill, one in
/// decode. Spans follow one another in the order of the batch's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSpan {
    /// The sequence.
    pub seq: SeqId,
    /// Absolute position of the first row, as handed out by the pool.
    pub first_pos: usize,
    /// Rows.
    pub rows: usize,
}

/// Shape of the heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnConfig {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// What a product of query and key is multiplied by, often
    /// `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Sliding window in tokens, the row's own included; none sees everything.
    pub window: Option<usize>,
}

impl AttnConfig {
    /// Query heads per KV head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Stores keys and values of the rows, and attends causally over every live
/// block of each row's sequence.
///
/// All f32, after position encoding: `q` `[rows, heads * head_dim]`, `k` and
/// `v` `[rows, kv_heads * head_dim]`; the result is shaped as `q`. A row at
/// position p sees keys at positions up to p, of a sliding window the last
/// ones. Blocks are guarded against trims for the call. The pool gets, per
/// block, the probability that fell on it, summed over rows and heads. No
/// backward pass.
///
/// # Errors
/// Shapes that do not agree with each other or with the pool, positions the
/// pool has not handed out.
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    pool: &Arc<KvPool>,
    layer: usize,
    rows: &Arc<[RowSpan]>,
    cfg: AttnConfig,
) -> Result<Tensor> {
    into::check(pool, layer, rows, &cfg)?;
    let total: usize = rows.iter().map(|span| span.rows).sum();
    for (name, tensor, heads) in [
        ("q", q, cfg.heads),
        ("k", k, cfg.kv_heads),
        ("v", v, cfg.kv_heads),
    ] {
        let width = heads * cfg.head_dim;
        if tensor.dims() != [total, width] || tensor.dtype() != DType::F32 {
            bail!(
                "attention: {name} is {:?} of {:?}, expected [{total}, {width}] of F32",
                tensor.dims(),
                tensor.dtype()
            );
        }
    }
    let op = Attend {
        pool: Arc::clone(pool),
        layer,
        rows: Arc::clone(rows),
        cfg,
    };
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    q.apply_op3_no_bwd(&k, &v, &op)
}

struct Attend {
    pool: Arc<KvPool>,
    layer: usize,
    rows: Arc<[RowSpan]>,
    cfg: AttnConfig,
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "kv-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let qkv = Qkv {
            q: values(q, q_layout)?,
            k: values(k, k_layout)?,
            v: values(v, v_layout)?,
        };
        let mut out = vec![0.0; qkv.q.len()];
        let mut memory = AttnMemory::default();
        attend_into(
            qkv,
            &self.pool,
            self.layer,
            &self.rows,
            self.cfg,
            &mut memory,
            &mut out,
        )?;
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }
}

/// The values of a contiguous tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((from, until)) = layout.contiguous_offsets() else {
        bail!("attention: not contiguous: {:?}", layout.shape());
    };
    Ok(&storage.as_slice::<f32>()?[from..until])
}
