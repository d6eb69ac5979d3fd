//! Trimming: the reactor's call.
//!
//! Owns the order of the ladder's quick steps and the moment pages leave. No
//! allocation, no log, and no lock but one that only trimmers try; it waits for
//! one layer's guard at most, and returns slack before it waits.

use super::{
    block::Let,
    pool::KvPool,
    sequence::Slot,
    types::{MAX_SEQUENCES, Step, Steps},
};
use crate::{clock::monotonic_ns, units::Bytes};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// What a trim did. Times are `CLOCK_MONOTONIC` in ns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trimmed {
    /// Bytes whose pages the kernel has again.
    pub bytes: Bytes,
    /// The same by step, in the order of [`Step::ALL`].
    pub by_step: [Bytes; Step::ALL.len()],
    /// Blocks returned.
    pub blocks: u32,
    /// Positions that lost their keys and values.
    pub tokens: u64,
    /// Share of the attention mass seen so far that fell on them, 0 to 1.
    pub mass_dropped: f32,
    /// Sequences that went back to their tokens.
    pub preempted: u32,
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

impl Trimmed {
    /// Bytes that a step gave.
    #[must_use]
    pub fn of(&self, step: Step) -> Bytes {
        self.by_step[step as usize - 1]
    }

    pub(crate) fn add(&mut self, step: Step, bytes: Bytes) {
        if bytes > Bytes::ZERO {
            let sum = &mut self.by_step[step as usize - 1];
            *sum = Bytes(sum.0 + bytes.0);
            self.bytes = Bytes(self.bytes.0 + bytes.0);
            self.deepest = self.deepest.max(Some(step));
        }
    }
}

impl KvPool {
    /// Returns at least `want` bytes to the kernel, if the quick ones of the
    /// allowed steps have as much to give: slack, cached, window, preempt. One
    /// trim at a time: a second caller gets nothing.
    pub fn trim(&self, want: Bytes, steps: Steps) -> Trimmed {
        let mut done = Trimmed {
            started_ns: monotonic_ns(),
            kv_tokens_before: self.live_tokens.load(Relaxed),
            ..Trimmed::default()
        };
        if cfg!(feature = "trim")
            && let Ok(mut by_age) = self.trimming.try_lock()
        {
            let page = rustix::param::page_size() as u64;
            let need = usize::try_from(want.0.div_ceil(page)).unwrap_or(usize::MAX);
            let left = |done: &Trimmed| {
                let got = usize::try_from(done.bytes.0 / page).unwrap_or(usize::MAX);
                need.saturating_sub(got)
            };
            if steps.has(Step::Slack) {
                self.trim_slack(left(&done), &mut done);
            }
            if left(&done) > 0 && steps.has(Step::Cached) {
                self.trim_cached(left(&done), &mut by_age, &mut done);
            }
            if left(&done) > 0 && steps.has(Step::Window) {
                self.trim_window(left(&done), &mut done);
            }
            while left(&done) > 0 && steps.has(Step::Preempt) && self.trim_youngest(&mut done) {}
        }
        done.kv_tokens_after = self.live_tokens.load(Relaxed);
        done.returned_ns = monotonic_ns();
        done
    }

    fn trim_slack(&self, need: usize, done: &mut Trimmed) {
        let mut pages = 0;
        while pages < need
            && let Some(b) = self.slack.take_high()
        {
            pages += self.blocks[b].held();
            self.draining.insert(b);
        }
        self.drain(Step::Slack, done);
    }

    /// Cached blocks, least recently used first.
    fn trim_cached(&self, need: usize, by_age: &mut Vec<(u64, u32)>, done: &mut Trimmed) {
        by_age.clear();
        for (i, b) in (0u32..).zip(&self.blocks) {
            // The room was made with the pool.
            if b.is_cached() && by_age.len() < by_age.capacity() {
                by_age.push((b.used(), i));
            }
        }
        by_age.sort_unstable();
        let mut pages = 0;
        for (_, i) in by_age.iter() {
            if pages >= need {
                break;
            }
            let b = &self.blocks[*i as usize];
            if b.take_cached() {
                pages += b.held();
                self.cached.fetch_sub(b.held(), SeqCst);
                self.cache_evicted.fetch_add(1, Relaxed);
                self.draining.insert(*i as usize);
            }
        }
        self.wait_and_drain(pages, Step::Cached, done);
    }

