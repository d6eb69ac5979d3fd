//! The shape of a model, read from its metadata and checked.
//!
//! Owns the allowed range of every number. The ranges are far beyond any model
//! and small enough that no product of them overflows. What no key says is the
//! family's ([`Family`]), so that the decoder itself knows no family. Out of
//! scope: tensors.

use super::{
    ModelError,
    experts::{self, Experts},
    family::Family,
    keys::{Keys, MOST_CONTEXT},
    positions::{self, Layers, RopeConfig, Sliding, Temperature},
};
use crate::{
    attention::AttnConfig,
    model::step::ops::{Gate, RopePairs},
};
use candle_core::quantized::gguf_file::{Content, Value};
use std::path::Path;

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What no key says.
    pub family: &'static Family,
    /// `general.name`, for people.
    pub name: String,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer; the widest, where they differ.
    pub feed_forward: usize,
    /// Those of each layer, where they differ.
    pub feed_forwards: Option<Box<[usize]>>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of one head; a multiple of 8. As many are stored of any layer.
    pub head_dim: usize,
    /// Elements of the heads of layers with a window, the first ones.
    pub windowed_head_dim: usize,
    /// Layers that store keys and values, the first ones; the others look at
    /// those of the last one of their kind.
    pub storing: usize,
    /// Width of what each layer is told of the token besides.
    pub per_layer: Option<usize>,
    /// Tokens that the model was trained for.
    pub context: usize,
    /// Rotary embedding of the layers that see everything.
    pub rope: RopeConfig,
    /// Layers that it turns; the others know no positions.
    pub turned: Layers,
    /// Values of a head that it turns, the first ones; even.
    pub rotary: usize,
    /// Which of these it turns together.
    pub pairs: RopePairs,
    /// Layers with a sliding window, if any.
    pub sliding: Option<Sliding>,
    /// How queries grow with their position.
    pub temperature: Option<Temperature>,
    /// What a product of query and key is multiplied by.
    pub attention_scale: f32,
    /// What that stays below, by a tangent (Gemma 2).
    pub score_cap: Option<f32>,
    /// What rows of the embedding table are multiplied by.
    pub embedding_scale: f32,
    /// What attention and feed-forward add is multiplied by.
    pub residual_scale: f32,
    /// What logits are multiplied by.
    pub logit_scale: f32,
    /// What logits stay below, by a tangent (Gemma 2).
    pub logit_cap: Option<f32>,
    /// What bends the gate of the feed-forward network.
    pub gate: Gate,
    /// The experts, where a feed-forward network is many.
    pub experts: Option<Experts>,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
    /// Rows of the embedding table.
    pub vocab: usize,
}

