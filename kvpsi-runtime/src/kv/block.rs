//! What is known of each block: who has it, how it is written, its pages.
//!
//! Owns references. A block is free (nobody's), cached (nobody's, but known by
//! its content) or has one reference for each table that it stands in. All is
//! atomic: the reactor takes references away while others are handed out.
//! Refuses to know tables and pages' addresses.

use super::encoding::KvType;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

/// Of nobody, and its content means nothing.
const FREE: u32 = u32::MAX;
/// Of nobody, and found again by its content.
const CACHED: u32 = 0;

#[derive(Debug)]
pub(super) struct Block {
    refs: AtomicU32,
    kind: AtomicU8,
    /// Pages it holds, from its beginning on.
    held: AtomicU32,
    /// Rows of each head, where they are not those of the entry's positions:
    /// the block was gathered. 0 else.
    rows: AtomicU32,
    /// Hash of its tokens and all before them; 0: not known.
    hash: AtomicU64,
    /// Its content is what its tokens say to the last bit: computed after
    /// blocks that are so too, and never re-encoded.
    exact: AtomicBool,
    /// When it was last let go: the least goes first.
    used: AtomicU64,
}

/// What letting go of a block came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Let {
    /// Others have it.
    Shared,
    /// Nobody has it, and it is kept for its content.
    Cached,
    /// The caller's, to be given back or put among the free.
    Free,
}

impl Block {
    pub fn new() -> Self {
        Self {
            refs: AtomicU32::new(FREE),
            kind: AtomicU8::new(0),
            held: AtomicU32::new(0),
            rows: AtomicU32::new(0),
            hash: AtomicU64::new(0),
            exact: AtomicBool::new(false),
            used: AtomicU64::new(0),
        }
    }

    /// A free block becomes the caller's alone.
    pub fn begin(&self, kind: KvType, held: u32) {
        self.kind.store(kind as u8, Relaxed);
        self.held.store(held, Relaxed);
        self.rows.store(0, Relaxed);
        self.hash.store(0, Relaxed);
        self.refs.store(1, Release);
    }

    /// One more reference, unless it is free: `Some(it was cached)`.
    pub fn share(&self) -> Option<bool> {
        let more = |n: u32| (n != FREE).then(|| n + 1);
        let before = self.refs.fetch_update(SeqCst, SeqCst, more).ok()?;
        Some(before == CACHED)
    }

    /// One reference less. The last one leaves the block cached, if it may
    /// and its content is known.
    pub fn release(&self, may_cache: bool) -> Let {
        let mut n = self.refs.load(Acquire);
        loop {
            let (to, what) = match n {
                1 if may_cache && self.hash() != 0 => (CACHED, Let::Cached),
                1 => (FREE, Let::Free),
                _ => (n - 1, Let::Shared),
            };
            match self.refs.compare_exchange(n, to, SeqCst, SeqCst) {
                Ok(_) => break self.forget(what),
                Err(now) => n = now,
            }
        }
    }

    /// Takes a cached block, unless somebody has it again.
    pub fn take_cached(&self) -> bool {
        let taken = self.refs.compare_exchange(CACHED, FREE, SeqCst, Relaxed);
        taken.is_ok() && self.forget(Let::Free) == Let::Free
    }

    fn forget(&self, what: Let) -> Let {
        if what == Let::Free {
            self.hash.store(0, SeqCst);
        }
        what
    }

    pub fn is_cached(&self) -> bool {
        self.refs.load(Acquire) == CACHED
    }

    /// In one table, and in no other.
    pub fn is_sole(&self) -> bool {
        self.refs.load(Acquire) == 1
    }

    #[cfg(test)]
    pub fn refs(&self) -> Option<u32> {
        let n = self.refs.load(SeqCst);
        (n != FREE).then_some(n)
    }

    pub fn kind(&self) -> KvType {
        KvType::ALL[usize::from(self.kind.load(Relaxed)).min(KvType::ALL.len() - 1)]
    }

    pub fn held(&self) -> usize {
        self.held.load(Relaxed) as usize
    }

    pub fn set_held(&self, pages: usize) {
        self.held
            .store(u32::try_from(pages).unwrap_or(u32::MAX), Relaxed);
    }

    pub fn rows(&self) -> Option<usize> {
        let rows = self.rows.load(Relaxed);
        (rows != 0).then_some(rows as usize)
    }

    pub fn set_rows(&self, rows: usize) {
        self.rows
            .store(u32::try_from(rows).unwrap_or(u32::MAX), Relaxed);
    }

    pub fn hash(&self) -> u64 {
        self.hash.load(SeqCst)
    }

    pub fn is_exact(&self) -> bool {
        self.exact.load(SeqCst)
    }

    pub fn set_hash(&self, hash: u64, exact: bool) {
        self.exact.store(exact, SeqCst);
        self.hash.store(hash, SeqCst);
    }

    /// Takes a hash back that was set too late.
    pub fn forget_hash(&self, hash: u64) {
        let _ = self.hash.compare_exchange(hash, 0, SeqCst, Relaxed);
    }

    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub fn set_used(&self, at: u64) {
        self.used.store(at, Relaxed);
    }
}
