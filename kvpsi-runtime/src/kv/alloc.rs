//! The allocator: which blocks are free, and which of them have their pages.
//!
//! Owns the arena, the free lists, the count of resident pages and the budget.
//! Invariants: no more pages are resident than were counted before they were
//! touched; a block that is handed out has all its pages. Counts are of pages:
//! a block may hold fewer than its place has room for. Out of scope: which
//! block is to go when the budget is spent.

use super::{
    arena::Arena,
    block::{Batch, BlockId, Blocks, Free, FreeBlock, FreeList, OwnedBlock},
    encoding::KvType,
    types::KvShape,
};
use crate::sync::{AtomicU64, AtomicUsize, Relaxed, SeqCst};
use std::ptr::NonNull;

/// What returning a batch came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Freed {
    /// That were in RAM.
    pub pages: usize,
    /// That were in swap.
    pub swapped: usize,
    pub blocks: u32,
    pub calls: u32,
    pub errors: u32,
}

#[derive(Debug)]
pub(super) struct Alloc {
    arena: Arena,
    shape: KvShape,
    blocks: Blocks,
    /// Free, with pages.
    slack: FreeList,
    /// Free, without pages.
    returned: FreeList,
    /// Pages of blocks, in RAM or in swap; reserved before a block is taken that has
    /// none.
    resident: AtomicUsize,
    /// Most pages that are to be resident, as the reactor adjusts it.
    budget: AtomicUsize,
    /// Most pages that may be, as the user set it.
    limit: AtomicUsize,
    madvise_errors: AtomicU64,
    /// Pages that were returned while they were in swap.
    swap_freed: AtomicU64,
    /// Free blocks that keep their pages for the next trim: no guard can hold
    /// them, and no token is lost by returning them.
    cushion: AtomicUsize,
}

impl Alloc {
    /// All blocks of the arena, free and without pages.
    pub fn new(arena: Arena, shape: KvShape) -> Self {
        let blocks = arena.blocks();
        Self {
            arena,
            shape,
            blocks: Blocks::new(blocks),
            slack: FreeList::empty(blocks),
            returned: FreeList::full(blocks),
            resident: AtomicUsize::new(0),
            budget: AtomicUsize::new(usize::MAX),
            limit: AtomicUsize::new(usize::MAX),
            madvise_errors: AtomicU64::new(0),
            swap_freed: AtomicU64::new(0),
            cushion: AtomicUsize::new(0),
        }
    }

    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Where the bytes of a block begin.
    pub fn address(&self, id: BlockId) -> NonNull<u8> {
        self.arena.block(id.index())
    }

    /// Pages of the whole arena.
    pub fn reserved(&self) -> usize {
        self.arena.blocks() * self.arena.block_bytes() / rustix::param::page_size()
    }

    pub fn resident(&self) -> usize {
        self.resident.load(SeqCst)
    }

    pub fn budget(&self) -> usize {
        self.budget.load(Relaxed).min(self.limit())
    }

    pub fn set_budget(&self, pages: usize) {
        self.budget.store(pages, Relaxed);
    }

    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    pub fn set_limit(&self, pages: usize) {
        self.limit.store(pages, Relaxed);
    }

    pub fn madvise_errors(&self) -> u64 {
        self.madvise_errors.load(Relaxed)
    }

    pub fn swap_freed(&self) -> u64 {
        self.swap_freed.load(Relaxed)
    }

    /// Counts anew which pages of blocks are in swap. Reads the page tables: not for
    /// the reactor.
    pub fn count_swapped(&self) {
        for i in 0..self.arena.blocks() {
            let held = self.blocks.held_by(i);
            if held == 0 && self.blocks.swapped_of(i) == 0 {
                continue;
            }
            let version = self.blocks.version_of(i);
            let in_ram = self.arena.in_ram(i, held).unwrap_or(held);
            self.blocks.set_swapped(i, held - in_ram);
            // It may have been returned meanwhile, and handed out again.
            if self.blocks.held_by(i) == 0 || self.blocks.version_of(i) != version {
                self.blocks.set_swapped(i, 0);
            }
        }
    }

