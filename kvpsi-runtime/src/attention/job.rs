//! One stretch of attention that a thread computes alone: some query rows of
//! one sequence, the query heads of one KV head, some of the blocks.
//!
//! Owns what goes in ([`Job`]), what comes out ([`Partial`]) and the memory in
//! between ([`Scratch`], one per thread, kept between calls). Two ways to
//! compute it: `decode` and `prefill`. A vector below is one query row of one
//! head; a job has `rows * group` of them, heads of a row side by side.

use super::AttnConfig;
use super::coded::Coded;
use super::dispatch::Isa;
use crate::{curves::soft_cap, kv::BlockView};
use std::ops::Range;

/// What goes in.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    /// Kernels to use.
    pub(super) isa: Isa,
    /// Shape of the heads.
    pub(super) cfg: AttnConfig,
    /// Tokens a block has room for.
    pub(super) block_tokens: usize,
    /// Queries of the rows, all heads: `[rows, heads * head_dim]`.
    pub(super) q: &'a [f32],
    /// Position of the first row.
    pub(super) first_pos: usize,
    /// Query rows.
    pub(super) rows: usize,
    /// Which KV head.
    pub(super) kv_head: usize,
    /// Scores for nothing, by head.
    pub(super) sinks: Option<&'a [f32]>,
    /// The blocks, of which every row sees a part, or nothing.
    pub(super) blocks: &'a [BlockView<'a>],
}

impl<'a> Job<'a> {
    /// Query rows of one head each.
    pub(super) fn vectors(&self) -> usize {
        self.rows * self.cfg.group()
    }

    /// Queries of the job's heads to `out` `[vectors, head_dim]`, scaled so
    /// that a score is a base-2 logarithm.
    pub(super) fn queries(&self, out: &mut Vec<f32>) {
        let cfg = self.cfg;
        let width = cfg.group() * cfg.head_dim;
        let scale = cfg.scale * std::f32::consts::LOG2_E;
        out.clear();
        for row in self.q.chunks_exact(cfg.heads * cfg.head_dim) {
            let heads = &row[self.kv_head * width..][..width];
            out.extend(heads.iter().map(|q| q * scale));
        }
    }

    /// Scores as the softmax wants them.
    pub(super) fn cap(&self, scores: &mut [f32]) {
        if let Some(cap) = self.cfg.softcap {
            soft_cap(scores, cap * std::f32::consts::LOG2_E);
        }
    }

    /// The score for nothing of one of the job's heads, a base-2 logarithm.
    pub(super) fn sink(&self, head: usize) -> f32 {
        let at = self.kv_head * self.cfg.group() + head;
        self.sinks.map_or(f32::NEG_INFINITY, |sinks| {
            sinks[at] * std::f32::consts::LOG2_E
        })
    }

    /// Tokens of a block that a row sees: causal, and within the window.
    pub(super) fn visible(&self, block: &BlockView<'_>, row: usize) -> Range<usize> {
        let end = self.first_pos + row + 1;
        let start = self.cfg.window.map_or(0, |w| end.saturating_sub(w));
        let until = end.saturating_sub(block.first_pos).min(block.tokens);
        start.saturating_sub(block.first_pos).min(until)..until
    }

    /// Keys and values of some tokens of a block, `[tokens, head_dim]` each.
    pub(super) fn keys_values(
        &self,
        block: &BlockView<'_>,
        tokens: Range<usize>,
    ) -> (Coded<'a>, Coded<'a>) {
        let shape = (self.cfg.kv_heads, self.block_tokens, self.cfg.head_dim);
        // SAFETY: the pool made the view for this shape. The layer guard, which
        // outlives the job, keeps the pages; no thread writes positions that are
        // read here.
        unsafe { Coded::of(block, shape, self.kv_head, tokens) }
    }
}

/// What comes out: a softmax that is not normalised yet, by vector. Partials
/// over other blocks merge into it (Milakov and Gimelshein 2018,
/// arXiv:1805.02867; split over blocks as in flash-decoding).
pub(super) struct Partial<'a> {
    /// Greatest score, base-2 logarithm.
    pub(super) max: &'a mut [f32],
    /// Sum of `2^(score - max)`.
    pub(super) sum: &'a mut [f32],
    /// The same sum by vector and block.
    pub(super) mass: &'a mut [f32],
    /// Values weighed by `2^(score - max)`, `[vectors, head_dim]`.
    pub(super) acc: &'a mut [f32],
}

