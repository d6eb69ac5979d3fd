//! Trimming: the reactor's call.
//!
//! Owns the order of the ladder's steps and the moment pages leave. No
//! allocation, no lock, no log; it waits for one layer's guard at most, and
//! returns slack before it waits.

use super::{
    pool::KvPool,
    sequence::Slot,
    types::{MAX_SEQUENCES, Step, Steps},
};
use crate::{clock::monotonic_ns, units::Bytes};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

/// What a trim did. Times are `CLOCK_MONOTONIC` in ns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trimmed {
    /// Bytes whose pages the kernel has again.
    pub bytes: Bytes,
    /// Of these, from blocks of nobody.
    pub slack_bytes: Bytes,
    /// Of these, from cold blocks of sequences.
    pub window_bytes: Bytes,
    /// Blocks returned.
    pub blocks: u32,
    /// Positions that lost their keys and values.
    pub tokens: u64,
    /// Share of the attention mass seen so far that fell on them, 0 to 1.
    pub mass_dropped: f32,
    /// The step that lost most.
    pub deepest: Option<Step>,
    /// When the trim began.
    pub started_ns: u64,
    /// When the last page was back.
    pub returned_ns: u64,
    /// Time spent waiting for attention to leave its layer.
    pub guard_wait_ns: u64,
    /// `madvise` calls.
    pub madvise_calls: u32,
    /// `madvise` calls that failed; their blocks are slack again.
    pub madvise_errors: u32,
    /// Live positions of all sequences before.
    pub kv_tokens_before: u64,
    /// Live positions of all sequences after.
    pub kv_tokens_after: u64,
}

impl KvPool {
    /// Returns at least `want` bytes to the kernel, if the allowed steps have
    /// as much to give. One trim at a time: a second caller gets nothing.
    pub fn trim(&self, want: Bytes, steps: Steps) -> Trimmed {
        let mut done = Trimmed {
            started_ns: monotonic_ns(),
            kv_tokens_before: self.live_tokens.load(Relaxed),
            ..Trimmed::default()
        };
        if cfg!(feature = "trim")
            && self
                .trimming
                .compare_exchange(false, true, Acquire, Relaxed)
                .is_ok()
        {
            let block = self.arena.block_bytes() as u64;
            let need = usize::try_from(want.0.div_ceil(block)).unwrap_or(usize::MAX);
            if steps.has(Step::Slack) {
                done.slack_bytes = self.trim_slack(need, &mut done);
            }
            let left = need.saturating_sub(done.blocks as usize);
            if left > 0 && steps.has(Step::Window) {
                done.window_bytes = self.trim_window(left, &mut done);
            }
            done.bytes = Bytes(done.slack_bytes.0 + done.window_bytes.0);
            self.trimming.store(false, Release);
        }
        done.kv_tokens_after = self.live_tokens.load(Relaxed);
        done.returned_ns = monotonic_ns();
        done
    }

    fn trim_slack(&self, need: usize, done: &mut Trimmed) -> Bytes {
        let mut n = 0;
        while n < need
            && let Some(b) = self.slack.take_high()
        {
            self.draining.insert(b);
            n += 1;
        }
        let bytes = self.drain(done);
        if bytes > Bytes::ZERO {
            done.deepest = done.deepest.max(Some(Step::Slack));
        }
        bytes
    }

    /// The oldest block of each sequence in turn, sinks and recent kept.
    fn trim_window(&self, need: usize, done: &mut Trimmed) -> Bytes {
        let mut cursor = [self.sink_entries(); MAX_SEQUENCES];
        let (mut n, mut dropped_mass) = (0, 0.0);
        let mass: f32 = self
            .slots
            .iter()
            .filter(|s| s.is_open())
            .map(total_mass)
            .sum();
        loop {
            let before = n;
            for (slot, next) in self.slots.iter().zip(&mut cursor) {
                if n == need {
                    break;
                }
                let picked = slot.picking(|| {
                    let end = slot.protected_from();
                    while *next < end {
                        let i = *next;
                        *next += 1;
                        if let Some(b) = slot.unlink(i) {
                            return Some((b, self.tokens_in(slot, i), slot.mass(i)));
                        }
                    }
                    None
                });
                if let Some(Some((block, tokens, m))) = picked {
                    self.draining.insert(block);
                    self.in_use.fetch_sub(1, Relaxed);
                    self.live_tokens.fetch_sub(tokens as u64, Relaxed);
                    done.tokens += tokens as u64;
                    dropped_mass += m;
                    n += 1;
                }
            }
            if n == before || n == need {
                break;
            }
        }
        if n == 0 {
            return Bytes::ZERO;
        }
        done.mass_dropped = if mass > 0.0 { dropped_mass / mass } else { 0.0 };
        done.deepest = Some(Step::Window);
        let wait = monotonic_ns();
        self.guards.quiesce();
        done.guard_wait_ns += monotonic_ns().saturating_sub(wait);
        self.drain(done)
    }

    /// Gives every draining block's pages back, adjacent ones in one call.
    fn drain(&self, done: &mut Trimmed) -> Bytes {
        let mut total = 0;
        while let Some((first, n)) = self.draining.take_run() {
            done.madvise_calls += 1;
            // SAFETY: draining blocks are in no table, and every guard that
            // could have seen them in one has ended.
            let given = unsafe { self.arena.give_back(first, n) }.is_ok();
            if given {
                self.resident.fetch_sub(n, SeqCst);
                total += n;
            } else {
                done.madvise_errors += 1;
                self.madvise_errors.fetch_add(1, Relaxed);
            }
            for b in first..first + n {
                if given {
                    self.returned.insert(b)
                } else {
                    self.slack.insert(b)
                }
            }
        }
        done.blocks += u32::try_from(total).unwrap_or(u32::MAX);
        self.bytes(total)
    }
}

fn total_mass(slot: &Slot) -> f32 {
    (0..slot.entries()).map(|i| slot.mass(i)).sum()
}
