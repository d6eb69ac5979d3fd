//! Packing: cold blocks written anew in fewer bits.
//!
//! Owns which block is next and the change from the old one to the new. It
//! runs beside attention and beside the reactor, one block at a time: a layer
//! is read under a guard, and only while the block still stands in its table.
//! Refuses the reactor's thread, and to know why.

use super::{
    block::Let,
    encoding::{KvType, rows::recode_plane},
    pool::KvPool,
    sequence::Slot,
    types::Step,
};
use crate::units::Bytes;
use std::sync::atomic::Ordering::Relaxed;

/// What a slow step gave back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reclaimed {
    /// Which step.
    pub step: Step,
    /// Bytes whose pages the kernel has again.
    pub bytes: Bytes,
    /// Positions that lost keys and values, of all heads alike.
    pub tokens: u64,
    /// Share of the attention mass seen so far that fell on them, 0 to 1.
    pub mass_dropped: f32,
}

impl KvPool {
    /// Re-encodes one block: of those that are not being written, the oldest
    /// that has the widest encoding above `to`. It is written as `to`, or as
    /// the next narrower encoding above it. `None`: there is none, or it was
    /// taken meanwhile and so are all others.
    pub fn pack_one(&self, to: KvType) -> Option<Reclaimed> {
        let s = &self.config.shape;
        let fits = |k: &&KvType| s.fits(**k);
        let from = KvType::ALL.iter().skip_while(|k| **k != s.kind);
        let narrower = from.clone().skip(1).filter(fits);
        for (from, next) in from.zip(narrower).take_while(|(from, _)| **from != to) {
            // Much attention falls on the sinks, and 4 bits of them cost more
            // than those of all others.
            let first = if *next == KvType::Q4_0 {
                self.sink_entries()
            } else {
                0
            };
            for slot in self.slots.iter().filter(|s| s.is_open()) {
                for i in first..slot.writing_from() {
                    if let Some(done) = self.pack_entry(slot, i, *from, *next) {
                        return Some(done);
                    }
                }
            }
        }
        None
    }

    fn pack_entry(&self, slot: &Slot, i: usize, from: KvType, to: KvType) -> Option<Reclaimed> {
        let old = slot.entry(i)?;
        let block = &self.blocks[old];
        // One that others have too would stay as it is for them.
        if block.kind() != from || !block.is_sole() {
            return None;
        }
        let new = self.take(to, usize::MAX)?;
        let hash = block.hash();
        if let Some(rows) = block.rows() {
            self.blocks[new].set_rows(rows);
        }
        let whole =
            (0..self.config.shape.layers).all(|layer| self.recode(slot, i, layer, old, new));
        // Before anybody can read the new one.
        slot.set_coarse();
        let changed = whole && slot.picking_now(|| slot.exchange(i, old, new)) == Some(true);
        let (out, kept) = if changed { (old, new) } else { (new, old) };
        if changed && hash != 0 {
            self.rename(hash, old, kept);
        }
        if self.let_one_go(out, false) != Let::Free {
            // Somebody found the old one in the cache meanwhile: it stays.
            return None;
        }
        self.guards.quiesce();
        self.give_back(out);
        changed.then(|| Reclaimed {
            step: Step::Pack,
            bytes: self.bytes(self.pages(from).saturating_sub(self.pages(to))),
            tokens: 0,
            mass_dropped: 0.0,
        })
    }

    /// One layer of a block anew; false if the block left the table.
    fn recode(&self, slot: &Slot, i: usize, layer: usize, old: usize, new: usize) -> bool {
        let _guard = self.layer();
        if slot.entry(i) != Some(old) {
            return false;
        }
        let s = &self.config.shape;
        let (from, to) = (self.blocks[old].kind(), self.blocks[new].kind());
        let filled = self.blocks[old].rows().unwrap_or(s.block_tokens);
        let (old_kv, new_kv) = (self.layer_of(old, layer), self.layer_of(new, layer));
        for (src, dst) in [(old_kv.0, new_kv.0), (old_kv.1, new_kv.1)] {
            // SAFETY: both are planes of this layer in their encodings. The
            // guard keeps the old one, which is whole and so is written by
            // nobody; the new one is ours alone.
            unsafe { recode_plane(from, src, to, dst, s.plane(), filled) };
        }
        let (old_mass, new_mass) = (self.row_mass(old, layer), self.row_mass(new, layer));
        if !old_mass.is_null() {
            for row in 0..s.kv_heads * s.block_tokens {
                // SAFETY: masses of this layer, one for each row; as above.
                unsafe { (*new_mass.add(row)).store((*old_mass.add(row)).load(Relaxed), Relaxed) };
            }
        }
        true
    }
}
