//! A sequence's block table: which block holds which positions.
//!
//! Entry `i` holds positions `i * block_tokens ..` or is a hole. Owns the
//! order of its fields' changes; the pool owns the blocks. Entries change
//! hands by atomic swap, so that a trim and a close never both get a block.

use std::sync::atomic::{
    AtomicU8, AtomicU32, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

/// A sequence of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId(pub(super) usize);

/// No block: never written, or given up.
pub(super) const HOLE: u32 = u32::MAX;

const FREE: u8 = 0;
const OPEN: u8 = 1;
/// The reactor is choosing victims here; it takes microseconds.
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
            table: (0..entries).map(|_| AtomicU32::new(HOLE)).collect(),
            mass: (0..entries).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Takes a free slot; false if it is taken.
    pub fn open(&self) -> bool {
        let taken = self.state.compare_exchange(FREE, CHANGING, SeqCst, Relaxed);
        if taken.is_ok() {
            self.len.store(0, Relaxed);
            self.protected_from.store(0, Relaxed);
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

    pub fn protect_from(&self, entry: usize) {
        self.protected_from.store(entry, SeqCst);
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

    pub fn entries(&self) -> usize {
        self.table.len()
    }

    pub fn mass(&self, i: usize) -> f32 {
        f32::from_bits(self.mass[i].load(Relaxed))
    }

    /// One writer: the thread that runs the layer.
    pub fn add_mass(&self, i: usize, mass: f32) {
        self.mass[i].store((self.mass(i) + mass).to_bits(), Relaxed);
    }
}
