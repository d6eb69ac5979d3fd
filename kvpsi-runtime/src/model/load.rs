//! From tensors of a file to a decoder.
//!
//! Owns names and shapes of the tensors of each layer. Matrices are repacked
//! straight from the mapped file, whose pages are let go as soon as they were
//! read, so that weights are resident once. Invariants: a tensor has
//! the shape that the metadata asks for and holds finite numbers; none that
//! belongs to the model is left out in silence. Errors name the tensor.

use super::{
    decoder::{Decoder, Layer},
    gguf::{Config, Gguf, ModelError},
    linear::Linear,
    rope::Rope,
};
use crate::units::Bytes;
use std::collections::HashSet;

type Result<T> = std::result::Result<T, ModelError>;

/// Tensors that old converters wrote and that say what the metadata says.
const REDUNDANT: [&str; 2] = ["attn_rot_embd.weight", "rotary_emb.inv_freq"];

/// Encoders of pictures and sound and what joins them to the text model: files
/// of Ollama hold them, and text does not need them.
const OTHER_SENSES: [&str; 3] = ["v.", "mm.", "a."];

/// Told after each tensor: bytes read so far, and bytes of all tensors.
pub type Progress<'a> = &'a mut dyn FnMut(Bytes, Bytes);

/// Reads tensors, counts their bytes and remembers which they were.
struct Reader<'a> {
    gguf: &'a Gguf,
    read: HashSet<String>,
    bytes: u64,
    progress: Progress<'a>,
}

impl Reader<'_> {
    fn bad(&self, name: &str, what: impl Into<String>) -> ModelError {
        ModelError::Tensor {
            path: self.gguf.path().into(),
            name: name.into(),
            what: what.into(),
        }
    }

    fn done_with(&mut self, name: &str, bytes: usize) {
        self.gguf.let_go(name);
        self.read.insert(name.to_owned());
        self.bytes += bytes as u64;
        (self.progress)(Bytes(self.bytes), self.gguf.tensor_bytes());
    }

    fn linear(&mut self, name: &str, out: usize, from: usize) -> Result<Linear> {
        let data = self.gguf.data(name, &[out, from])?;
        let linear = Linear::from_rows(name, data.format, (out, from), data.bytes);
        let linear = linear.map_err(|e| {
            let message = e.to_string();
            let what = message.strip_prefix(&format!("tensor {name}: "));
            self.bad(name, what.unwrap_or(&message))
        })?;
        self.done_with(name, data.bytes.len());
        Ok(linear)
    }

    /// A vector, widened to f32.
    fn vector(&mut self, name: &str, len: usize) -> Result<Box<[f32]>> {
        let data = self.gguf.data(name, &[len])?;
        let values = data.format.dequantize(data.bytes, len);
        self.done_with(name, data.bytes.len());
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values.into()),
            Some(at) => Err(self.bad(
                name,
                format!(
                    "holds {} at {at}: the file is damaged, fetch it again",
                    values[at]
                ),
            )),
        }
    }

    fn layer(&mut self, c: &Config, i: usize) -> Result<Layer> {
        let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        let bias = |part: &str| format!("blk.{i}.{part}.bias");
        let attn = c.attention(i);
        let has_bias = c.qkv_bias || self.gguf.has(&bias("attn_q"));
        Ok(Layer {
            rope: usize::from(attn.window.is_some()),
            attn,
            attn_norm: self.vector(&name("attn_norm"), c.hidden)?,
            q: self.linear(&name("attn_q"), q_width, c.hidden)?,
            k: self.linear(&name("attn_k"), kv_width, c.hidden)?,
            v: self.linear(&name("attn_v"), kv_width, c.hidden)?,
            qkv_bias: match has_bias {
                true => Some([
                    self.vector(&bias("attn_q"), q_width)?,
                    self.vector(&bias("attn_k"), kv_width)?,
                    self.vector(&bias("attn_v"), kv_width)?,
                ]),
                false => None,
            },
            qk_norm: match c.qk_norm {
                true => Some([
                    self.vector(&name("attn_q_norm"), c.head_dim)?,
                    self.vector(&name("attn_k_norm"), c.head_dim)?,
                ]),
                false => None,
            },
            out: self.linear(&name("attn_output"), c.hidden, q_width)?,
            post_attn_norm: self.post_norm(c, &name("post_attention_norm"))?,
            ffn_norm: self.vector(&name("ffn_norm"), c.hidden)?,
            gate: self.linear(&name("ffn_gate"), c.feed_forward, c.hidden)?,
            up: self.linear(&name("ffn_up"), c.feed_forward, c.hidden)?,
            down: self.linear(&name("ffn_down"), c.hidden, c.feed_forward)?,
            post_ffn_norm: self.post_norm(c, &name("post_ffw_norm"))?,
        })
    }

    fn post_norm(&mut self, c: &Config, name: &str) -> Result<Option<Box<[f32]>>> {
        match c.post_norms {
            true => self.vector(name, c.hidden).map(Some),
            false => Ok(None),
        }
    }

    /// Llama 3.1 and later stretch the low frequencies by these factors.
    fn rope_factors(&mut self, c: &Config) -> Result<Option<Box<[f32]>>> {
        let name = "rope_freqs.weight";
        if !self.gguf.has(name) {
            return Ok(None);
        }
        let factors = self.vector(name, c.head_dim / 2)?;
        if let Some(by) = factors.iter().find(|&&by| !(1e-3..=1e6).contains(&by)) {
            return Err(self.bad(name, format!("divides a frequency by {by}")));
        }
        Ok(Some(factors))
    }

    /// No tensor may be left over: the model would not be what it was.
    fn all_read(&self, c: &Config) -> Result<()> {
        let left = self.gguf.tensors().map(|(name, ..)| name).filter(|name| {
            !self.read.contains(*name)
                && !OTHER_SENSES.iter().any(|start| name.starts_with(start))
                && !REDUNDANT.iter().any(|end| name.ends_with(end))
        });
        match left.min() {
            None => Ok(()),
            Some(name) => Err(self.bad(
                name,
                format!("has no place in a {} decoder of kvpsi", c.arch.name()),
            )),
        }
    }
}

