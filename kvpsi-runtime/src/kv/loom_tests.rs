//! Models of what threads do to a block, every interleaving up to a number of
//! preemptions: one promise each. `cargo xtask loom` runs them.
//!
//! The tokens take part: a block that is lost is a token that is dropped, and
//! panics; one that is released twice would be a token used twice, which does
//! not compile.

use super::{
    block::{
        Batch, BlockId, BlockRef, Blocks, FreeBlock, FreeList, OwnedBlock, Released, Retired, To,
        Unlinked,
    },
    encoding::KvType,
    epoch::Guards,
    table::{Locked, Table, TableLock},
};
use crate::sync::{AtomicBool, AtomicU32, SeqCst};
use loom::{sync::Arc, thread};

const BLOCKS: usize = 2;
const HASH: u64 = 77;

/// A pool without pages.
struct World {
    blocks: Blocks,
    free: FreeList,
    table: Table,
    guards: Guards,
    retired: Retired,
    /// Whose rows a block has.
    whose: [AtomicU32; BLOCKS],
    /// Whether its pages are there.
    there: [AtomicBool; BLOCKS],
}

impl World {
    fn new() -> Self {
        Self {
            blocks: Blocks::new(BLOCKS),
            free: FreeList::full(BLOCKS),
            table: Table::new(1),
            guards: Guards::new(),
            retired: Retired::new(BLOCKS),
            whose: [AtomicU32::new(0), AtomicU32::new(0)],
            there: [AtomicBool::new(false), AtomicBool::new(false)],
        }
    }

    /// Allocates a block for a sequence, and writes it.
    fn take(&self, whose: u32) -> Option<OwnedBlock> {
        let free = self.free.take_low()?;
        let i = free.id().index();
        self.there[i].store(true, SeqCst);
        let block = self.blocks.begin(free, KvType::F16, 1);
        self.whose[i].store(whose, SeqCst);
        Some(block)
    }

    fn keep(&self, block: FreeBlock) {
        self.there[block.id().index()].store(false, SeqCst);
        self.free.insert(block);
    }

    fn release(&self, block: BlockRef) {
        if let Released::Last(block) = self.blocks.release(block, None) {
            let mut batch: Batch<Unlinked> = Batch::new();
            batch.push(block);
            let (epoch, horizon) = (self.guards.stamp(), self.guards.horizon());
            while let Some(block) = batch.pop() {
                match Retired::free_now(block, epoch, horizon) {
                    Ok(block) => self.keep(block),
                    Err(block) => {
                        self.retired.retire(block, epoch, To::Kernel);
                        self.collect();
                    }
                }
            }
        }
    }

    fn collect(&self) {
        if self.retired.any() {
            self.retired
                .collect(&|| self.guards.horizon(), &mut |block, _| self.keep(block));
        }
    }

    /// As the reactor: takes the entry, if the table is not locked.
    fn trim(&self) -> bool {
        let Locked::Got(table) = self.table.try_lock() else {
            return false;
        };
        let block = table.unlink(0);
        drop(table);
        if let Some(block) = block {
            self.release(block);
        }
        true
    }

    fn link(&self, table: &TableLock<'_>, block: OwnedBlock) {
        table
            .link(0, block.into_ref())
            .expect("the entry is a hole");
    }

    /// As the worker: writes the entry's block anew and exchanges it; the
    /// name of the new one.
    fn requantize(&self, generation: u64) -> Option<BlockId> {
        let old = self.table.entry(0)?;
        let new = self.take(self.whose[old.index()].load(SeqCst))?;
        let id = new.id();
        self.blocks.set_hash(new.pin(), HASH, false);
        let Some(table) = self.table.lock(generation) else {
            self.free.insert(self.blocks.abandon(new));
            return None;
        };
        let done = table.exchange(0, old, new.into_ref());
        drop(table);
        let exchanged = done.is_ok();
        self.release(done.unwrap_or_else(|new| new));
        exchanged.then_some(id)
    }

    /// Everything ends: every block is free.
    fn end(&self, generation: u64) {
        if let Some(table) = self.table.lock(generation) {
            if let Some(block) = table.unlink(0) {
                self.release(block);
            }
            table.end();
        }
        self.collect();
        assert_eq!(self.free.len(), BLOCKS, "a block is lost");
        assert_eq!((self.blocks.in_use(), self.blocks.cached()), (0, 0));
    }
}

fn begun(whose: u32) -> (Arc<World>, u64) {
    let w = Arc::new(World::new());
    let generation = w.table.open(1).expect("it is free");
    let block = w.take(whose).expect("all are free");
    let table = w.table.lock(generation).expect("it is open");
    w.link(&table, block);
    drop(table);
    (w, generation)
}

/// A model with at most `preemptions` switches away from a running thread.
fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

