//! Attention over KV blocks, in place.
//!
//! Owns the arithmetic of attention and how it is spread over cores. Keys and
//! values are read from the pool's blocks as they are encoded: no concatenation, no copy of
//! the cache, no repeated heads. Dropped blocks are not there; positions stay
//! absolute, so causality and windows hold over holes. Every call leaves the
//! attention mass of each block with the pool. Kernels (`blocks`, `tile`,
//! `softmax`) are written once over `simd`; `dispatch` chooses the family. Out
//! of scope: why a block is gone, what a model is, how positions were encoded.

mod blocks;
mod coded;
mod decode;
mod dispatch;
mod into;
mod job;
mod observe;
mod prefill;
mod simd;
mod softmax;
mod split;
mod tile;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod pool_tests;
#[cfg(test)]
mod tests;

pub use into::{AttnMemory, Qkv, attend_into};

use crate::kv::SeqId;

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
    /// What scores stay below, by a tangent: `cap tanh(score / cap)`.
    pub softcap: Option<f32>,
}

impl AttnConfig {
    /// Query heads per KV head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}
