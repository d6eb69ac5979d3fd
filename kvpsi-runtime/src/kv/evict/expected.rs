//! Expected attention: what coming queries will look at (Devoto et al.,
//! "Expected Attention: KV Cache Compression by Estimating Attention from Future
//! Queries Distribution", arXiv:2510.00636).
//!
//! Queries before RoPE are taken to be normal. Then the expectation of
//! `exp(q k)` has a closed form in their mean and covariance, turned to the
//! positions to come. Here the covariance is kept for each pair of values that
//! RoPE turns together, and averaged within it: a turn leaves that as it is.
//! Owns the statistics of queries, which are the model's more than the text's,
//! and so are shared by all sequences.

use super::{HeadRows, Policy};
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

/// Tokens to come that are looked ahead.
const AHEAD: usize = 512;
/// What every row is worth beside its attention (the paper's epsilon).
const EPSILON: f32 = 0.02;
/// Queries after which a new one counts as much as ever: the mean follows the
/// text slowly.
const MEMORY: f32 = 1024.0;

/// How RoPE turns the heads of one layer.
#[derive(Clone, Debug)]
pub struct RopeOf {
    /// Radians a position, by pair.
    pub frequencies: Arc<[f64]>,
    /// Pairs are neighbours; else the halves of what is turned of a head.
    pub adjacent: bool,
    /// Values of a head that are turned, the first ones.
    pub turned: usize,
    /// What a product of query and key is multiplied by.
    pub scale: f32,
}

/// Mean and variance of the queries of each layer and head.
#[derive(Debug)]
pub struct QueryStats {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: Vec<RopeOf>,
    /// f32 bits, `[layers][1 + heads * (head_dim + head_dim / 2)]`: how many
    /// were counted; means; mean squares by pair.
    sums: Box<[AtomicU32]>,
}

impl QueryStats {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize, layers: Vec<RopeOf>) -> Self {
        let each = 1 + heads * (head_dim + head_dim / 2);
        let sums = (0..each * layers.len())
            .map(|_| AtomicU32::new(0))
            .collect();
        Self {
            heads,
            kv_heads,
            head_dim,
            layers,
            sums,
        }
    }

    fn of(&self, layer: usize) -> &[AtomicU32] {
        let each = self.sums.len() / self.layers.len();
        &self.sums[layer * each..][..each]
    }

    /// Takes a row of queries, `[heads, head_dim]`, and what it was turned by,
    /// by pair. One thread at a time.
    pub fn note(&self, layer: usize, q: &[f32], cos: &[f32], sin: &[f32]) {
        let sums = self.of(layer);
        let (d, half) = (self.head_dim, self.head_dim / 2);
        let count = (get(&sums[0]) + 1.0).min(MEMORY);
        sums[0].store(count.to_bits(), Relaxed);
        let follow = |to: &AtomicU32, v: f32| {
            let mean = get(to);
            to.store((mean + (v - mean) / count).to_bits(), Relaxed);
        };
        let (means, squares) = sums[1..].split_at(self.heads * d);
        for (head, q) in q.chunks_exact(d).enumerate() {
            for (pair, (cos, sin)) in cos.iter().zip(sin).enumerate() {
                let (i, j) = self.pair(layer, pair);
                // Back to before the turn; a length that the turn brought
                // (YaRN) stays.
                let by = (cos * cos + sin * sin)
                    .sqrt()
                    .max(f32::MIN_POSITIVE)
                    .recip();
                let a = (q[i] * cos + q[j] * sin) * by;
                let b = (q[j] * cos - q[i] * sin) * by;
                follow(&means[head * d + i], a);
                follow(&means[head * d + j], b);
                follow(&squares[head * half + pair], a * a + b * b);
            }
        }
    }

    /// The values that RoPE turns together.
    fn pair(&self, layer: usize, pair: usize) -> (usize, usize) {
        let RopeOf {
            adjacent, turned, ..
        } = self.layers[layer];
        // What is not turned is paired somehow.
        if adjacent || pair >= turned / 2 {
            (2 * pair, 2 * pair + 1)
        } else {
            (pair, turned / 2 + pair)
        }
    }

    /// Mean query at the positions to come and variance of each value, by
    /// pair, of one head.
    fn outlook(&self, layer: usize, head: usize, next_pos: usize) -> Vec<([f32; 2], f32)> {
        let (d, half) = (self.head_dim, self.head_dim / 2);
        let (means, squares) = self.of(layer)[1..].split_at(self.heads * d);
        let at = |i: usize| get(&means[head * d + i]);
        (0..half)
            .map(|pair| {
                let (a, b) = self.pair(layer, pair);
                let (a, b) = (at(a), at(b));
                let variance = (get(&squares[head * half + pair]) - a * a - b * b).max(0.0) / 2.0;
                let (cos, sin) = mean_turn(self.layers[layer].frequencies[pair], next_pos);
                ([a * cos - b * sin, a * sin + b * cos], variance)
            })
            .collect()
    }
}