    /// The oldest block of each sequence in turn, sinks and recent kept.
    fn trim_window(&self, need: usize, done: &mut Trimmed) {
        let mut cursor = [self.sink_entries(); MAX_SEQUENCES];
        let mut fell = [0.0; MAX_SEQUENCES];
        let mut touched = [false; MAX_SEQUENCES];
        let (mut pages, mut dropped_mass) = (0, 0.0);
        let open = self.slots.iter().filter(|s| s.is_open());
        let mass: f32 = open.map(Slot::total_mass).sum();
        loop {
            let mut found = false;
            for (i, (slot, next)) in self.slots.iter().zip(&mut cursor).enumerate() {
                if pages >= need {
                    break;
                }
                let picked = slot.picking(|| self.next_cold(slot, next));
                if let Some(Some((block, tokens, m))) = picked {
                    found = true;
                    done.tokens += tokens as u64;
                    dropped_mass += m;
                    fell[i] += m;
                    touched[i] = true;
                    if let Some(b) = block {
                        pages += self.blocks[b].held();
                        self.draining.insert(b);
                    }
                }
            }
            if !found || pages >= need {
                break;
            }
        }
        for (i, slot) in self.slots.iter().enumerate() {
            if touched[i] {
                slot.trimmed();
                slot.lose_mass(fell[i]);
            }
        }
        if mass > 0.0 {
            done.mass_dropped += dropped_mass / mass;
        }
        self.wait_and_drain(pages, Step::Window, done);
    }

    /// Unlinks the oldest block that may go: the block, if nobody else has
    /// it, and the tokens and mass that went. Only while picking.
    fn next_cold(&self, slot: &Slot, next: &mut usize) -> Option<(Option<usize>, usize, f32)> {
        let end = slot.protected_from();
        while *next < end {
            let i = *next;
            *next += 1;
            let Some(b) = slot.entry(i) else { continue };
            let tokens = self.tokens_in(slot, i, b);
            if slot.live() < self.config.floor_tokens + tokens {
                *next = end;
                return None;
            }
            if slot.unlink(i).is_some() {
                slot.lose(i * self.config.shape.block_tokens, tokens);
                self.live_tokens.fetch_sub(tokens as u64, Relaxed);
                let free = self.let_one_go(b, false) == Let::Free;
                return Some((free.then_some(b), tokens, slot.mass(i)));
            }
        }
        None
    }

    /// Takes everything of the sequence that ranks last; false when only one
    /// is left, which may go on.
    fn trim_youngest(&self, done: &mut Trimmed) -> bool {
        let running = || {
            let all = self.slots.iter();
            all.filter(|s| s.is_open() && !s.preempted() && s.live() > 0)
        };
        if running().count() < 2 {
            return false;
        }
        let Some(slot) = running().min_by_key(|s| s.rank()) else {
            return false;
        };
        let pages = slot.picking(|| {
            slot.set_preempted();
            let mut pages = 0;
            for i in 0..slot.entries() {
                let Some(b) = slot.unlink(i) else { continue };
                if self.let_one_go(b, false) == Let::Free {
                    pages += self.blocks[b].held();
                    self.draining.insert(b);
                }
            }
            let tokens = slot.lose_all();
            self.live_tokens.fetch_sub(tokens as u64, Relaxed);
            pages
        });
        let Some(pages) = pages else { return false };
        self.preempted.fetch_add(1, Relaxed);
        done.preempted += 1;
        done.deepest = Some(Step::Preempt);
        self.wait_and_drain(pages, Step::Preempt, done);
        true
    }

    fn wait_and_drain(&self, pages: usize, step: Step, done: &mut Trimmed) {
        if pages == 0 {
            return;
        }
        let wait = monotonic_ns();
        self.guards.quiesce();
        done.guard_wait_ns += monotonic_ns().saturating_sub(wait);
        self.drain(step, done);
    }

    /// Gives every draining block's pages back, adjacent ones in one call.
    fn drain(&self, step: Step, done: &mut Trimmed) {
        let mut pages = 0;
        while let Some((first, n)) = self.draining.take_run() {
            done.madvise_calls += 1;
            // SAFETY: draining blocks are in no table, and every guard that
            // could have seen them in one has ended.
            let given = unsafe { self.arena.give_back(first, n) }.is_ok();
            if !given {
                done.madvise_errors += 1;
                self.madvise_errors.fetch_add(1, Relaxed);
            }
            for b in first..first + n {
                if given {
                    let held = self.blocks[b].held();
                    self.resident.fetch_sub(held, SeqCst);
                    pages += held;
                    done.blocks += 1;
                    self.returned.insert(b);
                } else {
                    self.slack.insert(b);
                }
            }
        }
        done.add(step, self.bytes(pages));
    }
}
