//! The shape of a model, read from its metadata and checked.
//!
//! Owns the allowed range of every number, and what sets one family of decoders
//! apart from another: as data, so that the decoder itself knows no family. The
//! ranges are far beyond any model and small enough that no product of them
//! overflows. Refuses to read tensors.

use super::{ModelError, keys::Keys};
use crate::{
    attention::AttnConfig,
    model::{
        rope::{RopeScaling, Yarn},
        step::ops::{Gate, RopePairs},
    },
};
use candle_core::quantized::gguf_file::{Content, Value};
use std::{ops::RangeInclusive, path::Path};

/// Architectures with a decoder, for error messages.
pub const SUPPORTED: &str =
    "llama (SmolLM2, Llama 2 and 3, Mistral, TinyLlama), qwen2 (and 2.5), qwen3, gemma3";

/// Positions above 2^24 are further than any model sees.
const MOST_CONTEXT: u64 = 1 << 24;

/// A family of decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, Mistral, SmolLM2.
    Llama,
    /// Qwen 2 and 2.5: queries, keys and values have biases.
    Qwen2,
    /// Qwen 3: each head of queries and keys is normed.
    Qwen3,
    /// Gemma 3: norms around attention and feed-forward, and most layers see
    /// a sliding window only.
    Gemma3,
}

impl Architecture {
    const ALL: [Self; 4] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma3];

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// `general.architecture`, and the prefix of its metadata keys.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
        }
    }
}

/// Rotary embedding of some layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub base: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

