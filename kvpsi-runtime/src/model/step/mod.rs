//! The decode step: a few rows through the decoder without a tensor.
//!
//! Owns the memory of a step, asked for once and sized by the model and the
//! most rows of a step; a step allocates nothing after that (weights without
//! kernels here go through candle, which does). The matrix products and the
//! attention are the ones that candle's operations run on. Several sequences
//! share each weight read. Refuses to know where KV lives, and what the logits
//! are for. Prefill, with its many rows, is `Decoder::forward`.

pub mod ops;

use super::{
    decoder::{Decoder, Layer},
    gguf::Config,
    linear::{QuantizedRows, products_into},
};
use crate::{
    attention::{AttnMemory, Qkv, RowSpan, attend_into},
    kv::KvPool,
};
use candle_core::{Result, Storage, Tensor, bail};
use std::sync::Arc;

/// Rows that a step has memory for unless the caller says otherwise.
pub const MOST_ROWS: usize = 8;

/// The memory of decode steps, for one decoder and one pool.
#[derive(Debug)]
pub struct Step {
    most_rows: usize,
    vocab: usize,
    /// Spans of the last step.
    spans: usize,
    /// The residual stream `[rows, hidden]`.
    x: Vec<f32>,
    /// Its norm, or what is to be added to it.
    h: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    logits: Vec<f32>,
    /// Of each rotary embedding, `most_rows` rows of half a head.
    cos: Vec<f32>,
    sin: Vec<f32>,
    acts: QuantizedRows,
    memory: AttnMemory,
}

impl Step {
    /// Memory for steps of up to `most_rows` rows of `decoder` over `pool`.
    #[must_use]
    pub fn new(decoder: &Decoder, pool: &KvPool, most_rows: usize) -> Self {
        let c = decoder.config();
        let of = |width: usize| vec![0.0; most_rows * width];
        let widest = c.hidden.max(c.feed_forward).max(c.heads * c.head_dim);
        Self {
            most_rows,
            vocab: c.vocab,
            spans: 0,
            x: of(c.hidden),
            h: of(c.hidden),
            q: of(c.heads * c.head_dim),
            k: of(c.kv_heads * c.head_dim),
            v: of(c.kv_heads * c.head_dim),
            attended: of(c.heads * c.head_dim),
            gate: of(c.feed_forward),
            up: of(c.feed_forward),
            logits: of(c.vocab),
            cos: of(decoder.ropes.len() * c.head_dim / 2),
            sin: of(decoder.ropes.len() * c.head_dim / 2),
            acts: QuantizedRows::with_room(most_rows * widest),
            memory: AttnMemory::with_room(pool, &c.attention(0), most_rows),
        }
    }

    /// Rows that there is memory for.
    #[must_use]
    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// The logits of the last step, `[spans, vocab]`.
    pub fn logits(&mut self) -> &mut [f32] {
        &mut self.logits[..self.spans * self.vocab]
    }
}

impl Decoder {
    /// The rows of any number of sequences in the memory of `step`: as many as
    /// it has room for without a tensor, more of them (prefill) by
    /// [`Decoder::forward`]. Returns f32 logits `[spans, vocab]`, those of
    /// each span's last row, to be changed at will until the next step.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; more spans than `step` has memory for.
    pub fn step<'s>(
        &self,
        tokens: &[u32],
        rows: &[RowSpan],
        pool: &Arc<KvPool>,
        step: &'s mut Step,
    ) -> Result<&'s mut [f32]> {
        let count = tokens.len();
        if rows.len() > step.most_rows {
            bail!(
                "{} sequences for a step of at most {}",
                rows.len(),
                step.most_rows
            );
        }
        step.spans = rows.len();
        if count > step.most_rows {
            let logits = self.forward(tokens, rows.into(), pool)?;
            with_values(&logits, |logits| step.logits().copy_from_slice(logits))?;
            return Ok(step.logits());
        }
        if rows.iter().map(|s| s.rows).sum::<usize>() != count || rows.iter().any(|s| s.rows == 0) {
            bail!("{count} tokens for spans of other rows");
        }
        let c = self.config();
        step.embed(self, tokens)?;
        step.angles(self, rows);
        for (i, layer) in self.layers.iter().enumerate() {
            step.attention(c, layer, i, rows, pool)?;
            step.feed_forward(c, layer, count)?;
        }
        step.keep_last(c, rows);
        step.output(self)?;
        Ok(step.logits())
    }
}

impl Step {
    fn embed(&mut self, decoder: &Decoder, tokens: &[u32]) -> Result<()> {
        let rows = self.x.chunks_exact_mut(decoder.config().hidden);
        for (&token, row) in tokens.iter().zip(rows) {
            decoder.embedding.row_into(token, row)?;
            let by = decoder.config().embedding_scale;
            if by != 1.0 {
                row.iter_mut().for_each(|x| *x *= by);
            }
        }
        Ok(())
    }

