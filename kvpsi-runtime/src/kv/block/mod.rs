//! What is known of each block: its references, how it is written, its pages.
//!
//! Owns references and the tokens that stand for a block's state ([`token`]).
//! A block is free, or has one reference for each table that it stands in, or
//! has none and is cached: known by its content. Invariants: a reference is
//! taken only of the allocation that it was asked of (number and version in
//! one word), so what was freed meanwhile is not found; pages in use and
//! cached are counted where references change, the gain before the loss.
//! Out of scope: tables, page addresses, free lists' policy.

mod bitmap;
mod free;
mod retired;
mod token;

pub(super) use free::FreeList;
pub(super) use retired::{Retired, To};
pub(super) use token::{
    BATCH, Batch, BlockId, BlockRef, Free, FreeBlock, OwnedBlock, Pinned, Unlinked, UnlinkedBlock,
};

use super::encoding::KvType;
use crate::sync::{
    Acquire, AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Relaxed, Release, SeqCst,
};
use token::Token;

/// References of a free block.
const FREE: u32 = u32::MAX;
/// References of a cached block.
const CACHED: u32 = 0;

#[derive(Debug)]
struct Block {
    /// Version and references: a [`BlockId`] whose number is the count.
    refs: AtomicU64,
    kind: AtomicU8,
    /// Pages it holds, from its beginning on.
    held: AtomicU32,
    /// Of these, pages in swap, as last counted.
    swapped: AtomicU32,
    /// Rows of each head, where they are not those of the entry's positions:
    /// the block was gathered. 0 else.
    rows: AtomicU32,
    /// Hash of its tokens and all before them; 0: not known.
    hash: AtomicU64,
    /// Its content is what its tokens say to the last bit: computed after
    /// blocks that are so too, and never re-encoded.
    exact: AtomicBool,
    /// When its last reference went; the least is evicted first.
    used: AtomicU64,
    /// Of a cached block: the epoch at which it left its last table.
    epoch: AtomicU64,
}

/// What became of a block whose reference was released.
#[derive(Debug)]
pub(super) enum Released {
    /// Others have references.
    Shared,
    /// It has none, and is kept for its content.
    Cached,
    /// It has none and goes.
    Last(UnlinkedBlock),
}

#[derive(Debug)]
pub(super) struct Blocks {
    blocks: Box<[Block]>,
    /// Pages of blocks with references.
    in_use: AtomicUsize,
    /// Pages of cached blocks.
    cached: AtomicUsize,
    /// Pages in swap.
    swapped: AtomicUsize,
}

fn word(version: u32, refs: u32) -> u64 {
    BlockId {
        number: refs,
        version,
    }
    .pack()
}

impl Blocks {
    pub fn new(blocks: usize) -> Self {
        let block = |_| Block {
            refs: AtomicU64::new(word(0, FREE)),
            kind: AtomicU8::new(0),
            held: AtomicU32::new(0),
            swapped: AtomicU32::new(0),
            rows: AtomicU32::new(0),
            hash: AtomicU64::new(0),
            exact: AtomicBool::new(false),
            used: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        };
        Self {
            blocks: (0..blocks).map(block).collect(),
            in_use: AtomicUsize::new(0),
            cached: AtomicUsize::new(0),
            swapped: AtomicUsize::new(0),
        }
    }

    fn at(&self, id: BlockId) -> &Block {
        &self.blocks[id.index()]
    }

    pub fn in_use(&self) -> usize {
        self.in_use.load(SeqCst)
    }

    pub fn cached(&self) -> usize {
        self.cached.load(SeqCst)
    }

