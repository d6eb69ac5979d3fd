//! Guards and epochs: who may still read a block that left its table.
//!
//! A reader opens a guard for one layer. A block that is unlinked is stamped
//! with the epoch, and is reused or returned once every open guard began later.
//! No thread waits for another: who closes the last older guard returns what
//! was retired under it ([`super::reclaim`]).
//!
//! Why it is sound (epoch-based reclamation; K. Fraser, Practical
//! lock-freedom, 2004, section 5.2.3): the reader stores its epoch, fences,
//! then reads the table; the collector changes the table, fences, then reads
//! the epochs. With a `SeqCst` fence on both sides at least one sees the
//! other: either the reader finds the block gone, or the collector finds the
//! reader. The same holds for closing: the reader leaves, fences, then looks
//! for retired blocks; who retires one fences and then looks at the readers.
//!
//! Without the feature `trim` there are no epochs, and no guard is seen.

#[cfg(feature = "trim")]
use crate::sync::{AtomicU64, Relaxed, SeqCst, fence, yield_now};

/// Threads that may be inside attention at once.
#[cfg(all(feature = "trim", not(all(test, loom))))]
const READERS: usize = 16;
#[cfg(all(feature = "trim", test, loom))]
const READERS: usize = 2;

#[cfg(feature = "trim")]
#[repr(align(64))]
#[derive(Debug)]
struct Reader(AtomicU64);

/// Every open guard's epoch; 0 is no guard.
#[derive(Debug)]
pub(super) struct Guards {
    #[cfg(feature = "trim")]
    readers: [Reader; READERS],
    #[cfg(feature = "trim")]
    epoch: AtomicU64,
}

#[cfg(feature = "trim")]
impl Guards {
    pub fn new() -> Self {
        Self {
            readers: std::array::from_fn(|_| Reader(AtomicU64::new(0))),
            epoch: AtomicU64::new(1),
        }
    }

    /// Opens a guard: its place, for [`Guards::leave`].
    pub fn enter(&self) -> usize {
        loop {
            let epoch = self.epoch.load(SeqCst);
            for (place, r) in self.readers.iter().enumerate() {
                if r.0.load(Relaxed) == 0 && r.0.compare_exchange(0, epoch, SeqCst, Relaxed).is_ok()
                {
                    // Before any read of a table: see the module.
                    fence(SeqCst);
                    return place;
                }
            }
            yield_now();
        }
    }

    /// Closes a guard. Look for retired blocks afterwards.
    pub fn leave(&self, place: usize) {
        self.readers[place].0.store(0, SeqCst);
        fence(SeqCst);
    }

    /// The stamp of what was unlinked before the call; later guards have a
    /// greater epoch.
    pub fn stamp(&self) -> u64 {
        fence(SeqCst);
        self.epoch.fetch_add(1, SeqCst)
    }

    /// What has a smaller stamp was seen by no guard that is open.
    pub fn horizon(&self) -> u64 {
        let now = self.epoch.load(SeqCst);
        fence(SeqCst);
        let open = self.readers.iter().map(|r| r.0.load(SeqCst));
        open.filter(|e| *e != 0).fold(now, u64::min)
    }
}

#[cfg(not(feature = "trim"))]
#[expect(
    clippy::unused_self,
    reason = "the same calls with and without trimming"
)]
impl Guards {
    pub fn new() -> Self {
        Self {}
    }

    pub fn enter(&self) -> usize {
        0
    }

    pub fn leave(&self, _place: usize) {}

    pub fn stamp(&self) -> u64 {
        0
    }

    pub fn horizon(&self) -> u64 {
        u64::MAX
    }
}
