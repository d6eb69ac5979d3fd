//! A Llama of candle-nn's and candle-transformers' parts that leaves its keys
//! and values to others.
//!
//! Owns the layers and what a cache must do for them. Two do: candle's own, and
//! kvpsi's. Out of scope: tokens and sampling.

use candle_core::{
    D, DType, Device, Module, Result, Tensor,
    quantized::gguf_file::{Content, Value},
};
use candle_nn::{Linear, kv_cache::KvCache, ops::softmax_last_dim, rotary_emb::rope_i};
use candle_transformers::{
    quantized_nn::{Embedding, RmsNorm},
    quantized_var_builder::VarBuilder,
    utils::repeat_kv,
};
use std::path::Path;

/// What a layer needs of a cache: it stores the keys and values
/// `[1, kv_heads, rows, head_dim]` of a step's rows and attends over all so far.
pub trait Attention {
    /// Position of the step's first row.
    fn position(&self) -> usize;

    /// What the queries `[1, heads, rows, head_dim]` see, of the same shape.
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor>;
}

impl Attention for kvpsi::cache::Step<'_> {
    fn position(&self) -> usize {
        kvpsi::cache::Step::position(self)
    }

    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        kvpsi::cache::Step::attend(self, layer, q, k, v)
    }
}

/// candle's own cache: tensors that grow.
pub struct Candle(Vec<KvCache>);

impl Candle {
    pub fn new(config: Config) -> Self {
        Self((0..config.layers).map(|_| KvCache::new(2, 64)).collect())
    }
}

impl Attention for Candle {
    fn position(&self) -> usize {
        self.0.first().map_or(0, KvCache::current_seq_len)
    }

    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (_, heads, rows, head_dim) = q.dims4()?;
        let before = self.0[layer].current_seq_len();
        let (k, v) = self.0[layer].append(&k.contiguous()?, &v.contiguous()?)?;
        let groups = heads / k.dim(1)?;
        let (k, v) = (repeat_kv(k, groups)?, repeat_kv(v, groups)?);
        let scores = (q.contiguous()?.matmul(&k.t()?)? / (head_dim as f64).sqrt())?;
        let hidden = |row: usize, at: usize| {
            if at > before + row {
                f32::NEG_INFINITY
            } else {
                0.0
            }
        };
        let mask: Vec<f32> = (0..rows)
            .flat_map(|row| (0..before + rows).map(move |at| hidden(row, at)))
            .collect();
        let mask = Tensor::from_vec(mask, (rows, before + rows), q.device())?;
        softmax_last_dim(&scores.broadcast_add(&mask)?)?.matmul(&v)
    }
}

/// Shape of a model.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub layers: usize,
    pub hidden: usize,
    pub feed_forward: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub eps: f64,
    pub theta: f32,
}

struct Layer {
    attn_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    ffn_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A matrix in f32: candle rounds the rows that it multiplies by a quantized one
/// to 8 bits, and two caches are then as far apart as that rounding.
fn linear(from: usize, to: usize, vb: VarBuilder) -> Result<Linear> {
    let weight = vb.get((to, from), "weight")?.dequantize(vb.device())?;
    Ok(Linear::new(weight, None))
}

/// Embedding, layers, output: the embedding again where the file has no other.
pub struct Model {
    pub config: Config,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Linear,
}

impl Model {
    /// Reads a GGUF file of the `llama` family.
    pub fn open(path: &Path) -> Result<Self> {
        let content = Content::read(&mut std::fs::File::open(path)?)?;
        let key = |name: &str| {
            let value = content.metadata.get(&format!("llama.{name}"));
            value.ok_or_else(|| candle_core::Error::Msg(format!("llama.{name} is missing")))
        };
        let n = |name: &str| key(name)?.to_u32().map(|n| n as usize);
        let theta = key("rope.freq_base").and_then(Value::to_f32);
        let (hidden, heads) = (n("embedding_length")?, n("attention.head_count")?);
        let embedding = content.tensor_infos.get("token_embd.weight");
        let config = Config {
            layers: n("block_count")?,
            hidden,
            feed_forward: n("feed_forward_length")?,
            heads,
            kv_heads: n("attention.head_count_kv")?,
            head_dim: n("attention.key_length").unwrap_or(hidden / heads),
            vocab: embedding.map_or(0, |t| t.shape.dims()[0]),
            eps: f64::from(key("attention.layer_norm_rms_epsilon")?.to_f32()?),
            theta: theta.unwrap_or(10_000.0),
        };
        Self::build(config, &VarBuilder::from_gguf(path, &Device::Cpu)?)
    }

