//! Tiny models with random weights, complete as far as a decoder looks: what
//! an architecture computes can be compared without a download.
//!
//! Invariant: the same seed gives the same file. Out of scope: tokenizers.

use candle_core::{
    Device, Result, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use std::{collections::BTreeMap, path::Path};

/// What a tiny model is to be.
#[derive(Clone, Debug)]
pub struct Shape {
    /// `general.architecture`: llama, qwen2, qwen3 or gemma3.
    pub arch: &'static str,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Tokens.
    pub vocab: usize,
    /// Whether the output weight is the embedding.
    pub tied: bool,
    /// Types of the matrices, in turn; where rows are no whole blocks, `Q8_0`.
    pub types: &'static [GgmlDType],
    /// Of all weights.
    pub seed: u64,
}

impl Shape {
    /// The smallest: one layer of llama's, all of it `Q8_0`.
    pub const SMALL: Self = Self {
        arch: "llama",
        layers: 1,
        hidden: 32,
        feed_forward: 32,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        vocab: 128,
        tied: true,
        types: &[GgmlDType::Q8_0],
        seed: 1,
    };
}

/// A model that can be changed before it is written.
#[derive(Debug)]
pub struct Tiny {
    /// By key.
    pub metadata: BTreeMap<String, Value>,
    /// By name.
    pub tensors: BTreeMap<String, QTensor>,
    prefix: String,
    noise: Noise,
}

/// Evenly spread numbers (Steele and others, "Fast splittable pseudorandom
/// number generators", 2014).
#[derive(Debug)]
struct Noise(u64);

impl Noise {
    /// From -1 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

impl Tiny {
    /// Draws the weights.
    ///
    /// # Errors
    /// candle cannot make a tensor of the shape.
    pub fn new(shape: &Shape) -> Result<Self> {
        let mut tiny = Self {
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
            prefix: shape.arch.into(),
            noise: Noise(shape.seed),
        };
        let arch = Value::String(shape.arch.into());
        tiny.metadata.insert("general.architecture".into(), arch);
        // By which candle's qwen3 chooses the type of its rotary embedding.
        tiny.metadata.insert("general.dtype".into(), Value::U32(0));
        for (key, n) in [
            ("block_count", shape.layers),
            ("context_length", 512),
            ("embedding_length", shape.hidden),
            ("feed_forward_length", shape.feed_forward),
            ("attention.head_count", shape.heads),
            ("attention.head_count_kv", shape.kv_heads),
            ("attention.key_length", shape.head_dim),
            ("attention.value_length", shape.head_dim),
            ("rope.dimension_count", shape.head_dim),
        ] {
            let n = u32::try_from(n).map_err(candle_core::Error::wrap)?;
            tiny.set(key, Value::U32(n));
        }
        tiny.set("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
        tiny.set("rope.freq_base", Value::F32(50_000.0));
        tiny.draw(shape)?;
        Ok(tiny)
    }

    /// One that was written.
    ///
    /// # Errors
    /// candle cannot read the file.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = std::fs::File::open(path)?;
        let content = gguf_file::Content::read(&mut file)?;
        let names = content.tensor_infos.keys();
        let tensors = names.map(|name| {
            let tensor = content.tensor(&mut file, name, &Device::Cpu)?;
            Ok((name.clone(), tensor))
        });
        let tensors = tensors.collect::<Result<_>>()?;
        let prefix = content.metadata.get("general.architecture");
        let prefix = prefix.and_then(|arch| arch.to_string().ok());
        Ok(Self {
            prefix: prefix.cloned().unwrap_or_default(),
            metadata: content.metadata.into_iter().collect(),
            tensors,
            noise: Noise(0),
        })
    }

    /// `general.architecture`, the prefix of its keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Sets a key under the architecture's prefix.
    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata
            .insert(format!("{}.{key}", self.prefix), value);
    }

    fn draw(&mut self, s: &Shape) -> Result<()> {
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let gemma = s.arch == "gemma3";
        let mut types = s.types.iter().copied().cycle();
        let mut next = || types.next().unwrap_or(GgmlDType::F32);
        // gemma multiplies its embedding by the root of its width.
        let embedding = if gemma {
            (s.hidden as f32).sqrt().recip()
        } else {
            1.0
        };
        self.matrix("token_embd.weight", s.vocab, s.hidden, embedding, next())?;
        if !s.tied {
            self.matrix("output.weight", s.vocab, s.hidden, spread(s.hidden), next())?;
        }
        self.vector("output_norm.weight", s.hidden, 1.0, 0.3)?;
        for i in 0..s.layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            // Sharp attention, so that a key out of place is seen.
            let (sharp, usual) = (2.0 * spread(s.hidden), spread(s.hidden));
            self.matrix(&name("attn_q"), q, s.hidden, sharp, next())?;
            self.matrix(&name("attn_k"), kv, s.hidden, sharp, next())?;
            self.matrix(&name("attn_v"), kv, s.hidden, usual, next())?;
            self.matrix(&name("attn_output"), s.hidden, q, spread(q), next())?;
            let f = s.feed_forward;
            self.matrix(&name("ffn_gate"), f, s.hidden, usual, next())?;
            self.matrix(&name("ffn_up"), f, s.hidden, usual, next())?;
            self.matrix(&name("ffn_down"), s.hidden, f, spread(f), next())?;
            self.vector(&name("attn_norm"), s.hidden, 1.0, 0.3)?;
            self.vector(&name("ffn_norm"), s.hidden, 1.0, 0.3)?;
            if s.arch == "qwen2" {
                for (part, len) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                    self.vector(&format!("blk.{i}.{part}.bias"), len, 0.0, 0.5)?;
                }
            }
            if matches!(s.arch, "qwen3" | "gemma3") {
                self.vector(&name("attn_q_norm"), s.head_dim, 1.3, 0.4)?;
                self.vector(&name("attn_k_norm"), s.head_dim, 1.3, 0.4)?;
            }
            if gemma {
                self.vector(&name("post_attention_norm"), s.hidden, 0.7, 0.3)?;
                self.vector(&name("post_ffw_norm"), s.hidden, 0.7, 0.3)?;
            }
        }
        Ok(())
    }

    fn matrix(&mut self, name: &str, n: usize, k: usize, most: f32, kind: GgmlDType) -> Result<()> {
        let values: Vec<_> = (0..n * k).map(|_| most * self.noise.next()).collect();
        // candle asserts pairs of blocks of these.
        let whole = match kind {
            GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1 => 64,
            _ => kind.block_size(),
        };
        let kind = if k.is_multiple_of(whole) {
            kind
        } else {
            GgmlDType::Q8_0
        };
        self.insert(name, &values, &[n, k], kind)
    }

    fn vector(&mut self, name: &str, len: usize, about: f32, by: f32) -> Result<()> {
        let values: Vec<_> = (0..len).map(|_| about + by * self.noise.next()).collect();
        self.insert(name, &values, &[len], GgmlDType::F32)
    }

    /// Puts a tensor into the model, or in the place of another.
    ///
    /// # Errors
    /// The shape does not fit the values, or their type.
    pub fn insert(
        &mut self,
        name: &str,
        values: &[f32],
        shape: &[usize],
        kind: GgmlDType,
    ) -> Result<()> {
        let t = Tensor::from_slice(values, shape, &Device::Cpu)?;
        self.tensors
            .insert(name.into(), QTensor::quantize(&t, kind)?);
        Ok(())
    }

    /// Writes the model as a GGUF file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let mut out = std::io::Cursor::new(Vec::new());
        gguf_file::write(&mut out, &metadata, &tensors)?;
        Ok(std::fs::write(path, out.into_inner())?)
    }
}

/// Bound of weights whose products are as large as their inputs.
fn spread(k: usize) -> f32 {
    (3.0 / k as f32).sqrt()
}
