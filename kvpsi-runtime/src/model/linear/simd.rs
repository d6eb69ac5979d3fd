//! The vector operations that a processor family supplies.
//!
//! Owns the contract between formats and families: a format's kernel is
//! written once, over [`Simd`], and compiled for every family. Vectors hold
//! `LANES` rows of a tile side by side, an i32 or an f32 for each.
//!
//! Invariant: what a family computes has the bits of the scalar reference.
//! Out of scope: how codes lie in memory (`format`), which family runs
//! (`choose`).

use std::ops::{Index, IndexMut};

/// Output rows in a tile.
pub const TILE_ROWS: usize = 16;

/// One processor family.
///
/// Every method is unsafe: the processor must have the family's features.
/// Methods that take a pointer read or write `LANES` rows behind it. They are
/// `inline(always)` without `target_feature`, which excludes it: they become
/// part of a kernel that has the features. Left to itself the compiler calls
/// them and vectors go through memory, at half the speed.
pub trait Simd: 'static {
    /// `LANES` i32, or four bytes for each row.
    type I: Copy;
    /// `LANES` f32.
    type F: Copy;
    /// 8-bit codes, prepared for [`Simd::dot8`].
    type W: Copy;
    /// A value for each vector of a tile.
    type Parts<T: Copy>: Copy + IndexMut<usize, Output = T> + Index<usize, Output = T>;
    /// Rows in a vector.
    const LANES: usize;
    /// Vectors to a tile.
    const PARTS: usize = TILE_ROWS / Self::LANES;
    /// Bytes of codes in one vector: 4 inputs of `LANES` rows.
    const VECTOR: usize = 4 * Self::LANES;
    /// Bytes ahead of the block in hand that are fetched.
    const AHEAD: usize;
    /// Whether [`Simd::dot`] sums in i32; else in pairs of i16.
    const I32_SUMS: bool;
    /// What 8-bit codes exceed their value by in [`Simd::dot8`].
    const WIDE_OFFSET: i32;

    /// The same value for each part.
    fn each<T: Copy>(v: T) -> Self::Parts<T>;
    /// A hint that the line at `p` is read soon; any address will do.
    unsafe fn prefetch(p: *const u8);
    /// Four bytes for each row.
    unsafe fn load(p: *const u8) -> Self::I;
    /// An f16 for each row.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// A bf16 for each row.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// An f32 for each row.
    unsafe fn load_f32(p: *const u8) -> Self::F;
    /// A byte for each row.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    /// A signed byte for each row.
    unsafe fn load_i8(p: *const u8) -> Self::I;
    /// The same four codes for each row.
    unsafe fn splat4(p: *const i8) -> Self::I;
    /// Writes an f32 for each row.
    unsafe fn store_f(p: *mut f32, v: Self::F);
    /// Zeros.
    unsafe fn zero() -> Self::I;
    /// Zeros.
    unsafe fn zero_f() -> Self::F;
    /// The same i32 for each row.
    unsafe fn splat(v: i32) -> Self::I;
    /// The same two i16 for each row.
    unsafe fn splat_pair(low: i16, high: i16) -> Self::I;
    /// The same f32 for each row.
    unsafe fn splat_f(v: f32) -> Self::F;
    /// Each byte masked.
    unsafe fn and_bytes(v: Self::I, mask: u8) -> Self::I;
    /// All bits.
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// Bits of bytes moved down; what comes in from above means nothing.
    unsafe fn shr(v: Self::I, by: u8) -> Self::I;
    /// Bits of bytes moved up; what comes in from below means nothing.
    unsafe fn shl(v: Self::I, by: u8) -> Self::I;
    /// The table's value for each byte, which is below 16.
    unsafe fn lookup(v: Self::I, table: &[i8; 16]) -> Self::I;
    /// i32 sums.
    unsafe fn add(a: Self::I, b: Self::I) -> Self::I;
    /// i32 differences.
    unsafe fn sub(a: Self::I, b: Self::I) -> Self::I;
    /// i32 products.
    unsafe fn mul32(a: Self::I, b: Self::I) -> Self::I;
    /// i32 moved up.
    unsafe fn shl32(v: Self::I, by: u8) -> Self::I;
    /// Sum of the products of the two i16 in each i32.
    unsafe fn mul_pairs(a: Self::I, b: Self::I) -> Self::I;
    /// i32 values that fit i16, side by side.
    unsafe fn pair(low: Self::I, high: Self::I) -> Self::I;
    /// i32 to f32.
    unsafe fn to_f32(v: Self::I) -> Self::F;
    /// The bits of an i32 as an f32.
    unsafe fn as_f32(v: Self::I) -> Self::F;
    /// f32 products.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// f32 sums.
    unsafe fn add_f(a: Self::F, b: Self::F) -> Self::F;
    /// `a b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a b`, rounded once.
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Adds the products of unsigned codes below 64 with activations.
    unsafe fn dot(acc: Self::I, w: Self::I, a: Self::I) -> Self::I;
    /// The i32 sums of what [`Simd::dot`] added.
    unsafe fn fold(acc: Self::I) -> Self::I;
    /// The same, times a scale that fits i16.
    unsafe fn fold_scaled(acc: Self::I, scale: Self::I) -> Self::I;
    /// Signed 8-bit codes for [`Simd::dot8`].
    unsafe fn prepare8(w: Self::I) -> Self::W;
    /// Adds the products of 8-bit codes, plus `WIDE_OFFSET` each, in i32.
    unsafe fn dot8(acc: Self::I, w: Self::W, a: Self::I) -> Self::I;
}

pub(super) use crate::simd_ops::ops;

/// Expands a family's entry: a kernel compiled with the family's features.
macro_rules! entry {
    ($family:ty, $features:literal) => {
        /// Products of one tile of `F` with `MT` rows of activations.
        ///
        /// # Safety
        /// The processor has the family's features. Behind `tile` there are
        /// `blocks` blocks of 16 rows, behind `acts` `MT` rows of `F::Act`
        /// with as many inputs, behind `out` room for `MT` tiles.
        #[target_feature(enable = $features)]
        pub(in super::super) unsafe fn run<F: Layout, const MT: usize>(
            tile: *const u8,
            blocks: usize,
            acts: *const (),
            out: *mut [f32; TILE_ROWS],
        ) {
            // SAFETY: the caller's promises.
            unsafe { F::products::<$family, MT>(tile, blocks, acts.cast(), &mut *out.cast()) }
        }
    };
}
pub(super) use entry;