fn get(x: &AtomicU32) -> f32 {
    f32::from_bits(x.load(Relaxed))
}

/// Mean cosine and sine over the next positions: a geometric series.
#[expect(clippy::cast_possible_truncation, reason = "at most 1")]
#[expect(clippy::cast_precision_loss, reason = "positions below 2^53")]
fn mean_turn(frequency: f64, next_pos: usize) -> (f32, f32) {
    let half = frequency / 2.0;
    let size = if half.sin().abs() < 1e-12 {
        1.0
    } else {
        (AHEAD as f64 * half).sin() / (AHEAD as f64 * half.sin())
    };
    let middle = frequency * (next_pos as f64 + (AHEAD as f64 - 1.0) / 2.0);
    ((size * middle.cos()) as f32, (size * middle.sin()) as f32)
}

/// A row is worth the attention that coming queries are expected to pay it,
/// times the length of its value.
#[derive(Clone, Debug)]
pub struct Expected(pub Arc<QueryStats>);

impl Expected {
    /// Adds to `out` the share of each row in the expected attention of the
    /// query heads of the KV head.
    fn attention(&self, rows: &HeadRows<'_>, out: &mut [f32]) {
        let stats = &self.0;
        let d = rows.head_dim;
        let group = stats.heads / stats.kv_heads.max(1);
        let scale = stats.layers[rows.layer].scale;
        let mut logits = vec![0f32; out.len()];
        for head in rows.kv_head * group..(rows.kv_head + 1) * group {
            let outlook = stats.outlook(rows.layer, head, rows.next_pos);
            for (logit, key) in logits.iter_mut().zip(rows.keys.chunks_exact(d)) {
                let mut sum = 0.0;
                for (pair, (mean, variance)) in outlook.iter().enumerate() {
                    let (a, b) = stats.pair(rows.layer, pair);
                    let (a, b) = (key[a], key[b]);
                    sum += scale * (mean[0] * a + mean[1] * b)
                        + scale * scale * variance * (a * a + b * b) / 2.0;
                }
                *logit = sum;
            }
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = logits.iter().map(|l| (l - max).exp()).sum();
            for (out, l) in out.iter_mut().zip(&logits) {
                *out += (l - max).exp() / (total * group as f32);
            }
        }
    }
}

impl Policy for Expected {
    fn name(&self) -> &'static str {
        "expected"
    }

    fn score(&self, rows: &HeadRows<'_>, out: &mut [f32]) {
        out.fill(0.0);
        self.attention(rows, out);
        for (out, value) in out.iter_mut().zip(rows.values.chunks_exact(rows.head_dim)) {
            let norm = value.iter().map(|v| v * v).sum::<f32>().sqrt();
            *out = (*out + EPSILON / 16.0) * norm;
        }
    }

    fn fell(&self, rows: &HeadRows<'_>, kept: &[u32]) -> f32 {
        let mut shares = vec![0.0; rows.keys.len() / rows.head_dim];
        self.attention(rows, &mut shares);
        let stays: f32 = kept.iter().map(|i| shares[*i as usize]).sum();
        (1.0 - stays).clamp(0.0, 1.0)
    }
}
