//! The decoder of the llama family: RMS norm, rotary embedding, grouped-query
//! attention, gated feed-forward.
//!
//! Owns the weights, read once into anonymous memory and kept quantized (the
//! matrix kernels want them in candle's own buffers, so they cannot stay file
//! pages). Only the rows of the embedding table that are asked for are ever
//! widened. Invariants: positions are absolute and come with the rows; keys
//! are stored after the rotary embedding; nothing here is sized by the
//! context. Refuses to know where KV lives: `attention` writes and reads it.

use super::{
    gguf::{Config, Gguf, ModelError},
    linear::{Linear, forward_all},
};
use crate::{
    attention::{AttnConfig, RowSpan, attend},
    kv::{KvPool, KvShape},
    units::Bytes,
};
use candle_core::{Device, Result, Tensor, quantized::QTensor};
use std::sync::Arc;

/// Tokens of one KV block.
const BLOCK_TOKENS: usize = 32;

/// A decoder with its weights.
#[derive(Debug)]
pub struct Decoder {
    config: Config,
    /// Also the output weight, unless the file has one of its own.
    pub(super) embedding: Linear,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Tensor,
    pub(super) output: Option<Linear>,
    pub(super) rope: Rope,
    weights: Bytes,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attn_norm: Tensor,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) out: Linear,
    pub(super) ffn_norm: Tensor,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// Reads tensors and counts their bytes.
struct Reader<'a> {
    gguf: &'a mut Gguf,
    bytes: u64,
}

impl Reader<'_> {
    fn quantized(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> std::result::Result<Arc<QTensor>, ModelError> {
        let t = self.gguf.tensor(name, shape)?;
        self.bytes += t.storage_size_in_bytes() as u64;
        Ok(Arc::new(t))
    }

    fn candle<T>(&self, name: &str, r: Result<T>) -> std::result::Result<T, ModelError> {
        r.map_err(|e| ModelError::Tensor {
            path: self.gguf.path().into(),
            name: name.into(),
            what: e.to_string().lines().next().unwrap_or_default().into(),
        })
    }

    fn linear(
        &mut self,
        name: &str,
        out: usize,
        from: usize,
    ) -> std::result::Result<Linear, ModelError> {
        let w = self.quantized(name, &[out, from])?;
        Linear::named(name, w).map_err(|e| ModelError::Tensor {
            path: self.gguf.path().into(),
            name: name.into(),
            what: e.to_string(),
        })
    }

    fn vector(&mut self, name: &str, len: usize) -> std::result::Result<Tensor, ModelError> {
        let t = self.quantized(name, &[len])?;
        self.candle(name, t.dequantize(&Device::Cpu))
    }
}

impl Decoder {
    /// Reads the weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the metadata says, or
    /// the file holds tensors that this decoder would have to use and cannot.
    pub fn load(gguf: &mut Gguf) -> std::result::Result<Self, ModelError> {
        let c = gguf.config().clone();
        for bias in ["attn_q.bias", "attn_output.bias", "ffn_gate.bias"] {
            let name = format!("blk.0.{bias}");
            if gguf.has(&name) {
                return Err(ModelError::Tensor {
                    path: gguf.path().into(),
                    name,
                    what: "is not supported: the llama decoder has no biases".into(),
                });
            }
        }
        let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mut read = Reader { gguf, bytes: 0 };
        let embedding = read.linear("token_embd.weight", c.vocab, c.hidden)?;
        let mut layers = Vec::new();
        for i in 0..c.layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            layers.push(Layer {
                attn_norm: read.vector(&name("attn_norm"), c.hidden)?,
                q: read.linear(&name("attn_q"), q_width, c.hidden)?,
                k: read.linear(&name("attn_k"), kv_width, c.hidden)?,
                v: read.linear(&name("attn_v"), kv_width, c.hidden)?,
                out: read.linear(&name("attn_output"), c.hidden, q_width)?,
                ffn_norm: read.vector(&name("ffn_norm"), c.hidden)?,
                gate: read.linear(&name("ffn_gate"), c.feed_forward, c.hidden)?,
                up: read.linear(&name("ffn_up"), c.feed_forward, c.hidden)?,
                down: read.linear(&name("ffn_down"), c.hidden, c.feed_forward)?,
            });
        }
        let norm = read.vector("output_norm.weight", c.hidden)?;
        let output = if read.gguf.has("output.weight") {
            Some(read.linear("output.weight", c.vocab, c.hidden)?)
        } else {
            None
        };
        // Llama 3.1 and later stretch the low frequencies by these factors.
        let factors = if read.gguf.has("rope_freqs.weight") {
            let t = read.vector("rope_freqs.weight", c.head_dim / 2)?;
            let v = t.to_vec1::<f32>();
            Some(read.candle("rope_freqs.weight", v)?)
        } else {
            None
        };
        Ok(Self {
            rope: Rope::new(&c, factors.as_deref()),
            weights: Bytes(read.bytes),
            config: c,
            embedding,
            layers,
            norm,
            output,
        })
    }

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
        let count: usize = rows.iter().map(|s| s.rows).sum();
        if count != tokens.len() || rows.iter().any(|s| s.rows == 0) {
            candle_core::bail!("{} tokens for spans of {count} rows", tokens.len());
        }
        let c = &self.config;
        let attn = AttnConfig {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            window: None,
        };
        let (cos, sin) = self.rope.tables(&rows)?;
        let last = last_rows(&rows)?;
        let mut x = self.embedding.dequantize_rows(tokens)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let h = norm(&x, &layer.attn_norm, c)?;
            let [q, k, v] = forward_all([&layer.q, &layer.k, &layer.v], &h)?;
            let q = rotate(&q, c.heads, &cos, &sin)?;
            let k = rotate(&k, c.kv_heads, &cos, &sin)?;
            let mut a = attend(&q, &k, &v, pool, i, &rows, attn)?;
            if i + 1 == self.layers.len() && rows.len() < count {
                // Nobody looks at the other rows any more.
                a = a.index_select(&last, 0)?;
                x = x.index_select(&last, 0)?;
            }
            x = (x + layer.out.forward(&a)?)?;
            let h = norm(&x, &layer.ffn_norm, c)?;
            let [gate, up] = forward_all([&layer.gate, &layer.up], &h)?;
            let gated = (candle_nn::ops::silu(&gate)? * up)?;
            x = (x + layer.down.forward(&gated)?)?;
        }
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        output.forward(&norm(&x, &self.norm, c)?)
    }
}

