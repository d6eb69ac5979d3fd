//! Blocks for a sequence within the budget, and what gives way for them.
//!
//! Owns the order in which a sequence's need is met: free blocks, the cache's
//! oldest, its own oldest, then beyond the budget down to its floor, never
//! beyond the limit that the user set. On the engine's thread, not under a
//! guard: it may wait for guards of other threads.

use crate::{
    kv::{
        block::{Batch, Free, OwnedBlock, Retired, To},
        pool::KvPool,
        table::SeqId,
    },
    sync::{Relaxed, yield_now},
};

impl KvPool {
    /// A block for `seq`.
    pub(in crate::kv) fn block_for(&self, seq: SeqId) -> Option<OwnedBlock> {
        let (budget, kind) = (self.alloc.budget(), self.config.shape.kind);
        if let Some(block) = self.alloc.take(kind, budget) {
            return Some(block);
        }
        while self.evict_cached(To::Slack) {
            self.settle();
            if let Some(block) = self.alloc.take(kind, budget) {
                return Some(block);
            }
        }
        if self.may_drop.load(Relaxed) {
            self.evict_own(seq);
            self.settle();
            if let Some(block) = self.alloc.take(kind, budget) {
                return Some(block);
            }
        }
        self.alloc.take(kind, self.alloc.limit())
    }

    /// Waits until what was retired before is free.
    fn settle(&self) {
        self.collect();
        let guards = &self.reclaim.guards;
        let now = guards.stamp();
        while self.reclaim.retired.any() && guards.horizon() <= now {
            yield_now();
        }
        self.collect();
    }

    /// Evicts the cached block that was used least recently.
    fn evict_cached(&self, to: To) -> bool {
        let blocks = self.alloc.blocks();
        while let Some((_, number)) = blocks.cached_blocks().min() {
            if let Some((block, epoch)) = blocks.take_cached(number) {
                self.counters.cache_evicted.add(1);
                let horizon = self.reclaim.guards.horizon();
                match Retired::free_now(block, epoch, horizon) {
                    Ok(block) if to == To::Slack => self.alloc.keep(block),
                    Ok(block) => {
                        let mut free: Batch<Free> = Batch::new();
                        free.push(block);
                        self.alloc.return_pages(&mut free);
                    }
                    Err(block) => {
                        self.reclaim.retired.retire(block, epoch, to);
                        self.collect();
                    }
                }
                return true;
            }
        }
        false
    }

    /// Evicts the sequence's oldest block that may go.
    fn evict_own(&self, seq: SeqId) {
        let Some(table) = self.tables.lock(seq) else {
            return;
        };
        let mut next = self.sink_entries();
        let block = loop {
            let Some((i, tokens)) = self.next_cold(&table, &mut next) else {
                return;
            };
            let mass = table.mass(i);
            table.lose_mass(mass);
            self.counters.self_evicted.add(1);
            if let Some(block) = self.unlink_cold(&table, i, tokens) {
                break block;
            }
        };
        drop(table);
        self.retire_one(block, To::Slack);
    }

    /// Returns pages until no more than the budget is resident, as far as free
    /// and cached blocks have them: what a closed sequence leaves.
    pub(in crate::kv) fn shrink_to_budget(&self) {
        let mut free: Batch<Free> = Batch::new();
        loop {
            let retired: usize = self
                .reclaim
                .retired
                .iter()
                .map(|b| self.alloc.blocks().held_by(b))
                .sum();
            if self.alloc.resident() <= self.alloc.budget() + retired {
                return;
            }
            if let Some(block) = self.alloc.take_slack() {
                free.push(block);
                if self.alloc.return_pages(&mut free).errors > 0 {
                    return;
                }
            } else if !self.evict_cached(To::Kernel) {
                return;
            }
        }
    }
}
