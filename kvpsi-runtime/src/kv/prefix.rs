//! The prefix cache: blocks found by what they hold.
//!
//! Owns the index from content to block. A block's content is the hash of its
//! tokens and of all tokens before them, so equal hashes mean equal keys and
//! values, wherever the sequence came from. The index is a hint: it holds
//! number and version, and a reference is taken of that version alone, so a
//! block that was reused meanwhile is not found. The reactor takes cached
//! blocks without looking here. Out of scope:
//! tokens' text, and when to look.

use super::block::{BlockId, Blocks};
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Hash of a whole block of tokens and all before it; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHash(pub(super) u64);

/// Blocks by content.
#[derive(Debug)]
pub(super) struct PrefixIndex {
    /// A key of this process: tokens that collide cannot be prepared.
    key: RandomState,
    blocks: Mutex<HashMap<u64, BlockId>>,
}

impl PrefixIndex {
    pub fn new() -> Self {
        Self {
            key: RandomState::new(),
            blocks: Mutex::default(),
        }
    }

    /// Adds the hashes of the whole blocks of `n` that `tokens` fill to the first
    /// ones, which are `known`.
    pub fn hash_blocks(&self, n: usize, tokens: &[u32], known: &mut Vec<BlockHash>) {
        for block in tokens.chunks_exact(n).skip(known.len()) {
            let before = known.last().map_or(0, |h| h.0);
            let hash = self.key.hash_one((before, block));
            known.push(BlockHash(hash.max(1)));
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, HashMap<u64, BlockId>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content of one block is in another one now.
    pub fn rename(&self, hash: u64, from: BlockId, to: BlockId) {
        let mut index = self.lock();
        if index.get(&hash) == Some(&from) {
            index.insert(hash, to);
        }
    }

    /// The block that is known to hold this content.
    pub fn find(&self, hash: BlockHash, exact: bool, blocks: &Blocks) -> Option<BlockId> {
        let id = self.lock().get(&hash.0).copied()?;
        let is_it = blocks.hash(id) == hash.0 && (!exact || blocks.is_exact(id));
        is_it.then_some(id)
    }
}
