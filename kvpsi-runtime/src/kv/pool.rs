//! The block pool: who has which block, and how many bytes that is.
//!
//! All state is atomic; towards the reactor it is lock-free. The engine's
//! thread opens, appends, writes and closes; the reactor trims ([`super::trim`]);
//! a thread in the background re-encodes and thins ([`super::pack`],
//! [`super::thin`]). Counts are of pages: a block may hold fewer than its place
//! has room for.

use super::{
    arena::Arena,
    bitmap::Bitmap,
    block::{Block, Let},
    encoding::KvType,
    guard::Guards,
    prefix::Registry,
    sequence::{Loss, SeqId, Slot},
    types::{Account, KvError, KvShape, PoolConfig, slots},
};
use crate::units::Bytes;
use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

/// The KV memory of a model.
#[derive(Debug)]
pub struct KvPool {
    pub(super) arena: Arena,
    pub(super) config: PoolConfig,
    pub(super) slots: Box<[Slot]>,
    pub(super) blocks: Box<[Block]>,
    pub(super) guards: Guards,
    /// Free blocks with pages.
    pub(super) slack: Bitmap,
    /// Free blocks without pages.
    pub(super) returned: Bitmap,
    /// Unlinked, pages not yet back. Only the trimmer's.
    pub(super) draining: Bitmap,
    /// Pages of blocks; reserved before a block is taken that has none.
    pub(super) resident: AtomicUsize,
    /// Pages of blocks in tables.
    pub(super) in_use: AtomicUsize,
    /// Pages of cached blocks.
    pub(super) cached: AtomicUsize,
    pub(super) live_tokens: AtomicU64,
    /// Most pages that may be resident.
    pub(super) budget: AtomicUsize,
    /// As [`PoolConfig::may_drop`], now.
    pub(super) may_drop: AtomicBool,
    /// Bytes that somebody waits for.
    wanted: AtomicU64,
    /// The trimmer's: cached blocks by age. Nobody else locks it, and who
    /// finds it locked goes away.
    pub(super) trimming: Mutex<Vec<(u64, u32)>>,
    pub(super) madvise_errors: AtomicU64,
    pub(super) preempted: AtomicU64,
    pub(super) cache_evicted: AtomicU64,
    pub(super) cache_hit_tokens: AtomicU64,
    pub(super) self_evicted: AtomicU64,
    pub(super) writes_lost: AtomicU64,
    /// Blocks by their content. The trimmer never looks here.
    pub(super) registry: Registry,
    /// Counts what is opened and closed.
    pub(super) tick: AtomicU64,
}

impl KvPool {
    /// Reserves the arena; no page of it is resident yet.
    ///
    /// # Errors
    /// The settings are impossible or the kernel refused the address space.
    pub fn new(config: PoolConfig) -> Result<Arc<Self>, KvError> {
        let entries = config.blocks()?;
        let blocks = slots(entries);
        let block_bytes = usize::try_from(config.shape.block_bytes().0).unwrap_or(usize::MAX);
        let pool = Self {
            arena: Arena::reserve(block_bytes, blocks)?,
            config,
            slots: (0..config.max_sequences)
                .map(|_| Slot::new(entries))
                .collect(),
            blocks: (0..blocks).map(|_| Block::new()).collect(),
            guards: Guards::new(),
            slack: Bitmap::new(blocks, false),
            returned: Bitmap::new(blocks, true),
            draining: Bitmap::new(blocks, false),
            resident: AtomicUsize::new(0),
            in_use: AtomicUsize::new(0),
            cached: AtomicUsize::new(0),
            live_tokens: AtomicU64::new(0),
            budget: AtomicUsize::new(0),
            may_drop: AtomicBool::new(config.may_drop),
            wanted: AtomicU64::new(0),
            trimming: Mutex::new(Vec::with_capacity(blocks)),
            madvise_errors: AtomicU64::new(0),
            preempted: AtomicU64::new(0),
            cache_evicted: AtomicU64::new(0),
            cache_hit_tokens: AtomicU64::new(0),
            self_evicted: AtomicU64::new(0),
            writes_lost: AtomicU64::new(0),
            registry: Registry::new(),
            tick: AtomicU64::new(1),
        };
        pool.set_budget(pool.capacity());
        Ok(Arc::new(pool))
    }

    /// Shape of keys and values.
    #[must_use]
    pub fn shape(&self) -> &KvShape {
        &self.config.shape
    }

    /// The settings it was made with.
    #[must_use]
    pub fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// Bytes of all the tokens that it was made for, as they are first written:
    /// the largest budget.
    #[must_use]
    pub fn capacity(&self) -> Bytes {
        let blocks = self
            .config
            .capacity_tokens
            .div_ceil(self.config.shape.block_tokens);
        Bytes((blocks * self.arena.block_bytes()) as u64)
    }

    #[expect(clippy::unused_self, reason = "of this pool's pages")]
    pub(super) fn bytes(&self, pages: usize) -> Bytes {
        Bytes((pages * rustix::param::page_size()) as u64)
    }

