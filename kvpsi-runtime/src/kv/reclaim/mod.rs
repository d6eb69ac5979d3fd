//! The reclaimer: blocks that leave sequences, and when their pages go.
//!
//! Owns every step that takes memory from a sequence or from the cache:
//! [`trim`] at once for the reactor, [`requantize`] and [`evict_tokens`] in the
//! background, [`budget`] for a sequence that needs a block. [`ladder`] is the
//! order of the slow ones.
//!
//! Invariants: pages that no open guard can have seen are returned at once, the
//! others by whoever closes the last older guard; the reactor waits for
//! neither. Out of scope: why memory is wanted.

mod budget;
mod evict_tokens;
mod ladder;
mod requantize;
mod trim;

pub use evict_tokens::{ThinMemory, ThinOrder};
pub use ladder::{Ladder, LadderConfig, Profile};
pub use requantize::Reclaimed;
pub use trim::Trimmed;

use super::{
    block::{Batch, BlockRef, Free, Released, Retired, To, Unlinked, UnlinkedBlock},
    pool::KvPool,
};

/// What became of a batch of unlinked blocks; in pages.
#[derive(Clone, Copy, Debug, Default)]
struct Gave {
    now: super::alloc::Freed,
    deferred: usize,
}

impl KvPool {
    /// One reference less; what has none is cached or slack.
    pub(super) fn put_back(&self, block: BlockRef) {
        if let Some(block) = self.release(block, true) {
            self.retire_one(block, To::Slack);
        }
    }

    /// One reference less. The block, if it has none and is not kept for its
    /// content.
    pub(super) fn release(&self, block: BlockRef, may_cache: bool) -> Option<UnlinkedBlock> {
        let cache = may_cache.then(|| self.reclaim.guards.stamp());
        match self.alloc.blocks().release(block, cache) {
            Released::Last(block) => Some(block),
            Released::Shared | Released::Cached => None,
        }
    }

    /// Retires blocks that left their tables. Pages that go to the kernel and
    /// that no open guard can have seen are returned by this call.
    fn retire(&self, blocks: &mut Batch<Unlinked>, to: To) -> Gave {
        let mut gave = Gave::default();
        if blocks.is_empty() {
            return gave;
        }
        let epoch = self.reclaim.guards.stamp();
        let horizon = self.reclaim.guards.horizon();
        let mut free: Batch<Free> = Batch::new();
        while let Some(block) = blocks.pop() {
            match Retired::free_now(block, epoch, horizon) {
                Ok(block) if to == To::Kernel => free.push(block),
                Ok(block) => self.alloc.keep(block),
                Err(block) => {
                    gave.deferred += self.alloc.in_ram(block.id());
                    self.reclaim.retired.retire(block, epoch, to);
                }
            }
        }
        gave.now = self.alloc.return_pages(&mut free);
        if gave.deferred > 0 {
            // The last older guard may have closed meanwhile.
            self.collect();
        }
        gave
    }

    /// [`KvPool::retire`] of one block.
    pub(super) fn retire_one(&self, block: UnlinkedBlock, to: To) {
        let mut batch = Batch::new();
        batch.push(block);
        self.retire(&mut batch, to);
    }

    /// Hands on what was retired under guards that are closed by now.
    pub(super) fn collect(&self) {
        if !self.reclaim.retired.any() {
            return;
        }
        let mut free: Batch<Free> = Batch::new();
        let mut pages = 0;
        self.reclaim
            .retired
            .collect(&|| self.reclaim.guards.horizon(), &mut |block, to| {
                if to == To::Slack {
                    return self.alloc.keep(block);
                }
                if free.is_full() {
                    pages += self.alloc.return_pages(&mut free).pages;
                }
                free.push(block);
            });
        pages += self.alloc.return_pages(&mut free).pages;
        self.counters.deferred_returned.add(pages as u64);
    }
}