    /// Has the kernel read a block's pages that are in swap.
    pub fn bring_in(&self, id: BlockId) {
        if self.blocks.set_swapped(id.index(), 0) > 0 {
            self.arena.will_need(id.index());
        }
    }

    /// Pages of a block in that encoding.
    pub fn pages(&self, kind: KvType) -> usize {
        let bytes = self.shape.block_bytes_as(kind).0;
        usize::try_from(bytes).unwrap_or(usize::MAX) / rustix::param::page_size()
    }

    /// Allocates a block, a resident one beyond the cushion first and one of the
    /// cushion last, as long as no more than `most` pages are resident then. All
    /// its pages are there. Not to be called under a guard: a fault may wait for
    /// memory.
    pub fn take(&self, kind: KvType, most: usize) -> Option<OwnedBlock> {
        loop {
            let block = self.take_any(kind, most);
            if block.is_some() {
                return block;
            }
            // Free blocks of an encoding of fewer pages: several make one.
            let mut batch = Batch::new();
            batch.push(self.take_slack()?);
            if self.return_pages(&mut batch).blocks == 0 {
                return None;
            }
        }
    }

    fn take_any(&self, kind: KvType, most: usize) -> Option<OwnedBlock> {
        if self.slack.len() > self.cushion.load(Relaxed) {
            let block = self.take_resident(kind, most);
            return block.or_else(|| self.take_returned(kind, most));
        }
        let block = self.take_returned(kind, most);
        block.or_else(|| self.take_resident(kind, most))
    }

    fn take_resident(&self, kind: KvType, most: usize) -> Option<OwnedBlock> {
        let need = self.pages(kind);
        let block = self.slack.take_low()?;
        let held = self.blocks.held(block.id());
        if !self.grow(need.saturating_sub(held), most) {
            self.slack.insert(block);
            return None;
        }
        let there = self.shorten(&block, held, need);
        Some(self.hand_out(block, kind, there))
    }

    fn take_returned(&self, kind: KvType, most: usize) -> Option<OwnedBlock> {
        let need = self.pages(kind);
        if !self.grow(need, most) {
            return None;
        }
        let Some(block) = self.returned.take_low() else {
            self.resident.fetch_sub(need, SeqCst);
            return None;
        };
        self.arena.unseal(block.id().index());
        Some(self.hand_out(block, kind, 0))
    }

    /// Counts pages that are about to be touched.
    fn grow(&self, more: usize, most: usize) -> bool {
        let grown = |r: usize| (r + more <= most || more == 0).then_some(r + more);
        self.resident.fetch_update(SeqCst, SeqCst, grown).is_ok()
    }

    fn hand_out(&self, block: FreeBlock, kind: KvType, there: usize) -> OwnedBlock {
        let need = self.pages(kind);
        let swapped = self.blocks.set_swapped(block.id().index(), 0) > 0;
        let from = if swapped { 0 } else { there };
        if from < need {
            // SAFETY: a free block, which the token says is the caller's alone.
            unsafe { self.arena.touch(block.id().index(), from..need) };
        }
        self.blocks.begin(block, kind, need.max(there))
    }

    pub fn set_cushion(&self, blocks: usize) {
        self.cushion.store(blocks, Relaxed);
    }

    pub fn lacks_cushion(&self) -> bool {
        self.slack.len() < self.cushion.load(Relaxed)
    }

    /// Fills the cushion, as far as the budget allows. Not to be called under a
    /// guard.
    pub fn fill_cushion(&self, kind: KvType) {
        while self.lacks_cushion()
            && let Some(block) = self.take_returned(kind, self.budget())
        {
            self.abandon(block);
        }
    }

