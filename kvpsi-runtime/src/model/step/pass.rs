//! The way of some rows through the layers.
//!
//! Invariants: results do not depend on how many threads there are, nor do
//! those of a row on the rows beside it, but for attention, which takes few
//! rows and many by different kernels. Nothing is allocated here. Refuses to
//! know what the logits are for.

use super::{
    Interrupted, experts, feed_forward, ops,
    rows::{Parts, Rows},
    told,
};
use crate::{
    attention::{AttnMemory, Qkv, RowSpan, attend_into},
    kv::{KvPool, evict::QueryStats},
    model::{
        decoder::{Decoder, FeedForward, Layer},
        gguf::Config,
        linear::products_into,
    },
    thread_pool::thread_pool,
};
use candle_core::Result;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Rows on their way.
pub(super) struct Pass<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) spans: &'a [RowSpan],
    pub(super) pool: &'a KvPool,
    pub(super) memory: &'a mut AttnMemory,
    pub(super) queries: &'a QueryStats,
    pub(super) stop: Option<&'a AtomicBool>,
    /// Whether sequences are turned as long ones.
    pub(super) long: bool,
}

/// One position in so many is noted for what queries are like.
const NOTE_EVERY: usize = 16;

impl Pass<'_> {
    /// Takes the rows of `tokens` through all layers, and those of `wanted`,
    /// in ascending order, out of the last one: their final norms are then the
    /// first rows of `h`. Keys and values of all rows are stored.
    pub(super) fn run(
        &mut self,
        tokens: &[u32],
        rows: &mut Rows,
        mut wanted: impl Iterator<Item = usize>,
    ) -> Result<()> {
        let (decoder, c) = (self.decoder, self.decoder.config());
        let mut p = rows.parts(tokens.len());
        embed(decoder, tokens, p.x)?;
        if let Some(per_layer) = &decoder.per_layer {
            told::look_up(per_layer, c, tokens, &mut p)?;
        }
        self.angles(&mut p);
        let norms = decoder
            .layers
            .iter()
            .map(|layer| layer.attn_norm.as_deref());
        let mut norms = norms.chain([Some(&*decoder.norm)]);
        if let Some(first) = norms.next() {
            norm(first, c, &mut p);
        }
        for (i, (layer, next)) in decoder.layers.iter().zip(norms).enumerate() {
            if self.stop.is_some_and(|stop| stop.load(Relaxed)) {
                return Err(candle_core::Error::wrap(Interrupted));
            }
            self.attention(layer, i, &mut p)?;
            if i + 1 == decoder.layers.len() {
                // Nobody looks at the other rows any more.
                keep(&mut p, c, layer, &mut wanted);
                if p.x.is_empty() {
                    break;
                }
            }
            let rows = p.x.len() / c.hidden;
            let attended = &p.attended[..rows * c.heads * layer.head_dim];
            products_into([&layer.out], attended, rows, p.acts, [p.h])?;
            let behind = Behind {
                bias: layer.out_bias.as_deref(),
                norm: layer.post_attn_norm.as_deref(),
                scale: None,
                next: layer.ffn_norm.as_deref(),
            };
            residual(behind, c, &mut p);
            match &layer.feed_forward {
                FeedForward::All(all) => feed_forward::gated(all, c, &mut p)?,
                FeedForward::Some(some) => experts::mix(some, c, &mut p)?,
            }
            let mut behind = Behind {
                bias: None,
                norm: layer.post_ffn_norm.as_deref(),
                scale: layer.scale,
                next,
            };
            if let Some(told) = &layer.told {
                let first = Behind {
                    scale: None,
                    next: None,
                    ..behind
                };
                residual(first, c, &mut p);
                told::take(told, c, i, &mut p)?;
                behind.norm = Some(&told.norm);
            }
            residual(behind, c, &mut p);
        }
        Ok(())
    }

    /// Cosines and sines of the rows' positions, the same for all layers of a
    /// rotary embedding.
    fn angles(&self, p: &mut Parts<'_>) {
        let half = self.decoder.config().head_dim / 2;
        let each = p.cos.len() / self.decoder.ropes.len();
        let of_ropes = p
            .cos
            .chunks_exact_mut(each)
            .zip(p.sin.chunks_exact_mut(each));
        for (rope, (cos, sin)) in self.decoder.ropes.iter().zip(of_ropes) {
            let tables = cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half));
            for (pos, (cos, sin)) in positions(self.spans).zip(tables) {
                rope.angles(pos, self.long, cos, sin);
            }
        }
        if let Some(temperature) = self.decoder.config().temperature {
            for (pos, grown) in positions(self.spans).zip(&mut *p.grown) {
                *grown = temperature.at(pos);
            }
        }
    }

    /// From the norms in `h` to `attended`.
    fn attention(&mut self, layer: &Layer, index: usize, p: &mut Parts<'_>) -> Result<()> {
        let c = self.decoder.config();
        let rows = p.h.len() / c.hidden;
        let (d, whole) = (layer.head_dim, c.head_dim);
        let [q, k, v] = [
            (&mut *p.q, c.heads),
            (&mut *p.k, c.kv_heads),
            (&mut *p.v, c.kv_heads),
        ]
        .map(|(x, heads)| &mut x[..rows * heads * d]);
        match &layer.key_value {
            Some([of_k, of_v]) => {
                products_into([&layer.q, of_k, of_v], p.h, rows, p.acts, [q, k, v])?;
            }
            None => products_into([&layer.q], p.h, rows, p.acts, [q])?,
        }
        self.norm_heads(layer, rows, p);
        if d < whole {
            // The pool's heads are longer: with zeros behind them, products and
            // sums are the same.
            lengthen(&mut p.q[..rows * c.heads * whole], d, whole);
            lengthen(&mut p.k[..rows * c.kv_heads * whole], d, whole);
            lengthen(&mut p.v[..rows * c.kv_heads * whole], d, whole);
        }
        let half = c.head_dim / 2;
        let from = layer.rope * rows * half;
        let (cos, sin, grown) = (&p.cos[from..], &p.sin[from..], &*p.grown);
        thread_pool().spread_rows(rows, [p.q, p.k], |first, [q, k]| {
            let tables = cos
                .chunks_exact(half)
                .zip(sin.chunks_exact(half))
                .skip(first);
            let rows = q
                .chunks_exact_mut(c.heads * c.head_dim)
                .zip(k.chunks_exact_mut(c.kv_heads * c.head_dim));
            for ((q, k), (cos, sin)) in rows.zip(tables) {
                ops::rotate(q, cos, sin, c.pairs, layer.turned);
                ops::rotate(k, cos, sin, c.pairs, layer.turned);
            }
            let queries = q.chunks_exact_mut(c.heads * c.head_dim);
            for (q, by) in queries.zip(grown.iter().skip(first)) {
                q.iter_mut().for_each(|q| *q *= by);
            }
        });
        let mut row = 0;
        let stores = layer.key_value.is_some();
        for span in self.spans.iter().filter(|_| stores) {
            let first = span.first_pos.next_multiple_of(NOTE_EVERY) - span.first_pos;
            for r in (row + first..row + span.rows).step_by(NOTE_EVERY) {
                let width = c.heads * c.head_dim;
                let (cos, sin) = (&cos[r * half..][..half], &sin[r * half..][..half]);
                self.queries
                    .note(index, &p.q[r * width..][..width], cos, sin);
            }
            row += span.rows;
        }
        let stored = if stores { rows * c.kv_heads * whole } else { 0 };
        let qkv = Qkv {
            q: &mut *p.q,
            k: &mut p.k[..stored],
            v: &mut p.v[..stored],
            sinks: layer.sinks.as_deref(),
        };
        attend_into(
            qkv,
            self.pool,
            layer.stored,
            self.spans,
            layer.attn,
            self.memory,
            p.attended,
        )?;
        shorten(p.attended, whole, d);
        Ok(())
    }

    /// Biases and norms of queries, keys and values, where they lie head after
    /// head.
    fn norm_heads(&self, layer: &Layer, rows: usize, p: &mut Parts<'_>) {
        let c = self.decoder.config();
        let d = layer.head_dim;
        let parts = [
            (&mut *p.q, c.heads),
            (&mut *p.k, c.kv_heads),
            (&mut *p.v, c.kv_heads),
        ]
        .map(|(x, heads)| &mut x[..rows * heads * d]);
        thread_pool().spread_rows(rows, parts, |_, parts| {
            let norms = [&layer.q_norm, &layer.k_norm, &layer.v_norm];
            for (i, (x, norm)) in parts.into_iter().zip(norms).enumerate() {
                if let Some(biases) = &layer.qkv_bias {
                    x.chunks_exact_mut(biases[i].len())
                        .for_each(|x| ops::add(x, &biases[i]));
                }
                if let Some(norm) = norm {
                    ops::rms_norm_in_place(x, norm, c.rms_eps);
                }
            }
        });
    }
}

