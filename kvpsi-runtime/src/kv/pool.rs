//! The block pool: who has which block, and how many bytes that is.
//!
//! All state is atomic; towards the reactor it is lock-free. The engine's
//! thread opens, appends, writes and closes; the reactor trims ([`super::trim`]).

use super::{
    arena::Arena,
    bitmap::Bitmap,
    encoding::{GROUP, KvType, encode_q8_0},
    guard::{Guards, LayerGuard},
    sequence::{SeqId, Slot},
    types::{Account, KvError, KvShape, PoolConfig},
};
use crate::units::Bytes;
use half::{f16, slice::HalfFloatSliceExt};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

/// One layer of one live block.
#[derive(Clone, Copy, Debug)]
pub struct BlockView {
    /// Keys after RoPE: `[kv_heads][block_tokens][head_dim]`, and, of q8_0,
    /// their scales `[kv_heads][block_tokens][head_dim / 32]` in f16 after them.
    pub k: *const u8,
    /// Values, same shape.
    pub v: *const u8,
    /// How both are written.
    pub kind: KvType,
    /// Position of the first token.
    pub first_pos: usize,
    /// Tokens that are there, 1 to `block_tokens`.
    pub tokens: usize,
    /// Place in the sequence's table.
    pub index: u32,
}

// SAFETY: a view is an address; it is valid while the guard it was taken
// under lives, on whatever thread.
unsafe impl Send for BlockView {}
// SAFETY: as above; views are only read through.
unsafe impl Sync for BlockView {}

/// The KV memory of a model.
#[derive(Debug)]
pub struct KvPool {
    pub(super) arena: Arena,
    config: PoolConfig,
    pub(super) slots: Box<[Slot]>,
    pub(super) guards: Guards,
    /// Free blocks with pages.
    pub(super) slack: Bitmap,
    /// Free blocks without pages.
    pub(super) returned: Bitmap,
    /// Unlinked, pages not yet back. Only the trimmer's.
    pub(super) draining: Bitmap,
    /// Blocks with pages; reserved before a returned block is taken.
    pub(super) resident: AtomicUsize,
    pub(super) in_use: AtomicUsize,
    pub(super) live_tokens: AtomicU64,
    /// Most blocks that may be resident.
    budget: AtomicUsize,
    pub(super) trimming: AtomicBool,
    pub(super) madvise_errors: AtomicU64,
    self_evicted: AtomicU64,
    writes_lost: AtomicU64,
}

