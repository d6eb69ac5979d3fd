//! What attention sees of the pool: blocks of one layer, and where rows go.
//!
//! Owns the layout of a block: layer after layer, K then V, each `[kv_heads]
//! [block_tokens][head_dim]` and its scales; behind all layers the attention
//! mass of each row, `[layers][kv_heads][block_tokens]` in f32, where it is
//! kept. Owns also the rule for rows: **those of a sequence are written by the
//! one [`RowWriter`] that claimed it, and only until they are written**, so no
//! two threads write a row and none writes what others share.
//! Out of scope: who has a block.

use super::{
    block::BlockId,
    encoding::{KvType, encode_row},
    pool::KvPool,
    table::SeqId,
    types::KvError,
};
use crate::sync::Relaxed;
use std::{marker::PhantomData, sync::atomic::AtomicU32};

/// While it lives, no block seen under it loses its pages or gets others' rows.
#[derive(Debug)]
#[must_use = "the guard protects only while it lives"]
pub struct LayerGuard<'a> {
    pool: &'a KvPool,
    place: usize,
}

impl Drop for LayerGuard<'_> {
    fn drop(&mut self) {
        self.pool.reclaim.leave(self.place);
        if cfg!(feature = "trim") {
            // What was retired under this guard and is seen by no other.
            self.pool.collect();
        }
    }
}

/// One layer of one live block, for as long as a guard lives:
///
/// ```compile_fail
/// # fn outlives(pool: &kvpsi::kv::KvPool, seq: kvpsi::kv::SeqId) {
/// let mut views = Vec::new();
/// pool.layer().blocks(seq, 0, &mut views);
/// drop(views); // The guard is gone, and so may be the pages.
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'g> {
    /// Keys after RoPE: `[kv_heads][block_tokens][head_dim]`, and what their
    /// encoding has after them.
    pub k: *const u8,
    /// Values, same shape.
    pub v: *const u8,
    /// How both are written.
    pub kind: KvType,
    /// Position of the first token. The rows of a gathered block are those of
    /// any positions before the recent window; then this is a number that
    /// keeps the order.
    pub first_pos: usize,
    /// Tokens that are there, 1 to `block_tokens`.
    pub tokens: usize,
    /// Place in the sequence's table.
    pub index: u32,
    /// Attention mass of each row, `[kv_heads][block_tokens]`, f32 bits; null
    /// where it is not kept.
    pub row_mass: *const AtomicU32,
    pub(crate) guard: PhantomData<&'g ()>,
}

// SAFETY: a view is an address, valid on whatever thread while the guard lives
// that its lifetime is of.
unsafe impl Send for BlockView<'_> {}
// SAFETY: as above; views are only read through, and masses are atomic.
unsafe impl Sync for BlockView<'_> {}

/// The right to write rows of the sequences that it claimed.
#[derive(Debug)]
pub struct RowWriter<'g> {
    pool: &'g KvPool,
    /// Tables that are claimed, a bit each.
    claimed: u64,
}

impl Drop for RowWriter<'_> {
    fn drop(&mut self) {
        self.pool.tables.stop_writing(self.claimed);
    }
}

impl KvPool {
    /// Guards the blocks against trims for the time of one layer. Closing it
    /// returns the pages that it alone held back.
    pub fn layer(&self) -> LayerGuard<'_> {
        LayerGuard {
            pool: self,
            place: self.reclaim.enter(),
        }
    }

    /// Where K and V of one layer of a block begin.
    pub(super) fn layer_of(&self, block: BlockId, layer: usize) -> (*mut u8, *mut u8) {
        let (s, kind) = (&self.config.shape, self.alloc.blocks().kind(block));
        assert!(layer < s.layers);
        let base = self.alloc.address(block).as_ptr();
        // SAFETY: a block holds `layers` times `layer_bytes`, checked above.
        unsafe {
            let k = base.add(layer * s.layer_bytes(kind));
            (k, k.add(s.half_layer_bytes(kind)))
        }
    }

    /// Attention masses of one layer of a block, null where none are kept.
    pub(super) fn row_mass(&self, block: BlockId, layer: usize) -> *const AtomicU32 {
        let (s, kind) = (&self.config.shape, self.alloc.blocks().kind(block));
        if !s.row_mass {
            return std::ptr::null();
        }
        assert!(layer < s.layers);
        let at = s.layers * s.layer_bytes(kind) + layer * s.kv_heads * s.block_tokens * 4;
        // SAFETY: behind all layers, where a block that keeps masses has room
        // for them. Planes are whole multiples of 4 bytes (`PoolConfig::blocks`).
        unsafe { self.alloc.address(block).as_ptr().add(at).cast() }
    }

    /// Adds to the attention mass that fell on a block.
    pub fn add_mass(&self, seq: SeqId, index: u32, mass: f32) {
        if let Some(table) = self.tables.get(seq) {
            table.add_mass(index as usize, mass);
        }
    }
}

