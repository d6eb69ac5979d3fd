//! Attention kernels in plain Rust: the reference, and the way for processors
//! and head sizes the vector kernels do not take. Shapes as in `kernels`.

use super::coded::Source;
use super::kernels::{Rows, padded};

pub(super) fn scores(q: &[f32], k: impl Source, head_dim: usize, out: &mut [f32], stride: usize) {
    for (q, out) in q.chunks_exact(head_dim).zip(out.chunks_mut(stride)) {
        for (t, out) in out.iter_mut().enumerate().take(k.len() / head_dim) {
            let products = q.iter().enumerate();
            *out = products.map(|(c, q)| q * k.value(t * head_dim + c)).sum();
        }
    }
}

pub(super) fn weigh(
    p: &[f32],
    stride: usize,
    v: impl Source,
    head_dim: usize,
    keep: &[f32],
    acc: &mut [f32],
) {
    let rows = p.chunks(stride).zip(keep);
    for (acc, (p, keep)) in acc.chunks_exact_mut(head_dim).zip(rows) {
        acc.iter_mut().for_each(|a| *a *= keep);
        for (t, p) in p.iter().enumerate().take(v.len() / head_dim) {
            for (c, a) in acc.iter_mut().enumerate() {
                *a += p * v.value(t * head_dim + c);
            }
        }
    }
}

pub(super) fn softmax_step(scores: &mut [f32], max: f32) -> (f32, f32) {
    let max = scores.iter().copied().fold(max, f32::max);
    let mut sum = 0.0;
    for score in scores {
        *score = (*score - max).exp2();
        sum += *score;
    }
    (max, sum)
}

pub(super) fn settle(mass: &mut [f32], at: &[f32], max: f32) {
    for (mass, at) in mass.iter_mut().zip(at) {
        if *mass != 0.0 {
            *mass *= (at - max).exp2();
        }
    }
}

pub(super) fn widen_transposed(k: impl Source, head_dim: usize, out: &mut [f32]) {
    let columns = padded(k.len() / head_dim);
    out[..head_dim * columns].fill(0.0);
    for at in 0..k.len() {
        out[at % head_dim * columns + at / head_dim] = k.value(at);
    }
}

pub(super) fn widen(v: impl Source, out: &mut [f32]) {
    for (at, out) in out.iter_mut().enumerate().take(v.len()) {
        *out = v.value(at);
    }
}

pub(super) fn matmul(
    a: Rows<'_>,
    b: Rows<'_>,
    k: usize,
    n: usize,
    keep: Option<&[f32]>,
    c: &mut [f32],
) {
    for (i, c) in c.chunks_exact_mut(n).enumerate() {
        match keep {
            Some(keep) => c.iter_mut().for_each(|c| *c *= keep[i]),
            None => c.fill(0.0),
        }
        for (t, a) in a.data[i * a.stride..][..k].iter().enumerate() {
            for (c, b) in c.iter_mut().zip(&b.data[t * b.stride..][..n]) {
                *c += a * b;
            }
        }
    }
}
