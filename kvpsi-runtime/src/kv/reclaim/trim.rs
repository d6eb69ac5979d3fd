//! Trimming: the reactor's call.
//!
//! Owns the order of the ladder's quick steps. No allocation, no log and no
//! wait: a table that another thread changes is left out, and pages that an open
//! guard may read are left to who closes it. Both are said in [`Trimmed`].

use super::Gave;
use crate::{
    clock::monotonic_ns,
    kv::{
        block::{Batch, Free, Retired, To, Unlinked, UnlinkedBlock},
        pool::KvPool,
        table::{Locked, Table, TableLock},
        types::{MAX_SEQUENCES, Step, Steps},
    },
    units::Bytes,
};

/// What a trim did. Times are `CLOCK_MONOTONIC` in ns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trimmed {
    /// Bytes whose pages the kernel had again when the trim returned.
    pub bytes: Bytes,
    /// Bytes that an open guard may still read, and whose content counts: they are returned when the last
    /// such guard is closed, within a layer, and counted in
    /// [`super::super::Account::deferred_returned`].
    pub deferred: Bytes,
    /// Less than wanted was taken, and the table of some sequence was being
    /// changed by another thread: look again.
    pub contended: bool,
    /// Bytes that were in swap: their slots are free, and no RAM came of them.
    pub swapped: Bytes,
    /// `bytes` by step, in the order of [`Step::ALL`].
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
    /// When the last page of `bytes` was back.
    pub returned_ns: u64,
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
    /// What is the kernel's again, or will be within a layer.
    #[must_use]
    pub fn given(&self) -> Bytes {
        Bytes(self.bytes.0 + self.deferred.0)
    }

    /// Bytes that a step gave at once.
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

/// How far a trim is.
struct Progress {
    need: usize,
    /// Pages taken, returned or deferred.
    taken: usize,
    done: Trimmed,
}

impl Progress {
    fn short(&self) -> bool {
        self.taken < self.need
    }
}

impl KvPool {
    /// Returns at least `want` bytes to the kernel, if the quick ones of the
    /// allowed steps have as much to give: slack, cached, window, preempt. Any
    /// number of threads may trim at once.
    pub fn trim(&self, want: Bytes, steps: Steps) -> Trimmed {
        let page = rustix::param::page_size() as u64;
        let mut p = Progress {
            need: usize::try_from(want.0.div_ceil(page)).unwrap_or(usize::MAX),
            taken: 0,
            done: Trimmed {
                started_ns: monotonic_ns(),
                kv_tokens_before: self.counters.live_tokens.get(),
                ..Trimmed::default()
            },
        };
        if cfg!(feature = "trim") {
            self.collect();
            if steps.has(Step::Slack) {
                self.trim_slack(&mut p);
            }
            if p.short() && steps.has(Step::Cached) {
                self.trim_cached(&mut p);
            }
            if p.short() && steps.has(Step::Window) {
                self.trim_window(&mut p);
            }
            while p.short() && steps.has(Step::Preempt) && self.preempt_last(&mut p, steps.spared())
            {
            }
            if steps.has(Step::Preempt) && steps.spared() == 0 {
                self.revoke(&mut p);
            }
        }
        p.done.contended &= p.short();
        p.done.kv_tokens_after = self.counters.live_tokens.get();
        p.done.returned_ns = monotonic_ns();
        p.done
    }

    fn trim_slack(&self, p: &mut Progress) {
        let mut free: Batch<Free> = Batch::new();
        let mut pages = 0;
        // What the kernel refused is slack again: not asked for twice.
        while p.taken + pages < p.need
            && p.done.madvise_errors == 0
            && let Some(block) = self.alloc.take_slack()
        {
            pages += self.alloc.in_ram(block.id());
            free.push(block);
            if free.is_full() {
                self.give_free(&mut free, Step::Slack, p);
                pages = 0;
            }
        }
        self.give_free(&mut free, Step::Slack, p);
    }