impl KvPool {
    /// Reserves the arena; no page of it is resident yet.
    ///
    /// # Errors
    /// The settings are impossible or the kernel refused the address space.
    pub fn new(config: PoolConfig) -> Result<Arc<Self>, KvError> {
        let blocks = config.blocks()?;
        let block_bytes = usize::try_from(config.shape.block_bytes().0).unwrap_or(usize::MAX);
        Ok(Arc::new(Self {
            arena: Arena::reserve(block_bytes, blocks)?,
            config,
            slots: (0..config.max_sequences)
                .map(|_| Slot::new(blocks))
                .collect(),
            guards: Guards::new(),
            slack: Bitmap::new(blocks, false),
            returned: Bitmap::new(blocks, true),
            draining: Bitmap::new(blocks, false),
            resident: AtomicUsize::new(0),
            in_use: AtomicUsize::new(0),
            live_tokens: AtomicU64::new(0),
            budget: AtomicUsize::new(blocks),
            trimming: AtomicBool::new(false),
            madvise_errors: AtomicU64::new(0),
            self_evicted: AtomicU64::new(0),
            writes_lost: AtomicU64::new(0),
        }))
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

    pub(super) fn bytes(&self, blocks: usize) -> Bytes {
        Bytes((blocks * self.arena.block_bytes()) as u64)
    }

    /// Begins a sequence.
    ///
    /// # Errors
    /// All are in use.
    pub fn open(&self) -> Result<SeqId, KvError> {
        let free = self.slots.iter().position(Slot::open);
        free.map(SeqId).ok_or(KvError::NoSequence(self.slots.len()))
    }

    /// Ends a sequence; its blocks become slack. Ending it twice is nothing.
    pub fn close(&self, seq: SeqId) {
        let slot = &self.slots[seq.0];
        if !slot.close() {
            return;
        }
        let entries = 0..slot.len().div_ceil(self.config.shape.block_tokens);
        let blocks: Vec<_> = entries
            .filter_map(|i| Some((slot.unlink(i)?, self.tokens_in(slot, i))))
            .collect();
        slot.free();
        // Another thread may still read them.
        self.guards.quiesce();
        for (block, tokens) in blocks {
            self.live_tokens.fetch_sub(tokens as u64, Relaxed);
            self.in_use.fetch_sub(1, Relaxed);
            self.slack.insert(block);
        }
    }

    /// Tokens of entry `i`.
    pub(super) fn tokens_in(&self, slot: &Slot, i: usize) -> usize {
        let n = self.config.shape.block_tokens;
        slot.len().saturating_sub(i * n).min(n)
    }

    /// Entries at the front that are always kept.
    pub(super) fn sink_entries(&self) -> usize {
        self.config
            .sink_tokens
            .div_ceil(self.config.shape.block_tokens)
    }

    /// Hands out the next `tokens` positions, with blocks behind them. To
    /// stay within the budget the sequence gives up its own oldest blocks;
    /// sinks and the recent window are never given up, so below that floor
    /// the budget is passed over. Not to be called under a guard.
    ///
    /// # Errors
    /// Beyond the context, or no block is left at all; then nothing changed.
    pub fn append(&self, seq: SeqId, tokens: usize) -> Result<Range<usize>, KvError> {
        let slot = &self.slots[seq.0];
        let n = self.config.shape.block_tokens;
        let start = slot.len();
        let end = start.saturating_add(tokens);
        if end > self.config.capacity_tokens {
            let context = self.config.capacity_tokens;
            return Err(KvError::Context {
                wanted: end,
                context,
            });
        }
        let (first_new, last_new) = (start.div_ceil(n), end.div_ceil(n));
        // Counted from the last token, not from the end: a window that ends
        // with a block would else be a block shorter for one token's time,
        // and a trim would take what the next token must take back.
        let recent = (end.saturating_sub(1)).saturating_sub(self.config.recent_tokens) / n;
        slot.protect_from((start / n).min(recent));
        for i in first_new..last_new {
            let Some(block) = self.block_for(slot) else {
                for j in first_new..i {
                    if let Some(b) = slot.unlink(j) {
                        self.in_use.fetch_sub(1, Relaxed);
                        self.slack.insert(b);
                    }
                }
                return Err(KvError::Exhausted(self.bytes(self.in_use.load(Relaxed))));
            };
            slot.link(i, block);
        }
        self.live_tokens.fetch_add(tokens as u64, Relaxed);
        slot.set_len(end);
        Ok(start..end)
    }

    /// A block for `slot`: within the budget, else its own oldest, else
    /// beyond the budget.
    fn block_for(&self, slot: &Slot) -> Option<usize> {
        let budget = self.budget.load(Relaxed);
        self.take(budget)
            .or_else(|| {
                self.evict_own(slot);
                self.take(budget)
            })
            .or_else(|| self.take(self.arena.blocks()))
    }

    /// Takes a free block, a resident one first; a returned one only while
    /// fewer than `most` are resident.
    fn take(&self, most: usize) -> Option<usize> {
        let block = self.slack.take_low().or_else(|| {
            let grow = |r: usize| (r < most).then_some(r + 1);
            self.resident.fetch_update(SeqCst, SeqCst, grow).ok()?;
            let block = self.returned.take_low();
            match block {
                Some(b) => self.arena.unseal(b),
                None => {
                    self.resident.fetch_sub(1, SeqCst);
                }
            }
            block
        })?;
        self.in_use.fetch_add(1, Relaxed);
        Some(block)
    }

    /// Turns the sequence's oldest block that may go into slack.
    fn evict_own(&self, slot: &Slot) {
        let range = self.sink_entries()..slot.protected_from();
        let Some((i, b)) = range.into_iter().find_map(|i| Some((i, slot.unlink(i)?))) else {
            return;
        };
        self.guards.quiesce();
        self.live_tokens
            .fetch_sub(self.tokens_in(slot, i) as u64, Relaxed);
        self.in_use.fetch_sub(1, Relaxed);
        self.self_evicted.fetch_add(1, Relaxed);
        self.slack.insert(b);
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
        let slot = &self.slots[seq.0];
        let entries = slot.len().div_ceil(self.config.shape.block_tokens);
        (0..entries)
            .filter(|i| slot.entry(*i).is_some())
            .map(|i| self.tokens_in(slot, i))
            .sum()
    }

    /// Guards the blocks against trims for the time of one layer.
    pub fn layer(&self) -> LayerGuard<'_> {
        self.guards.enter()
    }

    /// The live blocks of a sequence for one layer, in order of position.
    /// Valid while the guard lives.
    pub fn blocks(
        &self,
        _guard: &LayerGuard<'_>,
        seq: SeqId,
        layer: usize,
        out: &mut Vec<BlockView>,
    ) {
        let slot = &self.slots[seq.0];
        let n = self.config.shape.block_tokens;
        out.clear();
        for i in 0..slot.len().div_ceil(n) {
            if let Some(b) = slot.entry(i) {
                let (k, v) = self.layer_of(b, layer);
                out.push(BlockView {
                    k,
                    v,
                    kind: self.config.shape.kind,
                    first_pos: i * n,
                    tokens: self.tokens_in(slot, i),
                    index: u32::try_from(i).unwrap_or(u32::MAX),
                });
            }
        }
    }

