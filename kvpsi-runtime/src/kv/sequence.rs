//! A sequence's block table: which block holds which positions.
//!
//! Entry `i` holds positions `i * block_tokens ..` or is a hole. Owns the
//! order of its fields' changes; the pool owns the blocks. Entries change
//! hands by atomic swap, so that a trim and a close never both get a block.

use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};

/// A sequence of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId(pub(super) usize);

/// What a sequence lost and has not got back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Positions without their keys and values.
    pub tokens: u64,
    /// Trims that took some of them.
    pub trims: u64,
    /// Share of the sequence's attention mass that fell on them, 0 to 1.
    pub mass: f32,
}

/// No block: never written, or given up.
pub(super) const HOLE: u32 = u32::MAX;

const FREE: u8 = 0;
const OPEN: u8 = 1;
/// Somebody takes blocks out or changes them for others; it takes
/// microseconds.
const PICKING: u8 = 2;
/// Being opened or ended: its fields are one thread's alone.
const CHANGING: u8 = 3;

#[derive(Debug)]
pub(super) struct Slot {
    state: AtomicU8,
    /// Positions handed out.
    len: AtomicUsize,
    /// Entries from here on are being written or recent. Only grows while
    /// the sequence is open, so a stale value protects more, never less.
    protected_from: AtomicUsize,
    /// Entries from here on are being written. Only grows, as above.
    writing_from: AtomicUsize,
    /// Positions that have keys and values.
    live: AtomicUsize,
    /// First position that lost any, or [`usize::MAX`].
    lost_from: AtomicUsize,
    /// Positions that lost theirs.
    lost: AtomicU64,
    /// Share of the attention mass that fell on them, f32 bits.
    lost_mass: AtomicU32,
    /// Trims that took some.
    trims: AtomicU32,
    /// Some block was written in fewer bits, or came so from the cache: what
    /// is computed after it is near, and not exact.
    coarse: AtomicBool,
    /// All blocks were taken: what is computed now means nothing.
    preempted: AtomicBool,
    /// When it was opened, counted in sequences.
    born: AtomicU64,
    /// Who goes last has the highest.
    priority: AtomicI32,
    /// Odd while several entries change together.
    version: AtomicU32,
    table: Box<[AtomicU32]>,
    /// Attention mass by entry, f32 bits.
    mass: Box<[AtomicU32]>,
}

impl Slot {
    pub fn new(entries: usize) -> Self {
        Self {
            state: AtomicU8::new(FREE),
            len: AtomicUsize::new(0),
            protected_from: AtomicUsize::new(0),
            writing_from: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            lost_from: AtomicUsize::new(usize::MAX),
            lost: AtomicU64::new(0),
            lost_mass: AtomicU32::new(0),
            trims: AtomicU32::new(0),
            coarse: AtomicBool::new(false),
            preempted: AtomicBool::new(false),
            born: AtomicU64::new(0),
            priority: AtomicI32::new(0),
            version: AtomicU32::new(0),
            table: (0..entries).map(|_| AtomicU32::new(HOLE)).collect(),
            mass: (0..entries).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Takes a free slot; false if it is taken.
    pub fn open(&self, born: u64) -> bool {
        let taken = self.state.compare_exchange(FREE, CHANGING, SeqCst, Relaxed);
        if taken.is_ok() {
            self.len.store(0, Relaxed);
            self.protected_from.store(0, Relaxed);
            self.writing_from.store(0, Relaxed);
            self.live.store(0, Relaxed);
            self.lost_from.store(usize::MAX, Relaxed);
            self.lost.store(0, Relaxed);
            self.lost_mass.store(0, Relaxed);
            self.trims.store(0, Relaxed);
            self.coarse.store(false, Relaxed);
            self.preempted.store(false, Relaxed);
            self.born.store(born, Relaxed);
            self.priority.store(0, Relaxed);
            for mass in &self.mass {
                mass.store(0, Relaxed);
            }
            self.state.store(OPEN, SeqCst);
        }
        taken.is_ok()
    }

    /// Ends the sequence; false if it was not open. Waits for a reactor that
    /// is picking, never the other way round. The slot is the caller's until
    /// [`Slot::free`].
    pub fn close(&self) -> bool {
        loop {
            match self.state.compare_exchange(OPEN, CHANGING, SeqCst, SeqCst) {
                Ok(_) => return true,
                Err(PICKING) => std::thread::yield_now(),
                Err(_) => return false,
            }
        }
    }

    /// Lets others open the slot of an ended sequence, which has no block left.
    pub fn free(&self) {
        self.state.store(FREE, SeqCst);
    }

    /// Runs `f` while the sequence cannot be closed; `None` if it is not open.
    pub fn picking<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        self.state
            .compare_exchange(OPEN, PICKING, SeqCst, Relaxed)
            .ok()?;
        let t = f();
        self.state.store(OPEN, Release);
        Some(t)
    }

    /// [`Slot::picking`], waiting for whoever is at it; not for the reactor.
    pub fn picking_now<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        loop {
            match self.state.compare_exchange(OPEN, PICKING, SeqCst, SeqCst) {
                Ok(_) => break,
                Err(PICKING) => std::thread::yield_now(),
                Err(_) => return None,
            }
        }
        let t = f();
        self.state.store(OPEN, Release);
        Some(t)
    }

    /// Changes several entries so that no reader sees a part of it. Only while
    /// picking.
    pub fn changing<T>(&self, f: impl FnOnce() -> T) -> T {
        self.version.fetch_add(1, SeqCst);
        let t = f();
        self.version.fetch_add(1, SeqCst);
        t
    }

