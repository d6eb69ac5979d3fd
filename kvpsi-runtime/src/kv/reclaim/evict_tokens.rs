//! Eviction of tokens: of cold blocks, the tokens that matter are gathered into
//! fewer blocks.
//!
//! Owns the gathering: of each layer and KV head the rows that a [`Policy`]
//! finds worth most are copied, in their order, into new blocks, which then
//! take the old ones' place in the table at once. Heads keep different tokens,
//! and as many of them. Keys carry their positions (RoPE), so none is kept;
//! what is gathered must lie before every window that any row looks through.
//! It runs beside attention and the reactor, as [`super::requantize`] does. Out of
//! scope: what a row is worth.

use super::Reclaimed;
use crate::{
    kv::{
        block::{BATCH, Batch, BlockId, OwnedBlock, To, Unlinked},
        encoding::{
            KvType,
            rows::{decode_row, encode_row, recode_plane},
        },
        evict::{HeadRows, Policy},
        hadamard::rotate,
        pool::KvPool,
        table::{SeqId, Table, TableLock},
        types::{KvShape, Step},
    },
    sync::Relaxed,
    units::Bytes,
};
use std::ops::Range;

/// Memory of evicting tokens, kept between calls; contents mean nothing.
#[derive(Debug, Default)]
pub struct ThinMemory {
    keys: Vec<f32>,
    values: Vec<f32>,
    mass: Vec<f32>,
    scores: Vec<f32>,
    /// Rows that each head keeps.
    kept: Vec<Vec<u32>>,
    /// A plane of f16 on its way.
    plane: Vec<u16>,
    row: Vec<f32>,
    /// Entry, block and rows of each that is gathered.
    old: Vec<(usize, BlockId, usize)>,
    new: Vec<OwnedBlock>,
}

impl ThinMemory {
    /// Memory for so many rows, written once: nothing is to wait for memory
    /// under a guard.
    fn make_room(&mut self, s: &KvShape, rows: usize) {
        for rows_of in [&mut self.keys, &mut self.values] {
            rows_of.resize(rows * s.head_dim, 0.0);
        }
        for of_rows in [&mut self.mass, &mut self.scores] {
            of_rows.resize(rows, 0.0);
        }
        self.kept.resize_with(s.kv_heads, Vec::new);
        for kept in &mut self.kept {
            kept.resize(rows, 0);
        }
        self.plane.resize(s.plane().values(), 0);
        self.row.resize(s.head_dim, 0.0);
    }
}

/// What to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinOrder {
    /// Entries that may be gathered together: the larger, the better the
    /// choice, and the more memory it takes while both are there.
    pub group: usize,
    /// Tokens at the end that any layer's window looks through, and that are
    /// left alone beside the recent ones.
    pub window: usize,
}

impl KvPool {
    /// Gathers the cold group that is the densest for its distance, to one
    /// block less or to so many fewer as give `want` bytes, but keeps at least
    /// half of it. What is far away is thinned further: a group twice as far
    /// keeps 0.7 as many of its tokens.
    /// `None`: there is nothing to thin above the floors.
    pub fn thin_one(
        &self,
        policy: &dyn Policy,
        order: ThinOrder,
        want: Bytes,
        memory: &mut ThinMemory,
    ) -> Option<Reclaimed> {
        let tables = (0u32..).zip(self.tables.iter());
        let groups = tables.filter_map(|(slot, table)| {
            let generation = table.generation()?;
            let group = self.densest(table, order)?;
            Some((SeqId { slot, generation }, group))
        });
        let (seq, group) = groups.max_by(|a, b| a.1.density.total_cmp(&b.1.density))?;
        self.gather_group(seq, &group, policy, want, memory)
    }

    /// The group of a sequence that is the densest for its distance.
    fn densest(&self, table: &Table, order: ThinOrder) -> Option<Group> {
        let n = self.config.shape.block_tokens;
        let clear = table.len().saturating_sub(order.window) / n;
        let end = table
            .protected_from()
            .min(if order.window == 0 { usize::MAX } else { clear });
        let mut best: Option<Group> = None;
        let mut from = self.sink_entries();
        while from < end {
            let group = self.group_from(table, from, end, order.group.min(BATCH));
            from = group.entries.end;
            if group.blocks >= 2 && best.as_ref().is_none_or(|b| group.density > b.density) {
                best = Some(group);
            }
        }
        best
    }

