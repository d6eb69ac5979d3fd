//! Block tables: which block holds which positions of a sequence.
//!
//! Owns the entries and the counts of each sequence, and the rule by which they
//! change: **only through a [`TableLock`]**. Entry `i` holds positions
//! `i * block_tokens ..` or is a hole, and an entry is a reference: linking
//! consumes it, unlinking yields it. The reactor only tries the lock, and says
//! so where it did not get it; all others wait, for microseconds. Reading
//! entries needs no lock, but a guard before the block's bytes are read.
//!
//! Invariants: a sequence is named by its place and its generation, so the
//! name of a closed one finds nothing; an entry holds number and version of
//! its block, so a block that was reused is another entry.
//! Out of scope: where blocks come from and go.

use super::block::{BlockId, BlockRef, Pinned};
use crate::sync::{
    Acquire, AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Relaxed, Release, SeqCst,
    fence, yield_now,
};

/// A sequence of a pool. The id of a closed sequence is no other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId {
    pub(super) slot: u32,
    pub(super) generation: u64,
}

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

/// No block: never written, or evicted.
const HOLE: u64 = u64::MAX;

/// States of a table, in the low bits of its state word; the generation is
/// above them.
const FREE: u64 = 0;
const OPEN: u64 = 1;
const LOCKED: u64 = 2;
const BITS: u32 = 2;

#[derive(Debug)]
pub(super) struct Table {
    state: AtomicU64,
    /// Positions handed out.
    len: AtomicUsize,
    /// Positions whose rows are all written.
    written: AtomicUsize,
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
    /// The highest is preempted last.
    priority: AtomicI32,
    /// Odd while several entries change together.
    version: AtomicU32,
    entries: Box<[AtomicU64]>,
    /// Attention mass by entry, f32 bits.
    mass: Box<[AtomicU32]>,
}

/// What a try to lock came to.
#[derive(Debug)]
pub(super) enum Locked<'a> {
    Got(TableLock<'a>),
    /// Another thread changes the table.
    Busy,
    /// No such sequence is open.
    Gone,
}

/// The right to change a table, until it is dropped.
#[derive(Debug)]
pub(super) struct TableLock<'a> {
    table: &'a Table,
    generation: u64,
    /// What the state word is after it.
    then: u64,
}

impl Table {
    pub fn new(entries: usize) -> Self {
        Self {
            state: AtomicU64::new(FREE),
            len: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
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
            entries: (0..entries).map(|_| AtomicU64::new(HOLE)).collect(),
            mass: (0..entries).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Begins a sequence in a free table; its generation.
    pub fn open(&self, born: u64) -> Option<u64> {
        let now = self.state.load(Acquire);
        if now & ((1 << BITS) - 1) != FREE {
            return None;
        }
        let generation = (now >> BITS) + 1;
        let lock = self.change(now, generation, OPEN)?;
        self.len.store(0, Relaxed);
        self.written.store(0, Relaxed);
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
        drop(lock);
        Some(generation)
    }

    fn change(&self, from: u64, generation: u64, then: u64) -> Option<TableLock<'_>> {
        let locked = generation << BITS | LOCKED;
        let then = generation << BITS | then;
        let taken = self.state.compare_exchange(from, locked, SeqCst, SeqCst);
        taken.ok().map(|_| TableLock {
            table: self,
            generation,
            then,
        })
    }

    /// The lock, if it is free. For the reactor.
    pub fn try_lock(&self) -> Locked<'_> {
        let now = self.state.load(Acquire);
        match now & ((1 << BITS) - 1) {
            OPEN => self
                .change(now, now >> BITS, OPEN)
                .map_or(Locked::Busy, Locked::Got),
            FREE => Locked::Gone,
            _ => Locked::Busy,
        }
    }

