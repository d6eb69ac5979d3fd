//! The pool: the parts of the KV memory, put together.
//!
//! Owns the parts, the settings and the account. The allocator
//! ([`super::alloc`]) has the pages, the tables ([`super::table`]) have the
//! sequences, the index ([`super::prefix`]) finds blocks by content, the
//! reclaimer ([`super::retire`]) has what left the tables. What is done with
//! them is in `sequence`, `share` and `reclaim`. Invariant: towards the reactor
//! all of it is lock-free.

use super::{
    account::{Account, Counters},
    alloc::Alloc,
    arena::Arena,
    block::BlockId,
    prefix::PrefixIndex,
    retire::Reclaimer,
    table::{Loss, SeqId, Table, Tables},
    types::{KvError, KvShape, PoolConfig, slots},
};
use crate::{
    sync::{AtomicBool, AtomicU64, Relaxed},
    units::Bytes,
};
use std::sync::Arc;

/// The KV memory of a model.
#[derive(Debug)]
pub struct KvPool {
    pub(super) config: PoolConfig,
    pub(super) alloc: Alloc,
    pub(super) tables: Tables,
    pub(super) prefix: PrefixIndex,
    pub(super) reclaim: Reclaimer,
    pub(super) counters: Counters,
    /// As [`PoolConfig::may_drop`], now.
    pub(super) may_drop: AtomicBool,
    /// Bytes that a preempted sequence waits for.
    wanted: AtomicU64,
    /// Counts what is closed, for the age of cached blocks.
    pub(super) closed: AtomicU64,
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
        let arena = Arena::reserve(block_bytes, blocks)?;
        let pool = Self {
            config,
            alloc: Alloc::new(arena, config.shape),
            tables: Tables::new(config.max_sequences, entries),
            prefix: PrefixIndex::new(),
            reclaim: Reclaimer::new(blocks),
            counters: Counters::new(),
            may_drop: AtomicBool::new(config.may_drop),
            wanted: AtomicU64::new(0),
            closed: AtomicU64::new(1),
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
        Bytes(blocks as u64 * self.config.shape.block_bytes().0)
    }

    #[expect(clippy::unused_self, reason = "of this pool's pages")]
    pub(super) fn bytes(&self, pages: usize) -> Bytes {
        Bytes((pages * rustix::param::page_size()) as u64)
    }

    /// Tokens of entry `i`, which has that block.
    pub(super) fn tokens_in(&self, table: &Table, i: usize, block: BlockId) -> usize {
        let n = self.config.shape.block_tokens;
        let by_position = table.len().saturating_sub(i * n).min(n);
        self.alloc.blocks().rows(block).unwrap_or(by_position)
    }

    /// Entries at the front that are always kept.
    pub(super) fn sink_entries(&self) -> usize {
        self.config
            .sink_tokens
            .div_ceil(self.config.shape.block_tokens)
    }

    /// Positions handed out, holes included.
    #[must_use]
    pub fn len(&self, seq: SeqId) -> usize {
        self.tables.get(seq).map_or(0, Table::len)
    }

    /// No position was handed out yet.
    #[must_use]
    pub fn is_empty(&self, seq: SeqId) -> bool {
        self.len(seq) == 0
    }

    /// Positions that still have keys and values.
    #[must_use]
    pub fn live_tokens(&self, seq: SeqId) -> usize {
        self.tables.get(seq).map_or(0, Table::live)
    }

    /// Positions that had keys and values and lost them.
    #[must_use]
    pub fn lost_tokens(&self, seq: SeqId) -> u64 {
        self.tables.get(seq).map_or(0, Table::lost)
    }

    /// What the sequence lost and has not got back.
    #[must_use]
    pub fn loss(&self, seq: SeqId) -> Loss {
        self.tables.get(seq).map_or_else(Loss::default, Table::loss)
    }

    /// The first position that lost its keys and values; those after it were
    /// computed, or are used, without it.
    #[must_use]
    pub fn lost_from(&self, seq: SeqId) -> Option<usize> {
        self.tables.get(seq)?.lost_from()
    }

    /// All memory of the sequence was taken, or it is closed: what was computed
    /// for it since means nothing, and it can only be closed.
    #[must_use]
    pub fn preempted(&self, seq: SeqId) -> bool {
        self.tables.get(seq).is_none_or(Table::preempted)
    }

    /// How much of the free memory is to stay resident for the next trim, which
    /// returns it first: see [`KvPool::fill_cushion`].
    pub fn set_cushion(&self, bytes: Bytes) {
        let blocks = bytes.0 / self.config.shape.block_bytes().0.max(1);
        self.alloc
            .set_cushion(usize::try_from(blocks).unwrap_or(usize::MAX));
    }

    /// There is less of it.
    #[must_use]
    pub fn lacks_cushion(&self) -> bool {
        self.alloc.lacks_cushion()
    }

    /// Makes free blocks resident until there is enough, within the budget.
    /// Pages are touched: not for the reactor.
    pub fn fill_cushion(&self) {
        self.alloc.fill_cushion(self.config.shape.kind);
    }

    /// Most bytes that may be resident.
    #[must_use]
    pub fn budget(&self) -> Bytes {
        self.bytes(self.alloc.budget())
    }

