//! The prefix cache: blocks found by what they hold.
//!
//! Owns the index from content to block. A block's content is the hash of its
//! tokens and of all tokens before them, so equal hashes mean equal keys and
//! values, wherever the sequence came from. The index is a hint: who finds a
//! block there takes a reference and then looks at the block's own hash. The
//! reactor takes cached blocks without looking here; what it took is found to
//! be gone. Refuses to know tokens' text and when to look.

use super::{block::Let, pool::KvPool, sequence::SeqId};
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::Ordering::{Relaxed, SeqCst},
    },
};

/// Hash of a whole block of tokens and all before it; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHash(u64);

/// Blocks by content.
#[derive(Debug)]
pub(super) struct Registry {
    /// A key of this process: nobody can prepare tokens that collide.
    key: RandomState,
    blocks: Mutex<HashMap<u64, u32>>,
}

impl Registry {
    pub fn new() -> Self {
        Self {
            key: RandomState::new(),
            blocks: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, u32>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KvPool {
    /// Hashes of the whole blocks that `tokens` fill, the first ones of which
    /// are `known` already.
    pub fn hash_blocks(&self, tokens: &[u32], known: &mut Vec<BlockHash>) {
        let n = self.config.shape.block_tokens;
        for block in tokens.chunks_exact(n).skip(known.len()) {
            let before = known.last().map_or(0, |h| h.0);
            let hash = self.registry.key.hash_one((before, block));
            known.push(BlockHash(hash.max(1)));
        }
    }

    /// Makes the sequence's blocks known by their content, so that they stay
    /// as cached ones when it ends and others can share them at once. Of a
    /// sequence that lost tokens nothing is made known: what was computed
    /// after that is not what the tokens say.
    pub fn publish(&self, seq: SeqId, hashes: &[BlockHash]) {
        let slot = &self.slots[seq.0];
        let whole = slot.len() / self.config.shape.block_tokens;
        let mut index = self.registry.lock();
        // Checked with the index locked, and each block again below: a trim
        // takes whole blocks out and changes none.
        if slot.lost() > 0 {
            return;
        }
        let exact = !slot.coarse();
        for (i, hash) in hashes.iter().enumerate().take(whole) {
            let Some(b) = slot.entry(i) else { return };
            let block = &self.blocks[b];
            if block.hash() != 0 || block.rows().is_some() {
                continue;
            }
            let known = index.get(&hash.0).map(|k| &self.blocks[*k as usize]);
            if let Some(known) = known.filter(|k| k.hash() == hash.0) {
                if known.is_exact() || !exact {
                    continue;
                }
                // Ours is the better one: the other is not found any more.
                known.forget_hash(hash.0);
            }
            block.set_hash(hash.0, exact);
            // The reactor may have taken it, and somebody else have it now.
            if slot.entry(i) != Some(b) {
                block.forget_hash(hash.0);
                return;
            }
            index.insert(hash.0, u32::try_from(b).unwrap_or(u32::MAX));
        }
        if index.len() > 2 * self.blocks.len() {
            index.retain(|hash, b| self.blocks[*b as usize].hash() == *hash);
        }
    }

    /// A block's content is in another one now.
    pub(super) fn rename(&self, hash: u64, from: usize, to: usize) {
        self.blocks[to].set_hash(hash, false);
        let mut index = self.registry.lock();
        if index.get(&hash).is_some_and(|b| *b as usize == from) {
            index.insert(hash, u32::try_from(to).unwrap_or(u32::MAX));
        }
    }

    /// Gives a sequence of whole blocks those that are known to hold its next
    /// tokens, whose hashes from the first token on these are; returns how many
    /// tokens it has then. `exact`: only blocks that are what their tokens say to
    /// the last bit.
    pub fn adopt(&self, seq: SeqId, hashes: &[BlockHash], exact: bool) -> usize {
        let n = self.config.shape.block_tokens;
        let (slot, had) = (&self.slots[seq.0], self.slots[seq.0].len());
        debug_assert!(had.is_multiple_of(n), "only whole blocks go on with others");
        let hashes = &hashes[..hashes.len().min(slot.entries())];
        let mut has = had / n;
        while let Some(hash) = hashes.get(has) {
            let known = self.registry.lock().get(&hash.0).copied();
            let Some(b) = known.map(|b| b as usize) else {
                break;
            };
            if !self.share(b) {
                break;
            }
            let block = &self.blocks[b];
            if block.hash() != hash.0 || (exact && !block.is_exact()) {
                self.unshare(b);
                break;
            }
            if !block.is_exact() {
                slot.set_coarse();
            }
            slot.link(has, b);
            has += 1;
        }
        self.begin_shared(seq, has * n);
        self.cache_hit_tokens
            .fetch_add((has * n - had) as u64, Relaxed);
        has * n
    }

    /// How many of the first tokens could be adopted now.
    pub fn known(&self, hashes: &[BlockHash], exact: bool) -> usize {
        let index = self.registry.lock();
        let whole = |hash: &&BlockHash| {
            index.get(&hash.0).is_some_and(|b| {
                let b = &self.blocks[*b as usize];
                b.hash() == hash.0 && (!exact || b.is_exact())
            })
        };
        hashes.iter().take_while(whole).count() * self.config.shape.block_tokens
    }

    /// Gives an empty sequence the first whole blocks of another one, as far
    /// as they are all there, as they were written at first if `exact`, and at
    /// most `tokens`; returns how many tokens those are.
    pub fn fork(&self, from: SeqId, to: SeqId, tokens: usize, exact: bool) -> usize {
        let (slot, new) = (&self.slots[from.0], &self.slots[to.0]);
        debug_assert!(new.len() == 0, "only an empty sequence can be a fork");
        let n = self.config.shape.block_tokens;
        let whole = slot.lost_from().unwrap_or(usize::MAX);
        let most = tokens.min(slot.len()).min(whole) / n;
        let mut found = 0;
        for i in 0..most {
            let Some(b) = slot.entry(i) else { break };
            if !self.share(b) {
                break;
            }
            // It may have been taken from there, and be another's by now.
            let changed = exact && self.blocks[b].kind() != self.config.shape.kind;
            if changed || slot.entry(i) != Some(b) {
                self.unshare(b);
                break;
            }
            new.link(i, b);
            found += 1;
        }
        self.begin_shared(to, found * n);
        found * n
    }

    /// How many of a sequence's first tokens are as they were computed: none
    /// lost, and none written in fewer bits.
    #[must_use]
    pub fn untouched(&self, seq: SeqId) -> usize {
        let slot = &self.slots[seq.0];
        let n = self.config.shape.block_tokens;
        let whole = slot.lost_from().unwrap_or(usize::MAX);
        let same = |i: &usize| {
            slot.entry(*i).map(|b| &self.blocks[b]).is_some_and(|b| {
                // One from the cache may have come after such that had fewer.
                b.kind() == self.config.shape.kind && (b.hash() == 0 || b.is_exact())
            })
        };
        let most = slot.len().min(whole);
        ((0..most.div_ceil(n)).take_while(same).count() * n).min(most)
    }

    /// A sequence has so many whole tokens more, all shared.
    fn begin_shared(&self, seq: SeqId, tokens: usize) {
        let slot = &self.slots[seq.0];
        let more = tokens - slot.len();
        self.protect(slot, tokens, tokens);
        slot.gain(more);
        slot.set_len(tokens);
        self.live_tokens.fetch_add(more as u64, Relaxed);
    }

    fn share(&self, block: usize) -> bool {
        let b = &self.blocks[block];
        match b.share() {
            None => false,
            Some(cached) => {
                if cached {
                    let held = b.held();
                    self.cached.fetch_sub(held, SeqCst);
                    self.in_use.fetch_add(held, SeqCst);
                }
                true
            }
        }
    }

    /// Takes a reference back that turned out to be of another block.
    fn unshare(&self, block: usize) {
        if self.let_one_go(block, true) == Let::Free {
            self.guards.quiesce();
            self.slack.insert(block);
        }
    }
}