    /// The lock, once whoever has it is done; `None` if that sequence is not
    /// open. Not for the reactor.
    pub fn lock(&self, generation: u64) -> Option<TableLock<'_>> {
        loop {
            let now = self.state.load(Acquire);
            if now == generation << BITS | OPEN {
                if let Some(lock) = self.change(now, generation, OPEN) {
                    return Some(lock);
                }
            } else if now != generation << BITS | LOCKED {
                return None;
            }
            yield_now();
        }
    }

    /// The generation of the sequence that is open here.
    pub fn generation(&self) -> Option<u64> {
        let now = self.state.load(Acquire);
        (now & ((1 << BITS) - 1) != FREE).then_some(now >> BITS)
    }

    pub fn is_open(&self) -> bool {
        self.generation().is_some()
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
            yield_now();
        }
    }

    pub fn len(&self) -> usize {
        self.len.load(Acquire)
    }

    pub fn written(&self) -> usize {
        self.written.load(Acquire)
    }

    pub fn protected_from(&self) -> usize {
        self.protected_from.load(SeqCst)
    }

    pub fn writing_from(&self) -> usize {
        self.writing_from.load(SeqCst)
    }

    pub fn live(&self) -> usize {
        self.live.load(SeqCst)
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(SeqCst)
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

    pub fn preempted(&self) -> bool {
        self.preempted.load(SeqCst)
    }

    /// The least is preempted first.
    pub fn rank(&self) -> (i32, std::cmp::Reverse<u64>) {
        let born = std::cmp::Reverse(self.born.load(Relaxed));
        (self.priority.load(Relaxed), born)
    }

    pub fn set_priority(&self, priority: i32) {
        self.priority.store(priority, Relaxed);
    }

    pub fn entry(&self, i: usize) -> Option<BlockId> {
        let word = self.entries.get(i)?.load(Acquire);
        (word != HOLE).then(|| BlockId::unpack(word))
    }

    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    pub fn mass(&self, i: usize) -> f32 {
        f32::from_bits(self.mass[i].load(Relaxed))
    }

    /// Of all entries, those that are gone too.
    pub fn total_mass(&self) -> f32 {
        (0..self.entries()).map(|i| self.mass(i)).sum()
    }

    /// One writer: the thread that runs the layer.
    pub fn add_mass(&self, i: usize, mass: f32) {
        if let Some(of_entry) = self.mass.get(i) {
            of_entry.store((self.mass(i) + mass).to_bits(), Relaxed);
        }
    }
}

impl std::ops::Deref for TableLock<'_> {
    type Target = Table;

    fn deref(&self) -> &Table {
        self.table
    }
}

impl Drop for TableLock<'_> {
    fn drop(&mut self) {
        self.table.state.store(self.then, Release);
    }
}

