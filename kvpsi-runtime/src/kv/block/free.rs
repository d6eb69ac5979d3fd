//! Free blocks as a set: what goes in and comes out is a [`FreeBlock`].

use super::{
    bitmap::Bitmap,
    token::{BlockId, FreeBlock, Token},
};

#[derive(Debug)]
pub(in crate::kv) struct FreeList(Bitmap);

impl FreeList {
    /// Without a member.
    pub fn empty(blocks: usize) -> Self {
        Self(Bitmap::new(blocks, false))
    }

    /// With all of them. One list of a pool begins so.
    pub fn full(blocks: usize) -> Self {
        Self(Bitmap::new(blocks, true))
    }

    pub fn insert(&self, block: FreeBlock) {
        self.0.insert(block.spend().index());
    }

    pub fn take_low(&self) -> Option<FreeBlock> {
        self.0.take_low().map(token)
    }

    pub fn take_high(&self) -> Option<FreeBlock> {
        self.0.take_high().map(token)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Of a free block only the number counts: the version is counted on when it
/// is allocated.
fn token(i: usize) -> FreeBlock {
    Token::new(BlockId {
        number: u32::try_from(i).unwrap_or(u32::MAX),
        version: 0,
    })
}
