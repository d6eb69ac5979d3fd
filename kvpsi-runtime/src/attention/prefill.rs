//! Many query rows: a tile of them against one block at a time. Keys and
//! values of a block are widened to f32 once for the tile, then two matrix
//! products. No score outlives its block, so memory does not grow with the
//! context but for the mass per block.

use super::dispatch::{matmul, softmax_step, widen, widen_transposed};
use super::job::{Job, Partial, Scratch, at_least};
use super::simd::padded;
use super::tile::Rows;

/// Query rows of a tile for so many heads per KV head: the tile's queries,
/// weights and sums stay in the L2 cache.
pub(super) fn tile_rows(group: usize) -> usize {
    (96 / group.max(1)).clamp(8, 64)
}

/// Attends over the job's blocks, into a partial that was cleared.
pub(super) fn run(job: &Job<'_>, scratch: &mut Scratch, out: &mut Partial<'_>) {
    let (group, d, blocks) = (job.cfg.group(), job.cfg.head_dim, job.blocks.len());
    let vectors = job.vectors();
    let widest = padded(job.block_tokens);
    job.queries(&mut scratch.q);
    let scores = at_least(&mut scratch.scores, vectors * widest);
    let keep = at_least(&mut scratch.keep, vectors);
    let at = at_least(&mut scratch.at, vectors * blocks);
    let keys = at_least(&mut scratch.keys, d * widest);
    let values = at_least(&mut scratch.values, job.block_tokens * d);
    for (b, block) in job.blocks.iter().enumerate() {
        // What lies behind the last row was perhaps never written.
        let tokens = job.visible(block, job.rows - 1).end;
        if tokens == 0 {
            continue;
        }
        let columns = padded(tokens);
        let (k, v) = job.keys_values(block, 0..tokens);
        widen_transposed(job.isa, k, d, keys);
        widen(job.isa, v, d, values);
        let scores = &mut scores[..vectors * columns];
        let (queries, by_token) = (
            Rows {
                data: &scratch.q,
                stride: d,
            },
            Rows {
                data: keys,
                stride: columns,
            },
        );
        matmul(job.isa, queries, by_token, d, columns, None, scores);
        for (vector, scores) in scores.chunks_exact_mut(columns).enumerate() {
            let seen = job.visible(block, vector / group);
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            if seen.is_empty() {
                keep[vector] = 1.0;
                continue;
            }
            job.cap(&mut scores[seen.clone()]);
            let (max, sum) = softmax_step(job.isa, &mut scores[seen], out.max[vector]);
            keep[vector] = out.advance(vector, max, sum);
            out.mass[vector * blocks + b] = sum;
            at[vector * blocks + b] = max;
        }
        let (weights, by_value) = (
            Rows {
                data: scores,
                stride: columns,
            },
            Rows {
                data: values,
                stride: d,
            },
        );
        matmul(job.isa, weights, by_value, tokens, d, Some(keep), out.acc);
    }
    out.settle(job.isa, at);
}
