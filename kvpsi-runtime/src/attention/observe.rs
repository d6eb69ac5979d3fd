//! The attention that falls on each token, of some rows.
//!
//! The kernels of `decode` and `prefill` keep a sum for each block and no
//! weight outlives its block. Where the pool keeps the mass of every token,
//! the scores of every sixteenth position are computed once more: a sample,
//! which costs a thirtieth of attention. Out of scope: what it is for.

use super::dispatch::{scores, softmax_step};
use super::job::{Job, Scratch, at_least};
use super::simd::LANES;
use crate::thread_pool::thread_pool;
use std::cell::RefCell;
use std::sync::atomic::Ordering::Relaxed;

/// One position in so many is looked at.
const EVERY: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Adds the probabilities of the sampled rows to the masses of the rows they
/// fall on. `job` is of all rows of a span and of any KV head.
pub(super) fn observe(job: &Job<'_>) {
    let first = job.first_pos.next_multiple_of(EVERY) - job.first_pos;
    if first >= job.rows {
        return;
    }
    // A KV head's masses are one thread's.
    thread_pool().spread(job.cfg.kv_heads, |kv_head| {
        SCRATCH.with_borrow_mut(|scratch| {
            for row in (first..job.rows).step_by(EVERY) {
                one(&Job { kv_head, ..*job }, row, scratch);
            }
        });
    });
}

fn one(job: &Job<'_>, row: usize, scratch: &mut Scratch) {
    let (cfg, width) = (job.cfg, job.cfg.heads * job.cfg.head_dim);
    let job = &Job {
        q: &job.q[row * width..][..width],
        first_pos: job.first_pos + row,
        rows: 1,
        ..*job
    };
    let (group, n) = (cfg.group(), job.block_tokens);
    job.queries(&mut scratch.q);
    // Rows of whole vectors, one for each head, all blocks side by side.
    let stride = (job.blocks.len() * n).next_multiple_of(LANES);
    // One row more: of every block's place on there is room for all heads.
    let all = at_least(&mut scratch.scores, (group + 1) * stride);
    all.fill(f32::NEG_INFINITY);
    for (b, block) in job.blocks.iter().enumerate() {
        let seen = job.visible(block, 0);
        if !seen.is_empty() {
            let (k, _) = job.keys_values(block, seen.clone());
            let to = &mut all[b * n + seen.start..];
            scores(job.isa, &scratch.q, k, cfg.head_dim, to, stride, &[]);
            let heads = to.chunks_mut(stride).take(group);
            heads.for_each(|of_head| job.cap(&mut of_head[..seen.len()]));
        }
    }
    for (head, of_head) in all[..group * stride].chunks_exact_mut(stride).enumerate() {
        let sink = job.sink(head);
        let (max, sum) = softmax_step(job.isa, of_head, sink);
        if sum == 0.0 {
            continue;
        }
        let sum = sum + (sink - max).exp2();
        for (b, block) in job.blocks.iter().enumerate() {
            for t in job.visible(block, 0) {
                // SAFETY: the block's masses, `[kv_heads][block_tokens]`; the
                // layer guard outlives the job, and null was ruled out.
                let mass = unsafe { &*block.row_mass.add(job.kv_head * n + t) };
                let now = f32::from_bits(mass.load(Relaxed)) + of_head[b * n + t] / sum;
                mass.store(now.to_bits(), Relaxed);
            }
        }
    }
}
