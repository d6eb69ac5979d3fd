//! Sequences: begun, appended to, ended.
//!
//! Owns what an engine does with a sequence, over the parts of the pool. Out of
//! scope: content ([`super::share`]), and which sequence is short of memory.

use super::{
    pool::KvPool,
    table::{SeqId, TableLock},
    types::KvError,
};
use crate::sync::Relaxed;
use std::ops::Range;

impl KvPool {
    /// Begins a sequence.
    ///
    /// # Errors
    /// All are in use.
    pub fn open(&self) -> Result<SeqId, KvError> {
        let free = self.tables.open(None);
        free.ok_or(KvError::NoSequence(self.tables.count()))
    }

    /// Who is preempted last has the highest priority; 0 unless it is set.
    pub fn set_priority(&self, seq: SeqId, priority: i32) {
        if let Some(table) = self.tables.get(seq) {
            table.set_priority(priority);
        }
    }

    /// Ends a sequence. Its blocks stay as cached ones where their content is
    /// known ([`KvPool::publish`]), the others become slack, and what is beyond
    /// the budget then is returned. Ending it twice is nothing.
    pub fn close(&self, seq: SeqId) {
        let Some(table) = self.tables.lock(seq) else {
            return;
        };
        let closed = self.closed.fetch_add(1, Relaxed);
        for i in 0..table.entries() {
            let Some(block) = table.unlink(i) else {
                continue;
            };
            // Of one sequence the last block goes first: those before it are
            // of use without it.
            let age = u64::from(u16::MAX) - (i as u64).min(u64::from(u16::MAX));
            self.alloc.blocks().set_used(block.id(), closed << 16 | age);
            self.put_back(block);
        }
        self.counters.live_tokens.sub(table.lose_all() as u64);
        table.end();
        self.shrink_to_budget();
    }

    /// Ends a sequence and begins it anew in the same rank: one that was
    /// preempted is not the youngest because it had to start again.
    ///
    /// # Errors
    /// It is closed, or another sequence took the last place.
    pub fn reopen(&self, seq: SeqId) -> Result<SeqId, KvError> {
        let (priority, born) = self.tables.get(seq).ok_or(KvError::Closed)?.rank();
        self.close(seq);
        let free = self.tables.open(Some(born.0));
        let new = free.ok_or(KvError::NoSequence(self.tables.count()))?;
        self.set_priority(new, priority);
        Ok(new)
    }

    /// Hands out the next `tokens` positions, with blocks behind them; all
    /// before them are written by now. To stay within the budget cached blocks
    /// are evicted, then, if it may, the sequence's own oldest; sinks and the
    /// recent window never are, so below that floor the budget is passed over,
    /// but not the limit ([`KvPool::set_limit`]). What the kernel swapped out of the
    /// sequence is read. Not to be called under a guard.
    ///
    /// # Errors
    /// Beyond the context, closed, preempted, appended to by another thread, or
    /// no block is left within the limit; then nothing changed.
    pub fn append(&self, seq: SeqId, tokens: usize) -> Result<Range<usize>, KvError> {
        self.append_drafts(seq, tokens, 0)
    }

    /// [`KvPool::append`] of `tokens` positions and `drafts` more behind them
    /// that may be taken back ([`KvPool::take_back`]). The recent window is
    /// counted without the drafts: they take nothing out of it.
    ///
    /// # Errors
    /// As [`KvPool::append`].
    pub fn append_drafts(
        &self,
        seq: SeqId,
        tokens: usize,
        drafts: usize,
    ) -> Result<Range<usize>, KvError> {
        let n = self.config.shape.block_tokens;
        let certain = tokens;
        let tokens = certain.saturating_add(drafts);
        self.bring_in(seq);
        let start = self.tables.get(seq).ok_or(KvError::Closed)?.len();
        let end = start.saturating_add(tokens);
        {
            let table = self.lock_to_append(seq, start)?;
            if end > self.config.capacity_tokens {
                return Err(KvError::Context {
                    wanted: end,
                    context: self.config.capacity_tokens,
                });
            }
            table.set_written(start);
            self.protect(&table, start, start + certain);
        }
        let (first, last) = (start.div_ceil(n), end.div_ceil(n));
        for i in first..last {
            // Without the lock: a new page may have to wait for memory.
            if let Err(e) = self.append_block(seq, start, i) {
                self.unlink_from(seq, start, first..i);
                return Err(e);
            }
        }
        let table = self.lock_to_append(seq, start)?;
        self.counters.live_tokens.add(tokens as u64);
        table.gain(tokens);
        table.set_len(end);
        Ok(start..end)
    }

    /// Takes the last positions back: the sequence has `len` then. What they
    /// had counts as never appended, not as lost. Positions that are written
    /// ([`KvPool::written`], [`KvPool::append`]) stay: others may share them; so
    /// do all of a preempted or closed sequence, which has none.
    pub fn take_back(&self, seq: SeqId, len: usize) {
        let n = self.config.shape.block_tokens;
        let Some(table) = self.tables.lock(seq) else {
            return;
        };
        let (len, end) = (len.max(table.written()), table.len());
        if table.preempted() || len >= end {
            return;
        }
        // Shorter first: who reads on finds no position without a block.
        table.set_len(len);
        table.take_back(end - len);
        self.counters.live_tokens.sub((end - len) as u64);
        for i in len.div_ceil(n)..end.div_ceil(n) {
            table.set_mass(i, 0.0);
            if let Some(block) = table.unlink(i) {
                self.put_back(block);
            }
        }
    }

    /// The lock of a sequence that goes on behind `start`.
    fn lock_to_append(&self, seq: SeqId, start: usize) -> Result<TableLock<'_>, KvError> {
        let table = self.tables.lock(seq).ok_or(KvError::Closed)?;
        if table.preempted() {
            return Err(KvError::Preempted);
        }
        if table.len() != start {
            return Err(KvError::Busy);
        }
        Ok(table)
    }

    fn append_block(&self, seq: SeqId, start: usize, i: usize) -> Result<(), KvError> {
        let Some(block) = self.block_for(seq) else {
            return Err(KvError::Exhausted(self.bytes(self.alloc.blocks().in_use())));
        };
        match self.lock_to_append(seq, start) {
            Ok(table) => match table.link(i, block.into_ref()) {
                Ok(()) => Ok(()),
                Err(block) => {
                    drop(table);
                    self.put_back(block);
                    Err(KvError::Busy)
                }
            },
            Err(e) => {
                self.alloc.abandon(block);
                Err(e)
            }
        }
    }

    /// Takes the blocks of an append that failed out again.
    fn unlink_from(&self, seq: SeqId, start: usize, entries: Range<usize>) {
        for i in entries {
            let table = self.lock_to_append(seq, start).ok();
            if let Some(block) = table.and_then(|table| table.unlink(i)) {
                self.put_back(block);
            }
        }
    }

    /// All positions that were handed out are written: until the next ones are,
    /// only the recent window is protected, and they can be shared.
    pub fn written(&self, seq: SeqId) {
        if let Some(table) = self.tables.lock(seq) {
            table.set_written(table.len());
            self.protect(&table, table.len(), table.len());
        }
    }

    /// Protects what is being written and the recent window. Counted from the
    /// last token, not from the end: a window that ends with a block would
    /// else be a block shorter for one token's time, and a trim would take
    /// what the next token must take back.
    pub(super) fn protect(&self, table: &TableLock<'_>, start: usize, end: usize) {
        let n = self.config.shape.block_tokens;
        let recent = (end.saturating_sub(1)).saturating_sub(self.config.recent_tokens) / n;
        table.protect_from(recent, start / n);
    }
}