    /// Cached blocks, least recently used first.
    fn trim_cached(&self, p: &mut Progress) {
        let blocks = self.alloc.blocks();
        let mut free: Batch<Free> = Batch::new();
        let mut pages = 0;
        let mut take = |number: u32, p: &mut Progress| {
            if p.taken + pages >= p.need {
                return false;
            }
            // In swap it would bring nothing.
            if blocks.held_by(number as usize) <= blocks.swapped_of(number as usize) {
                return true;
            }
            let Some((block, epoch)) = blocks.take_cached(number) else {
                return true;
            };
            self.counters.cache_evicted.add(1);
            let held = self.alloc.in_ram(block.id());
            match Retired::free_now(block, epoch, self.reclaim.guards.horizon()) {
                Ok(block) => {
                    pages += held;
                    free.push(block);
                    if free.is_full() {
                        self.give_free(&mut free, Step::Cached, p);
                        pages = 0;
                    }
                }
                Err(block) => {
                    self.reclaim.retired.retire(block, epoch, To::Kernel);
                    self.note(
                        Gave {
                            deferred: held,
                            ..Gave::default()
                        },
                        Step::Cached,
                        p,
                    );
                }
            }
            true
        };
        if let Ok(mut by_age) = self.reclaim.by_age.try_lock() {
            by_age.clear();
            // The room was made with the pool.
            let room = by_age.capacity();
            by_age.extend(blocks.cached_blocks().take(room));
            by_age.sort_unstable();
            for (_, number) in by_age.iter() {
                if !take(*number, p) {
                    break;
                }
            }
        } else {
            // Another trim has it.
            while let Some((_, number)) = blocks.cached_blocks().min()
                && take(number, p)
            {}
        }
        self.give_free(&mut free, Step::Cached, p);
        self.collect();
    }

    /// The oldest block of each sequence in turn, sinks and recent kept.
    fn trim_window(&self, p: &mut Progress) {
        let mut cursor = [self.sink_entries(); MAX_SEQUENCES];
        // By table: the sequence that this trim takes from, and all its mass.
        let mut victim = [None; MAX_SEQUENCES];
        let mut blocks: Batch<Unlinked> = Batch::new();
        let (mut pages, mut dropped_mass) = (0, 0.0);
        let open = self.tables.iter().filter(|s| s.is_open());
        let mass: f32 = open.map(Table::total_mass).sum();
        loop {
            let mut found = false;
            for (i, (table, next)) in self.tables.iter().zip(&mut cursor).enumerate() {
                if p.taken + pages >= p.need {
                    break;
                }
                let table = match table.try_lock() {
                    Locked::Got(table) => table,
                    Locked::Busy => {
                        p.done.contended = true;
                        continue;
                    }
                    Locked::Gone => continue,
                };
                let Some((entry, tokens)) = self.next_cold(&table, next) else {
                    continue;
                };
                let (of, total) = *victim[i].get_or_insert_with(|| {
                    table.count_trim();
                    (table.generation_held(), table.total_mass())
                });
                if of != table.generation_held() {
                    // Another sequence by now: its turn is the next trim's.
                    continue;
                }
                found = true;
                let fell = table.mass(entry);
                if total > 0.0 {
                    table.lose_share(fell / total);
                }
                p.done.tokens += tokens as u64;
                dropped_mass += fell;
                if let Some(block) = self.unlink_cold(&table, entry, tokens) {
                    pages += self.alloc.in_ram(block.id());
                    blocks.push(block);
                }
                drop(table);
                if blocks.is_full() {
                    self.give(&mut blocks, Step::Window, p);
                    pages = 0;
                }
            }
            if !found || p.taken + pages >= p.need {
                break;
            }
        }
        self.give(&mut blocks, Step::Window, p);
        if mass > 0.0 {
            p.done.mass_dropped += dropped_mass / mass;
        }
    }

    /// The next entry from `next` on that may go, and its tokens; `next` moves
    /// behind it.
    pub(in crate::kv) fn next_cold(
        &self,
        table: &TableLock<'_>,
        next: &mut usize,
    ) -> Option<(usize, usize)> {
        let end = table.protected_from();
        while *next < end {
            let i = *next;
            *next += 1;
            let Some(block) = table.entry(i) else {
                continue;
            };
            if self.alloc.in_ram(block) == 0 {
                continue;
            }
            let tokens = self.tokens_in(table, i, block);
            if table.live() < self.config.floor_tokens + tokens {
                *next = end;
                return None;
            }
            return Some((i, tokens));
        }
        None
    }