impl TableLock<'_> {
    pub fn generation_held(&self) -> u64 {
        self.generation
    }

    /// Puts a block into a hole; gives it back if the entry has one.
    pub fn link(&self, i: usize, block: BlockRef) -> Result<(), BlockRef> {
        let entry = &self.entries[i];
        if entry.load(Relaxed) != HOLE {
            return Err(block);
        }
        entry.store(block.into_entry(), SeqCst);
        Ok(())
    }

    /// Takes the block out of an entry, if it has one.
    pub fn unlink(&self, i: usize) -> Option<BlockRef> {
        let word = self.entries[i].swap(HOLE, SeqCst);
        (word != HOLE).then(|| BlockRef::from_entry(word))
    }

    /// Puts another block into an entry that still has the one expected, which
    /// is the caller's then; else gives the other one back.
    pub fn exchange(&self, i: usize, from: BlockId, to: BlockRef) -> Result<BlockRef, BlockRef> {
        if self.entry(i) != Some(from) {
            return Err(to);
        }
        let old = self.entries[i].swap(to.into_entry(), SeqCst);
        Ok(BlockRef::from_entry(old))
    }

    /// The block of an entry, which is not freed while the lock is held.
    pub fn pin(&self, i: usize) -> Option<Pinned<'_>> {
        self.entry(i).map(Pinned::in_locked_table)
    }

    /// Changes several entries so that no reader sees a part of it.
    pub fn together<T>(&self, f: impl FnOnce() -> T) -> T {
        self.version.fetch_add(1, SeqCst);
        let t = f();
        self.version.fetch_add(1, SeqCst);
        t
    }

    /// Hands positions out up to `len`.
    pub fn set_len(&self, len: usize) {
        self.table.len.store(len, Release);
    }

    /// All rows before `position` are written.
    pub fn set_written(&self, position: usize) {
        self.table.written.store(position, Release);
    }

    pub fn protect_from(&self, recent: usize, writing: usize) {
        self.table.protected_from.store(recent.min(writing), SeqCst);
        self.table.writing_from.store(writing, SeqCst);
    }

    pub fn gain(&self, tokens: usize) {
        self.table.live.fetch_add(tokens, SeqCst);
    }

    /// Takes positions off that were never written.
    pub fn take_back(&self, tokens: usize) {
        self.table.live.fetch_sub(tokens, SeqCst);
    }

    /// Takes positions off; `from` is the first of them.
    pub fn lose(&self, from: usize, tokens: usize) {
        if tokens > 0 {
            self.table.live.fetch_sub(tokens, SeqCst);
            self.table.lost.fetch_add(tokens as u64, SeqCst);
            self.table.lost_from.fetch_min(from, SeqCst);
        }
    }

    /// All positions that are left; how many those were.
    pub fn lose_all(&self) -> usize {
        let tokens = self.table.live.swap(0, SeqCst);
        self.table.lost.fetch_add(tokens as u64, SeqCst);
        self.table.lost_from.store(0, SeqCst);
        tokens
    }

    /// Notes that what was taken had this share of the attention mass.
    pub fn lose_share(&self, share: f32) {
        let sum = f32::from_bits(self.lost_mass.load(Relaxed)) + share;
        self.table.lost_mass.store(sum.to_bits(), Relaxed);
    }

    /// [`TableLock::lose_share`] of so much mass.
    pub fn lose_mass(&self, mass: f32) {
        let all = self.total_mass();
        if all > 0.0 {
            self.lose_share(mass / all);
        }
    }

    /// One more trim took some of its positions.
    pub fn count_trim(&self) {
        self.table.trims.fetch_add(1, Relaxed);
    }

    pub fn is_coarse(&self) -> bool {
        self.coarse.load(SeqCst)
    }

    pub fn set_coarse(&self) {
        self.table.coarse.store(true, SeqCst);
    }

    pub fn set_preempted(&self) {
        self.table.preempted.store(true, SeqCst);
    }

    pub fn set_mass(&self, i: usize, mass: f32) {
        self.table.mass[i].store(mass.to_bits(), Relaxed);
    }

    /// Ends the sequence, which has no block left: its name finds nothing any
    /// more, and others can open the table.
    pub fn end(mut self) {
        debug_assert!((0..self.entries()).all(|i| self.entry(i).is_none()));
        self.then = self.generation << BITS | FREE;
    }
}

/// The tables of a pool, by name.
#[derive(Debug)]
pub(super) struct Tables {
    tables: Box<[Table]>,
    /// Counts what is opened.
    opened: AtomicU64,
    /// Tables whose rows some thread writes, one bit each.
    writers: AtomicU64,
}

impl Tables {
    pub fn new(sequences: usize, entries: usize) -> Self {
        Self {
            tables: (0..sequences).map(|_| Table::new(entries)).collect(),
            opened: AtomicU64::new(1),
            writers: AtomicU64::new(0),
        }
    }

    pub fn count(&self) -> usize {
        self.tables.len()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Table> {
        self.tables.iter()
    }

    /// The table of an open sequence.
    pub fn get(&self, seq: SeqId) -> Option<&Table> {
        let table = self.tables.get(seq.slot as usize)?;
        (table.generation() == Some(seq.generation)).then_some(table)
    }

    /// The table, locked, once no other thread changes it.
    pub fn lock(&self, seq: SeqId) -> Option<TableLock<'_>> {
        self.tables.get(seq.slot as usize)?.lock(seq.generation)
    }

    /// Begins a sequence, `born` at an earlier one's time or now.
    pub fn open(&self, born: Option<u64>) -> Option<SeqId> {
        let born = born.unwrap_or_else(|| self.opened.fetch_add(1, Relaxed));
        (0u32..).zip(&self.tables).find_map(|(slot, t)| {
            let generation = t.open(born)?;
            Some(SeqId { slot, generation })
        })
    }

    /// The sequence's rows are the caller's to write, until
    /// [`Tables::stop_writing`]; its bit.
    pub fn start_writing(&self, seq: SeqId) -> Option<u64> {
        let bit = 1u64.checked_shl(seq.slot)?;
        (self.writers.fetch_or(bit, SeqCst) & bit == 0).then_some(bit)
    }

    /// Gives the rows of these tables up.
    pub fn stop_writing(&self, bits: u64) {
        self.writers.fetch_and(!bits, SeqCst);
    }
}

/// Tables have a bit each in one word.
const _: () = assert!(super::types::MAX_SEQUENCES <= 64);