    /// Changes [`PoolConfig::may_drop`].
    pub(super) fn set_may_drop(&self, may: bool) {
        self.may_drop.store(may, Relaxed);
    }

    /// Says how many bytes are waited for, to compute again what was lost:
    /// else a budget that is not used does not grow.
    pub fn set_wanted(&self, bytes: Bytes) {
        self.wanted.store(bytes.0, Relaxed);
    }

    /// What [`KvPool::set_wanted`] said last.
    #[must_use]
    pub fn wanted(&self) -> Bytes {
        Bytes(self.wanted.load(Relaxed))
    }

    /// What a sequence of so many tokens keeps in any case: all of it where nothing
    /// may be dropped, else sinks, recent window and floor.
    #[must_use]
    pub fn floor_of(&self, tokens: usize) -> Bytes {
        let (c, shape) = (&self.config, &self.config.shape);
        let kept = c.sink_tokens.next_multiple_of(shape.block_tokens)
            + c.recent_tokens.max(c.floor_tokens)
            + shape.block_tokens;
        let kept = if self.may_drop.load(Relaxed) {
            tokens.min(kept)
        } else {
            tokens
        };
        Bytes(kept.div_ceil(shape.block_tokens) as u64 * shape.block_bytes().0)
    }

    /// Sets the most bytes that may be resident, in whole pages, at most
    /// [`KvPool::capacity`].
    pub fn set_budget(&self, budget: Bytes) {
        self.alloc.set_budget(self.whole_pages(budget));
    }

    /// Sets the most bytes that may be resident whatever a sequence's floor is:
    /// the budget never exceeds it, and beyond it [`KvPool::append`] is refused.
    /// While a block is written anew ([`Ladder::step`](super::Ladder::step)) it
    /// and its copy are both resident.
    pub fn set_limit(&self, limit: Bytes) {
        self.alloc.set_limit(self.whole_pages(limit));
    }

    /// What [`KvPool::set_limit`] said, at most [`KvPool::capacity`].
    #[must_use]
    pub fn limit(&self) -> Bytes {
        self.bytes(self.whole_pages(self.capacity()).min(self.alloc.limit()))
    }

    fn whole_pages(&self, bytes: Bytes) -> usize {
        let bytes = bytes.0.min(self.capacity().0);
        usize::try_from(bytes).unwrap_or(usize::MAX) / rustix::param::page_size()
    }

    /// Bytes of pages that count against the budget, in RAM or in swap.
    #[must_use]
    pub fn resident(&self) -> Bytes {
        self.bytes(self.alloc.resident().min(self.alloc.reserved()))
    }

    /// Of these, bytes that go when the last guard closes that may have seen
    /// them: [`Account::retired`].
    #[must_use]
    pub fn retired(&self) -> Bytes {
        let blocks = self.alloc.blocks();
        let in_ram = |b: usize| blocks.held_by(b).saturating_sub(blocks.swapped_of(b));
        self.bytes(self.reclaim.retired.iter().map(in_ram).sum())
    }

    /// The account. Counters are read one after the other: while the pool is
    /// at work they may be a block apart, at rest they are exact.
    #[must_use]
    pub fn account(&self) -> Account {
        let all = self.alloc.reserved();
        let held = self.alloc.resident().min(all);
        let swapped = self.alloc.blocks().swapped().min(held);
        let in_use = self.alloc.blocks().in_use().min(all);
        let cached = self.alloc.blocks().cached().min(all);
        let c = &self.counters;
        Account {
            reserved: self.bytes(all),
            resident: self.bytes(held - swapped),
            swapped: self.bytes(swapped),
            returned: self.bytes(all - held),
            in_use: self.bytes(in_use),
            cached: self.bytes(cached),
            slack: self.bytes(held.saturating_sub(in_use + cached)),
            retired: self.retired(),
            live_tokens: c.live_tokens.get(),
            floor: self.bytes(in_use.saturating_sub(self.droppable())),
            self_evicted: c.self_evicted.get(),
            madvise_errors: self.alloc.madvise_errors(),
            preempted: c.preempted.get(),
            cache_evicted: c.cache_evicted.get(),
            cache_hit_tokens: c.cache_hit_tokens.get(),
            writes_lost: c.writes_lost.get(),
            swap_freed: Bytes(self.alloc.swap_freed() * rustix::param::page_size() as u64),
            deferred_returned: Bytes(c.deferred_returned.get() * rustix::param::page_size() as u64),
        }
    }

    /// Pages that the window step could take.
    fn droppable(&self) -> usize {
        let blocks = self.alloc.blocks();
        let of_table = |table: &Table| {
            let (mut pages, mut live) = (0, table.live());
            for i in self.sink_entries()..table.protected_from() {
                let Some(b) = table.entry(i) else { continue };
                let tokens = self.tokens_in(table, i, b);
                if live < self.config.floor_tokens + tokens {
                    break;
                }
                live -= tokens;
                if blocks.is_sole(b) {
                    pages += blocks.held(b);
                }
            }
            pages
        };
        self.tables
            .iter()
            .filter(|t| t.is_open())
            .map(of_table)
            .sum()
    }
}