impl LayerGuard<'_> {
    /// Appends the live blocks of a sequence for one layer to `out`, in order
    /// of position; none of a sequence that is closed.
    pub fn blocks<'g>(&'g self, seq: SeqId, layer: usize, out: &mut Vec<BlockView<'g>>) {
        let pool = self.pool;
        let Some(table) = pool.tables.get(seq) else {
            return;
        };
        let (n, from) = (pool.config.shape.block_tokens, out.len());
        table.consistent(|| {
            out.truncate(from);
            for i in 0..table.len().div_ceil(n) {
                if let Some(b) = table.entry(i) {
                    let (k, v) = pool.layer_of(b, layer);
                    out.push(BlockView {
                        k,
                        v,
                        kind: pool.alloc.blocks().kind(b),
                        first_pos: i * n,
                        tokens: pool.tokens_in(table, i, b),
                        index: u32::try_from(i).unwrap_or(u32::MAX),
                        row_mass: pool.row_mass(b, layer),
                        guard: PhantomData,
                    });
                }
            }
        });
        if pool.tables.get(seq).is_none() {
            // It was closed meanwhile: some entries may be another sequence's.
            out.truncate(from);
        }
    }

    /// A writer under this guard, which has claimed nothing yet.
    #[must_use]
    pub fn writer(&self) -> RowWriter<'_> {
        RowWriter {
            pool: self.pool,
            claimed: 0,
        }
    }
}

impl RowWriter<'_> {
    /// Claims the rows of a sequence that are not written yet, until the writer
    /// is dropped. Claiming one again is nothing.
    ///
    /// # Errors
    /// [`KvError::Busy`]: another writer has claimed it.
    pub fn claim(&mut self, seq: SeqId) -> Result<(), KvError> {
        if self.has(seq) {
            return Ok(());
        }
        let bit = self.pool.tables.start_writing(seq);
        self.claimed |= bit.ok_or(KvError::Busy)?;
        Ok(())
    }

    fn has(&self, seq: SeqId) -> bool {
        let bit = 1u64.checked_shl(seq.slot).unwrap_or(0);
        self.claimed & bit != 0
    }

    /// Stores keys and values of one position, encoded; `k` and `v` are
    /// `[kv_heads * head_dim]`. Rows of a preempted or closed sequence go
    /// nowhere.
    ///
    /// # Panics
    /// `k` or `v` are not of that length, or the sequence is not claimed.
    pub fn write(&mut self, seq: SeqId, layer: usize, pos: usize, k: &[f32], v: &[f32]) {
        assert!(self.has(seq), "the rows of {seq:?} are not claimed");
        let pool = self.pool;
        let s = &pool.config.shape;
        assert!(k.len() == s.kv_heads * s.head_dim && v.len() == k.len());
        let Some(table) = pool.tables.get(seq) else {
            return;
        };
        let block = table.entry(pos / s.block_tokens);
        let in_hand = (table.written()..table.len()).contains(&pos);
        // After the entry was read: that of a later sequence is not ours.
        if pool.tables.get(seq).is_none() {
            return;
        }
        let Some(block) = block.filter(|_| in_hand) else {
            // Positions being written are protected from all but preemption;
            // another hole here is a bug that must be seen, not a crash of
            // another robot.
            debug_assert!(table.preempted(), "no block to write position {pos} to");
            if !table.preempted() {
                pool.counters.writes_lost.add(1);
            }
            return;
        };
        let (kp, vp) = pool.layer_of(block, layer);
        let (kind, plane) = (pool.alloc.blocks().kind(block), s.plane());
        let masses = pool.row_mass(block, layer);
        for h in 0..s.kv_heads {
            let (t, at) = (pos % s.block_tokens, plane.at(h, pos % s.block_tokens));
            for (to, from) in [(kp, k), (vp, v)] {
                let from = &from[h * s.head_dim..][..s.head_dim];
                // SAFETY: the row lies in this layer of the block, and its
                // scales behind all values. The claim makes it this writer's
                // alone: the position is not written, so its block is in no
                // other table and neither re-encoded nor gathered; the guard
                // that the writer borrows keeps the block. Blocks are aligned
                // to pages, and all offsets are even.
                unsafe { encode_row(kind, to, plane, at, from) };
            }
            if !masses.is_null() {
                // SAFETY: one of the layer's masses; the guard keeps the block.
                unsafe { &*masses.add(h * s.block_tokens + t) }.store(0, Relaxed);
            }
        }
    }
}
