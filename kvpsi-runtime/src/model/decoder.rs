//! The decoder: RMS norm, rotary embedding, grouped-query attention, gated
//! feed-forward.
//!
//! Owns the weights, kept quantized in anonymous memory (`load` reads them),
//! and the way through them by candle's operations. Invariants: one way for all
//! families, which differ by what [`Config`] and the layers hold; positions are
//! absolute and come with the rows; keys are stored after the rotary embedding;
//! nothing here is sized by the context. Refuses to know where KV lives:
//! `attention` writes and reads it.

use super::{
    gguf::Config,
    linear::{Linear, forward_all},
    rope::{Rope, rotate},
    step::ops::Gate,
};
use crate::{
    attention::{AttnConfig, RowSpan, attend},
    kv::{KvPool, KvShape},
    units::Bytes,
};
use candle_core::{Device, Result, Tensor};
use std::sync::Arc;

/// Tokens of one KV block.
const BLOCK_TOKENS: usize = 32;

/// A decoder with its weights.
#[derive(Debug)]
pub struct Decoder {
    pub(super) config: Config,
    /// Also the output weight, unless the file has one of its own.
    pub(super) embedding: Linear,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Tensor,
    pub(super) output: Option<Linear>,
    /// That of the layers that see everything, then that of the others.
    pub(super) ropes: Vec<Rope>,
    pub(super) weights: Bytes,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attn: AttnConfig,
    /// Which of the decoder's rotary embeddings.
    pub(super) rope: usize,
    pub(super) attn_norm: Tensor,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) qkv_bias: Option<[Tensor; 3]>,
    /// Of each head of queries and keys.
    pub(super) qk_norm: Option<[Tensor; 2]>,
    pub(super) out: Linear,
    pub(super) post_attn_norm: Option<Tensor>,
    pub(super) ffn_norm: Tensor,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) post_ffn_norm: Option<Tensor>,
}

impl Decoder {
    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of weights read into memory (norms are kept in f32 besides).
    #[must_use]
    pub fn weights(&self) -> Bytes {
        self.weights
    }

    /// The shape of the KV that this decoder writes.
    #[must_use]
    pub fn kv_shape(&self) -> KvShape {
        KvShape {
            layers: self.config.layers,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            block_tokens: BLOCK_TOKENS,
        }
    }

    /// One step over the rows of any number of sequences. `tokens` holds the
    /// rows of the spans one after another; their positions must have been
    /// appended to `pool` already. Returns f32 logits `[spans, vocab]`, those
    /// of each span's last row. Over candle's operations, for prefill: a few
    /// rows are `Decoder::step`'s, without a tensor.
    ///
    /// # Errors
    /// The spans do not add up to the tokens, a token is outside the
    /// vocabulary, or a kernel fails.
    pub fn forward(
        &self,
        tokens: &[u32],
        rows: Arc<[RowSpan]>,
        pool: &Arc<KvPool>,
    ) -> Result<Tensor> {
        let last = last_rows(&rows)?;
        self.logits(&self.hidden(tokens, rows, pool, &last)?)
    }

    /// Logits `[rows, vocab]` of what [`Decoder::hidden`] gave.
    ///
    /// # Errors
    /// `hidden` has another width.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        output.forward(hidden)
    }

    /// [`Decoder::forward`] short of the logits, for the rows `wanted` (all
    /// tokens counted from 0): f32 `[wanted, hidden]`, for whoever could not
    /// hold the logits of so many rows at once.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; no row is wanted, or one that is not there.
    pub fn hidden(
        &self,
        tokens: &[u32],
        rows: Arc<[RowSpan]>,
        pool: &Arc<KvPool>,
        wanted: &[u32],
    ) -> Result<Tensor> {
        let count: usize = rows.iter().map(|s| s.rows).sum();
        if count != tokens.len() || rows.iter().any(|s| s.rows == 0) {
            candle_core::bail!("{} tokens for spans of {count} rows", tokens.len());
        }
        let c = &self.config;
        let tables = self.ropes.iter().map(|rope| rope.tables(&rows));
        let tables = tables.collect::<Result<Vec<_>>>()?;
        let wanted = Tensor::new(wanted, &Device::Cpu)?;
        let mut x = self.embedding.dequantize_rows(tokens)?;
        if c.embedding_scale != 1.0 {
            x = (x * f64::from(c.embedding_scale))?;
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let h = norm(&x, &layer.attn_norm, c)?;
            let [mut q, mut k, mut v] = forward_all([&layer.q, &layer.k, &layer.v], &h)?;
            if let Some([of_q, of_k, of_v]) = &layer.qkv_bias {
                q = q.broadcast_add(of_q)?;
                k = k.broadcast_add(of_k)?;
                v = v.broadcast_add(of_v)?;
            }
            if let Some([of_q, of_k]) = &layer.qk_norm {
                q = norm_heads(&q, of_q, c)?;
                k = norm_heads(&k, of_k, c)?;
            }
            let q = rotate(&q, c.heads, &tables[layer.rope], c.pairs)?;
            let k = rotate(&k, c.kv_heads, &tables[layer.rope], c.pairs)?;
            let mut a = attend(&q, &k, &v, pool, i, &rows, layer.attn)?;
            if i + 1 == self.layers.len() && wanted.elem_count() < count {
                // Nobody looks at the other rows any more.
                a = a.index_select(&wanted, 0)?;
                x = x.index_select(&wanted, 0)?;
            }
            let a = normed(layer.out.forward(&a)?, layer.post_attn_norm.as_ref(), c)?;
            x = (x + a)?;
            let h = norm(&x, &layer.ffn_norm, c)?;
            let [gate, up] = forward_all([&layer.gate, &layer.up], &h)?;
            let gated = match c.gate {
                Gate::Silu => candle_nn::ops::silu(&gate)? * up,
                Gate::GeluTanh => gate.gelu()? * up,
            };
            let h = layer.down.forward(&gated?)?;
            x = (x + normed(h, layer.post_ffn_norm.as_ref(), c)?)?;
        }
        norm(&x, &self.norm, c)
    }
}

fn norm(x: &Tensor, weight: &Tensor, c: &Config) -> Result<Tensor> {
    candle_nn::ops::rms_norm(x, weight, c.rms_eps)
}

/// The norm, where there is one.
fn normed(x: Tensor, weight: Option<&Tensor>, c: &Config) -> Result<Tensor> {
    match weight {
        Some(weight) => norm(&x, weight, c),
        None => Ok(x),
    }
}

/// The norm of each head of `[rows, heads * head_dim]`.
fn norm_heads(x: &Tensor, weight: &Tensor, c: &Config) -> Result<Tensor> {
    let shape = x.dims2()?;
    norm(&x.reshape(((), c.head_dim))?, weight, c)?.reshape(shape)
}

/// Row index of each span's last row.
fn last_rows(rows: &[RowSpan]) -> Result<Vec<u32>> {
    let mut end = 0usize;
    let mut last = Vec::with_capacity(rows.len());
    for span in rows {
        end += span.rows;
        last.push(u32::try_from(end - 1).map_err(candle_core::Error::wrap)?);
    }
    Ok(last)
}
