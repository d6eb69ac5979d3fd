//! The shape of a model, read from its metadata and checked.
//!
//! Owns the allowed range of every number: outside of it the error names the
//! key. The ranges are far beyond any model of the family and small enough
//! that no product of them overflows. Refuses to read tensors.

use super::ModelError;
use candle_core::quantized::gguf_file::{Content, Value};
use std::path::Path;

/// Architectures with a decoder, for error messages.
pub const SUPPORTED: &str = "llama (SmolLM2, Llama 2 and 3, Mistral, TinyLlama)";

/// A family of decoders that differ in more than numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, Mistral, SmolLM2: no biases, interleaved rotary embedding.
    Llama,
}

impl Architecture {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "llama" => Some(Self::Llama),
            _ => None,
        }
    }

    /// The prefix of its metadata keys.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
        }
    }
}

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which decoder.
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
    /// Elements of one head; even.
    pub head_dim: usize,
    /// Tokens that the model was trained for.
    pub context: usize,
    /// Base of the rotary embedding's frequencies.
    pub rope_base: f32,
    /// What positions are divided by (linear scaling); 1 without scaling.
    pub rope_scale: f32,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
    /// Rows of the embedding table.
    pub vocab: usize,
}

/// Reads numbers under one prefix.
struct Keys<'a> {
    path: &'a Path,
    content: &'a Content,
    prefix: &'static str,
}

impl Keys<'_> {
    fn bad(&self, key: &str, what: impl Into<String>) -> ModelError {
        ModelError::Metadata {
            path: self.path.into(),
            key: format!("{}.{key}", self.prefix),
            what: what.into(),
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(&format!("{}.{key}", self.prefix))
    }

    fn int(&self, key: &str, most: u64) -> Result<Option<usize>, ModelError> {
        let n = match self.value(key) {
            None => return Ok(None),
            Some(Value::U8(n)) => u64::from(*n),
            Some(Value::U16(n)) => u64::from(*n),
            Some(Value::U32(n)) => u64::from(*n),
            Some(Value::U64(n)) => *n,
            Some(Value::I32(n)) if *n >= 0 => u64::from(n.unsigned_abs()),
            Some(Value::I64(n)) if *n >= 0 => n.unsigned_abs(),
            Some(other) => {
                return Err(self.bad(
                    key,
                    format!("is {:?}, a count was expected", other.value_type()),
                ));
            }
        };
        match usize::try_from(n) {
            Ok(small) if (1..=most).contains(&n) => Ok(Some(small)),
            _ => Err(self.bad(
                key,
                format!("is {n}, which is not between 1 and {most}: the file is damaged"),
            )),
        }
    }

    fn required(&self, key: &str, most: u64) -> Result<usize, ModelError> {
        self.int(key, most)?.ok_or_else(|| {
            self.bad(
                key,
                "is missing: this is not a complete language model file",
            )
        })
    }

    fn float(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<f32>,
    ) -> Result<Option<f32>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            // NaN is in no range.
            Some(Value::F32(x)) if range.contains(x) => Ok(Some(*x)),
            Some(Value::F32(x)) => Err(self.bad(
                key,
                format!(
                    "is {x}, which is not between {:e} and {:e}",
                    range.start(),
                    range.end()
                ),
            )),
            Some(other) => Err(self.bad(key, format!("is {:?}, not F32", other.value_type()))),
        }
    }
}

impl Config {
    /// Reads and checks the shape.
    pub(super) fn read(path: &Path, content: &Content) -> Result<Self, ModelError> {
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
        if matches!(keys.value("expert_count"), Some(Value::U32(n)) if *n > 1) {
            return Err(keys.bad(
                "expert_count",
                "is above 1: mixtures of experts are not supported",
            ));
        }
        let rope_scale = match keys.value("rope.scaling.type") {
            None => 1.0,
            Some(Value::String(s)) if s == "none" => 1.0,
            Some(Value::String(s)) if s == "linear" => keys
                .float("rope.scaling.factor", 1e-3..=1e6)?
                .unwrap_or(1.0),
            Some(other) => {
                return Err(keys.bad(
                    "rope.scaling.type",
                    format!("is {other:?}; supported: none, linear"),
                ));
            }
        };
        let vocab = content
            .tensor_infos
            .get("token_embd.weight")
            .and_then(|t| t.shape.dims().first().copied())
            .ok_or_else(|| ModelError::Tensor {
                path: path.into(),
                name: "token_embd.weight".into(),
                what: "is missing: this is not a complete language model file".into(),
            })?;
        Ok(Self {
            arch,
            name,
            layers: keys.required("block_count", 1024)?,
            hidden,
            feed_forward: keys.required("feed_forward_length", 1 << 20)?,
            heads,
            kv_heads,
            head_dim,
            // Positions above 2^24 are not exact in f32, in which the rotary
            // embedding is computed.
            context: keys.required("context_length", 1 << 24)?,
            rope_base: keys
                .float("rope.freq_base", 1.0..=1e12)?
                .unwrap_or(10_000.0),
            rope_scale,
            rms_eps: keys
                .float("attention.layer_norm_rms_epsilon", 1e-12..=1.0)?
                .ok_or_else(|| keys.bad("attention.layer_norm_rms_epsilon", "is missing"))?,
            vocab,
        })
    }
}
