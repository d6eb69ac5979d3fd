//! Blocks shared by content, or by descent.
//!
//! Owns how sequences make their blocks known, adopt known ones and fork.
//! Invariant: a row is shared only once it is written. Lock order: the index,
//! then a table.

use super::{block::BlockId, pool::KvPool, prefix::BlockHash, table::SeqId};

impl KvPool {
    /// Hashes of the whole blocks that `tokens` fill, the first ones of which
    /// are `known` already.
    pub fn hash_blocks(&self, tokens: &[u32], known: &mut Vec<BlockHash>) {
        let n = self.config.shape.block_tokens;
        self.prefix.hash_blocks(n, tokens, known);
    }

    /// Makes the sequence's blocks known by their content, so that they stay
    /// as cached ones when it ends and others can share them at once: those
    /// whose rows are all written ([`KvPool::written`], [`KvPool::append`]).
    /// Of a sequence that lost tokens nothing is made known: what was computed
    /// after that is not what the tokens say.
    pub fn publish(&self, seq: SeqId, hashes: &[BlockHash]) {
        let Some(table) = self.tables.get(seq) else {
            return;
        };
        let blocks = self.alloc.blocks();
        let whole = table.written() / self.config.shape.block_tokens;
        let mut index = self.prefix.lock();
        for (i, hash) in hashes.iter().enumerate().take(whole) {
            // One entry at a time: the reactor is not to find it locked.
            let Some(table) = self.tables.lock(seq) else {
                return;
            };
            let Some(block) = table.pin(i).filter(|_| table.lost() == 0) else {
                return;
            };
            let (id, exact) = (block.id, !table.is_coarse());
            if blocks.hash(id) != 0 || blocks.rows(id).is_some() {
                continue;
            }
            let known = index.get(&hash.0).copied();
            if let Some(known) = known.filter(|k| blocks.hash(*k) == hash.0) {
                if blocks.is_exact(known) || !exact {
                    continue;
                }
                // Ours is the better one: the other is not found any more.
                blocks.forget_hash(known, hash.0);
            }
            blocks.set_hash(block, hash.0, exact);
            index.insert(hash.0, id);
        }
        if index.len() > 2 * blocks.count() {
            index.retain(|hash, id| blocks.hash(*id) == *hash);
        }
    }

    /// Gives a sequence of whole blocks those that are known to hold its next
    /// tokens, whose hashes from the first token on these are; returns how many
    /// tokens it has then. `exact`: only blocks that are what their tokens say to
    /// the last bit.
    pub fn adopt(&self, seq: SeqId, hashes: &[BlockHash], exact: bool) -> usize {
        let n = self.config.shape.block_tokens;
        let Some(table) = self.tables.get(seq) else {
            return 0;
        };
        let had = table.len();
        if !had.is_multiple_of(n) {
            return had;
        }
        let hashes = &hashes[..hashes.len().min(table.entries())];
        let blocks = self.alloc.blocks();
        let found = hashes.iter().skip(had / n).map_while(|hash| {
            let id = self.prefix.find(*hash, exact, blocks)?;
            Some((id, blocks.is_exact(id)))
        });
        let has = self.link_shared(seq, had, found);
        self.counters.cache_hit_tokens.add((has - had) as u64);
        has
    }

    /// How many of the first tokens could be adopted now.
    pub fn known(&self, hashes: &[BlockHash], exact: bool) -> usize {
        let blocks = self.alloc.blocks();
        let whole = |h: &&BlockHash| self.prefix.find(**h, exact, blocks).is_some();
        hashes.iter().take_while(whole).count() * self.config.shape.block_tokens
    }

    /// Gives an empty sequence the first whole blocks of another one, as far
    /// as they are all there and written, as they were written at first if
    /// `exact`, and at most `tokens`; returns how many tokens those are.
    pub fn fork(&self, from: SeqId, to: SeqId, tokens: usize, exact: bool) -> usize {
        let Some(table) = self.tables.get(from) else {
            return 0;
        };
        let n = self.config.shape.block_tokens;
        let whole = table.lost_from().unwrap_or(usize::MAX);
        let most = tokens.min(table.written()).min(whole) / n;
        let blocks = self.alloc.blocks();
        let found = (0..most).map_while(|i| {
            let id = table.entry(i)?;
            let as_written = blocks.kind(id) == self.config.shape.kind;
            (as_written || !exact).then_some((id, true))
        });
        self.link_shared(to, 0, found)
    }

    /// How many of a sequence's first tokens are as they were computed: none
    /// lost, and none written in fewer bits.
    #[must_use]
    pub fn untouched(&self, seq: SeqId) -> usize {
        let Some(table) = self.tables.get(seq) else {
            return 0;
        };
        let (n, blocks) = (self.config.shape.block_tokens, self.alloc.blocks());
        let whole = table.lost_from().unwrap_or(usize::MAX);
        let same = |i: &usize| {
            table.entry(*i).is_some_and(|b| {
                // One from the cache may have come after such that had fewer.
                blocks.kind(b) == self.config.shape.kind
                    && (blocks.hash(b) == 0 || blocks.is_exact(b))
            })
        };
        let most = table.len().min(whole);
        ((0..most.div_ceil(n)).take_while(same).count() * n).min(most)
    }

    /// Links references to blocks of others behind the `had` tokens of a
    /// sequence, each with whether it is exact, until one is gone; how many
    /// tokens it has then.
    fn link_shared(
        &self,
        seq: SeqId,
        had: usize,
        found: impl Iterator<Item = (BlockId, bool)>,
    ) -> usize {
        let n = self.config.shape.block_tokens;
        let mut has = had;
        for (id, exact) in found {
            let Some(block) = self.alloc.blocks().share(id) else {
                break;
            };
            let Some(table) = self
                .tables
                .lock(seq)
                .filter(|t| t.len() == has && !t.preempted())
            else {
                self.put_back(block);
                break;
            };
            if !exact {
                table.set_coarse();
            }
            if let Err(block) = table.link(has / n, block) {
                drop(table);
                self.put_back(block);
                break;
            }
            has += n;
            self.protect(&table, has, has);
            table.gain(n);
            table.set_len(has);
            table.set_written(has);
            self.counters.live_tokens.add(n as u64);
        }
        has
    }
}
