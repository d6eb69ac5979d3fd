//! What a block is, as a value: only the call that brings a block into a state
//! makes its token, and the call that ends the state consumes it.
//!
//! ```text
//! FreeList -> FreeBlock -> OwnedBlock -> BlockRef (in a table) -> UnlinkedBlock -> Retired -> FreeBlock
//!                              |             |  ^
//!                              v             v  |
//!                          FreeBlock        cached
//! ```
//!
//! Invariant: a token is consumed, never dropped. In builds with debug
//! assertions a drop panics; it would be a block lost.

use std::marker::PhantomData;

/// One allocation of a block: its number, and how often it was allocated
/// before. A name only: it grants nothing, and two of them are equal only if
/// the block was not freed in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::kv) struct BlockId {
    pub number: u32,
    pub version: u32,
}

impl BlockId {
    pub fn index(self) -> usize {
        self.number as usize
    }

    /// As an entry of a table.
    pub fn pack(self) -> u64 {
        u64::from(self.version) << 32 | u64::from(self.number)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub fn unpack(word: u64) -> Self {
        Self {
            number: word as u32,
            version: (word >> 32) as u32,
        }
    }
}

/// In no list and no table, known by no content.
#[derive(Debug)]
pub(in crate::kv) struct Free;
/// The holder's alone: in no table, and never seen by a reader since it was
/// allocated.
#[derive(Debug)]
pub(in crate::kv) struct Owned;
/// One reference; others may have more.
#[derive(Debug)]
pub(in crate::kv) struct Shared;
/// Without references; an open guard may still read it.
#[derive(Debug)]
pub(in crate::kv) struct Unlinked;

/// A block in state `S`.
#[derive(Debug)]
#[must_use = "a block that is not returned is lost"]
pub(in crate::kv) struct Token<S> {
    id: BlockId,
    state: PhantomData<S>,
}

pub(in crate::kv) type FreeBlock = Token<Free>;
pub(in crate::kv) type OwnedBlock = Token<Owned>;
pub(in crate::kv) type BlockRef = Token<Shared>;
pub(in crate::kv) type UnlinkedBlock = Token<Unlinked>;

impl<S> Token<S> {
    pub(super) fn new(id: BlockId) -> Self {
        Self {
            id,
            state: PhantomData,
        }
    }

    pub fn id(&self) -> BlockId {
        self.id
    }

    /// Ends the state; whoever calls makes the next one's token, or puts the
    /// number where it is found again.
    pub(super) fn spend(self) -> BlockId {
        let id = self.id;
        std::mem::forget(self);
        id
    }
}

/// A block that cannot be freed while this lives.
#[derive(Clone, Copy, Debug)]
pub(in crate::kv) struct Pinned<'a> {
    pub id: BlockId,
    holder: PhantomData<&'a ()>,
}

impl Pinned<'_> {
    /// For the lock of a table that the block stands in.
    pub fn in_locked_table(id: BlockId) -> Self {
        Self {
            id,
            holder: PhantomData,
        }
    }
}

impl OwnedBlock {
    pub fn pin(&self) -> Pinned<'_> {
        Pinned {
            id: self.id,
            holder: PhantomData,
        }
    }

    /// Gives exclusive access up, for a place in a table.
    pub fn into_ref(self) -> BlockRef {
        Token::new(self.spend())
    }
}

impl BlockRef {
    /// The reference goes into an entry of a table.
    pub fn into_entry(self) -> u64 {
        self.spend().pack()
    }

    /// The reference that an entry held. Only for [`crate::kv::table`], which
    /// takes each entry out once.
    pub fn from_entry(word: u64) -> Self {
        Token::new(BlockId::unpack(word))
    }
}

impl<S> Drop for Token<S> {
    fn drop(&mut self) {
        debug_assert!(
            std::thread::panicking(),
            "{:?} was dropped as {}: a block is lost",
            self.id,
            std::any::type_name::<S>()
        );
    }
}

/// Most blocks that are taken before they are returned together.
pub(in crate::kv) const BATCH: usize = 128;

/// Up to [`BATCH`] blocks, without memory from the heap.
#[derive(Debug)]
pub(in crate::kv) struct Batch<S> {
    ids: [BlockId; BATCH],
    len: usize,
    state: PhantomData<S>,
}

impl<S> Batch<S> {
    pub fn new() -> Self {
        const NONE: BlockId = BlockId {
            number: 0,
            version: 0,
        };
        Self {
            ids: [NONE; BATCH],
            len: 0,
            state: PhantomData,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn first(&self) -> Option<BlockId> {
        self.ids[..self.len].first().copied()
    }

    pub fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// # Panics
    /// It is full.
    pub fn push(&mut self, block: Token<S>) {
        assert!(!self.is_full());
        self.ids[self.len] = block.spend();
        self.len += 1;
    }

    pub fn pop(&mut self) -> Option<Token<S>> {
        self.len = self.len.checked_sub(1)?;
        Some(Token::new(self.ids[self.len]))
    }

    /// By number, the highest first: [`Batch::pop`] then counts upwards.
    pub fn sort(&mut self) {
        self.ids[..self.len].sort_unstable_by_key(|id| std::cmp::Reverse(id.number));
    }
}

impl<S> Drop for Batch<S> {
    fn drop(&mut self) {
        debug_assert!(self.is_empty() || std::thread::panicking());
    }
}