    /// What others have too would not come free, and what is in swap would have to be
    /// read first.
    fn is_gatherable(&self, block: BlockId) -> bool {
        let blocks = self.alloc.blocks();
        blocks.is_sole(block) && blocks.swapped_of(block.index()) == 0
    }

    /// The next group of at most `most` blocks.
    fn group_from(&self, table: &Table, from: usize, end: usize, most: usize) -> Group {
        let n = self.config.shape.block_tokens;
        let (mut blocks, mut rows, mut until) = (0, 0, from);
        while until < end && blocks < most {
            if let Some(b) = table.entry(until).filter(|b| self.is_gatherable(*b)) {
                blocks += 1;
                rows += self.tokens_in(table, until, b);
            }
            until += 1;
        }
        let kept = rows as f32 / ((until - from) * n).max(1) as f32;
        let distance = table.len().saturating_sub((from + until) * n / 2);
        Group {
            density: kept * (distance.max(1) as f32).sqrt(),
            entries: from..until,
            blocks,
        }
    }

    fn gather_group(
        &self,
        seq: SeqId,
        group: &Group,
        policy: &dyn Policy,
        want: Bytes,
        memory: &mut ThinMemory,
    ) -> Option<Reclaimed> {
        let table = self.tables.get(seq)?;
        let blocks_of = self.alloc.blocks();
        let n = self.config.shape.block_tokens;
        memory.old.clear();
        for i in group.entries.clone() {
            if let Some(b) = table.entry(i).filter(|b| self.is_gatherable(*b)) {
                memory.old.push((i, b, self.tokens_in(table, i, b)));
            }
        }
        let rows: usize = memory.old.iter().map(|o| o.2).sum();
        // Written as the narrowest of them: nothing is gained by more bits.
        let kind = memory
            .old
            .iter()
            .map(|o| blocks_of.kind(o.1))
            .max_by_key(|k| *k as u8)?;
        let spare = table.live().saturating_sub(self.config.floor_tokens);
        let keep = self
            .keep(rows, memory.old.len(), kind, want)
            .max(rows.saturating_sub(spare));
        let blocks = keep.div_ceil(n);
        if blocks == 0 || blocks >= memory.old.len() {
            return None;
        }
        let keep = rows.min(blocks * n);
        memory.new.clear();
        while memory.new.len() < blocks {
            match self.alloc.take(kind, usize::MAX) {
                Some(b) => {
                    let left = keep - memory.new.len() * n;
                    blocks_of.set_rows(&b, left.min(n));
                    memory.new.push(b);
                }
                None => return self.undo(memory),
            }
        }
        memory.make_room(&self.config.shape, rows);
        let mut fell = 0.0;
        for layer in 0..self.config.shape.layers {
            let _guard = self.layer();
            // What left the table may have lost its pages.
            if memory
                .old
                .iter()
                .any(|(i, b, _)| table.entry(*i) != Some(*b))
            {
                return self.undo(memory);
            }
            for head in 0..self.config.shape.kv_heads {
                fell += self.choose(table, layer, head, (rows, keep), policy, memory);
            }
            self.gather(layer, keep, memory);
        }
        let planes = self.config.shape.layers * self.config.shape.kv_heads;
        let fell = fell / planes as f32;
        let Some(lock) = self.tables.lock(seq) else {
            return self.undo(memory);
        };
        if memory
            .old
            .iter()
            .any(|(i, b, _)| lock.entry(*i) != Some(*b))
        {
            drop(lock);
            return self.undo(memory);
        }
        let mut out: Batch<Unlinked> = Batch::new();
        let before = self.put(&lock, memory, rows - keep, fell, &mut out);
        let mass = share_of_group(&lock, memory, fell);
        lock.count_trim();
        lock.lose_share(mass);
        drop(lock);
        self.retire(&mut out, To::Kernel);
        let held = self.bytes(blocks * self.alloc.pages(kind));
        Some(Reclaimed {
            step: Step::Thin,
            bytes: self.bytes(before).saturating_sub(held),
            tokens: (rows - keep) as u64,
            mass_dropped: mass,
        })
    }