impl Decoder {
    /// Reads the weights.
    ///
    /// # Errors
    /// A tensor is missing, has another shape than the metadata says or holds
    /// what is no number, or the file holds tensors that this decoder would
    /// have to use and cannot.
    pub fn load(gguf: &Gguf) -> Result<Self> {
        Self::load_with(gguf, &mut |_, _| ())
    }

    /// [`Decoder::load`] for whoever wants to show how far it is.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_with(gguf: &Gguf, progress: Progress<'_>) -> Result<Self> {
        let c = gguf.config().clone();
        let mut from = Reader {
            gguf,
            read: HashSet::new(),
            bytes: 0,
            progress,
        };
        let embedding = from.linear("token_embd.weight", c.vocab, c.hidden)?;
        let layers = (0..c.layers).map(|i| from.layer(&c, i));
        let layers = layers.collect::<Result<_>>()?;
        let norm = from.vector("output_norm.weight", c.hidden)?;
        let output = match from.gguf.has("output.weight") {
            true => Some(from.linear("output.weight", c.vocab, c.hidden)?),
            false => None,
        };
        let factors = from.rope_factors(&c)?;
        from.all_read(&c)?;
        let rope =
            |r: super::gguf::RopeConfig, factors| Rope::new(c.head_dim, r.base, r.scaling, factors);
        let mut ropes = vec![rope(c.rope, factors.as_deref())];
        ropes.extend(c.sliding.map(|s| rope(s.rope, factors.as_deref())));
        Ok(Self {
            ropes,
            weights: Bytes(from.bytes),
            config: c,
            embedding,
            layers,
            norm,
            output,
        })
    }
}
