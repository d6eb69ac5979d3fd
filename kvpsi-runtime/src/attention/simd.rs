//! The vector operations that attention takes of a processor family.
//!
//! Owns the contract between the kernels, written once over [`Simd`], and the
//! families. Kernels take eight values at a time, in one register or two.
//! Invariant: how values are summed depends on the shape alone. Out of scope:
//! which family runs (`dispatch`).

use super::coded::{Q4, Q8, Source};
use half::f16;
use std::ops::{Index, IndexMut};

/// f32 values that kernels take at a time; score rows and key tiles are padded
/// to it.
pub(super) const LANES: usize = 8;

/// Columns of a key tile for so many tokens.
pub(super) fn padded(tokens: usize) -> usize {
    tokens.next_multiple_of(LANES)
}

/// One kernel and its arguments, whose shapes are checked.
pub(super) trait Kernel {
    /// What it returns.
    type Out;
    /// Plain Rust: the reference, and the way for processors and head sizes the
    /// families do not take.
    fn scalar(self) -> Self::Out;
    /// By vectors. It is `inline(always)`, as all it calls: it becomes part of
    /// a function that has the family's features.
    ///
    /// # Safety
    /// The processor has the family's features; head sizes and the widths of
    /// matrices are multiples of [`LANES`].
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

/// One processor family.
///
/// Every method is unsafe: the processor must have the family's features.
/// Methods that take a pointer read or write as many values behind it.
pub(super) trait Simd: 'static {
    /// A register of f32.
    type V: Copy;
    /// Registers of eight f32.
    type Eight: Copy + IndexMut<usize, Output = Self::V> + Index<usize, Output = Self::V>;
    /// f32 of a register.
    const WIDTH: usize;
    /// Registers of eight f32.
    const PARTS: usize = LANES / Self::WIDTH;
    /// Keys whose scores are taken at once: 1 or 4.
    const KEYS: usize;
    /// Queries whose sums of values are kept at once: 2 to 4.
    const QUERIES: usize;
    /// Eights of a row of values that are summed at once: 1 to 4.
    const COLUMNS: usize;
    /// Rows, and eights of a row, of a matrix product: up to 4 each.
    const TILE: (usize, usize);

    /// The same value eight times.
    unsafe fn eight(v: f32) -> Self::Eight;
    /// The same value in a register.
    unsafe fn splat(v: f32) -> Self::V;
    /// Reads a register.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Writes a register.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Up to a register, the rest filled.
    unsafe fn load_first(values: &[f32], fill: f32) -> Self::V;
    /// The first values of a register.
    unsafe fn store_first(to: &mut [f32], v: Self::V);
    /// Values from `at`, a multiple of the width.
    unsafe fn f16(values: &[f16], at: usize) -> Self::V;
    /// The same.
    unsafe fn q8(values: Q8<'_>, at: usize) -> Self::V;
    /// The same; the first is channel `channel` of its head.
    unsafe fn q4(values: Q4<'_>, at: usize, channel: usize) -> Self::V;
    /// `a b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sums.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Differences.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// Products.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// The greater ones, and `b` where `a` is not a number.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// At least `least`; not-a-number stays so.
    unsafe fn at_least(v: Self::V, least: Self::V) -> Self::V;
    /// To the nearest whole numbers.
    unsafe fn round(v: Self::V) -> Self::V;
    /// 2 to whole numbers from -126 on.
    unsafe fn power(whole: Self::V) -> Self::V;
    /// `v`, and 0 where `x` is less than `least`.
    unsafe fn unless_less(v: Self::V, x: Self::V, least: Self::V) -> Self::V;
    /// `v`, and 0 where `x` is 0.
    unsafe fn unless_zero(v: Self::V, x: Self::V) -> Self::V;
    /// The greatest value, of numbers.
    unsafe fn greatest(v: Self::V) -> f32;
    /// The sum.
    unsafe fn sum(v: Self::V) -> f32;
    /// Writes the sum of each of `J` eights; `J` is 1 or [`Simd::KEYS`].
    unsafe fn store_sums<const J: usize>(p: *mut f32, v: [Self::Eight; J]);
    /// An 8 x 8 matrix, rows to columns.
    unsafe fn transpose(rows: [Self::Eight; LANES]) -> [Self::Eight; LANES];
    /// A hint that the line at `p` is read soon.
    unsafe fn prefetch(p: *const u8);
}

/// What a family reads.
pub(super) trait Codes: Source {
    /// Values from `at`, of channel `channel` of a head on.
    ///
    /// # Safety
    /// The processor has the family's features; the register's values are
    /// there; both are multiples of the width.
    unsafe fn load<S: Simd>(self, at: usize, channel: usize) -> S::V;
}

impl Codes for &[f16] {
    #[inline(always)]
    unsafe fn load<S: Simd>(self, at: usize, _channel: usize) -> S::V {
        // SAFETY: the caller's promises.
        unsafe { S::f16(self, at) }
    }
}

impl Codes for Q8<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(self, at: usize, _channel: usize) -> S::V {
        // SAFETY: the caller's promises.
        unsafe { S::q8(self, at) }
    }
}

impl Codes for Q4<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(self, at: usize, channel: usize) -> S::V {
        // SAFETY: the caller's promises.
        unsafe { S::q4(self, at, channel) }
    }
}

/// Eight values of codes.
///
/// # Safety
/// As [`Codes::load`]; there are eight.
#[inline(always)]
pub(super) unsafe fn codes8<S: Simd>(k: impl Codes, at: usize, channel: usize) -> S::Eight {
    // SAFETY: the caller's promises.
    unsafe {
        let mut v = S::eight(0.0);
        for p in 0..S::PARTS {
            v[p] = k.load::<S>(at + p * S::WIDTH, channel + p * S::WIDTH);
        }
        v
    }
}

/// Eight values.
///
/// # Safety
/// The processor has the family's features; they are at `p`.
#[inline(always)]
pub(super) unsafe fn load8<S: Simd>(p: *const f32) -> S::Eight {
    // SAFETY: the caller's promises.
    unsafe {
        let mut v = S::eight(0.0);
        for i in 0..S::PARTS {
            v[i] = S::load(p.add(i * S::WIDTH));
        }
        v
    }
}

/// Writes eight values.
///
/// # Safety
/// The processor has the family's features; there is room at `p`.
#[inline(always)]
pub(super) unsafe fn store8<S: Simd>(p: *mut f32, v: S::Eight) {
    for i in 0..S::PARTS {
        // SAFETY: the caller's promises.
        unsafe { S::store(p.add(i * S::WIDTH), v[i]) };
    }
}

/// `a b + c` of eight values.
///
/// # Safety
/// The processor has the family's features.
#[inline(always)]
pub(super) unsafe fn fma8<S: Simd>(a: S::Eight, b: S::Eight, mut c: S::Eight) -> S::Eight {
    for p in 0..S::PARTS {
        // SAFETY: the caller's promise.
        c[p] = unsafe { S::fma(a[p], b[p], c[p]) };
    }
    c
}
