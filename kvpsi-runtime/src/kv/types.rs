//! Shapes, settings and errors of the KV memory.

use super::encoding::{KvType, Plane};
use crate::units::Bytes;
use thiserror::Error;

/// Most sequences a pool can be asked for: their cursors live on the
/// reactor's stack.
pub const MAX_SEQUENCES: usize = 64;

/// Most bytes a pool may reserve: 1 TiB of address space.
const MAX_RESERVED: u64 = 1 << 40;

/// Shape of a model's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Tokens of one block.
    pub block_tokens: usize,
    /// How they are written at first.
    pub kind: KvType,
    /// Whether the attention mass of every token is kept beside it, by layer
    /// and KV head (f32): for policies that ask for it.
    pub row_mass: bool,
}

impl KvShape {
    /// Bytes of one layer of one block written as `kind`: K then V.
    pub(super) fn layer_bytes(&self, kind: KvType) -> usize {
        2 * self.half_layer_bytes(kind)
    }

    /// Bytes of K (or V) of one layer of one block.
    pub(super) fn half_layer_bytes(&self, kind: KvType) -> usize {
        kind.bytes(self.half_layer_values())
    }

    /// Whether blocks of this shape can be written so.
    pub(super) fn fits(&self, kind: KvType) -> bool {
        self.head_dim.is_multiple_of(kind.group()) && self.block_tokens >= kind.least_tokens()
    }

    /// Shape of K (or V) of one layer of one block.
    pub(super) fn plane(&self) -> Plane {
        Plane {
            heads: self.kv_heads,
            tokens: self.block_tokens,
            head_dim: self.head_dim,
        }
    }

    /// Values of K (or V) of one layer of one block; scales follow them.
    pub(super) fn half_layer_values(&self) -> usize {
        self.kv_heads * self.block_tokens * self.head_dim
    }

    /// Bytes of a block as it begins: all layers, K and V, and what is counted
    /// by token, rounded up to pages.
    #[must_use]
    pub fn block_bytes(&self) -> Bytes {
        self.block_bytes_as(self.kind)
    }

    /// The same once it is re-encoded.
    #[must_use]
    pub fn block_bytes_as(&self, kind: KvType) -> Bytes {
        let page = rustix::param::page_size() as u64;
        let token = self.token_bytes_as(kind).0 + self.row_mass_bytes() as u64;
        Bytes(
            token
                .saturating_mul(self.block_tokens as u64)
                .next_multiple_of(page),
        )
    }

    /// Bytes of the attention mass of one token, where it is kept.
    fn row_mass_bytes(&self) -> usize {
        if self.row_mass {
            self.layers.saturating_mul(self.kv_heads).saturating_mul(4)
        } else {
            0
        }
    }

    /// Bytes of one token: all layers, K and V.
    #[must_use]
    pub fn token_bytes(&self) -> Bytes {
        self.token_bytes_as(self.kind)
    }

    /// The same in another encoding.
    #[must_use]
    pub fn token_bytes_as(&self, kind: KvType) -> Bytes {
        let row = kind.bytes(self.head_dim) as u64;
        [self.layers, self.kv_heads]
            .into_iter()
            .fold(Bytes(row.saturating_mul(2)), |b, n| {
                Bytes(b.0.saturating_mul(n as u64))
            })
    }
}

/// How a pool is to be made.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Shape of keys and values.
    pub shape: KvShape,
    /// Tokens the arena has room for, and the longest sequence.
    pub capacity_tokens: usize,
    /// Sequences open at once.
    pub max_sequences: usize,
    /// First tokens of a sequence that are always kept (attention sinks,
    /// StreamingLLM, arXiv 2309.17453).
    pub sink_tokens: usize,
    /// Last tokens of a sequence that are always kept.
    pub recent_tokens: usize,
    /// Tokens below which no step but preemption takes a sequence.
    pub floor_tokens: usize,
    /// At first: a sequence may evict its own oldest tokens for new ones where
    /// the budget is spent; else it goes beyond the budget.
    pub may_drop: bool,
}

impl PoolConfig {
    /// Blocks of the arena, or why the settings cannot be.
    pub(super) fn blocks(&self) -> Result<usize, KvError> {
        let s = &self.shape;
        if [
            s.layers,
            s.kv_heads,
            s.head_dim,
            s.block_tokens,
            self.capacity_tokens,
        ]
        .contains(&0)
        {
            return Err(KvError::Shape(*s));
        }
        if !s.fits(s.kind) {
            return Err(KvError::Encoding(*s));
        }
        // Masses are read as f32 behind the planes.
        if s.row_mass && !s.half_layer_bytes(s.kind).is_multiple_of(4) {
            return Err(KvError::Shape(*s));
        }
        if self.floor_tokens > self.capacity_tokens {
            return Err(KvError::Floor {
                floor: self.floor_tokens,
                context: self.capacity_tokens,
            });
        }
        if !(1..=MAX_SEQUENCES).contains(&self.max_sequences) {
            return Err(KvError::Sequences(self.max_sequences));
        }
        let blocks = self.capacity_tokens.div_ceil(s.block_tokens);
        let bytes = s.block_bytes().0.saturating_mul(slots(blocks) as u64);
        if bytes > MAX_RESERVED || u32::try_from(blocks).is_err() {
            return Err(KvError::TooLarge {
                tokens: self.capacity_tokens,
                bytes: Bytes(bytes),
            });
        }
        Ok(blocks)
    }
}