/// Heads of `from` values become such of `to`, by zeros behind them.
fn lengthen(x: &mut [f32], from: usize, to: usize) {
    for head in (0..x.len() / to).rev() {
        x.copy_within(head * from..(head + 1) * from, head * to);
        x[head * to + from..(head + 1) * to].fill(0.0);
    }
}

/// Heads of `from` values become such of `to`, side by side.
fn shorten(x: &mut [f32], from: usize, to: usize) {
    if to < from {
        for head in 0..x.len() / from {
            x.copy_within(head * from..head * from + to, head * to);
        }
    }
}

/// Positions of the rows.
fn positions(spans: &[RowSpan]) -> impl Iterator<Item = usize> {
    spans.iter().flat_map(|s| s.first_pos..s.first_pos + s.rows)
}

fn embed(decoder: &Decoder, tokens: &[u32], x: &mut [f32]) -> Result<()> {
    let c = decoder.config();
    for (&token, row) in tokens.iter().zip(x.chunks_exact_mut(c.hidden)) {
        decoder.embedding.row_into(token, row)?;
        if c.embedding_scale != 1.0 {
            row.iter_mut().for_each(|x| *x *= c.embedding_scale);
        }
    }
    Ok(())
}

/// Leaves the norm of `x` in `h`, or `x` itself.
fn norm(weight: Option<&[f32]>, c: &Config, p: &mut Parts<'_>) {
    let x = &*p.x;
    thread_pool().spread_rows(x.len() / c.hidden, [p.h], |first, [h]| {
        let x = x.chunks_exact(c.hidden).skip(first);
        for (x, h) in x.zip(h.chunks_exact_mut(c.hidden)) {
            match weight {
                Some(weight) => ops::rms_norm(x, weight, c.rms_eps, h),
                None => h.copy_from_slice(x),
            }
        }
    });
}