    /// Rows to keep so that `want` bytes come free: whole blocks, at least
    /// half of them.
    fn keep(&self, rows: usize, blocks: usize, kind: KvType, want: Bytes) -> usize {
        let n = self.config.shape.block_tokens;
        let pages = self.bytes(self.alloc.pages(kind)).0.max(1);
        let fewer = usize::try_from(want.0.div_ceil(pages))
            .unwrap_or(usize::MAX)
            .max(1);
        let whole = rows.div_ceil(n).min(blocks);
        whole.saturating_sub(fewer).max(blocks.div_ceil(2)) * n
    }

    /// Finds the rows of one head that are worth most; returns the share of
    /// attention that fell on the others, as far as the policy knows.
    fn choose(
        &self,
        table: &Table,
        layer: usize,
        head: usize,
        (rows, keep): (usize, usize),
        policy: &dyn Policy,
        m: &mut ThinMemory,
    ) -> f32 {
        let s = &self.config.shape;
        let (n, d, plane) = (s.block_tokens, s.head_dim, s.plane());
        m.mass.clear();
        let into = m.keys.chunks_exact_mut(d).zip(m.values.chunks_exact_mut(d));
        let places = m
            .old
            .iter()
            .flat_map(|(_, b, rows)| (0..*rows).map(move |t| (*b, t)));
        for ((key, value), (b, t)) in into.zip(places) {
            let ((k, v), kind) = (self.layer_of(b, layer), self.alloc.blocks().kind(b));
            // SAFETY: a row of this layer of a block that the guard of the
            // caller keeps, written before and by no thread now.
            unsafe {
                decode_row(kind, k, plane, plane.at(head, t), key);
                decode_row(kind, v, plane, plane.at(head, t), value);
            }
            rotate(key, d);
            let masses = self.row_mass(b, layer);
            if !masses.is_null() {
                // SAFETY: one of the layer's masses; as above.
                let mass = unsafe { &*masses.add(head * n + t) }.load(Relaxed);
                m.mass.push(f32::from_bits(mass));
            }
        }
        m.scores.clear();
        m.scores.resize(rows, 0.0);
        let of_head = HeadRows {
            layer,
            kv_head: head,
            head_dim: d,
            keys: &m.keys,
            values: &m.values,
            mass: &m.mass,
            next_pos: table.len(),
        };
        policy.score(&of_head, &mut m.scores);
        best(&m.scores, keep, &mut m.kept[head]);
        policy.fell(&of_head, &m.kept[head])
    }

    /// Copies the rows that were chosen of one layer into the new blocks, by
    /// way of f16: what has 4 bits shares offsets within a block.
    fn gather(&self, layer: usize, keep: usize, m: &mut ThinMemory) {
        let s = &self.config.shape;
        let (n, plane) = (s.block_tokens, s.plane());
        for (i, new) in m.new.iter().enumerate() {
            let new = new.id();
            let filled = (keep - i * n).min(n);
            let (to, to_kind) = (self.layer_of(new, layer), self.alloc.blocks().kind(new));
            for (which, to) in [to.0, to.1].into_iter().enumerate() {
                for (head, t) in (0..s.kv_heads).flat_map(|h| (0..filled).map(move |t| (h, t))) {
                    let (block, row) = place(&m.old, m.kept[head][i * n + t] as usize);
                    let (k, v) = self.layer_of(block, layer);
                    let from = if which == 0 { k } else { v };
                    let kind = self.alloc.blocks().kind(block);
                    let staged = m.plane.as_mut_ptr().cast();
                    // SAFETY: a row of a block that the guard of the caller
                    // keeps, and one of our own plane.
                    unsafe {
                        decode_row(kind, from, plane, plane.at(head, row), &mut m.row);
                        encode_row(KvType::F16, staged, plane, plane.at(head, t), &m.row);
                    }
                }
                let staged = m.plane.as_ptr().cast();
                // SAFETY: our own plane, filled so far, and one of a block that
                // is ours alone.
                unsafe { recode_plane(KvType::F16, staged, to_kind, to, plane, filled) };
            }
            let masses = self.row_mass(new, layer);
            if masses.is_null() {
                continue;
            }
            for (head, t) in (0..s.kv_heads).flat_map(|h| (0..filled).map(move |t| (h, t))) {
                let (block, row) = place(&m.old, m.kept[head][i * n + t] as usize);
                // SAFETY: masses of this layer; as above.
                unsafe {
                    let mass = (*self.row_mass(block, layer).add(head * n + row)).load(Relaxed);
                    (*masses.add(head * n + t)).store(mass, Relaxed);
                }
            }
        }
    }