    /// Pages of a block in that encoding.
    pub(super) fn pages(&self, kind: KvType) -> usize {
        let bytes = self.config.shape.block_bytes_as(kind).0;
        usize::try_from(bytes).unwrap_or(usize::MAX) / rustix::param::page_size()
    }

    /// Begins a sequence.
    ///
    /// # Errors
    /// All are in use.
    pub fn open(&self) -> Result<SeqId, KvError> {
        let born = self.tick.fetch_add(1, Relaxed);
        let free = self.slots.iter().position(|s| s.open(born));
        free.map(SeqId).ok_or(KvError::NoSequence(self.slots.len()))
    }

    /// Who is preempted last has the highest priority; 0 unless it is set.
    pub fn set_priority(&self, seq: SeqId, priority: i32) {
        self.slots[seq.0].set_priority(priority);
    }

    /// Ends a sequence. Its blocks stay as cached ones where their content is
    /// known ([`KvPool::publish`]), the others become slack. Ending it twice
    /// is nothing.
    pub fn close(&self, seq: SeqId) {
        let slot = &self.slots[seq.0];
        if !slot.close() {
            return;
        }
        self.let_go(slot);
        slot.free();
    }

    /// Ends a sequence and begins it anew in the same rank: one that was
    /// preempted is not the youngest because it had to start again.
    ///
    /// # Errors
    /// Somebody else took the last place.
    pub fn reopen(&self, seq: SeqId) -> Result<SeqId, KvError> {
        let (priority, born) = self.slots[seq.0].rank();
        self.close(seq);
        let free = self.slots.iter().position(|s| s.open(born.0));
        let new = free
            .map(SeqId)
            .ok_or(KvError::NoSequence(self.slots.len()))?;
        self.set_priority(new, priority);
        Ok(new)
    }

    /// Lets every block of a slot go, which is the caller's alone.
    fn let_go(&self, slot: &Slot) {
        let tick = self.tick.fetch_add(1, Relaxed);
        let mut free = Vec::new();
        for i in 0..slot.entries() {
            let Some(b) = slot.unlink(i) else { continue };
            // Of one sequence the last block goes first: those before it are
            // of use without it.
            let age = u64::from(u16::MAX) - (i as u64).min(u64::from(u16::MAX));
            self.blocks[b].set_used(tick << 16 | age);
            if self.let_one_go(b, true) == Let::Free {
                free.push(b);
            }
        }
        let tokens = slot.lose_all();
        self.live_tokens.fetch_sub(tokens as u64, Relaxed);
        if free.is_empty() {
            return;
        }
        // Another thread may still read them.
        self.guards.quiesce();
        for b in free {
            self.slack.insert(b);
        }
    }

    /// One reference less, and the counts that follow. A free block is the
    /// caller's, with its pages.
    pub(super) fn let_one_go(&self, block: usize, may_cache: bool) -> Let {
        let b = &self.blocks[block];
        let held = b.held();
        let what = b.release(may_cache);
        if what != Let::Shared {
            self.in_use.fetch_sub(held, SeqCst);
        }
        if what == Let::Cached {
            self.cached.fetch_add(held, SeqCst);
        }
        what
    }

    /// Tokens of entry `i`, which has that block.
    pub(super) fn tokens_in(&self, slot: &Slot, i: usize, block: usize) -> usize {
        let n = self.config.shape.block_tokens;
        let by_position = slot.len().saturating_sub(i * n).min(n);
        self.blocks[block].rows().unwrap_or(by_position)
    }

    /// Entries at the front that are always kept.
    pub(super) fn sink_entries(&self) -> usize {
        self.config
            .sink_tokens
            .div_ceil(self.config.shape.block_tokens)
    }

    /// Hands out the next `tokens` positions, with blocks behind them. To
    /// stay within the budget cached blocks are let go, then, if it may, the
    /// sequence's own oldest; sinks and the recent window are never given up,
    /// so below that floor the budget is passed over. Not to be called under a guard.
    ///
    /// # Errors
    /// Beyond the context, preempted, or no block is left at all; then
    /// nothing changed.
    pub fn append(&self, seq: SeqId, tokens: usize) -> Result<Range<usize>, KvError> {
        let slot = &self.slots[seq.0];
        let n = self.config.shape.block_tokens;
        let start = slot.len();
        let end = start.saturating_add(tokens);
        if slot.preempted() {
            return Err(KvError::Preempted);
        }
        if end > self.config.capacity_tokens {
            let context = self.config.capacity_tokens;
            return Err(KvError::Context {
                wanted: end,
                context,
            });
        }
        let (first_new, last_new) = (start.div_ceil(n), end.div_ceil(n));
        self.protect(slot, start, end);
        for i in first_new..last_new {
            let Some(block) = self.block_for(slot) else {
                for j in first_new..i {
                    if let Some(b) = slot.unlink(j)
                        && self.let_one_go(b, false) == Let::Free
                    {
                        self.slack.insert(b);
                    }
                }
                return Err(KvError::Exhausted(self.bytes(self.in_use.load(Relaxed))));
            };
            slot.link(i, block);
        }
        self.live_tokens.fetch_add(tokens as u64, Relaxed);
        slot.gain(tokens);
        slot.set_len(end);
        Ok(start..end)
    }