    /// A free block becomes the caller's alone.
    pub fn begin(&self, block: FreeBlock, kind: KvType, held: usize) -> OwnedBlock {
        let number = block.spend().number;
        let b = &self.blocks[number as usize];
        let version = BlockId::unpack(b.refs.load(Relaxed))
            .version
            .wrapping_add(1);
        b.kind.store(kind as u8, Relaxed);
        b.held.store(pages(held), Relaxed);
        b.rows.store(0, Relaxed);
        b.exact.store(false, Relaxed);
        b.hash.store(0, SeqCst);
        self.in_use.fetch_add(held, SeqCst);
        b.refs.store(word(version, 1), Release);
        Token::new(BlockId { number, version })
    }

    /// A block that no reader has seen is free again.
    pub fn abandon(&self, block: OwnedBlock) -> FreeBlock {
        let id = block.spend();
        let b = self.at(id);
        b.refs.store(word(id.version, FREE), SeqCst);
        b.hash.store(0, SeqCst);
        self.in_use.fetch_sub(self.held(id), SeqCst);
        Token::new(id)
    }

    /// One more reference, if that allocation is not freed.
    pub fn share(&self, id: BlockId) -> Option<BlockRef> {
        let b = self.at(id);
        let mut now = b.refs.load(Acquire);
        loop {
            let BlockId { number: n, version } = BlockId::unpack(now);
            if version != id.version || n == FREE {
                return None;
            }
            let held = if n == CACHED { self.held(id) } else { 0 };
            self.in_use.fetch_add(held, SeqCst);
            match b
                .refs
                .compare_exchange(now, word(version, n + 1), SeqCst, SeqCst)
            {
                Ok(_) => {
                    self.cached.fetch_sub(held, SeqCst);
                    return Some(Token::new(id));
                }
                Err(other) => {
                    self.in_use.fetch_sub(held, SeqCst);
                    now = other;
                }
            }
        }
    }

    /// One reference less. `cache`: the last one leaves the block cached if its
    /// content is known, which left its table up to that epoch.
    pub fn release(&self, block: BlockRef, cache: Option<u64>) -> Released {
        let id = block.spend();
        let (b, held) = (self.at(id), self.held(id));
        let mut now = b.refs.load(Acquire);
        loop {
            let n = BlockId::unpack(now).number;
            let caches = n == 1 && cache.is_some() && self.hash(id) != 0;
            let to = match n {
                1 if caches => CACHED,
                1 => FREE,
                _ => n - 1,
            };
            if caches {
                b.epoch.store(cache.unwrap_or(u64::MAX), SeqCst);
                self.cached.fetch_add(held, SeqCst);
            }
            match b
                .refs
                .compare_exchange(now, word(id.version, to), SeqCst, SeqCst)
            {
                Ok(_) if n > 1 => return Released::Shared,
                Ok(_) => {
                    self.in_use.fetch_sub(held, SeqCst);
                    if caches {
                        return Released::Cached;
                    }
                    b.hash.store(0, SeqCst);
                    return Released::Last(Token::new(id));
                }
                Err(other) => {
                    if caches {
                        self.cached.fetch_sub(held, SeqCst);
                    }
                    now = other;
                }
            }
        }
    }

    /// Takes a cached block, unless it is referenced again; with the epoch at
    /// which it left its last table.
    pub fn take_cached(&self, number: u32) -> Option<(UnlinkedBlock, u64)> {
        let b = &self.blocks[number as usize];
        let now = b.refs.load(Acquire);
        let id = BlockId::unpack(now);
        if id.number != CACHED {
            return None;
        }
        let epoch = b.epoch.load(SeqCst);
        b.refs
            .compare_exchange(now, word(id.version, FREE), SeqCst, Relaxed)
            .ok()?;
        let id = BlockId {
            number,
            version: id.version,
        };
        self.cached.fetch_sub(self.held(id), SeqCst);
        b.hash.store(0, SeqCst);
        Some((Token::new(id), epoch))
    }

    /// Cached blocks now: when each was used last, and its number.
    pub fn cached_blocks(&self) -> impl Iterator<Item = (u64, u32)> {
        let all = (0u32..).zip(&self.blocks);
        all.filter(|(_, b)| BlockId::unpack(b.refs.load(Acquire)).number == CACHED)
            .map(|(i, b)| (b.used.load(Relaxed), i))
    }

