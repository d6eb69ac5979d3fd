//! Where blocks come from, and where they go when nobody has them.
//!
//! Owns the way from free to taken and back, on the slow side: the budget, what
//! gives way when it is spent, and pages returned one block at a time. The
//! reactor has ways of its own ([`super::trim`]). Refuses to know what is
//! written.

use super::{block::Let, encoding::KvType, pool::KvPool, sequence::Slot};
use crate::units::Bytes;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

impl KvPool {
    /// A block for `slot`: within the budget, else a cached one's place, else
    /// its own oldest, else beyond the budget.
    pub(super) fn block_for(&self, slot: &Slot) -> Option<usize> {
        let (budget, kind) = (self.budget.load(Relaxed), self.config.shape.kind);
        self.take(kind, budget)
            .or_else(|| {
                while self.evict_cached() {
                    if let Some(b) = self.take(kind, budget) {
                        return Some(b);
                    }
                }
                None
            })
            .or_else(|| {
                if self.may_drop.load(Relaxed) {
                    self.evict_own(slot);
                }
                self.take(kind, budget)
            })
            .or_else(|| self.take(kind, usize::MAX))
    }

    /// Takes a free block, a resident one first, as long as no more than
    /// `most` pages are resident then. All its pages are there. Not to be
    /// called under a guard.
    pub(super) fn take(&self, kind: KvType, most: usize) -> Option<usize> {
        let need = self.pages(kind);
        let (block, held) = match self.slack.take_low() {
            Some(b) => (b, self.blocks[b].held()),
            None => (usize::MAX, 0),
        };
        let more = need.saturating_sub(held);
        let grow = |r: usize| (r + more <= most || more == 0).then_some(r + more);
        if self.resident.fetch_update(SeqCst, SeqCst, grow).is_err() {
            if held > 0 {
                self.slack.insert(block);
            }
            return None;
        }
        let (block, there) = if held > 0 {
            self.shorten(block, held, need);
            (block, held)
        } else if let Some(b) = self.returned.take_low() {
            self.arena.unseal(b);
            (b, 0)
        } else {
            self.resident.fetch_sub(more, SeqCst);
            return None;
        };
        // Before anybody opens a guard to write it: a fault under a guard may
        // have to wait for memory, and the reactor for the guard.
        // SAFETY: a free block that was taken just now.
        unsafe { self.arena.touch(block, there..need) };
        let held = need.max(if held > need {
            self.blocks[block].held()
        } else {
            0
        });
        self.blocks[block].begin(kind, u32::try_from(held).unwrap_or(u32::MAX));
        self.in_use.fetch_add(held, SeqCst);
        Some(block)
    }

    /// A free block that is to hold fewer pages gives the others back.
    fn shorten(&self, block: usize, held: usize, need: usize) {
        if held <= need {
            return;
        }
        let page = rustix::param::page_size();
        // SAFETY: a free block that the caller took: nobody reads it.
        match unsafe { self.arena.give_back_tail(block, need * page) } {
            Ok(()) => {
                self.blocks[block].set_held(need);
                self.resident.fetch_sub(held - need, SeqCst);
            }
            Err(_) => {
                self.madvise_errors.fetch_add(1, Relaxed);
            }
        }
    }

    /// Gives the pages of a block back that is the caller's alone; no guard
    /// that could have seen it is open.
    pub(super) fn give_back(&self, block: usize) -> Bytes {
        let held = self.blocks[block].held();
        // SAFETY: the block is in no table, and every guard that could have
        // seen it in one has ended, as the caller says.
        if unsafe { self.arena.give_back(block, 1) }.is_ok() {
            self.resident.fetch_sub(held, SeqCst);
            self.returned.insert(block);
            self.bytes(held)
        } else {
            self.madvise_errors.fetch_add(1, Relaxed);
            self.slack.insert(block);
            Bytes::ZERO
        }
    }

    /// Turns the cached block that was used least recently into slack.
    fn evict_cached(&self) -> bool {
        loop {
            let oldest = self
                .blocks
                .iter()
                .enumerate()
                .filter(|(_, b)| b.is_cached());
            let Some((i, b)) = oldest.min_by_key(|(_, b)| b.used()) else {
                return false;
            };
            if b.take_cached() {
                self.cached.fetch_sub(b.held(), SeqCst);
                self.cache_evicted.fetch_add(1, Relaxed);
                self.guards.quiesce();
                self.slack.insert(i);
                return true;
            }
        }
    }

    /// Turns the sequence's oldest block that may go into slack.
    fn evict_own(&self, slot: &Slot) {
        let range = self.sink_entries()..slot.protected_from();
        for i in range {
            let floor = self.config.floor_tokens;
            let Some(tokens) = slot.entry(i).map(|b| self.tokens_in(slot, i, b)) else {
                continue;
            };
            if slot.live() < floor + tokens {
                return;
            }
            let Some(b) = slot.unlink(i) else { continue };
            slot.lose(i * self.config.shape.block_tokens, tokens);
            slot.lose_mass(slot.mass(i));
            self.live_tokens.fetch_sub(tokens as u64, Relaxed);
            self.self_evicted.fetch_add(1, Relaxed);
            if self.let_one_go(b, false) == Let::Free {
                self.guards.quiesce();
                self.slack.insert(b);
                return;
            }
        }
    }
}