    /// A free block that is to hold fewer pages returns the others; how many it
    /// holds then.
    fn shorten(&self, block: &FreeBlock, held: usize, need: usize) -> usize {
        if held <= need {
            return held;
        }
        let bytes = need * rustix::param::page_size();
        // SAFETY: a free block, which the token says is the caller's alone.
        match unsafe { self.arena.give_back_tail(block.id().index(), bytes) } {
            Ok(()) => {
                self.blocks.set_held(block, need);
                self.resident.fetch_sub(held - need, SeqCst);
                need
            }
            Err(_) => {
                self.madvise_errors.fetch_add(1, Relaxed);
                held
            }
        }
    }

    /// A block that was allocated and put into no table is slack.
    pub fn abandon(&self, block: OwnedBlock) {
        self.slack.insert(self.blocks.abandon(block));
    }

    /// A free block keeps its pages.
    pub fn keep(&self, block: FreeBlock) {
        self.slack.insert(block);
    }

    /// The free block with pages that has the highest number.
    pub fn take_slack(&self) -> Option<FreeBlock> {
        self.slack.take_high()
    }

    /// Returns the pages of free blocks to the kernel, adjacent ones in one
    /// call. What the kernel refuses is slack.
    pub fn return_pages(&self, batch: &mut Batch<Free>) -> Freed {
        let mut freed = Freed::default();
        batch.sort();
        let mut run: Batch<Free> = Batch::new();
        let mut next = None;
        while let Some(block) = batch.pop() {
            let i = block.id().index();
            if next != Some(i) {
                self.return_run(&mut run, &mut freed);
            }
            run.push(block);
            next = Some(i + 1);
        }
        self.return_run(&mut run, &mut freed);
        freed
    }

    /// Returns adjacent blocks, whose numbers rise.
    fn return_run(&self, run: &mut Batch<Free>, freed: &mut Freed) {
        let Some(first) = run.first() else { return };
        freed.calls += 1;
        // SAFETY: the tokens say that these blocks are in no table, that no
        // open guard has seen them in one, and that they are the caller's alone.
        let given = unsafe { self.arena.give_back(first.index(), run.len()) }.is_ok();
        if !given {
            freed.errors += 1;
            self.madvise_errors.fetch_add(1, Relaxed);
        }
        while let Some(block) = run.pop() {
            if given {
                let (held, swapped) = self.emptied(block.id().index());
                freed.pages += held - swapped;
                freed.swapped += swapped;
                freed.blocks += 1;
                self.returned.insert(block);
            } else {
                self.slack.insert(block);
            }
        }
    }

    /// Returns the pages of a retired block beside the guards that may read it, and
    /// counts them as returned; how many they were. What is written to it under a
    /// guard goes when the block is returned as a whole.
    ///
    /// # Safety
    /// The block is the caller's alone among collectors, and what is computed of it
    /// from now on is used for nothing.
    pub unsafe fn revoke(&self, number: usize) -> usize {
        // SAFETY: as the caller says; who collects it gives it back again.
        if unsafe { self.arena.empty(number) }.is_err() {
            self.madvise_errors.fetch_add(1, Relaxed);
            return 0;
        }
        let (held, swapped) = self.emptied(number);
        held - swapped
    }

    /// A block lost its pages: how many, and how many of them were in swap.
    fn emptied(&self, number: usize) -> (usize, usize) {
        let held = self.blocks.emptied(number);
        let swapped = self.blocks.set_swapped(number, 0).min(held);
        self.resident.fetch_sub(held, SeqCst);
        self.swap_freed.fetch_add(swapped as u64, Relaxed);
        (held, swapped)
    }

    /// Pages of a block that returning it gives the kernel: none that are in swap.
    pub fn in_ram(&self, id: BlockId) -> usize {
        let held = self.blocks.held(id);
        held.saturating_sub(self.blocks.swapped_of(id.index()))
    }

    #[cfg(test)]
    pub fn free_blocks(&self) -> usize {
        self.slack.len() + self.returned.len()
    }

    #[cfg(test)]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.arena.range()
    }
}