    fn build(c: Config, vb: &VarBuilder) -> Result<Self> {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let layer = |i: usize| {
            let vb = vb.pp("blk").pp(i);
            Ok(Layer {
                attn_norm: RmsNorm::new(c.hidden, c.eps, vb.pp("attn_norm"))?,
                q: linear(c.hidden, q, vb.pp("attn_q"))?,
                k: linear(c.hidden, kv, vb.pp("attn_k"))?,
                v: linear(c.hidden, kv, vb.pp("attn_v"))?,
                out: linear(q, c.hidden, vb.pp("attn_output"))?,
                ffn_norm: RmsNorm::new(c.hidden, c.eps, vb.pp("ffn_norm"))?,
                gate: linear(c.hidden, c.feed_forward, vb.pp("ffn_gate"))?,
                up: linear(c.hidden, c.feed_forward, vb.pp("ffn_up"))?,
                down: linear(c.feed_forward, c.hidden, vb.pp("ffn_down"))?,
            })
        };
        let output = match vb.contains_key("output.weight") {
            true => vb.pp("output"),
            false => vb.pp("token_embd"),
        };
        Ok(Self {
            config: c,
            embedding: Embedding::new(c.vocab, c.hidden, vb.pp("token_embd"))?,
            layers: (0..c.layers).map(layer).collect::<Result<_>>()?,
            norm: RmsNorm::new(c.hidden, c.eps, vb.pp("output_norm"))?,
            output: linear(c.hidden, c.vocab, output)?,
        })
    }

    /// The logits after the last of `tokens`, `[vocab]`.
    pub fn forward(&self, tokens: &[u32], cache: &mut dyn Attention) -> Result<Tensor> {
        let (c, rows) = (self.config, tokens.len());
        let (cos, sin) = self.angles(cache.position(), rows)?;
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let mut x = self.embedding.forward(&tokens)?;
        let heads =
            |x: Tensor, heads: usize| x.reshape((1, rows, heads, c.head_dim))?.transpose(1, 2);
        for (i, layer) in self.layers.iter().enumerate() {
            let h = layer.attn_norm.forward(&x)?;
            let q = heads(layer.q.forward(&h)?, c.heads)?.contiguous()?;
            let k = heads(layer.k.forward(&h)?, c.kv_heads)?.contiguous()?;
            let v = heads(layer.v.forward(&h)?, c.kv_heads)?;
            let (q, k) = (rope_i(&q, &cos, &sin)?, rope_i(&k, &cos, &sin)?);
            let attended = cache.attend(i, &q, &k, &v)?;
            let attended = attended
                .transpose(1, 2)?
                .reshape((1, rows, c.heads * c.head_dim))?;
            x = (x + layer.out.forward(&attended)?)?;
            let h = layer.ffn_norm.forward(&x)?;
            let gate = layer.gate.forward(&h)?.silu()?;
            x = (x + layer.down.forward(&(gate * layer.up.forward(&h)?)?)?)?;
        }
        let last = x.narrow(1, rows - 1, 1)?;
        self.output
            .forward(&self.norm.forward(&last)?)?
            .flatten_all()
    }

    /// Cosines and sines of the rows' positions, `[rows, head_dim / 2]`.
    fn angles(&self, first: usize, rows: usize) -> Result<(Tensor, Tensor)> {
        let (half, theta) = (self.config.head_dim / 2, self.config.theta);
        let frequencies: Vec<f32> = (0..half)
            .map(|i| theta.powf(-(i as f32) / half as f32))
            .collect();
        let frequencies = Tensor::new(frequencies, &Device::Cpu)?.unsqueeze(0)?;
        let positions = Tensor::arange(first as u32, (first + rows) as u32, &Device::Cpu)?;
        let positions = positions.to_dtype(DType::F32)?.unsqueeze(D::Minus1)?;
        let angles = positions.matmul(&frequencies)?;
        Ok((angles.cos()?, angles.sin()?))
    }
}
