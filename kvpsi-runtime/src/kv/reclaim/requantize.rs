//! Requantization: cold blocks written anew in fewer bits.
//!
//! Owns which block is next and the change from the old one to the new. It
//! runs beside attention and beside the reactor, one block at a time: a layer
//! is read under a guard, and only while the block still stands in its table.
//! While a block is written anew both are resident: one block beyond the
//! budget at most. Not for the reactor's thread.

use crate::{
    kv::{
        block::{BlockId, OwnedBlock, To},
        encoding::{KvType, rows::recode_plane},
        pool::KvPool,
        table::Table,
        types::Step,
    },
    sync::Relaxed,
    units::Bytes,
};

/// What a slow step returned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reclaimed {
    /// Which step.
    pub step: Step,
    /// Bytes whose pages the kernel has again, at the latest when the guards
    /// that are open now are closed.
    pub bytes: Bytes,
    /// Positions that lost keys and values, of all heads alike.
    pub tokens: u64,
    /// Share of the attention mass seen so far that fell on them, 0 to 1.
    pub mass_dropped: f32,
}

/// One entry of a sequence's table.
struct Entry<'a> {
    table: &'a Table,
    generation: u64,
    i: usize,
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
            for table in self.tables.iter() {
                let Some(generation) = table.generation() else {
                    continue;
                };
                for i in first..table.writing_from() {
                    let entry = Entry {
                        table,
                        generation,
                        i,
                    };
                    if let Some(done) = self.requantize(&entry, *from, *next) {
                        return Some(done);
                    }
                }
            }
        }
        None
    }

    fn requantize(&self, at: &Entry<'_>, from: KvType, to: KvType) -> Option<Reclaimed> {
        let blocks = self.alloc.blocks();
        let old = at.table.entry(at.i)?;
        // One that others have too would stay as it is for them, and one in swap would
        // have to be read first.
        let in_swap = blocks.swapped_of(old.index()) > 0;
        if blocks.kind(old) != from || !blocks.is_sole(old) || in_swap {
            return None;
        }
        let new = self.alloc.take(to, usize::MAX)?;
        let hash = blocks.hash(old);
        if let Some(rows) = blocks.rows(old) {
            blocks.set_rows(&new, rows);
        }
        let id = new.id();
        let whole = (0..self.config.shape.layers).all(|layer| self.recode(at, layer, old, &new));
        if whole && hash != 0 {
            // While it is this thread's alone: once it is in the table it may be
            // taken and be another's.
            blocks.set_hash(new.pin(), hash, false);
        }
        let lock = whole.then(|| at.table.lock(at.generation)).flatten();
        let Some(lock) = lock else {
            self.alloc.abandon(new);
            return None;
        };
        // Before any reader can see the new one.
        lock.set_coarse();
        let out = match lock.exchange(at.i, old, new.into_ref()) {
            Ok(out) => out,
            Err(new) => {
                drop(lock);
                if let Some(new) = self.release(new, false) {
                    self.retire_one(new, To::Kernel);
                }
                return None;
            }
        };
        drop(lock);
        // Another sequence may have found the old one by its content meanwhile: then it
        // stays, and is the better one.
        let out = self.release(out, false)?;
        if hash != 0 {
            self.prefix.rename(hash, old, id);
        }
        self.retire_one(out, To::Kernel);
        Some(Reclaimed {
            step: Step::Pack,
            bytes: self.bytes(self.alloc.pages(from).saturating_sub(self.alloc.pages(to))),
            tokens: 0,
            mass_dropped: 0.0,
        })
    }

    /// One layer of a block anew; false if the block left the table.
    fn recode(&self, at: &Entry<'_>, layer: usize, old: BlockId, new: &OwnedBlock) -> bool {
        let _guard = self.layer();
        if at.table.entry(at.i) != Some(old) {
            return false;
        }
        let (s, blocks, new) = (&self.config.shape, self.alloc.blocks(), new.id());
        let (from, to) = (blocks.kind(old), blocks.kind(new));
        let filled = blocks.rows(old).unwrap_or(s.block_tokens);
        let (old_kv, new_kv) = (self.layer_of(old, layer), self.layer_of(new, layer));
        for (src, dst) in [(old_kv.0, new_kv.0), (old_kv.1, new_kv.1)] {
            // SAFETY: both are planes of this layer in their encodings. The
            // guard keeps the old one, which is whole and so is written by
            // no thread; the new one is ours alone.
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
