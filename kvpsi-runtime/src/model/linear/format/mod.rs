//! What a quantized matrix can be made of: one file a format.
//!
//! Owns [`FileFormat`], how a format's blocks lie in a GGUF file, and
//! [`Layout`], how 16 rows of them lie in a tile and their arithmetic, once as
//! scalar reference and once over [`Simd`]. Formats share the layouts
//! [`block32`], [`super256`] and [`floats`], and these [`codes`]. Sizes stay within a
//! twentieth of the file's. Out of scope: which formats and families there
//! are (`table`), threads.
//!
//! Block layouts are those of ggml's `ggml-common.h`.

#![expect(
    clippy::needless_range_loop,
    reason = "rows and parts index several arrays at once"
)]

mod bf16;
mod block32;
mod codes;
mod f16;
mod f32;
mod floats;
mod iq4_nl;
mod iq4_xs;
mod kernels;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod super256;

pub use {
    bf16::BF16, f16::F16, f32::F32, iq4_nl::Iq4Nl, iq4_xs::Iq4Xs, mxfp4::MXFP4, q2_k::Q2K,
    q3_k::Q3K, q4_0::Q4_0, q4_1::Q4_1, q4_k::Q4K, q5_0::Q5_0, q5_1::Q5_1, q5_k::Q5K, q6_k::Q6K,
    q8_0::Q8_0,
};

use super::acts::ActKind;
use super::simd::{Simd, TILE_ROWS};

/// A format of weights, as a GGUF file has it.
pub trait FileFormat: 'static {
    /// ggml's name.
    const NAME: &'static str;
    /// ggml's number.
    const ID: u32;
    /// Bytes of one block of one row in a GGUF file.
    const FILE_BYTES: usize;
    /// The most significant byte of each float in a file block.
    const HIGH_BYTES: &'static [usize];
    /// What it is packed to.
    type Layout: Layout;

    /// Whether the scales of a file block are finite; they are f16.
    fn finite(block: &[u8]) -> bool {
        Self::HIGH_BYTES.iter().all(|&at| block[at] & 0x7c != 0x7c)
    }
    /// Puts a file block where it belongs in a tile block of zeros, as row `r`.
    fn pack(src: &[u8], dst: &mut [u8], r: usize);
}

/// How blocks of 16 rows lie in a tile, and their arithmetic.
pub trait Layout: 'static {
    /// Weights of one row in a block.
    const BLOCK: usize;
    /// Bytes of one block of 16 rows in a tile.
    const TILE_BYTES: usize;
    /// How activations are quantized.
    const ACTS: ActKind;
    /// What activations are made of.
    type Act;
    /// Inputs in an `Act`.
    const ACT_WEIGHTS: usize;

    /// The weights of row `r` of a tile block, by ggml's own arithmetic.
    fn values(block: &[u8], r: usize, out: &mut [f32]);
    /// The product of row `r` of a tile with one row of activations: the
    /// arithmetic that every family repeats.
    fn reference(tile: &[u8], r: usize, acts: &[Self::Act]) -> f32;
    /// The products of a tile with `MT` rows of activations.
    ///
    /// # Safety
    /// The processor has the family's features. Behind `tile` there are
    /// `blocks` blocks of 16 rows, behind `acts` `MT` rows with as many inputs.
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const Self::Act,
        out: &mut [[f32; TILE_ROWS]; MT],
    );
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 32 codes of 4 bits as ggml's blocks have them: the low halves of 16 bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| bytes[i % 16] >> (4 * (i / 16)) & 15)
}

/// Eight 6-bit scales and eight minimums, from 12 bytes (ggml's
/// `get_scale_min_k4`).
fn scales_6(q: &[u8]) -> [u8; 16] {
    std::array::from_fn(|i| match i {
        0..4 | 8..12 => q[i / 8 * 4 + i % 8] & 63,
        4..8 => q[i + 4] & 15 | q[i - 4] >> 6 << 4,
        _ => q[i - 4] >> 4 | q[i - 8] >> 6 << 4,
    })
}
