//! The account: how many bytes are where, and what was lost.
//!
//! Owns the counters that no other part owns. Pages are counted by the
//! allocator and by references ([`super::block`]).

use crate::{
    sync::{AtomicU64, Relaxed},
    units::Bytes,
};

/// The pool's account at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Account {
    /// Address space of the arena.
    pub reserved: Bytes,
    /// Pages of blocks that are in RAM.
    pub resident: Bytes,
    /// Pages of blocks that the kernel swapped out, as last counted
    /// ([`KvPool::count_swapped`](super::KvPool::count_swapped)).
    pub swapped: Bytes,
    /// Blocks whose pages the kernel has.
    pub returned: Bytes,
    /// Blocks of open sequences; one that several share counts once.
    pub in_use: Bytes,
    /// Blocks of ended and idle sequences, kept to be used again.
    pub cached: Bytes,
    /// Blocks with pages and without a reference, those retired among them.
    pub slack: Bytes,
    /// Blocks that left their tables and whose pages are returned when the last
    /// guard that may have seen them is closed.
    pub retired: Bytes,
    /// Positions of all sequences that have keys and values.
    pub live_tokens: u64,
    /// What the steps up to the window cannot take: sinks, recent windows and
    /// floors of open sequences.
    pub floor: Bytes,
    /// Blocks that sequences evicted of their own to stay within the budget.
    pub self_evicted: u64,
    /// `madvise` calls that failed; their blocks stayed resident.
    pub madvise_errors: u64,
    /// Sequences that lost all their memory and went back to their tokens.
    pub preempted: u64,
    /// Cached blocks that gave way to blocks in use, or to trims.
    pub cache_evicted: u64,
    /// Tokens that a sequence found in the cache and did not compute.
    pub cache_hit_tokens: u64,
    /// Rows of keys and values that found no block: always 0, or a bug.
    pub writes_lost: u64,
    /// Bytes whose pages were in swap when they were given back.
    pub swap_freed: Bytes,
    /// Bytes that a trim or a slow step deferred to the close of a guard, and
    /// that were returned then.
    pub deferred_returned: Bytes,
}

/// A counter that only grows, or a level.
#[derive(Debug)]
pub(super) struct Count(AtomicU64);

impl Count {
    fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts of what happened to sequences and blocks.
#[derive(Debug)]
pub(super) struct Counters {
    pub live_tokens: Count,
    pub preempted: Count,
    pub cache_evicted: Count,
    pub cache_hit_tokens: Count,
    pub self_evicted: Count,
    pub writes_lost: Count,
    /// Pages.
    pub deferred_returned: Count,
}

impl Counters {
    pub fn new() -> Self {
        Self {
            live_tokens: Count::new(),
            preempted: Count::new(),
            cache_evicted: Count::new(),
            cache_hit_tokens: Count::new(),
            self_evicted: Count::new(),
            writes_lost: Count::new(),
            deferred_returned: Count::new(),
        }
    }
}