#[test]
#[cfg(feature = "trim")]
fn a_block_seen_under_a_guard_keeps_its_pages_and_is_returned_when_it_is_closed() {
    model(3, || {
        let (w, generation) = begun(1);
        let other = w.clone();
        let reader = thread::spawn(move || {
            let w = other;
            let place = w.guards.enter();
            if let Some(b) = w.table.entry(0) {
                assert!(w.there[b.index()].load(SeqCst), "a returned page is read");
                assert_eq!(w.whose[b.index()].load(SeqCst), 1);
            }
            w.guards.leave(place);
            w.collect();
        });
        assert!(w.trim());
        reader.join().expect("no panic");
        assert_eq!(
            w.free.len(),
            BLOCKS,
            "pages wait for a guard that is closed"
        );
        w.end(generation);
    });
}

/// Nobody needs its content any more, and its pages go beside the guard.
#[test]
#[cfg(feature = "trim")]
fn a_block_that_was_emptied_under_a_guard_is_handed_on_once_and_never_lost() {
    model(3, || {
        let (w, generation) = begun(1);
        let other = w.clone();
        let reader = thread::spawn(move || {
            let w = other;
            let place = w.guards.enter();
            w.guards.leave(place);
            w.collect();
        });
        assert!(w.trim());
        w.retired.each_to_kernel(&mut |i| {
            assert_eq!(w.blocks.emptied(i), 1);
            assert!(w.there[i].swap(false, SeqCst), "it was handed on meanwhile");
        });
        w.collect();
        reader.join().expect("no panic");
        assert_eq!(w.free.len(), BLOCKS, "a block is lost");
        w.end(generation);
    });
}

#[test]
fn a_cached_block_is_shared_or_evicted_and_never_both() {
    model(3, || {
        let w = Arc::new(World::new());
        let block = w.take(1).expect("all are free");
        let id = block.id();
        w.blocks.set_hash(block.pin(), HASH, true);
        assert!(matches!(
            w.blocks.release(block.into_ref(), Some(0)),
            Released::Cached
        ));
        let other = w.clone();
        let adopter = thread::spawn(move || {
            let w = other;
            let Some(block) = w.blocks.share(id) else {
                return;
            };
            assert_eq!(
                w.whose[id.index()].load(SeqCst),
                1,
                "another's block is shared"
            );
            if let Released::Last(block) = w.blocks.release(block, Some(0)) {
                let free = Retired::free_now(block, 0, 1).expect("no guard is open");
                w.keep(free);
            }
        });
        if let Some((block, _)) = w.blocks.take_cached(id.number) {
            w.keep(Retired::free_now(block, 0, 1).expect("no guard is open"));
            // Another sequence gets it.
            let block = w.take(2).expect("one is free");
            w.free.insert(w.blocks.abandon(block));
        }
        adopter.join().expect("no panic");
        if let Some((block, _)) = w.blocks.take_cached(id.number) {
            w.keep(Retired::free_now(block, 0, 1).expect("no guard is open"));
        }
        assert_eq!(w.free.len(), BLOCKS);
        assert_eq!((w.blocks.in_use(), w.blocks.cached()), (0, 0));
    });
}

/// Fault a: the block that a requantization named was taken and given to another
/// sequence, and was found by the first one's content.
#[test]
fn what_is_found_by_its_content_has_that_content() {
    model(2, || {
        let (w, generation) = begun(1);
        let other = w.clone();
        let reactor = thread::spawn(move || {
            let w = other;
            w.trim();
            // Another sequence takes what is free and writes it.
            w.take(2)
        });
        let named = w.requantize(generation);
        if let Some(id) = named
            && w.blocks.hash(id) == HASH
            && let Some(block) = w.blocks.share(id)
        {
            assert_eq!(
                w.whose[id.index()].load(SeqCst),
                1,
                "another's rows are adopted"
            );
            w.release(block);
        }
        if let Some(block) = reactor.join().expect("no panic") {
            w.free.insert(w.blocks.abandon(block));
        }
        w.end(generation);
    });
}

/// Fault b: two that take the same entry out.
#[test]
fn an_entry_is_taken_out_once_by_whoever_takes_it() {
    model(3, || {
        let (w, generation) = begun(1);
        let other = w.clone();
        let own = thread::spawn(move || {
            // As a sequence that evicts its own oldest block.
            let table = other.table.lock(generation).expect("it is open");
            let block = table.unlink(0);
            drop(table);
            if let Some(block) = block {
                other.release(block);
            }
        });
        w.requantize(generation);
        own.join().expect("no panic");
        w.end(generation);
    });
}

/// Fault c: the block, or the table, was reused between the look and the exchange.
#[test]
fn an_exchange_never_meets_a_block_or_a_sequence_that_was_reused() {
    model(2, || {
        let (w, generation) = begun(1);
        let other = w.clone();
        let engine = thread::spawn(move || {
            let w = other;
            let table = w.table.lock(generation).expect("it is open");
            if let Some(block) = table.unlink(0) {
                w.release(block);
            }
            table.end();
            let again = w.table.open(2).expect("it was closed");
            if let Some(block) = w.take(2) {
                let table = w.table.lock(again).expect("it is open");
                w.link(&table, block);
            }
            again
        });
        w.requantize(generation);
        let again = engine.join().expect("no panic");
        if let Some(b) = w.table.entry(0) {
            assert_eq!(w.whose[b.index()].load(SeqCst), 2, "rows of the one before");
        }
        w.end(again);
    });
}
