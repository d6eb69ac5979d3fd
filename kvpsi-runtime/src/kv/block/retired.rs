//! Blocks that left every table, until the last guard that may have seen them
//! is closed.
//!
//! Owns the wait, which no thread spends waiting: a block is retired with the
//! epoch of its unlinking ([`crate::kv::epoch`]), and whoever collects takes
//! those that are older than every open guard. Invariant: a member is claimed
//! by one collector. Out of scope: when to collect, and what returning a page
//! is.

use super::{
    bitmap::Bitmap,
    token::{BlockId, FreeBlock, Token, UnlinkedBlock},
};
use crate::sync::{AtomicU64, AtomicUsize, Relaxed, SeqCst, fence};

/// Where a retired block goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kv) enum To {
    /// Its pages to the kernel.
    Kernel,
    /// Among the free blocks, with its pages.
    Slack,
}

#[derive(Debug)]
pub(in crate::kv) struct Retired {
    to_kernel: Bitmap,
    to_slack: Bitmap,
    /// By block: the epoch of its unlinking.
    epochs: Box<[AtomicU64]>,
    blocks: AtomicUsize,
}

impl Retired {
    pub fn new(blocks: usize) -> Self {
        Self {
            to_kernel: Bitmap::new(blocks, false),
            to_slack: Bitmap::new(blocks, false),
            epochs: (0..blocks).map(|_| AtomicU64::new(0)).collect(),
            blocks: AtomicUsize::new(0),
        }
    }

    /// Keeps a block that was unlinked up to `epoch`. Collect afterwards: the
    /// last guard may have closed meanwhile.
    pub fn retire(&self, block: UnlinkedBlock, epoch: u64, to: To) {
        let i = block.spend().index();
        self.epochs[i].store(epoch, SeqCst);
        self.blocks.fetch_add(1, SeqCst);
        self.set(to).insert(i);
    }

    /// The block at once, if every guard that is open began after `epoch`.
    pub fn free_now(
        block: UnlinkedBlock,
        epoch: u64,
        horizon: u64,
    ) -> Result<FreeBlock, UnlinkedBlock> {
        if epoch < horizon {
            Ok(Token::new(block.spend()))
        } else {
            Err(block)
        }
    }

    /// Some block is retired. After a `SeqCst` fence.
    pub fn any(&self) -> bool {
        self.blocks.load(Relaxed) > 0
    }

    /// Hands every block on that no open guard can have seen. `horizon` is
    /// [`crate::kv::epoch::Guards::horizon`].
    pub fn collect(&self, horizon: &dyn Fn() -> u64, give: &mut dyn FnMut(FreeBlock, To)) {
        let now = horizon();
        for to in [To::Kernel, To::Slack] {
            let set = self.set(to);
            for i in set.iter() {
                if self.epochs[i].load(SeqCst) < now && self.claim(set, i, now, horizon) {
                    self.blocks.fetch_sub(1, SeqCst);
                    let number = u32::try_from(i).unwrap_or(u32::MAX);
                    give(Token::new(BlockId { number, version: 0 }), to);
                }
            }
        }
    }

    /// Tells the number of each block whose pages go to the kernel; no other thread
    /// has it meanwhile. Collect afterwards: who closed the last guard may have found
    /// it taken.
    pub fn each_to_kernel(&self, tell: &mut dyn FnMut(usize)) {
        for i in self.to_kernel.iter() {
            if self.to_kernel.remove(i) {
                tell(i);
                self.to_kernel.insert(i);
            }
        }
    }

    /// Takes member `i` out, unless another thread did. It may have been
    /// collected and retired again since its epoch was read: then it goes back,
    /// and the guards are looked at again, for one that closed meanwhile did
    /// not see it.
    fn claim(&self, set: &Bitmap, i: usize, mut now: u64, horizon: &dyn Fn() -> u64) -> bool {
        while set.remove(i) {
            if self.epochs[i].load(SeqCst) < now {
                return true;
            }
            set.insert(i);
            fence(SeqCst);
            now = horizon();
            if self.epochs[i].load(SeqCst) >= now {
                return false;
            }
        }
        false
    }

    fn set(&self, to: To) -> &Bitmap {
        match to {
            To::Kernel => &self.to_kernel,
            To::Slack => &self.to_slack,
        }
    }

    /// Numbers of the blocks that are retired now.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.to_kernel.iter().chain(self.to_slack.iter())
    }
}
