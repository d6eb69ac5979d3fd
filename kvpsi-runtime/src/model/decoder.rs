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
    /// That of the layers that see everything, that of those with a window,
    /// that of those without positions: the first, and those that there are.
    pub(super) ropes: Vec<Rope>,
    pub(super) weights: Bytes,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attn: AttnConfig,
    /// Which of the decoder's rotary embeddings.
    pub(super) rope: usize,
    pub(super) attn_norm: Option<Box<[f32]>>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) qkv_bias: Option<[Box<[f32]>; 3]>,
    /// Of each head of queries and keys, or of all together.
    pub(super) qk_norm: Option<[Box<[f32]>; 2]>,
    /// Scores for nothing, by head.
    pub(super) sinks: Option<Box<[f32]>>,
    pub(super) out: Linear,
    pub(super) out_bias: Option<Box<[f32]>>,
    pub(super) post_attn_norm: Option<Box<[f32]>>,
    pub(super) ffn_norm: Option<Box<[f32]>>,
    pub(super) feed_forward: FeedForward,
    pub(super) post_ffn_norm: Option<Box<[f32]>>,
}

#[derive(Debug)]
pub(super) enum FeedForward {
    All(Gated),
    Some(Experts),
}

/// A gated feed-forward network.
#[derive(Debug)]
pub(super) struct Gated {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    /// Of the three.
    pub(super) bias: Option<[Box<[f32]>; 3]>,
}

/// Networks of which each row goes through a few.
#[derive(Debug)]
pub(super) struct Experts {
    pub(super) router: Linear,
    pub(super) router_bias: Option<Box<[f32]>>,
    pub(super) each: Vec<Gated>,
    /// One that every row goes through.
    pub(super) shared: Option<Gated>,
}

impl Gated {
    fn matrices(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }
}

impl Layer {
    /// Bytes of matrices that one token reads, if it goes through so many
    /// experts.
    fn step_bytes(&self, used: usize) -> usize {
        let bytes = |m: &Linear| m.packed().bytes();
        let gated = |g: &Gated| g.matrices().map(bytes).iter().sum::<usize>();
        let attention: usize = [&self.q, &self.k, &self.v, &self.out]
            .map(bytes)
            .iter()
            .sum();
        attention
            + match &self.feed_forward {
                FeedForward::All(all) => gated(all),
                FeedForward::Some(experts) => {
                    // They are of one shape.
                    let each = experts.each.first().map_or(0, gated);
                    let shared = experts.shared.as_ref().map_or(0, gated);
                    bytes(&experts.router) + used * each + shared
                }
            }
    }
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

    /// Bytes of weights that a step of one token reads: all matrices, but of
    /// experts those that it goes through, and of an embedding that is not the
    /// output weight too only a row.
    #[must_use]
    pub fn step_bytes(&self) -> Bytes {
        let used = self.config.experts.map_or(0, |e| e.used);
        let layers = self.layers.iter().map(|l| l.step_bytes(used));
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        Bytes((layers.sum::<usize>() + output.packed().bytes()) as u64)
    }

    /// Whether sequences of up to so many tokens turn by the factors for long
    /// ones. Keys are stored turned, so that is decided for a pool.
    pub(super) fn is_long(&self, tokens: usize) -> bool {
        self.config
            .rope
            .scaling
            .is_long(tokens.min(self.config.context))
    }

    /// Statistics of this decoder's queries over so many tokens, of which
    /// nothing is known yet.
    #[must_use]
    pub fn query_stats(&self, tokens: usize) -> QueryStats {
        let (c, long) = (&self.config, self.is_long(tokens));
        let of_layer = |layer: &Layer| RopeOf {
            frequencies: self.ropes[layer.rope].frequencies(long).into(),
            adjacent: c.pairs == RopePairs::Adjacent,
            turned: c.rotary,
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