    /// Cosines and sines of the rows' positions, the same for all layers of a
    /// rotary embedding.
    fn angles(&mut self, decoder: &Decoder, rows: &[RowSpan]) {
        let half = decoder.config().head_dim / 2;
        let each = (self.most_rows * half).max(1);
        let of_ropes = self
            .cos
            .chunks_exact_mut(each)
            .zip(self.sin.chunks_exact_mut(each));
        for (rope, (cos, sin)) in decoder.ropes.iter().zip(of_ropes) {
            let positions = rows.iter().flat_map(|s| s.first_pos..s.first_pos + s.rows);
            let tables = cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half));
            for (pos, (cos, sin)) in positions.zip(tables) {
                rope.angles(pos, cos, sin);
            }
        }
    }

    fn attention(
        &mut self,
        c: &Config,
        layer: &Layer,
        index: usize,
        spans: &[RowSpan],
        pool: &KvPool,
    ) -> Result<()> {
        let rows = spans.iter().map(|s| s.rows).sum::<usize>();
        let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let h = &mut self.h[..rows * c.hidden];
        norm(&self.x[..rows * c.hidden], &layer.attn_norm, c, h)?;
        let q = &mut self.q[..rows * q_width];
        let k = &mut self.k[..rows * kv_width];
        let v = &mut self.v[..rows * kv_width];
        let linears = [&layer.q, &layer.k, &layer.v];
        products_into(linears, h, rows, &mut self.acts, [q, k, v])?;
        if let Some(biases) = &layer.qkv_bias {
            for (x, bias) in [&mut *q, &mut *k, &mut *v].into_iter().zip(biases) {
                with_values(bias, |bias| {
                    x.chunks_exact_mut(bias.len()).for_each(|x| add(x, bias));
                })?;
            }
        }
        if let Some(norms) = &layer.qk_norm {
            for (x, norm) in [&mut *q, &mut *k].into_iter().zip(norms) {
                with_values(norm, |norm| ops::rms_norm_in_place(x, norm, c.rms_eps))?;
            }
        }
        let half = c.head_dim / 2;
        let from = layer.rope * self.most_rows * half;
        let (cos, sin) = (&self.cos[from..], &self.sin[from..]);
        let tables = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        let rows_of_both = q
            .chunks_exact_mut(q_width)
            .zip(k.chunks_exact_mut(kv_width));
        for ((q, k), (cos, sin)) in rows_of_both.zip(tables) {
            ops::rotate(q, cos, sin, c.pairs);
            ops::rotate(k, cos, sin, c.pairs);
        }
        let a = &mut self.attended[..rows * q_width];
        attend_into(
            Qkv { q, k, v },
            pool,
            index,
            spans,
            layer.attn,
            &mut self.memory,
            a,
        )?;
        products_into([&layer.out], a, rows, &mut self.acts, [h])?;
        norm_in_place(h, layer.post_attn_norm.as_ref(), c)?;
        add(&mut self.x, h);
        Ok(())
    }

    fn feed_forward(&mut self, c: &Config, layer: &Layer, rows: usize) -> Result<()> {
        let h = &mut self.h[..rows * c.hidden];
        norm(&self.x[..rows * c.hidden], &layer.ffn_norm, c, h)?;
        let gate = &mut self.gate[..rows * c.feed_forward];
        let up = &mut self.up[..rows * c.feed_forward];
        products_into(
            [&layer.gate, &layer.up],
            h,
            rows,
            &mut self.acts,
            [gate, up],
        )?;
        ops::gated(gate, up, c.gate);
        products_into([&layer.down], gate, rows, &mut self.acts, [h])?;
        norm_in_place(h, layer.post_ffn_norm.as_ref(), c)?;
        add(&mut self.x, h);
        Ok(())
    }

    /// Moves each span's last row to the front: nobody looks at the others.
    fn keep_last(&mut self, c: &Config, rows: &[RowSpan]) {
        let mut end = 0;
        for (i, span) in rows.iter().enumerate() {
            end += span.rows;
            self.x
                .copy_within((end - 1) * c.hidden..end * c.hidden, i * c.hidden);
        }
    }

    fn output(&mut self, decoder: &Decoder) -> Result<()> {
        let (c, rows) = (decoder.config(), self.spans);
        let h = &mut self.h[..rows * c.hidden];
        norm(&self.x[..rows * c.hidden], &decoder.norm, c, h)?;
        let logits = &mut self.logits[..rows * c.vocab];
        let output = decoder.output.as_ref().unwrap_or(&decoder.embedding);
        products_into([output], h, rows, &mut self.acts, [logits])
    }
}

/// The norm of every row.
fn norm(x: &[f32], weight: &Tensor, c: &Config, out: &mut [f32]) -> Result<()> {
    with_values(weight, |weight| {
        let rows = x
            .chunks_exact(weight.len())
            .zip(out.chunks_exact_mut(weight.len()));
        rows.for_each(|(x, out)| ops::rms_norm(x, weight, c.rms_eps, out));
    })
}

/// The norm of every row where it lies, if there is one.
fn norm_in_place(x: &mut [f32], weight: Option<&Tensor>, c: &Config) -> Result<()> {
    match weight {
        Some(weight) => with_values(weight, |w| ops::rms_norm_in_place(x, w, c.rms_eps)),
        None => Ok(()),
    }
}

fn add(x: &mut [f32], h: &[f32]) {
    x.iter_mut().zip(h).for_each(|(x, h)| *x += h);
}

/// The values of a contiguous f32 tensor, where they lie.
fn with_values<T>(t: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = t.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((from, until))) => {
            Ok(f(&storage.as_slice::<f32>()?[from..until]))
        }
        _ => bail!("a weight that is not contiguous on the CPU"),
    }
}
