//! How keys and values are written.
//!
//! Owns the encodings, their sizes, their rounding and the way from one to
//! another. A row is what one KV head has for one token; a plane is K or V of
//! one layer of one block: the codes of all its values, then their scales.
//! Keys and values come here rotated (`basis`), which is what
//! 4 bits need; all encodings share that basis, so that a plane is recoded
//! without leaving it. Out of scope: which blocks there are.

mod q4;
mod q8;
pub(super) mod rows;

#[cfg(feature = "llm")]
pub(crate) use q4::{offset, scale};
pub(super) use rows::encode_row;
pub use rows::{Plane, recode};

/// Values that share a scale in [`KvType::Q8_0`] and [`KvType::Q4_0`].
pub const GROUP: usize = 32;

/// Values that a loop takes at once, and lanes in which it sums.
const LANES: usize = 8;

/// Adding 1.5 * 2^23 rounds to the nearest whole number, ties to even, which
/// then stands in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// The sum of lanes, always in this order.
#[inline(always)]
fn lanes_sum(v: [f32; LANES]) -> f32 {
    ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
}

/// An encoding of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KvType {
    /// 16-bit floats: 2 bytes a value.
    #[default]
    F16,
    /// Whole numbers of 8 bits and a 16-bit scale for 32 of them (llama.cpp's
    /// `q8_0`, ggml-quants.c): 1.06 bytes a value.
    #[value(name = "q8_0")]
    Q8_0,
    /// Whole numbers of 4 bits: 0.56 bytes a value. Best for blocks that were
    /// written wider first: their offsets are then known.
    // A value is (code - 7.5) * scale + offset. 32 values of a row share a
    // scale of 8 bits (1, 5 and 3 bits: half of an f16); the tokens of a block
    // share an offset of 8 bits for each channel of a head. Eight values are
    // the nibbles of a little-endian word, the first the lowest: one load, one
    // shift by lanes. A plane is codes, scales `[heads][tokens][head_dim / 32]`
    // and offsets `[heads][head_dim]`, for which blocks of 32 tokens and more
    // have the room.
    //
    // What costs what: perplexity of SmolLM2-135M-Instruct Q4_1 on holmes.txt
    // (--ctx 2048 --chunks 3), where f16 has 22.86 and q8_0 22.89:
    //   every block recoded to this once it is full     23.23
    //   every row written as this alone, no offsets     23.84
    // Tried by rounding f16 rows there and back, where f16 had 22.80:
    //   llama.cpp's q4_0                                25.69 (V alone: 23.15)
    //   the same after a Hadamard transform of heads    24.28
    //   the same, f16 scale of least error              23.79
    //   a Gaussian codebook instead of even levels      23.77 (V alone: 22.80)
    //   K alone by channel, 8-bit scale and offset      23.18 (KIVI)
    //   K alone, offsets, Hadamard, codebook            23.19
    // Keys are what is hard: channels have means far from zero. The transform
    // takes V's loss away and most of K's; the means of a block's tokens take
    // half of the rest. By channel is no better and cannot be written row by
    // row; the codebook is not worth its lookups. A row alone (`encode_row`)
    // is written without offsets where none are known.
    #[value(name = "q4_0")]
    Q4_0,
}

impl KvType {
    /// All of them, by their number, the widest first.
    pub const ALL: [Self; 3] = [Self::F16, Self::Q8_0, Self::Q4_0];

    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Values that a row must be a multiple of.
    #[must_use]
    pub const fn group(self) -> usize {
        match self {
            Self::F16 => 1,
            Self::Q8_0 | Self::Q4_0 => GROUP,
        }
    }

    /// Tokens that a block must have room for.
    #[must_use]
    pub const fn least_tokens(self) -> usize {
        match self {
            Self::F16 | Self::Q8_0 => 1,
            Self::Q4_0 => GROUP,
        }
    }

    /// Bytes of so many values, in whole groups.
    #[must_use]
    pub const fn bytes(self, values: usize) -> usize {
        match self {
            Self::F16 => 2 * values,
            Self::Q8_0 => values + 2 * (values / GROUP),
            Self::Q4_0 => (q4::CODES + 2) * (values / GROUP),
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