/// Layers that see the last tokens only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sliding {
    /// Tokens that they see, the row's own included.
    pub window: usize,
    /// Each so-manieth layer sees everything; none of them without.
    pub global_every: Option<usize>,
    /// Their rotary embedding.
    pub rope: RopeConfig,
}

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which family.
    pub arch: Architecture,
    /// `general.name`, for people.
    pub name: String,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of one head; a multiple of 8.
    pub head_dim: usize,
    /// Tokens that the model was trained for.
    pub context: usize,
    /// Rotary embedding of the layers that see everything.
    pub rope: RopeConfig,
    /// Which values of a head it turns together.
    pub pairs: RopePairs,
    /// Layers with a sliding window, if any.
    pub sliding: Option<Sliding>,
    /// What a product of query and key is multiplied by.
    pub attention_scale: f32,
    /// What rows of the embedding table are multiplied by.
    pub embedding_scale: f32,
    /// What bends the gate of the feed-forward network.
    pub gate: Gate,
    /// Whether queries, keys and values must have biases; they may in any case.
    pub qkv_bias: bool,
    /// Whether each head of queries and keys is normed before it is turned.
    pub qk_norm: bool,
    /// Whether what attention and feed-forward add is normed before.
    pub post_norms: bool,
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
        let arch = match content.metadata.get("general.architecture") {
            Some(Value::String(name)) => {
                Architecture::parse(name).ok_or_else(|| ModelError::Architecture {
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
            prefix: arch.name(),
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
        if let Some(n) = keys.int("rope.dimension_count", 1024)?
            && n != head_dim
        {
            return Err(keys.bad(
                "rope.dimension_count",
                format!(
                    "is {n}, but heads have {head_dim}: partial rotary embedding is not supported"
                ),
            ));
        }
        keys.refuse(
            "expert_count",
            "is above 1: mixtures of experts are not supported",
        )?;
        for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
            keys.refuse(key, "is set: soft caps are not supported")?;
        }
        if matches!(keys.value("attention.causal"), Some(Value::Bool(false))) {
            return Err(keys.bad(
                "attention.causal",
                "is false: this model embeds texts and does not write any",
            ));
        }
        let layers = keys.required("block_count", 1024)?;
        let context = keys.required("context_length", MOST_CONTEXT)?;
        let gemma = arch == Architecture::Gemma3;
        let rope = RopeConfig {
            base: keys
                .float("rope.freq_base", ROPE_BASES)?
                .map_or(if gemma { 1e6 } else { 1e4 }, f64::from),
            scaling: scaling(&keys, context)?,
        };
        let vocab =
            vocab
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| ModelError::Tensor {
                    path: path.into(),
                    name: "token_embd.weight".into(),
                    what: "is missing: this is not a complete language model file".into(),
                })?;
        // Gemma 3 was trained with 1 / sqrt(head_dim), but for the largest,
        // which is told by its layers: no key says so (as in llama.cpp).
        let share = if gemma && layers == 62 {
            hidden / heads
        } else {
            head_dim
        };
        let attention_scale = keys
            .float("attention.scale", 1e-6..=1e6)?
            .unwrap_or(1.0 / (share as f32).sqrt());
        Ok(Self {
            arch,
            name,
            layers,
            hidden,
            feed_forward: keys.required("feed_forward_length", 1 << 20)?,
            heads,
            kv_heads,
            head_dim,
            context,
            sliding: sliding(&keys, arch, rope)?,
            rope,
            pairs: match arch {
                Architecture::Llama => RopePairs::Adjacent,
                _ => RopePairs::Halves,
            },
            attention_scale,
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
            gate: if gemma { Gate::GeluTanh } else { Gate::Silu },
            qkv_bias: arch == Architecture::Qwen2,
            qk_norm: matches!(arch, Architecture::Qwen3 | Architecture::Gemma3),
            post_norms: gemma,
            // All families here are trained with this one unless their
            // configuration says otherwise (transformers' `rms_norm_eps`).
            rms_eps: keys
                .float("attention.layer_norm_rms_epsilon", 1e-12..=1.0)?
                .unwrap_or(1e-6),
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
            window: self
                .sliding
                .filter(|s| {
                    s.global_every
                        .is_none_or(|n| !(layer + 1).is_multiple_of(n))
                })
                .map(|s| s.window),
        }
    }
}

/// Bases of rotary embeddings: 1 would turn all pairs alike.
const ROPE_BASES: RangeInclusive<f32> = 2.0..=1e12;

/// How the rotary embedding is stretched. A factor without a type is linear,
/// as it was before there were types.
fn scaling(keys: &Keys<'_>, context: usize) -> Result<RopeScaling, ModelError> {
    let factor = |key| keys.float(key, 1e-3..=1e6);
    let linear = || {
        let by = match factor("rope.scaling.factor")? {
            None => factor("rope.scale_linear")?,
            by => by,
        };
        Ok(by.map_or(RopeScaling::None, |by| RopeScaling::Linear(f64::from(by))))
    };
    let kind = match keys.value("rope.scaling.type") {
        None => return linear(),
        Some(Value::String(kind)) => kind.as_str(),
        Some(other) => {
            let what = format!("is {:?}, not a string", other.value_type());
            return Err(keys.bad("rope.scaling.type", what));
        }
    };
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" => linear(),
        "yarn" => {
            let or = |key, range, default| {
                Ok::<_, ModelError>(keys.float(key, range)?.map_or(default, f64::from))
            };
            let factor = keys.float("rope.scaling.factor", 1.0..=1e6)?;
            let original = keys.int("rope.scaling.original_context_length", MOST_CONTEXT)?;
            Ok(RopeScaling::Yarn(Yarn {
                factor: f64::from(
                    factor.ok_or_else(|| {
                        keys.bad("rope.scaling.factor", "is missing: YaRN needs it")
                    })?,
                ),
                original_context: original.unwrap_or(context) as f64,
                beta_fast: or("rope.scaling.yarn_beta_fast", 1e-3..=1e6, 32.0)?,
                beta_slow: or("rope.scaling.yarn_beta_slow", 1e-3..=1e6, 1.0)?,
                extrapolation: or("rope.scaling.yarn_ext_factor", 0.0..=1.0, 1.0)?,
                attention: or("rope.scaling.attn_factor", 1e-3..=1e3, 1.0)?
                    * or("rope.scaling.yarn_attn_factor", 1e-3..=1e3, 1.0)?,
            }))
        }
        other => Err(keys.bad(
            "rope.scaling.type",
            format!("is {other:?}; supported: none, linear, yarn"),
        )),
    }
}

/// The layers with a sliding window. Files of Qwen name one that the models do
/// not use.
fn sliding(
    keys: &Keys<'_>,
    arch: Architecture,
    rope: RopeConfig,
) -> Result<Option<Sliding>, ModelError> {
    let window = keys.int("attention.sliding_window", MOST_CONTEXT)?;
    match arch {
        Architecture::Qwen2 | Architecture::Qwen3 => Ok(None),
        Architecture::Llama => Ok(window.map(|window| Sliding {
            window,
            global_every: None,
            rope,
        })),
        Architecture::Gemma3 => {
            let window = window.ok_or_else(|| {
                keys.bad("attention.sliding_window", "is missing: gemma3 needs it")
            })?;
            let mut base = 1e4;
            for key in ["rope.local_freq_base", "rope.freq_base_swa"] {
                base = keys.float(key, ROPE_BASES)?.map_or(base, f64::from);
            }
            let mut every = 6;
            for key in [
                "attention.sliding_window_type",
                "attention.sliding_window_pattern",
            ] {
                every = keys.int(key, 1024)?.unwrap_or(every);
            }
            Ok(Some(Sliding {
                window,
                global_every: Some(every),
                rope: RopeConfig {
                    base,
                    scaling: RopeScaling::None,
                },
            }))
        }
    }
}