fn norm(x: &Tensor, weight: &Tensor, c: &Config) -> Result<Tensor> {
    candle_nn::ops::rms_norm(x, weight, c.rms_eps)
}

/// Row index of each span's last row.
fn last_rows(rows: &[RowSpan]) -> Result<Tensor> {
    let mut end = 0usize;
    let mut last = Vec::with_capacity(rows.len());
    for span in rows {
        end += span.rows;
        last.push(u32::try_from(end - 1).map_err(candle_core::Error::wrap)?);
    }
    Tensor::new(last.as_slice(), &Device::Cpu)
}

/// The rotary embedding on `[rows, heads * head_dim]`: every row is a batch
/// of its own, so rows of different sequences may stand at any positions and
/// nothing is transposed.
fn rotate(x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let x = x.reshape((rows, heads, 1, width / heads))?;
    candle_nn::rotary_emb::rope_i(&x, cos, sin)?.reshape((rows, width))
}

/// Frequencies of the rotary embedding (Su et al., "RoFormer", 2021), in the
/// interleaved form of llama GGUF files. Angles are computed for the rows at
/// hand: a table would be sized by the context.
#[derive(Debug)]
pub(super) struct Rope {
    frequencies: Vec<f32>,
    scale: f32,
}

impl Rope {
    fn new(c: &Config, factors: Option<&[f32]>) -> Self {
        let dim = c.head_dim as f32;
        let frequencies = (0..c.head_dim / 2)
            .map(|i| {
                let f = 1.0 / c.rope_base.powf((2 * i) as f32 / dim);
                factors.map_or(f, |by| f / by[i])
            })
            .collect();
        Self {
            frequencies,
            scale: c.rope_scale,
        }
    }

    /// Cosines and sines of a position, half a head each.
    pub(super) fn angles(&self, pos: usize, cos: &mut [f32], sin: &mut [f32]) {
        let at = pos as f32 / self.scale;
        for ((f, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            (*sin, *cos) = (at * f).sin_cos();
        }
    }

    /// Cosines and sines, each `[rows, 1, head_dim / 2]`.
    fn tables(&self, rows: &[RowSpan]) -> Result<(Tensor, Tensor)> {
        let count: usize = rows.iter().map(|s| s.rows).sum();
        let half = self.frequencies.len();
        let (mut cos, mut sin) = (vec![0.0; count * half], vec![0.0; count * half]);
        let positions = rows.iter().flat_map(|s| s.first_pos..s.first_pos + s.rows);
        let tables = cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half));
        for (pos, (cos, sin)) in positions.zip(tables) {
            self.angles(pos, cos, sin);
        }
        let shape = (count, 1, half);
        Ok((
            Tensor::from_vec(cos, shape, &Device::Cpu)?,
            Tensor::from_vec(sin, shape, &Device::Cpu)?,
        ))
    }
}
