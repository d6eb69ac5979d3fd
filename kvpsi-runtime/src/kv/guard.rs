//! Layer guards: attention and trimming at the same time.
//!
//! Attention over one layer holds a [`LayerGuard`]; a trim unlinks its
//! victims and then waits until no guard entered before that is left: one
//! layer at most. The waiter sleeps on a futex. It may be a real-time thread
//! on the CPU that the guard's holder needs, so it never spins.
//!
//! Why it is sound (epoch-based reclamation; K. Fraser, Practical
//! lock-freedom, 2004, section 5.2.3): the reader stores its epoch, fences,
//! then reads the table; the trimmer changes the table, fences, then reads
//! the epochs. With a `SeqCst` fence on both sides at least one sees the
//! other: either the reader finds the block gone, or the trimmer finds the
//! reader and waits.
//!
//! Without the feature `trim` a guard is nothing at all.

use std::marker::PhantomData;

#[cfg(feature = "trim")]
pub(super) use on::Guards;

#[cfg(not(feature = "trim"))]
pub(super) use off::Guards;

/// While it lives, no block seen under it loses its pages.
#[derive(Debug)]
#[must_use = "the guard protects only while it lives"]
pub struct LayerGuard<'a> {
    #[cfg(feature = "trim")]
    guards: &'a Guards,
    #[cfg(feature = "trim")]
    slot: usize,
    life: PhantomData<&'a ()>,
}

#[cfg(not(feature = "trim"))]
mod off {
    use super::{LayerGuard, PhantomData};

    #[derive(Debug)]
    pub struct Guards;

    impl Guards {
        pub fn new() -> Self {
            Self
        }

        #[expect(
            clippy::unused_self,
            reason = "the same calls with and without trimming"
        )]
        pub fn enter(&self) -> LayerGuard<'_> {
            LayerGuard { life: PhantomData }
        }

        #[expect(
            clippy::unused_self,
            reason = "the same calls with and without trimming"
        )]
        pub fn quiesce(&self) {}
    }
}

#[cfg(feature = "trim")]
mod on {
    use super::{LayerGuard, PhantomData};
    use rustix::thread::futex;
    use std::{
        sync::atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
            fence,
        },
        time::Duration,
    };

    /// Threads that may be inside attention at once.
    const READERS: usize = 16;

    #[repr(align(64))]
    #[derive(Debug, Default)]
    struct Reader(AtomicU64);

    /// Every open guard's epoch; 0 is no guard.
    #[derive(Debug)]
    pub struct Guards {
        readers: [Reader; READERS],
        epoch: AtomicU64,
        /// Threads that wait: a trim, and whoever else lets blocks go.
        waiting: AtomicU32,
        /// Counts exits while somebody waits; the futex word.
        exits: AtomicU32,
    }

    impl Guards {
        pub fn new() -> Self {
            Self {
                readers: Default::default(),
                epoch: AtomicU64::new(1),
                waiting: AtomicU32::new(0),
                exits: AtomicU32::new(0),
            }
        }

        pub fn enter(&self) -> LayerGuard<'_> {
            loop {
                let epoch = self.epoch.load(SeqCst);
                for (slot, r) in self.readers.iter().enumerate() {
                    if r.0.load(Relaxed) == 0
                        && r.0.compare_exchange(0, epoch, SeqCst, Relaxed).is_ok()
                    {
                        // Before any read of a table: see the module.
                        fence(SeqCst);
                        return LayerGuard {
                            guards: self,
                            slot,
                            life: PhantomData,
                        };
                    }
                }
                std::thread::yield_now();
            }
        }

        /// Waits until no guard is open that was entered before the call.
        pub fn quiesce(&self) {
            fence(SeqCst);
            let now = self.epoch.fetch_add(1, SeqCst) + 1;
            let older = || {
                self.readers
                    .iter()
                    .any(|r| (1..now).contains(&r.0.load(SeqCst)))
            };
            if !older() {
                return;
            }
            self.waiting.fetch_add(1, SeqCst);
            loop {
                let exits = self.exits.load(SeqCst);
                if !older() {
                    break;
                }
                // A timeout only against a waker that died: nothing is lost.
                let limit = futex::Timespec::try_from(Duration::from_millis(50)).ok();
                let _ = futex::wait(&self.exits, futex::Flags::PRIVATE, exits, limit.as_ref());
            }
            self.waiting.fetch_sub(1, SeqCst);
        }

        fn leave(&self, slot: usize) {
            self.readers[slot].0.store(0, SeqCst);
            if self.waiting.load(SeqCst) > 0 {
                self.exits.fetch_add(1, SeqCst);
                let _ = futex::wake(&self.exits, futex::Flags::PRIVATE, i32::MAX as u32);
            }
        }
    }

    impl Drop for LayerGuard<'_> {
        fn drop(&mut self) {
            self.guards.leave(self.slot);
        }
    }
}
