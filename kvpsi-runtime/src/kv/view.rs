//! What attention sees of the pool: blocks of one layer, and where rows go.
//!
//! Owns the layout of a block: layer after layer, K then V, each `[kv_heads]
//! [block_tokens][head_dim]` and its scales; behind all layers the attention
//! mass of each row, `[layers][kv_heads][block_tokens]` in f32, where it is
//! kept. Refuses to know who has a block.

use super::{
    encoding::{KvType, encode_row},
    guard::LayerGuard,
    pool::KvPool,
    sequence::SeqId,
};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// One layer of one live block.
#[derive(Clone, Copy, Debug)]
pub struct BlockView {
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
}

// SAFETY: a view is an address; it is valid while the guard it was taken
// under lives, on whatever thread.
unsafe impl Send for BlockView {}
// SAFETY: as above; views are only read through, and masses are atomic.
unsafe impl Sync for BlockView {}

impl KvPool {
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
        slot.consistent(|| {
            out.clear();
            for i in 0..slot.len().div_ceil(n) {
                if let Some(b) = slot.entry(i) {
                    let (k, v) = self.layer_of(b, layer);
                    out.push(BlockView {
                        k,
                        v,
                        kind: self.blocks[b].kind(),
                        first_pos: i * n,
                        tokens: self.tokens_in(slot, i, b),
                        index: u32::try_from(i).unwrap_or(u32::MAX),
                        row_mass: self.row_mass(b, layer),
                    });
                }
            }
        });
    }

    /// Where K and V of one layer of a block begin.
    pub(super) fn layer_of(&self, block: usize, layer: usize) -> (*mut u8, *mut u8) {
        let (s, kind) = (&self.config.shape, self.blocks[block].kind());
        assert!(layer < s.layers);
        let base = self.arena.block(block).as_ptr();
        // SAFETY: a block holds `layers` times `layer_bytes`, checked above.
        unsafe {
            let k = base.add(layer * s.layer_bytes(kind));
            (k, k.add(s.half_layer_bytes(kind)))
        }
    }

    /// Attention masses of one layer of a block, null where none are kept.
    pub(super) fn row_mass(&self, block: usize, layer: usize) -> *const AtomicU32 {
        let (s, kind) = (&self.config.shape, self.blocks[block].kind());
        if !s.row_mass {
            return std::ptr::null();
        }
        assert!(layer < s.layers);
        let at = s.layers * s.layer_bytes(kind) + layer * s.kv_heads * s.block_tokens * 4;
        // SAFETY: behind all layers, where a block that keeps masses has room
        // for them. Planes are whole multiples of 4 bytes (`PoolConfig::blocks`).
        unsafe { self.arena.block(block).as_ptr().add(at).cast() }
    }

    /// Stores keys and values of one position, encoded; `k` and `v` are
    /// `[kv_heads * head_dim]`. Each position of a layer is written by one
    /// thread, before it is read. Rows of a preempted sequence go nowhere.
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
            // Positions being written are protected from all but preemption;
            // another hole here is a bug that must be seen, not a crash of
            // somebody's robot.
            debug_assert!(slot.preempted(), "no block behind position {pos}");
            if !slot.preempted() {
                self.writes_lost.fetch_add(1, Relaxed);
            }
            return;
        };
        let (kp, vp) = self.layer_of(block, layer);
        let (kind, plane) = (self.blocks[block].kind(), s.plane());
        let masses = self.row_mass(block, layer);
        for h in 0..s.kv_heads {
            let (t, at) = (pos % s.block_tokens, plane.at(h, pos % s.block_tokens));
            for (to, from) in [(kp, k), (vp, v)] {
                let from = &from[h * s.head_dim..][..s.head_dim];
                // SAFETY: the row lies in this layer of the block, and its
                // scales behind all values; the position is this thread's
                // alone, and the guard keeps the block. Blocks are aligned to
                // pages, and all offsets are even.
                unsafe { encode_row(kind, to, plane, at, from) };
            }
            if !masses.is_null() {
                // SAFETY: one of the layer's masses; the guard keeps the block.
                unsafe { &*masses.add(h * s.block_tokens + t) }.store(0, Relaxed);
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
}