    /// Reads entries, again if they were changed together meanwhile.
    pub fn consistent<T>(&self, mut f: impl FnMut() -> T) -> T {
        loop {
            let before = self.version.load(SeqCst);
            if before.is_multiple_of(2) {
                let t = f();
                fence(SeqCst);
                if self.version.load(SeqCst) == before {
                    return t;
                }
            }
            std::thread::yield_now();
        }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state.load(Acquire), OPEN | PICKING)
    }

    pub fn len(&self) -> usize {
        self.len.load(Acquire)
    }

    pub fn set_len(&self, len: usize) {
        self.len.store(len, Release);
    }

    pub fn protected_from(&self) -> usize {
        self.protected_from.load(SeqCst)
    }

    pub fn protect_from(&self, recent: usize, writing: usize) {
        self.protected_from.store(recent.min(writing), SeqCst);
        self.writing_from.store(writing, SeqCst);
    }

    pub fn writing_from(&self) -> usize {
        self.writing_from.load(SeqCst)
    }

    pub fn live(&self) -> usize {
        self.live.load(SeqCst)
    }

    pub fn gain(&self, tokens: usize) {
        self.live.fetch_add(tokens, SeqCst);
    }

    /// Takes positions off; `from` is the first of them.
    pub fn lose(&self, from: usize, tokens: usize) {
        if tokens > 0 {
            self.live.fetch_sub(tokens, SeqCst);
            self.lost.fetch_add(tokens as u64, SeqCst);
            self.lost_from.fetch_min(from, SeqCst);
        }
    }

    /// All positions that are left, to whoever takes them.
    pub fn lose_all(&self) -> usize {
        let tokens = self.live.swap(0, SeqCst);
        self.lost.fetch_add(tokens as u64, SeqCst);
        self.lost_from.store(0, SeqCst);
        tokens
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(SeqCst)
    }

    /// Notes that what was taken had this share of the sequence's attention
    /// mass. Several threads may.
    pub fn lose_share(&self, share: f32) {
        let more = |bits| Some((f32::from_bits(bits) + share).to_bits());
        let _ = self.lost_mass.fetch_update(Relaxed, Relaxed, more);
    }

    /// [`Slot::lose_share`] of so much mass.
    pub fn lose_mass(&self, mass: f32) {
        let all = self.total_mass();
        if all > 0.0 {
            self.lose_share(mass / all);
        }
    }

    /// One more trim took some of its positions.
    pub fn trimmed(&self) {
        self.trims.fetch_add(1, Relaxed);
    }

    /// What it lost so far.
    pub fn loss(&self) -> Loss {
        Loss {
            tokens: self.lost(),
            trims: u64::from(self.trims.load(Relaxed)),
            mass: f32::from_bits(self.lost_mass.load(Relaxed)).min(1.0),
        }
    }

    pub fn lost_from(&self) -> Option<usize> {
        let from = self.lost_from.load(SeqCst);
        (from != usize::MAX).then_some(from)
    }

    pub fn coarse(&self) -> bool {
        self.coarse.load(SeqCst)
    }

    pub fn set_coarse(&self) {
        self.coarse.store(true, SeqCst);
    }

    pub fn preempted(&self) -> bool {
        self.preempted.load(SeqCst)
    }

    pub fn set_preempted(&self) {
        self.preempted.store(true, SeqCst);
    }

    /// Who is to be preempted first has the least.
    pub fn rank(&self) -> (i32, std::cmp::Reverse<u64>) {
        let born = std::cmp::Reverse(self.born.load(Relaxed));
        (self.priority.load(Relaxed), born)
    }

    pub fn set_priority(&self, priority: i32) {
        self.priority.store(priority, Relaxed);
    }

    pub fn entry(&self, i: usize) -> Option<usize> {
        let b = self.table[i].load(Acquire);
        (b != HOLE).then_some(b as usize)
    }

    pub fn link(&self, i: usize, block: usize) {
        let b = u32::try_from(block).unwrap_or(HOLE);
        let old = self.table[i].swap(b, Release);
        debug_assert_eq!(old, HOLE, "entry {i} had a block");
    }

    /// Takes the block out of an entry, if it has one.
    pub fn unlink(&self, i: usize) -> Option<usize> {
        let b = self.table[i].swap(HOLE, SeqCst);
        (b != HOLE).then_some(b as usize)
    }

    /// Puts another block into an entry, if it still has the one expected.
    pub fn exchange(&self, i: usize, from: usize, to: usize) -> bool {
        let [from, to] = [from, to].map(|b| u32::try_from(b).unwrap_or(HOLE));
        self.table[i]
            .compare_exchange(from, to, SeqCst, SeqCst)
            .is_ok()
    }

    pub fn entries(&self) -> usize {
        self.table.len()
    }

    pub fn mass(&self, i: usize) -> f32 {
        f32::from_bits(self.mass[i].load(Relaxed))
    }

    /// Of all entries, those that are gone too.
    pub fn total_mass(&self) -> f32 {
        (0..self.entries()).map(|i| self.mass(i)).sum()
    }

    pub fn set_mass(&self, i: usize, mass: f32) {
        self.mass[i].store(mass.to_bits(), Relaxed);
    }

    /// One writer: the thread that runs the layer.
    pub fn add_mass(&self, i: usize, mass: f32) {
        self.mass[i].store((self.mass(i) + mass).to_bits(), Relaxed);
    }
}