    /// Where K and V of one layer of a block begin.
    fn layer_of(&self, block: usize, layer: usize) -> (*mut u8, *mut u8) {
        let s = &self.config.shape;
        assert!(layer < s.layers);
        let base = self.arena.block(block).as_ptr();
        // SAFETY: a block holds `layers` times `layer_bytes`, checked above.
        unsafe {
            let k = base.add(layer * s.layer_bytes());
            (k, k.add(s.half_layer_bytes()))
        }
    }

    /// Stores keys and values of one position, encoded; `k` and `v` are
    /// `[kv_heads * head_dim]`. Each position of a layer is written by one
    /// thread, before it is read.
    ///
    /// # Panics
    /// `k` or `v` are not of that length.
    pub fn write(
        &self,
        _guard: &LayerGuard<'_>,
        seq: SeqId,
        layer: usize,
        pos: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let s = &self.config.shape;
        assert!(k.len() == s.kv_heads * s.head_dim && v.len() == k.len());
        let slot = &self.slots[seq.0];
        let Some(block) = slot.entry(pos / s.block_tokens) else {
            // Positions being written are protected; a hole here is a bug
            // that must be seen, not a crash of somebody's robot.
            debug_assert!(false, "no block behind position {pos}");
            self.writes_lost.fetch_add(1, Relaxed);
            return;
        };
        let (kp, vp) = self.layer_of(block, layer);
        for h in 0..s.kv_heads {
            let at = (h * s.block_tokens + pos % s.block_tokens) * s.head_dim;
            for (to, from) in [(kp, k), (vp, v)] {
                let from = &from[h * s.head_dim..][..s.head_dim];
                // SAFETY: row `at` of this layer of the block, and its scales
                // behind all values; the position is this thread's alone, and
                // the guard keeps the block. Blocks are aligned to pages, and
                // all offsets are even.
                unsafe { write_row(s, to, at, from) };
            }
        }
    }

    /// Adds to the attention mass that fell on a block.
    pub fn add_mass(&self, seq: SeqId, index: u32, mass: f32) {
        let slot = &self.slots[seq.0];
        if (index as usize) < slot.entries() {
            slot.add_mass(index as usize, mass);
        }
    }

    /// Most bytes that may be resident.
    #[must_use]
    pub fn budget(&self) -> Bytes {
        self.bytes(self.budget.load(Relaxed))
    }

    /// Sets the most bytes that may be resident, in whole blocks, at most all.
    pub fn set_budget(&self, budget: Bytes) {
        let blocks = usize::try_from(budget.0).unwrap_or(usize::MAX) / self.arena.block_bytes();
        self.budget.store(blocks.min(self.arena.blocks()), Relaxed);
    }

    /// The account. Counters are read one after the other: while the pool is
    /// at work they may be a block apart, at rest they are exact.
    #[must_use]
    pub fn account(&self) -> Account {
        let all = self.arena.blocks();
        let resident = self.resident.load(SeqCst).min(all);
        let in_use = self.in_use.load(SeqCst);
        let sinks = self.sink_entries();
        let floor: usize = self
            .slots
            .iter()
            .filter(|s| s.is_open())
            .map(|s| {
                let entries = s.len().div_ceil(self.config.shape.block_tokens);
                let recent = s.protected_from().min(entries);
                entries - recent + sinks.min(recent)
            })
            .sum();
        Account {
            reserved: self.bytes(all),
            resident: self.bytes(resident),
            returned: self.bytes(all - resident),
            in_use: self.bytes(in_use),
            slack: self.bytes(resident.saturating_sub(in_use)),
            live_tokens: self.live_tokens.load(Relaxed),
            floor: self.bytes(floor),
            self_evicted: self.self_evicted.load(Relaxed),
            madvise_errors: self.madvise_errors.load(Relaxed),
            writes_lost: self.writes_lost.load(Relaxed),
        }
    }
}

/// Writes the row of values that begins at value `at`.
///
/// # Safety
/// `to` is K or V of one layer of a block, aligned for f16; `at` and all of
/// `row` lie within, and nobody else touches them or their scales.
unsafe fn write_row(shape: &KvShape, to: *mut u8, at: usize, row: &[f32]) {
    use std::slice::from_raw_parts_mut;
    // SAFETY: the caller's promises.
    unsafe {
        match shape.kind {
            KvType::F16 => {
                let to = from_raw_parts_mut(to.cast::<f16>().add(at), row.len());
                to.convert_from_f32_slice(row);
            }
            KvType::Q8_0 => {
                let codes = from_raw_parts_mut(to.cast::<i8>().add(at), row.len());
                let scales = to.add(shape.half_layer_values()).cast::<f16>();
                let scales = from_raw_parts_mut(scales.add(at / GROUP), row.len() / GROUP);
                encode_q8_0(row, codes, scales);
            }
        }
    }
}