/// What happens to `h` on its way into the stream, and the norm of the stream
/// that comes next.
#[derive(Clone, Copy)]
struct Behind<'a> {
    bias: Option<&'a [f32]>,
    norm: Option<&'a [f32]>,
    /// What the stream is multiplied by.
    scale: Option<f32>,
    next: Option<&'a [f32]>,
}

/// Adds `h` to `x`, and leaves the next norm of `x` in `h`.
fn residual(behind: Behind<'_>, c: &Config, p: &mut Parts<'_>) {
    thread_pool().spread_rows(p.x.len() / c.hidden, [p.x, p.h], |_, [x, h]| {
        if let Some(bias) = behind.bias {
            h.chunks_exact_mut(c.hidden).for_each(|h| ops::add(h, bias));
        }
        if let Some(norm) = behind.norm {
            ops::rms_norm_in_place(h, norm, c.rms_eps);
        }
        if c.residual_scale != 1.0 {
            h.iter_mut().for_each(|h| *h *= c.residual_scale);
        }
        let rows = x
            .chunks_exact_mut(c.hidden)
            .zip(h.chunks_exact_mut(c.hidden));
        for (x, h) in rows {
            ops::add(x, h);
            if let Some(scale) = behind.scale {
                x.iter_mut().for_each(|x| *x *= scale);
            }
            match behind.next {
                Some(next) => ops::rms_norm(x, next, c.rms_eps, h),
                None => h.copy_from_slice(x),
            }
        }
    });
}

/// Moves the rows that are `wanted` to the front and leaves the others.
fn keep(p: &mut Parts<'_>, c: &Config, layer: &Layer, wanted: &mut dyn Iterator<Item = usize>) {
    let width = c.heads * layer.head_dim;
    let told = c.layers * c.per_layer.unwrap_or(0);
    let mut kept = 0;
    for row in wanted {
        p.x.copy_within(row * c.hidden..(row + 1) * c.hidden, kept * c.hidden);
        p.attended
            .copy_within(row * width..(row + 1) * width, kept * width);
        p.told
            .copy_within(row * told..(row + 1) * told, kept * told);
        kept += 1;
    }
    p.shorten(kept);
}