/// Blocks of address space for so many blocks of tokens. Address space is
/// free, and twice as much lets a sequence be recomputed beside what is left
/// of it, and a block be written anew before the old one goes.
pub(super) fn slots(blocks: usize) -> usize {
    blocks.saturating_mul(2).saturating_add(8)
}

/// What can go wrong.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KvError {
    /// A dimension is zero.
    #[error("the KV shape {0:?} has a dimension of zero")]
    Shape(KvShape),
    /// A head is not whole groups of the encoding.
    #[error(
        "heads of {} values cannot be written as {}, which takes {} at a time; choose --kv-type f16",
        .0.head_dim, .0.kind, .0.kind.group()
    )]
    Encoding(KvShape),
    /// Numbers that attention cannot be computed by.
    #[error(
        "attention of {0}: take a multiple of the key heads, finite numbers, and no empty window"
    )]
    Attention(String),
    /// A floor that no context can hold.
    #[error("--kv-floor {floor}: more than the context of {context} tokens")]
    Floor {
        /// Asked for.
        floor: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// More sequences than a pool can hold.
    #[error("{0} sequences at once: choose 1 to {MAX_SEQUENCES}")]
    Sequences(usize),
    /// The arena would not fit an address space.
    #[error("a KV cache of {tokens} tokens would take {bytes}; choose a smaller --ctx")]
    TooLarge {
        /// Asked for.
        tokens: usize,
        /// What that takes.
        bytes: Bytes,
    },
    /// mmap refused.
    #[error("cannot reserve {bytes} of address space for the KV cache: {reason}")]
    Reserve {
        /// Asked for.
        bytes: Bytes,
        /// What the kernel said.
        reason: String,
    },
    /// Every sequence slot is taken.
    #[error("all {0} sequences are in use")]
    NoSequence(usize),
    /// The sequence would be longer than the context.
    #[error("position {wanted} is beyond the context of {context} tokens; choose a larger --ctx")]
    Context {
        /// Positions needed.
        wanted: usize,
        /// Positions there are.
        context: usize,
    },
    /// The sequence was closed; its id is no other's.
    #[error("the sequence is closed: its id finds nothing any more; open another one")]
    Closed,
    /// Another thread appends to the sequence or writes its rows.
    #[error("another thread writes this sequence: one thread at a time")]
    Busy,
    /// No block is free and nothing may be evicted.
    #[error(
        "the KV cache is full: {0} in use and nothing may be evicted; choose a larger --kv-budget or --ctx"
    )]
    Exhausted(Bytes),
    /// All memory of the sequence was taken; its tokens must be computed anew.
    #[error("the sequence was preempted: its memory went to whoever was short of it")]
    Preempted,
}

/// A step of the reclaim ladder (design.md), cheapest loss first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Step {
    /// Free blocks whose pages are resident. Lossless.
    Slack = 1,
    /// Blocks of ended and idle sequences, least recently used. Lossless:
    /// they are computed anew when asked for.
    Cached = 2,
    /// Cold blocks, written in fewer bits. In the background.
    Pack = 3,
    /// The tokens of cold blocks that matter least, by layer and KV head. In
    /// the background.
    Thin = 4,
    /// Whole cold blocks; sinks and the recent window are kept.
    Window = 5,
    /// A whole sequence, back to its token ids. Lossless, but late.
    Preempt = 6,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Slack,
        Self::Cached,
        Self::Pack,
        Self::Thin,
        Self::Window,
        Self::Preempt,
    ];

    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slack => "slack",
            Self::Cached => "cached",
            Self::Pack => "pack",
            Self::Thin => "thin",
            Self::Window => "window",
            Self::Preempt => "preempt",
        }
    }
}

/// A set of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps(u8);

impl Steps {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Only what loses nothing.
    pub const SLACK: Self = Self::NONE.with(Step::Slack);
    /// What is lost without a token being lost, at once.
    pub const FREE: Self = Self::SLACK.with(Step::Cached);
    /// All that is quick and takes no sequence as a whole.
    pub const WINDOW: Self = Self::FREE.with(Step::Window);
    /// The whole ladder.
    pub const ALL: Self = Self::WINDOW
        .with(Step::Pack)
        .with(Step::Thin)
        .with(Step::Preempt);

    /// With that step as well.
    #[must_use]
    pub const fn with(self, step: Step) -> Self {
        Self(self.0 | 1 << step as u8)
    }

    /// [`Step::Preempt`] may take the only sequence that is left, too.
    #[must_use]
    pub const fn to_the_last(self) -> Self {
        Self(self.0 | 1)
    }

    /// How many sequences [`Step::Preempt`] leaves.
    #[must_use]
    pub(in crate::kv) const fn spared(self) -> usize {
        1 - (self.0 & 1) as usize
    }

    /// Without that step.
    #[must_use]
    pub const fn without(self, step: Step) -> Self {
        Self(self.0 & !(1 << step as u8))
    }

    /// The step may be taken.
    #[must_use]
    pub const fn has(self, step: Step) -> bool {
        self.0 & 1 << step as u8 != 0
    }
}