    /// All positions that were handed out are written: until the next ones are,
    /// only the recent window is protected.
    pub fn written(&self, seq: SeqId) {
        let slot = &self.slots[seq.0];
        self.protect(slot, slot.len(), slot.len());
    }

    /// Protects what is being written and the recent window. Counted from the
    /// last token, not from the end: a window that ends with a block would
    /// else be a block shorter for one token's time, and a trim would take
    /// what the next token must take back.
    pub(super) fn protect(&self, slot: &Slot, start: usize, end: usize) {
        let n = self.config.shape.block_tokens;
        let recent = (end.saturating_sub(1)).saturating_sub(self.config.recent_tokens) / n;
        slot.protect_from(recent, start / n);
    }

    /// Positions handed out, holes included.
    #[must_use]
    pub fn len(&self, seq: SeqId) -> usize {
        self.slots[seq.0].len()
    }

    /// No position was handed out yet.
    #[must_use]
    pub fn is_empty(&self, seq: SeqId) -> bool {
        self.len(seq) == 0
    }

    /// Positions that still have keys and values.
    #[must_use]
    pub fn live_tokens(&self, seq: SeqId) -> usize {
        self.slots[seq.0].live()
    }

    /// Positions that had keys and values and lost them.
    #[must_use]
    pub fn lost_tokens(&self, seq: SeqId) -> u64 {
        self.slots[seq.0].lost()
    }

    /// What the sequence lost and has not got back.
    #[must_use]
    pub fn loss(&self, seq: SeqId) -> Loss {
        self.slots[seq.0].loss()
    }

    /// The first position that lost its keys and values; those after it were
    /// computed, or are used, without it.
    #[must_use]
    pub fn lost_from(&self, seq: SeqId) -> Option<usize> {
        self.slots[seq.0].lost_from()
    }

    /// All memory of the sequence was taken: what was computed for it since
    /// means nothing, and it can only be closed.
    #[must_use]
    pub fn preempted(&self, seq: SeqId) -> bool {
        self.slots[seq.0].preempted()
    }

    /// Most bytes that may be resident.
    #[must_use]
    pub fn budget(&self) -> Bytes {
        self.bytes(self.budget.load(Relaxed))
    }

    /// Changes [`PoolConfig::may_drop`].
    pub(super) fn set_may_drop(&self, may: bool) {
        self.may_drop.store(may, Relaxed);
    }

    /// Says how many bytes somebody waits for, to compute again what was lost:
    /// else a budget that is not used does not grow.
    pub fn set_wanted(&self, bytes: Bytes) {
        self.wanted.store(bytes.0, Relaxed);
    }

    /// What [`KvPool::set_wanted`] said last.
    #[must_use]
    pub fn wanted(&self) -> Bytes {
        Bytes(self.wanted.load(Relaxed))
    }

    /// Sets the most bytes that may be resident, in whole pages, at most
    /// [`KvPool::capacity`].
    pub fn set_budget(&self, budget: Bytes) {
        let bytes = budget.0.min(self.capacity().0);
        let pages = usize::try_from(bytes).unwrap_or(usize::MAX) / rustix::param::page_size();
        self.budget.store(pages, Relaxed);
    }

    /// The account. Counters are read one after the other: while the pool is
    /// at work they may be a block apart, at rest they are exact.
    #[must_use]
    pub fn account(&self) -> Account {
        let reserved = self.arena.blocks() * self.arena.block_bytes();
        let all = reserved / rustix::param::page_size();
        let resident = self.resident.load(SeqCst).min(all);
        let in_use = self.in_use.load(SeqCst).min(all);
        let cached = self.cached.load(SeqCst).min(all);
        Account {
            reserved: self.bytes(all),
            resident: self.bytes(resident),
            returned: self.bytes(all - resident),
            in_use: self.bytes(in_use),
            cached: self.bytes(cached),
            slack: self.bytes(resident.saturating_sub(in_use + cached)),
            live_tokens: self.live_tokens.load(Relaxed),
            floor: self.bytes(in_use.saturating_sub(self.droppable())),
            self_evicted: self.self_evicted.load(Relaxed),
            madvise_errors: self.madvise_errors.load(Relaxed),
            preempted: self.preempted.load(Relaxed),
            cache_evicted: self.cache_evicted.load(Relaxed),
            cache_hit_tokens: self.cache_hit_tokens.load(Relaxed),
            writes_lost: self.writes_lost.load(Relaxed),
        }
    }

    /// Pages that the window step could take.
    fn droppable(&self) -> usize {
        let of_slot = |slot: &Slot| {
            let (mut pages, mut live) = (0, slot.live());
            for i in self.sink_entries()..slot.protected_from() {
                let Some(b) = slot.entry(i) else { continue };
                let tokens = self.tokens_in(slot, i, b);
                if live < self.config.floor_tokens + tokens {
                    break;
                }
                live -= tokens;
                if self.blocks[b].is_sole() {
                    pages += self.blocks[b].held();
                }
            }
            pages
        };
        self.slots.iter().filter(|s| s.is_open()).map(of_slot).sum()
    }
}
