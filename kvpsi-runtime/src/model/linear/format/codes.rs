//! How the codes of 32 inputs of 16 rows lie in a tile.
//!
//! Owns the layouts that formats are put together from: 4 inputs of one row
//! are adjacent (a quad) and the 16 rows follow each other, so that one load
//! gives 4 inputs of many rows and the dot products of the rows come out in
//! separate lanes: no horizontal sums. Bits above the fourth are planes of
//! their own. Out of scope: scales.

use super::super::simd::Simd;

/// Bytes of a plane with one bit for each of 32 inputs of 16 rows: bit `j` of
/// byte `row * 4 + i` belongs to input `4 j + i`.
const PLANE: usize = 64;
/// Bytes of 4-bit codes: byte `g * 64 + row * 4 + i` holds input `4 g + i` in
/// its low and input `16 + 4 g + i` in its high half, g < 4.
const NIBBLES: usize = 4 * PLANE;
/// Bytes of 2-bit codes: bits `2 g` of byte `h * 64 + row * 4 + i` belong to
/// input `16 h + 4 g + i`, h < 2, g < 4.
const PAIRS: usize = 2 * PLANE;

/// A layout of the codes of 32 inputs (a group) of 16 rows.
pub trait Codes: 'static {
    /// Bytes of a group.
    const BYTES: usize;
    /// The largest code.
    const MAX: usize;
    /// What is taken off a code for its value.
    const OFFSET: i32;
    /// Whether values are signed and want [`Simd::dot8`].
    const WIDE: bool = false;

    /// Inputs `4 j` to `4 j + 3` of `LANES` rows; `p` is the group's address
    /// plus the part's bytes.
    ///
    /// # Safety
    /// The processor has the family's features; a group is at `p`; `j < 8`.
    unsafe fn quad<S: Simd>(p: *const u8, j: u8) -> S::I;

    /// Puts the codes of row `r` into a group of zeros.
    fn put(group: &mut [u8], r: usize, codes: &[u8; 32]);

    /// The value of input `i` of row `r`.
    fn value(group: &[u8], r: usize, i: usize) -> i32;
}

/// # Safety
/// As [`Codes::quad`], of 4-bit codes.
#[inline(always)]
unsafe fn nibbles<S: Simd>(p: *const u8, j: u8) -> S::I {
    // SAFETY: the caller's promises.
    unsafe {
        let v = S::load(p.add(usize::from(j % 4) * 64));
        S::and_bytes(if j < 4 { v } else { S::shr(v, 4) }, 15)
    }
}

/// The bits of `mask`, moved there from bit `from`.
///
/// # Safety
/// The processor has the family's features.
#[inline(always)]
unsafe fn bits<S: Simd>(v: S::I, from: u8, to: u8, mask: u8) -> S::I {
    // SAFETY: the caller's promise.
    unsafe {
        let v = if from < to {
            S::shl(v, to - from)
        } else if from > to {
            S::shr(v, from - to)
        } else {
            v
        };
        S::and_bytes(v, mask)
    }
}

fn put_nibbles(group: &mut [u8], r: usize, codes: &[u8; 32]) {
    for j in 0..16 {
        group[j / 4 * 64 + r * 4 + j % 4] = codes[j] & 15 | (codes[j + 16] & 15) << 4;
    }
}

fn put_bit(plane: &mut [u8], r: usize, codes: &[u8; 32], bit: usize) {
    for (i, code) in codes.iter().enumerate() {
        plane[r * 4 + i % 4] |= (code >> bit & 1) << (i / 4);
    }
}

fn put_pairs(pairs: &mut [u8], r: usize, codes: &[u8; 32], bit: usize) {
    for (i, code) in codes.iter().enumerate() {
        pairs[i / 16 * 64 + r * 4 + i % 4] |= (code >> bit & 3) << (2 * (i / 4 % 4));
    }
}

fn nibble(group: &[u8], r: usize, i: usize) -> u8 {
    group[i / 4 % 4 * 64 + r * 4 + i % 4] >> (4 * (i / 16)) & 15
}

fn bit(plane: &[u8], r: usize, i: usize) -> u8 {
    plane[r * 4 + i % 4] >> (i / 4) & 1
}

fn two(pairs: &[u8], r: usize, i: usize) -> u8 {
    pairs[i / 16 * 64 + r * 4 + i % 4] >> (2 * (i / 4 % 4)) & 3
}

/// 2-bit codes.
pub struct Two;

impl Codes for Two {
    const BYTES: usize = PAIRS;
    const MAX: usize = 3;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn quad<S: Simd>(p: *const u8, j: u8) -> S::I {
        // SAFETY: the caller's promises.
        unsafe { bits::<S>(S::load(p.add(usize::from(j / 4) * 64)), 2 * (j % 4), 0, 3) }
    }
    fn put(group: &mut [u8], r: usize, codes: &[u8; 32]) {
        put_pairs(group, r, codes, 0);
    }
    fn value(group: &[u8], r: usize, i: usize) -> i32 {
        i32::from(two(group, r, i))
    }
}

/// 3-bit codes minus 4: 2-bit codes, then a plane.
pub struct Three;

impl Codes for Three {
    const BYTES: usize = PAIRS + PLANE;
    const MAX: usize = 7;
    const OFFSET: i32 = 4;

    #[inline(always)]
    unsafe fn quad<S: Simd>(p: *const u8, j: u8) -> S::I {
        // SAFETY: the caller's promises.
        unsafe {
            let high = bits::<S>(S::load(p.add(PAIRS)), j, 2, 4);
            S::or(Two::quad::<S>(p, j), high)
        }
    }
    fn put(group: &mut [u8], r: usize, codes: &[u8; 32]) {
        put_pairs(group, r, codes, 0);
        put_bit(&mut group[PAIRS..], r, codes, 2);
    }
    fn value(group: &[u8], r: usize, i: usize) -> i32 {
        i32::from(two(group, r, i) | bit(&group[PAIRS..], r, i) << 2) - Self::OFFSET
    }
}