    /// Takes an entry's block and its tokens out; the block, if no other table
    /// has it.
    pub(in crate::kv) fn unlink_cold(
        &self,
        table: &TableLock<'_>,
        entry: usize,
        tokens: usize,
    ) -> Option<UnlinkedBlock> {
        let block = table.unlink(entry)?;
        table.lose(entry * self.config.shape.block_tokens, tokens);
        self.counters.live_tokens.sub(tokens as u64);
        self.release(block, false)
    }

    /// Takes everything of the sequence that ranks last; false when only those
    /// that are spared are left, which may go on.
    fn preempt_last(&self, p: &mut Progress, spared: usize) -> bool {
        if self.running().count() <= spared {
            return false;
        }
        let Some(last) = self.running().min_by_key(|s| s.rank()) else {
            return false;
        };
        let table = match last.try_lock() {
            Locked::Got(table) => table,
            Locked::Busy => {
                p.done.contended = true;
                return false;
            }
            Locked::Gone => return false,
        };
        if table.preempted() {
            return true;
        }
        table.set_preempted();
        let mut victims: Batch<Unlinked> = Batch::new();
        for i in 0..table.entries() {
            let Some(block) = table.unlink(i) else {
                continue;
            };
            if let Some(block) = self.release(block, false) {
                victims.push(block);
            }
            if victims.is_full() {
                self.give(&mut victims, Step::Preempt, p);
            }
        }
        self.counters.live_tokens.sub(table.lose_all() as u64);
        drop(table);
        self.counters.preempted.add(1);
        p.done.preempted += 1;
        p.done.deepest = Some(Step::Preempt);
        self.give(&mut victims, Step::Preempt, p);
        true
    }

    /// Returns what is retired beside the guards that hold it back, where no sequence
    /// is left that goes on: whoever reads those blocks computes for one that was
    /// preempted or closed, and what comes of it is dropped. A thread that is
    /// descheduled under its guard, beside busy neighbours for milliseconds, would
    /// else hold everything while the kernel kills.
    fn revoke(&self, p: &mut Progress) {
        if self.running().next().is_some() {
            return;
        }
        let mut pages = 0;
        // SAFETY: as said above; a worker that copies rows finds its entries gone.
        let mut take = |number| pages += unsafe { self.alloc.revoke(number) };
        self.reclaim.retired.each_to_kernel(&mut take);
        let bytes = self.bytes(pages);
        p.done.add(Step::Preempt, bytes);
        p.done.deferred = p.done.deferred.saturating_sub(bytes);
        self.collect();
    }

    /// Tables of sequences that have tokens and go on.
    fn running(&self) -> impl Iterator<Item = &Table> {
        let all = self.tables.iter();
        all.filter(|s| s.is_open() && !s.preempted() && s.live() > 0)
    }

    fn give(&self, victims: &mut Batch<Unlinked>, step: Step, p: &mut Progress) {
        let gave = self.retire(victims, To::Kernel);
        self.note(gave, step, p);
    }

    fn give_free(&self, free: &mut Batch<Free>, step: Step, p: &mut Progress) {
        let now = self.alloc.return_pages(free);
        self.note(Gave { now, deferred: 0 }, step, p);
    }

    fn note(&self, gave: Gave, step: Step, p: &mut Progress) {
        let done = &mut p.done;
        done.blocks += gave.now.blocks;
        done.swapped = Bytes(done.swapped.0 + self.bytes(gave.now.swapped).0);
        done.madvise_calls += gave.now.calls;
        done.madvise_errors += gave.now.errors;
        done.add(step, self.bytes(gave.now.pages));
        if gave.deferred > 0 {
            done.deferred = Bytes(done.deferred.0 + self.bytes(gave.deferred).0);
            done.deepest = done.deepest.max(Some(step));
        }
        p.taken += gave.now.pages + gave.deferred;
    }
}
