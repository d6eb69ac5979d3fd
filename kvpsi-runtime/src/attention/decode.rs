//! Few query rows: keys and values are read once, straight from their codes, for all
//! query heads of the KV head. Memory decides the speed.

use super::dispatch::{scores, softmax_step, weigh};
use super::job::{Job, Partial, Scratch, at_least};

/// Query rows up to which this is faster than widening tiles.
pub(super) const MOST_ROWS: usize = 2;

/// Attends over the job's blocks, into a partial that was cleared.
pub(super) fn run(job: &Job<'_>, scratch: &mut Scratch, out: &mut Partial<'_>) {
    let (group, d, blocks) = (job.cfg.group(), job.cfg.head_dim, job.blocks.len());
    let stride = job.block_tokens;
    job.queries(&mut scratch.q);
    let weights = at_least(&mut scratch.scores, group * stride);
    let keep = at_least(&mut scratch.keep, group);
    let at = at_least(&mut scratch.at, job.vectors() * blocks);
    for (b, block) in job.blocks.iter().enumerate() {
        let next = match job.blocks.get(b + 1) {
            Some(next) => job.keys_values(next, 0..next.tokens).0.bytes(),
            None => &[],
        };
        for row in 0..job.rows {
            let tokens = job.visible(block, row);
            if tokens.is_empty() {
                continue;
            }
            let n = tokens.len();
            let (k, v) = job.keys_values(block, tokens);
            let first = row * group;
            let q = &scratch.q[first * d..][..group * d];
            scores(job.isa, q, k, d, weights, stride, v.bytes());
            for (g, weights) in weights.chunks_exact_mut(stride).enumerate() {
                let vector = first + g;
                job.cap(&mut weights[..n]);
                let (max, sum) = softmax_step(job.isa, &mut weights[..n], out.max[vector]);
                keep[g] = out.advance(vector, max, sum);
                out.mass[vector * blocks + b] = sum;
                at[vector * blocks + b] = max;
            }
            let acc = &mut out.acc[first * d..][..group * d];
            weigh(job.isa, weights, stride, v, d, keep, acc, next);
        }
    }
    out.settle(job.isa, at);
}
