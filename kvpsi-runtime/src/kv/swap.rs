//! Blocks that the kernel swapped out.
//!
//! Owns counting them and having them read. A block in swap holds no RAM: it is
//! not resident, no trim takes it, no slow step reads it, and a step that is about
//! to attend to it has it read before a guard is opened. Invariant: the reactor asks
//! the kernel for none of it, and knows what was counted last. Out of scope: why the
//! kernel swaps.

use super::{
    block::{Batch, Free},
    pool::KvPool,
    table::SeqId,
};

impl KvPool {
    /// Counts which pages are in swap, and returns free blocks that are: no use as
    /// a reserve. Some microseconds for each block; not for the reactor.
    pub fn count_swapped(&self) {
        self.alloc.count_swapped();
        if self.alloc.blocks().swapped() == 0 {
            return;
        }
        let (mut out, mut stay): (Batch<Free>, Batch<Free>) = (Batch::new(), Batch::new());
        while !out.is_full()
            && !stay.is_full()
            && let Some(block) = self.alloc.take_slack()
        {
            if self.alloc.blocks().swapped_of(block.id().index()) > 0 {
                out.push(block);
            } else {
                stay.push(block);
            }
        }
        while let Some(block) = stay.pop() {
            self.alloc.keep(block);
        }
        self.alloc.return_pages(&mut out);
    }

    /// Some block may be in swap.
    #[must_use]
    pub fn has_swapped(&self) -> bool {
        self.alloc.blocks().swapped() > 0
    }

    /// Has the kernel read what it swapped out of a sequence. Waits for the disk:
    /// not to be called under a guard.
    pub(super) fn bring_in(&self, seq: SeqId) {
        if !self.has_swapped() {
            return;
        }
        let Some(table) = self.tables.get(seq) else {
            return;
        };
        for i in 0..table.len().div_ceil(self.config.shape.block_tokens) {
            if let Some(block) = table.entry(i) {
                self.alloc.bring_in(block);
            }
        }
    }
}