impl<'a> Partial<'a> {
    /// Values that a partial takes.
    pub(super) fn len(vectors: usize, blocks: usize, head_dim: usize) -> usize {
        vectors * (2 + blocks + head_dim)
    }

    /// A partial in `buf`, as it stands.
    pub(super) fn over(buf: &'a mut [f32], vectors: usize, blocks: usize) -> Self {
        let (max, buf) = buf.split_at_mut(vectors);
        let (sum, buf) = buf.split_at_mut(vectors);
        let (mass, acc) = buf.split_at_mut(vectors * blocks);
        Partial {
            max,
            sum,
            mass,
            acc,
        }
    }

    /// For reading.
    pub(super) fn sums(&self) -> Sums<'_> {
        Sums {
            max: self.max,
            sum: self.sum,
            mass: self.mass,
            acc: self.acc,
        }
    }

    /// Nothing seen yet.
    pub(super) fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.mass.fill(0.0);
        self.acc.fill(0.0);
    }

    /// Takes one block into the running maximum and sum of a vector. Returns
    /// what earlier sums are to be multiplied by.
    pub(super) fn advance(&mut self, vector: usize, max: f32, sum: f32) -> f32 {
        let before = std::mem::replace(&mut self.max[vector], max);
        let keep = if before == max {
            1.0
        } else {
            (before - max).exp2()
        };
        self.sum[vector] = self.sum[vector] * keep + sum;
        keep
    }

    /// Brings the mass of every block, taken against the maximum `at` that
    /// time, to the last maximum.
    pub(super) fn settle(&mut self, isa: Isa, at: &[f32]) {
        let blocks = self.mass.len() / self.max.len().max(1);
        if blocks == 0 {
            return;
        }
        let rows = self
            .mass
            .chunks_exact_mut(blocks)
            .zip(at.chunks_exact(blocks));
        for ((mass, at), &max) in rows.zip(self.max.iter()) {
            super::dispatch::settle(isa, mass, at, max);
        }
    }
}

/// A [`Partial`] that is complete.
#[derive(Clone, Copy)]
pub(super) struct Sums<'a> {
    /// As in [`Partial`].
    pub(super) max: &'a [f32],
    /// As in [`Partial`].
    pub(super) sum: &'a [f32],
    /// As in [`Partial`].
    pub(super) mass: &'a [f32],
    /// As in [`Partial`].
    pub(super) acc: &'a [f32],
}

impl<'a> Sums<'a> {
    /// The partial in `buf`.
    pub(super) fn over(buf: &'a [f32], vectors: usize, blocks: usize) -> Self {
        let (max, buf) = buf.split_at(vectors);
        let (sum, buf) = buf.split_at(vectors);
        let (mass, acc) = buf.split_at(vectors * blocks);
        Sums {
            max,
            sum,
            mass,
            acc,
        }
    }
}

/// Memory of a thread between calls; contents mean nothing.
#[derive(Default)]
pub(super) struct Scratch {
    /// Scaled queries.
    pub(super) q: Vec<f32>,
    /// Scores, then weights, of one block.
    pub(super) scores: Vec<f32>,
    /// By vector: what to multiply the sums with.
    pub(super) keep: Vec<f32>,
    /// By vector and block: the maximum its mass was taken against.
    pub(super) at: Vec<f32>,
    /// Keys of a block, f32, transposed.
    pub(super) keys: Vec<f32>,
    /// Values of a block, f32.
    pub(super) values: Vec<f32>,
    /// A partial that no other thread needs.
    pub(super) partial: Vec<f32>,
    /// By part and vector: what a partial counts in the whole.
    pub(super) shares: Vec<f32>,
}

/// Values that memory between calls begins with: a decode step grows by a
/// block of tokens now and then, and should not ask for memory each time.
const LEAST_ROOM: usize = 4096;

/// At least `len` values of `buf`, which doubles and never shrinks.
pub(super) fn at_least(buf: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buf.len() < len {
        buf.resize(len.next_power_of_two().max(LEAST_ROOM), 0.0);
    }
    &mut buf[..len]
}