    /// In one table, and in no other.
    pub fn is_sole(&self, id: BlockId) -> bool {
        self.at(id).refs.load(Acquire) == word(id.version, 1)
    }

    #[cfg(test)]
    pub fn refs(&self, number: usize) -> Option<u32> {
        let n = BlockId::unpack(self.blocks[number].refs.load(SeqCst)).number;
        (n != FREE).then_some(n)
    }

    #[cfg(test)]
    pub fn id_of(&self, number: usize) -> BlockId {
        BlockId {
            number: u32::try_from(number).unwrap(),
            version: BlockId::unpack(self.blocks[number].refs.load(SeqCst)).version,
        }
    }

    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    pub fn kind(&self, id: BlockId) -> KvType {
        KvType::ALL[usize::from(self.at(id).kind.load(Relaxed)).min(KvType::ALL.len() - 1)]
    }

    /// Pages that a block holds.
    pub fn held(&self, id: BlockId) -> usize {
        self.at(id).held.load(Relaxed) as usize
    }

    /// The same of a block that is known by its number alone.
    pub fn held_by(&self, number: usize) -> usize {
        self.blocks[number].held.load(Relaxed) as usize
    }

    pub fn set_held(&self, block: &FreeBlock, held: usize) {
        self.at(block.id()).held.store(pages(held), Relaxed);
    }

    /// A block lost its pages where it stands: how many it had.
    pub fn emptied(&self, number: usize) -> usize {
        self.blocks[number].held.swap(0, Relaxed) as usize
    }

    /// How often a block was allocated.
    pub fn version_of(&self, number: usize) -> u32 {
        BlockId::unpack(self.blocks[number].refs.load(SeqCst)).version
    }

    /// Pages in swap, of all blocks.
    pub fn swapped(&self) -> usize {
        self.swapped.load(SeqCst)
    }

    /// Pages of a block that were in swap when they were last counted.
    pub fn swapped_of(&self, number: usize) -> usize {
        self.blocks[number].swapped.load(SeqCst) as usize
    }

    /// So many pages of a block are in swap; how many it had there before.
    pub fn set_swapped(&self, number: usize, now: usize) -> usize {
        let before = self.blocks[number].swapped.swap(pages(now), SeqCst) as usize;
        self.swapped.fetch_add(now, SeqCst);
        self.swapped.fetch_sub(before, SeqCst);
        before
    }

    pub fn rows(&self, id: BlockId) -> Option<usize> {
        let rows = self.at(id).rows.load(Relaxed);
        (rows != 0).then_some(rows as usize)
    }

    pub fn set_rows(&self, block: &OwnedBlock, rows: usize) {
        self.at(block.id())
            .rows
            .store(u32::try_from(rows).unwrap_or(u32::MAX), Relaxed);
    }

    pub fn hash(&self, id: BlockId) -> u64 {
        self.at(id).hash.load(SeqCst)
    }

    pub fn is_exact(&self, id: BlockId) -> bool {
        self.at(id).exact.load(SeqCst)
    }

    /// Makes the content of a block known.
    pub fn set_hash(&self, block: Pinned<'_>, hash: u64, exact: bool) {
        self.at(block.id).exact.store(exact, SeqCst);
        self.at(block.id).hash.store(hash, SeqCst);
    }

    /// The content is not looked for there any more.
    pub fn forget_hash(&self, id: BlockId, hash: u64) {
        let _ = self.at(id).hash.compare_exchange(hash, 0, SeqCst, Relaxed);
    }

    /// When the block is let go, for the order of eviction.
    pub fn set_used(&self, id: BlockId, at: u64) {
        self.at(id).used.store(at, Relaxed);
    }
}

fn pages(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