    /// Puts the new blocks in the old ones' place, all of which are there;
    /// returns the pages of those that are not shared, which are in `out`
    /// then.
    fn put(
        &self,
        table: &TableLock<'_>,
        memory: &mut ThinMemory,
        lost: usize,
        fell: f32,
        out: &mut Batch<Unlinked>,
    ) -> usize {
        let mass: f32 = memory.old.iter().map(|(i, ..)| table.mass(*i)).sum();
        let each = mass * (1.0 - fell) / memory.new.len() as f32;
        let mut pages = 0;
        table.together(|| {
            let mut new = memory.new.drain(..);
            for (i, ..) in &memory.old {
                let old = table.unlink(*i);
                table.set_mass(*i, 0.0);
                if let Some(new) = new.next() {
                    table.set_mass(*i, each);
                    let linked = table.link(*i, new.into_ref());
                    debug_assert!(linked.is_ok(), "entry {i} was unlinked just now");
                }
                if let Some(old) = old.and_then(|old| self.release(old, false)) {
                    pages += self.alloc.blocks().held(old.id());
                    out.push(old);
                }
            }
        });
        let first = memory.old.first().map_or(0, |o| o.0);
        table.lose(first * self.config.shape.block_tokens, lost);
        self.counters.live_tokens.sub(lost as u64);
        pages
    }

    /// The old ones stay, the new ones go.
    fn undo(&self, memory: &mut ThinMemory) -> Option<Reclaimed> {
        for block in memory.new.drain(..) {
            self.alloc.abandon(block);
        }
        None
    }
}

#[derive(Clone, Debug)]
struct Group {
    entries: Range<usize>,
    blocks: usize,
    /// Share of its tokens that is left, times the root of its distance from
    /// the end.
    density: f32,
}

/// What fell on the dropped rows of a group, as a share of all that fell
/// on the sequence.
fn share_of_group(table: &Table, memory: &ThinMemory, fell: f32) -> f32 {
    let all = table.total_mass();
    let kept: f32 = memory.old.iter().map(|(i, ..)| table.mass(*i)).sum();
    let dropped = kept * fell / (1.0 - fell).max(1e-6);
    if all + dropped > 0.0 {
        dropped / (all + dropped)
    } else {
        0.0
    }
}

/// Which block a row of the group is in, and where.
fn place(old: &[(usize, BlockId, usize)], mut row: usize) -> (BlockId, usize) {
    for (_, block, tokens) in old {
        if row < *tokens {
            return (*block, row);
        }
        row -= tokens;
    }
    unreachable!("rows are counted from these blocks")
}

/// The `keep` rows with the highest scores, in their order. What is no number
/// counts as highest: it is not hidden.
fn best(scores: &[f32], keep: usize, order: &mut Vec<u32>) {
    order.clear();
    order.extend((0u32..).take(scores.len()));
    if keep < order.len() {
        order.select_nth_unstable_by(keep, |a, b| {
            scores[*b as usize].total_cmp(&scores[*a as usize])
        });
        order.truncate(keep);
    }
    order.sort_unstable();
}