/// 4-bit codes minus `OFF`.
pub struct Four<const OFF: i32>;

impl<const OFF: i32> Codes for Four<OFF> {
    const BYTES: usize = NIBBLES;
    const MAX: usize = 15;
    const OFFSET: i32 = OFF;

    #[inline(always)]
    unsafe fn quad<S: Simd>(p: *const u8, j: u8) -> S::I {
        // SAFETY: the caller's promises.
        unsafe { nibbles::<S>(p, j) }
    }
    fn put(group: &mut [u8], r: usize, codes: &[u8; 32]) {
        put_nibbles(group, r, codes);
    }
    fn value(group: &[u8], r: usize, i: usize) -> i32 {
        i32::from(nibble(group, r, i)) - OFF
    }
}

/// 5-bit codes minus `OFF`: 4-bit codes, then a plane.
pub struct Five<const OFF: i32>;

impl<const OFF: i32> Codes for Five<OFF> {
    const BYTES: usize = NIBBLES + PLANE;
    const MAX: usize = 31;
    const OFFSET: i32 = OFF;

    #[inline(always)]
    unsafe fn quad<S: Simd>(p: *const u8, j: u8) -> S::I {
        // SAFETY: the caller's promises.
        unsafe {
            let high = bits::<S>(S::load(p.add(NIBBLES)), j, 4, 16);
            S::or(nibbles::<S>(p, j), high)
        }
    }
    fn put(group: &mut [u8], r: usize, codes: &[u8; 32]) {
        put_nibbles(group, r, codes);
        put_bit(&mut group[NIBBLES..], r, codes, 4);
    }
    fn value(group: &[u8], r: usize, i: usize) -> i32 {
        i32::from(nibble(group, r, i) | bit(&group[NIBBLES..], r, i) << 4) - OFF
    }
}

/// 6-bit codes minus 32: 4-bit codes, then 2-bit ones.
pub struct Six;

impl Codes for Six {
    const BYTES: usize = NIBBLES + PAIRS;
    const MAX: usize = 63;
    const OFFSET: i32 = 32;

    #[inline(always)]
    unsafe fn quad<S: Simd>(p: *const u8, j: u8) -> S::I {
        // SAFETY: the caller's promises.
        unsafe {
            let high = bits::<S>(
                S::load(p.add(NIBBLES + usize::from(j / 4) * 64)),
                2 * (j % 4),
                4,
                48,
            );
            S::or(nibbles::<S>(p, j), high)
        }
    }
    fn put(group: &mut [u8], r: usize, codes: &[u8; 32]) {
        put_nibbles(group, r, codes);
        put_pairs(&mut group[NIBBLES..], r, codes, 4);
    }
    fn value(group: &[u8], r: usize, i: usize) -> i32 {
        i32::from(nibble(group, r, i) | two(&group[NIBBLES..], r, i) << 4) - Self::OFFSET
    }
}

/// Signed 8-bit codes: input `4 j + i` at `j * 64 + row * 4 + i`.
pub struct Eight;

impl Codes for Eight {
    const BYTES: usize = 8 * PLANE;
    const MAX: usize = 255;
    const OFFSET: i32 = 0;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn quad<S: Simd>(p: *const u8, j: u8) -> S::I {
        // SAFETY: the caller's promises.
        unsafe { S::load(p.add(usize::from(j) * 64)) }
    }
    fn put(group: &mut [u8], r: usize, codes: &[u8; 32]) {
        for (j, four) in codes.chunks_exact(4).enumerate() {
            group[j * 64 + r * 4..][..4].copy_from_slice(four);
        }
    }
    fn value(group: &[u8], r: usize, i: usize) -> i32 {
        i32::from(group[i / 4 * 64 + r * 4 + i % 4].cast_signed())
    }
}

/// 4-bit codes that stand for the signed values of ggml's `kvalues_iq4nl`.
pub struct Curve;

/// ggml's `kvalues_iq4nl`.
const CURVE: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

impl Codes for Curve {
    const BYTES: usize = NIBBLES;
    const MAX: usize = 255;
    const OFFSET: i32 = 0;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn quad<S: Simd>(p: *const u8, j: u8) -> S::I {
        // SAFETY: the caller's promises.
        unsafe { S::lookup(nibbles::<S>(p, j), &CURVE) }
    }
    fn put(group: &mut [u8], r: usize, codes: &[u8; 32]) {
        put_nibbles(group, r, codes);
    }
    fn value(group: &[u8], r: usize, i: usize) -> i32 {
        i32::from(CURVE[usize::from(nibble(group, r, i))])
    }
}

/// 4-bit floats (OCP MX, E2M1): twice their values, plus 12.
pub struct Float4;

/// Twice the values of E2M1, plus 12.
const E2M1: [i8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

impl Codes for Float4 {
    const BYTES: usize = NIBBLES;
    const MAX: usize = 24;
    const OFFSET: i32 = 12;

    #[inline(always)]
    unsafe fn quad<S: Simd>(p: *const u8, j: u8) -> S::I {
        // SAFETY: the caller's promises.
        unsafe { S::lookup(nibbles::<S>(p, j), &E2M1) }
    }
    fn put(group: &mut [u8], r: usize, codes: &[u8; 32]) {
        put_nibbles(group, r, codes);
    }
    fn value(group: &[u8], r: usize, i: usize) -> i32 {
        i32::from(E2M1[usize::from(nibble(group, r, i))]) - Self::OFFSET
    }
}
