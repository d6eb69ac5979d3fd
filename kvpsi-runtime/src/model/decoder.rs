//! The decoder: RMS norm, rotary embedding, grouped-query attention, gated
//! feed-forward.
//!
//! Owns the weights, kept quantized in anonymous memory or in a mapped file. `load` reads them,
//! `step` takes rows through them. Invariants: one decoder for all families,
//! which differ by what [`Config`] and the layers hold; nothing here is sized
//! by the context. Refuses to know where KV lives.

use super::{gguf::Config, linear::Linear, rope::Rope, step::ops::RopePairs, weights::Place};
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
    pub(super) per_layer: Option<PerLayer>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Box<[f32]>,
    pub(super) output: Option<Linear>,
    /// That of the layers that see everything, that of those with a window,
    /// that of those without positions: the first, and those that there are.
    pub(super) ropes: Vec<Rope>,
    pub(super) weights: Bytes,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attn: AttnConfig,
    /// Which of the decoder's rotary embeddings.
    pub(super) rope: usize,
    /// Values of a head; the pool may store longer ones.
    pub(super) head_dim: usize,
    /// Values of a head that are turned.
    pub(super) turned: usize,
    /// Which of the pool's layers it looks at.
    pub(super) stored: usize,
    pub(super) attn_norm: Option<Box<[f32]>>,
    pub(super) q: Linear,
    /// None of a layer that looks at what another stores.
    pub(super) key_value: Option<[Linear; 2]>,
    pub(super) qkv_bias: Option<[Box<[f32]>; 3]>,
    /// Of each head of queries and keys, or of all together.
    pub(super) q_norm: Option<Box<[f32]>>,
    pub(super) k_norm: Option<Box<[f32]>>,
    /// Of each head of values: ones.
    pub(super) v_norm: Option<Box<[f32]>>,
    /// Scores for nothing, by head.
    pub(super) sinks: Option<Box<[f32]>>,
    pub(super) out: Linear,
    pub(super) out_bias: Option<Box<[f32]>>,
    pub(super) post_attn_norm: Option<Box<[f32]>>,
    pub(super) ffn_norm: Option<Box<[f32]>>,
    pub(super) feed_forward: FeedForward,
    pub(super) post_ffn_norm: Option<Box<[f32]>>,
    pub(super) told: Option<Told>,
    /// What the stream is multiplied by behind the layer.
    pub(super) scale: Option<f32>,
}

/// How a layer takes what it is told of the token.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) gate: Linear,
    pub(super) out: Linear,
    pub(super) norm: Box<[f32]>,
}

/// What each layer is told of a token: a row of a table, and of a product with
/// the embedding's row (Gemma 3n's per-layer embeddings).
#[derive(Debug)]
pub(super) struct PerLayer {
    pub(super) table: Linear,
    pub(super) product: Linear,
    /// Of each layer's part of the product.
    pub(super) norm: Box<[f32]>,
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
        let own = self.key_value.iter().flatten();
        let told = self.told.iter().flat_map(|told| [&told.gate, &told.out]);
        let matrices = own.chain(told).chain([&self.q, &self.out]);
        let attention: usize = matrices.map(bytes).sum();
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

    /// Where the matrices are.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Bytes of weights that a step of one token reads: all matrices, but of
    /// experts those that it goes through, and of an embedding that is not the
    /// output weight too only a row.
    #[must_use]
    pub fn step_bytes(&self) -> Bytes {
        let used = self.config.experts.map_or(0, |e| e.used);
        let layers = self.layers.iter().map(|l| l.step_bytes(used));
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let product = self.per_layer.as_ref().map(|p| &p.product);
        let others = product.into_iter().chain([output]);
        let others: usize = others.map(|m| m.packed().bytes()).sum();
        Bytes((layers.sum::<usize>() + others) as u64)
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
            turned: layer.turned,
            scale: layer.attn.scale,
        };
        let storing = &self.layers[..c.storing];
        let layers = storing.iter().map(of_layer).collect();
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
            layers: self.config.storing,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            block_tokens: BLOCK_TOKENS,
            kind,
            row_mass: false,
        }
    }
}
