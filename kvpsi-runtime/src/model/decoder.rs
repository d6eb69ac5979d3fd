//! The decoder: RMS norm, rotary embedding, grouped-query attention, gated
//! feed-forward.
//!
//! Owns the weights, kept quantized in anonymous memory. `load` reads them,
//! `step` takes rows through them. Invariants: one decoder for all families,
//! which differ by what [`Config`] and the layers hold; nothing here is sized
//! by the context. Refuses to know where KV lives.

use super::{gguf::Config, linear::Linear, rope::Rope, step::ops::RopePairs};
use crate::{
    attention::AttnConfig,
    kv::{
        KvShape, KvType,
        evict::{QueryStats, RopeOf},
    },
    units::Bytes,
};

/// Tokens of one KV block.
const BLOCK_TOKENS: usize = 32;

/// A decoder with its weights.
#[derive(Debug)]
pub struct Decoder {
    pub(super) config: Config,
    /// Also the output weight, unless the file has one of its own.
    pub(super) embedding: Linear,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Box<[f32]>,
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
    pub(super) attn_norm: Box<[f32]>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) qkv_bias: Option<[Box<[f32]>; 3]>,
    /// Of each head of queries and keys.
    pub(super) qk_norm: Option<[Box<[f32]>; 2]>,
    pub(super) out: Linear,
    pub(super) post_attn_norm: Option<Box<[f32]>>,
    pub(super) ffn_norm: Box<[f32]>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) post_ffn_norm: Option<Box<[f32]>>,
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

    /// Bytes of weights that a step of one token reads: all matrices, but of an
    /// embedding that is not the output weight too only a row.
    #[must_use]
    pub fn step_bytes(&self) -> Bytes {
        let layers = self.layers.iter();
        let matrices = layers.flat_map(|l| [&l.q, &l.k, &l.v, &l.out, &l.gate, &l.up, &l.down]);
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let all = matrices.chain([output]);
        Bytes(all.map(|m| m.packed().bytes() as u64).sum())
    }

    /// Statistics of this decoder's queries, of which nothing is known yet.
    #[must_use]
    pub fn query_stats(&self) -> QueryStats {
        let c = &self.config;
        let of_layer = |layer: &Layer| RopeOf {
            frequencies: self.ropes[layer.rope].frequencies().into(),
            adjacent: c.pairs == RopePairs::Adjacent,
            scale: layer.attn.scale,
        };
        let layers = self.layers.iter().map(of_layer).collect();
        QueryStats::new(c.heads, c.kv_heads, c.head_dim, layers)
    }

    /// The longest sliding window of any layer, in tokens; 0: none has one.
    #[must_use]
    pub fn longest_window(&self) -> usize {
        let windows = self.layers.iter().filter_map(|layer| layer.attn.window);
        windows.max().unwrap_or(0)
    }

    /// The shape of the KV that this decoder writes, in that encoding.
    #[must_use]
    pub fn kv_shape(&self, kind: KvType) -> KvShape {
        KvShape {
            layers: self.config.layers,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            block_tokens: BLOCK_TOKENS,
            kind,
            row_mass: false,
        }
    }
}