impl Config {
    /// Reads and checks the shape.
    pub(super) fn read(
        path: &Path,
        content: &Content,
        vocab: Option<u64>,
    ) -> Result<Self, ModelError> {
        let missing = |key: &str, what: &str| ModelError::Metadata {
            path: path.into(),
            key: key.into(),
            what: what.into(),
        };
        let family = match content.metadata.get("general.architecture") {
            Some(Value::String(name)) => {
                Family::named(name).ok_or_else(|| ModelError::Architecture {
                    path: path.into(),
                    arch: name.chars().take(64).collect(),
                })?
            }
            _ => {
                return Err(missing(
                    "general.architecture",
                    "is missing: this is not a language model file",
                ));
            }
        };
        let name = match content.metadata.get("general.name") {
            Some(Value::String(name)) => name.clone(),
            _ => String::new(),
        };
        let keys = Keys {
            path,
            content,
            prefix: family.name,
        };
        let heads = keys.required("attention.head_count", 1024)?;
        let kv_heads = keys.int("attention.head_count_kv", 1024)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(keys.bad(
                "attention.head_count_kv",
                format!("is {kv_heads}, which does not divide the {heads} query heads"),
            ));
        }
        let hidden = keys.required("embedding_length", 1 << 17)?;
        let head_dim = match keys.int("attention.key_length", 1024)? {
            Some(n) => n,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(keys.bad(
                    "embedding_length",
                    format!("is {hidden}, which {heads} heads do not divide"),
                ));
            }
        };
        if !head_dim.is_multiple_of(8) || head_dim > 1024 {
            return Err(keys.bad(
                "attention.key_length",
                format!("is {head_dim}: heads must be a multiple of 8 up to 1024"),
            ));
        }
        if let Some(n) = keys.int("attention.value_length", 1024)?
            && n != head_dim
        {
            return Err(keys.bad(
                "attention.value_length",
                format!("is {n}, but keys have {head_dim}: unequal sizes are not supported"),
            ));
        }
        let windowed_head_dim = keys
            .int("attention.key_length_swa", 1024)?
            .unwrap_or(head_dim);
        if !windowed_head_dim.is_multiple_of(8) || windowed_head_dim > head_dim {
            return Err(keys.bad(
                "attention.key_length_swa",
                format!(
                    "is {windowed_head_dim}: heads must be a multiple of 8, and those of a window \
                     not longer than the others' {head_dim}"
                ),
            ));
        }
        if let Some(n) = keys.int("attention.value_length_swa", 1024)?
            && n != windowed_head_dim
        {
            return Err(keys.bad(
                "attention.value_length_swa",
                format!(
                    "is {n}, but keys have {windowed_head_dim}: unequal sizes are not supported"
                ),
            ));
        }
        if let Some(n) = keys.int("rope.dimension_count_swa", 1024)?
            && n != windowed_head_dim
        {
            return Err(keys.bad(
                "rope.dimension_count_swa",
                format!("is {n}, but those heads have {windowed_head_dim}"),
            ));
        }
        let rotary = keys.int("rope.dimension_count", 1024)?.unwrap_or(head_dim);
        if rotary > head_dim || !rotary.is_multiple_of(2) {
            return Err(keys.bad(
                "rope.dimension_count",
                format!("is {rotary}: it must be even, and heads have {head_dim}"),
            ));
        }
        if matches!(keys.value("attention.causal"), Some(Value::Bool(false))) {
            return Err(keys.bad(
                "attention.causal",
                "is false: this model embeds texts and does not write any",
            ));
        }
        let layers = keys.required("block_count", 1024)?;
        let context = keys.required("context_length", MOST_CONTEXT)?;
        let vocab =
            vocab
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| ModelError::Tensor {
                    path: path.into(),
                    name: "token_embd.weight".into(),
                    what: "is missing: this is not a complete language model file".into(),
                })?;
        let share = match family.shared_scale == Some(layers) {
            true => hidden / heads,
            false => head_dim,
        };
        let scale =
            |key, default| Ok::<_, ModelError>(keys.float(key, 1e-6..=1e6)?.unwrap_or(default));
        let usual = family.scale.unwrap_or(1.0 / (share as f32).sqrt());
        let attention_scale = scale("attention.scale", usual)?;
        let root = match family.embedding_root {
            true => (hidden as f32).sqrt(),
            false => 1.0,
        };
        // 0 is none, and no key the family's.
        let cap = |which: &str, usual: Option<f32>| {
            let key = format!("{which}_logit_softcapping");
            match keys.value(&key) {
                None => Ok(usual),
                Some(_) => keys.float_or_off(&key, 1e-3..=1e6),
            }
        };
        let usual = family.softcaps;
        let score_cap = cap("attn", usual.map(|[scores, _]| scores))?;
        let logit_cap = cap("final", usual.map(|[_, logits]| logits))?;
        let feed_forwards = keys.each("feed_forward_length", layers, 1 << 20)?;
        let widest = feed_forwards.as_ref().and_then(|each| each.iter().max());
        let feed_forward = match widest {
            Some(widest) => *widest,
            None => keys.required("feed_forward_length", 1 << 20)?,
        };
        let or_none = |key, most| match keys.is_zero(key) {
            true => Ok(None),
            false => keys.int(key, most),
        };
        let rope = positions::rope(&keys, family, context)?;
        let sliding = positions::sliding(&keys, family, layers, rope)?;
        if let Some(s) = &sliding
            && windowed_head_dim < head_dim
        {
            let what = if (0..layers).all(|i| s.layers.has(i)) {
                format!("is {windowed_head_dim}, and no layer has heads of {head_dim}")
            } else if s.factors {
                format!("is {windowed_head_dim}: factors of RoPE are those of heads of {head_dim}")
            } else {
                String::new()
            };
            if !what.is_empty() {
                return Err(keys.bad("attention.key_length_swa", what));
            }
        }
        let shared = or_none("attention.shared_kv_layers", layers as u64 - 1)?.unwrap_or(0);
        let storing = layers - shared;
        let kind = |i: usize| sliding.as_ref().is_some_and(|s| s.layers.has(i));
        if (storing..layers).any(|i| !(0..storing).any(|j| kind(i) == kind(j))) {
            return Err(keys.bad(
                "attention.shared_kv_layers",
                format!("is {shared}: before these there is no layer of each kind"),
            ));
        }
        Ok(Self {
            family,
            name,
            layers,
            hidden,
            feed_forward,
            feed_forwards,
            heads,
            kv_heads,
            head_dim,
            windowed_head_dim,
            storing,
            per_layer: or_none("embedding_length_per_layer_input", 1 << 12)?,
            context,
            sliding,
            rope,
            turned: positions::turned(&keys, family),
            rotary,
            pairs: family.pairs,
            temperature: positions::temperature(&keys)?,
            attention_scale,
            score_cap,
            embedding_scale: scale("embedding_scale", root)?,
            residual_scale: scale("residual_scale", 1.0)?,
            // Granite's key divides.
            logit_scale: 1.0 / scale("logit_scale", 1.0)?,
            logit_cap,
            gate: family.gate,
            experts: experts::read(&keys, family, feed_forward)?,
            rms_eps: keys
                .float("attention.layer_norm_rms_epsilon", 1e-12..=1.0)?
                .unwrap_or(family.rms_eps),
            vocab,
        })
    }

    /// Shape of the heads of a layer.
    #[must_use]
    pub fn attention(&self, layer: usize) -> AttnConfig {
        AttnConfig {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.attention_scale,
            window: self.windowed(layer).map(|s| s.window),
            softcap: self.score_cap,
        }
    }

    /// The widest network that a row goes through.
    #[must_use]
    pub fn widest_feed_forward(&self) -> usize {
        let all = self.experts.map_or(self.feed_forward, |e| {
            e.feed_forward.max(e.shared.unwrap_or(0))
        });
        all.max(self.per_layer.unwrap_or(0))
    }

    /// Elements of a layer's heads.
    #[must_use]
    pub fn head_dim_of(&self, layer: usize) -> usize {
        match self.windowed(layer) {
            Some(_) => self.windowed_head_dim,
            None => self.head_dim,
        }
    }

    /// Values of a head that are turned, of layers with a window or without.
    #[must_use]
    pub fn rotary_of(&self, windowed: bool) -> usize {
        match windowed && self.windowed_head_dim < self.head_dim {
            true => self.windowed_head_dim,
            false => self.rotary,
        }
    }

    /// The layer that stores what a layer looks at.
    #[must_use]
    pub fn stored_by(&self, layer: usize) -> usize {
        let kind = |i| self.windowed(i).is_some();
        let alike = (0..self.storing).rev().find(|i| kind(*i) == kind(layer));
        match layer < self.storing {
            true => layer,
            false => alike.unwrap_or(0),
        }
    }

    /// Width of a layer's feed-forward network.
    #[must_use]
    pub fn feed_forward_of(&self, layer: usize) -> usize {
        let each = self.feed_forwards.as_ref();
        each.and_then(|each| each.get(layer))
            .copied()
            .unwrap_or(self.feed_forward)
    }

    /// The window of a layer that has one.
    #[must_use]
    pub fn windowed(&self, layer: usize) -> Option<&Sliding> {
        self.sliding.as_ref().filter(|s| s.layers.has(layer))
    }
}
