//! Sums of products of codes with activations, for every layout and family.
//!
//! Owns the inner loops that the kernels of formats share. Codes are unpacked
//! once for `MT` rows of activations.

use super::super::acts::ActBlock;
use super::super::simd::{Simd, TILE_ROWS};
use super::codes::Codes;

/// Quads whose products [`Simd::dot`] may sum before they are folded: a
/// product pair is at most `2 * max * 127`, and i16 holds 32,767.
const fn run(max: usize, i32_sums: bool) -> usize {
    let mut quads = 8;
    while !i32_sums && quads > 1 && quads * 2 * max * 127 > 32_767 {
        quads /= 2;
    }
    quads
}

/// Asks for the cache lines of as many bytes as are at hand, further on. The
/// processor's own prefetch stops at pages, and a tile's row is soon through one.
///
/// # Safety
/// The processor has the family's features.
#[inline(always)]
pub(super) unsafe fn fetch_ahead<S: Simd>(p: *const u8, bytes: usize) {
    let mut line = 0;
    while line < bytes {
        // SAFETY: the caller's promise; any address will do.
        unsafe { S::prefetch(p.wrapping_add(S::AHEAD + line)) };
        line += 64;
    }
}

/// Adds the products of inputs `4 j..4 j + 4` and of those 16 after them.
///
/// # Safety
/// As [`group`]; `j < 4`.
#[inline(always)]
unsafe fn eight<S: Simd, C: Codes, const MT: usize>(
    j: u8,
    codes: *const u8,
    acts: *const ActBlock,
    stride: usize,
    sums: &mut [S::Parts<S::I>; MT],
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut low = S::each(S::zero());
        let mut high = S::each(S::zero());
        for p in 0..S::PARTS {
            let at = codes.add(p * S::VECTOR);
            low[p] = C::quad::<S>(at, j);
            high[p] = C::quad::<S>(at, j + 4);
        }
        for r in 0..MT {
            let q = (*acts.add(r * stride)).q.as_ptr();
            let (a, b) = (
                S::splat4(q.add(4 * usize::from(j))),
                S::splat4(q.add(16 + 4 * usize::from(j))),
            );
            for p in 0..S::PARTS {
                sums[r][p] = S::dot(sums[r][p], low[p], a);
                sums[r][p] = S::dot(sums[r][p], high[p], b);
            }
        }
    }
}

/// Adds the products of quad `j` of wide codes.
///
/// # Safety
/// As [`group`]; `j < 8`.
#[inline(always)]
unsafe fn wide<S: Simd, C: Codes, const MT: usize>(
    j: u8,
    codes: *const u8,
    acts: *const ActBlock,
    stride: usize,
    sums: &mut [S::Parts<S::I>; MT],
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut w = S::each(S::prepare8(S::zero()));
        for p in 0..S::PARTS {
            w[p] = S::prepare8(C::quad::<S>(codes.add(p * S::VECTOR), j));
        }
        for r in 0..MT {
            let a = S::splat4((*acts.add(r * stride)).q.as_ptr().add(4 * usize::from(j)));
            for p in 0..S::PARTS {
                sums[r][p] = S::dot8(sums[r][p], w[p], a);
            }
        }
    }
}

/// Folds what was summed into `acc`, times `scale` if `SCALED`.
///
/// # Safety
/// The processor has the family's features.
#[inline(always)]
unsafe fn flush<S: Simd, const MT: usize, const SCALED: bool>(
    sums: &mut [S::Parts<S::I>; MT],
    scale: S::Parts<S::I>,
    acc: &mut [S::Parts<S::I>; MT],
) {
    for r in 0..MT {
        for p in 0..S::PARTS {
            // SAFETY: the caller's promise.
            unsafe {
                let sum = if SCALED {
                    S::fold_scaled(sums[r][p], scale[p])
                } else {
                    S::fold(sums[r][p])
                };
                acc[r][p] = S::add(acc[r][p], sum);
                sums[r][p] = S::zero();
            }
        }
    }
}

/// Adds the products of a group's 32 codes to `acc`, times `scale` if
/// `SCALED`. Codes are not yet rid of their offset, but wide ones are.
///
/// # Safety
/// The processor has the family's features. A group of 16 rows is at `codes`,
/// and at `acts + r * stride` a block for each r < MT.
#[inline(always)]
pub(super) unsafe fn group<S: Simd, C: Codes, const MT: usize, const SCALED: bool>(
    codes: *const u8,
    acts: *const ActBlock,
    stride: usize,
    scale: S::Parts<S::I>,
    acc: &mut [S::Parts<S::I>; MT],
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut sums = [S::each(S::zero()); MT];
        // Written out: the compiler rolls it up otherwise.
        if C::WIDE {
            wide::<S, C, MT>(0, codes, acts, stride, &mut sums);
            wide::<S, C, MT>(1, codes, acts, stride, &mut sums);
            wide::<S, C, MT>(2, codes, acts, stride, &mut sums);
            wide::<S, C, MT>(3, codes, acts, stride, &mut sums);
            wide::<S, C, MT>(4, codes, acts, stride, &mut sums);
            wide::<S, C, MT>(5, codes, acts, stride, &mut sums);
            wide::<S, C, MT>(6, codes, acts, stride, &mut sums);
            wide::<S, C, MT>(7, codes, acts, stride, &mut sums);
            for r in 0..MT {
                let off = S::splat(S::WIDE_OFFSET * (*acts.add(r * stride)).sum);
                for p in 0..S::PARTS {
                    let mut sum = sums[r][p];
                    if S::WIDE_OFFSET != 0 {
                        sum = S::sub(sum, off);
                    }
                    if SCALED {
                        sum = S::mul32(sum, scale[p]);
                    }
                    acc[r][p] = S::add(acc[r][p], sum);
                }
            }
            return;
        }
        let run = const { run(C::MAX, S::I32_SUMS) };
        eight::<S, C, MT>(0, codes, acts, stride, &mut sums);
        if run <= 2 {
            flush::<S, MT, SCALED>(&mut sums, scale, acc);
        }
        eight::<S, C, MT>(1, codes, acts, stride, &mut sums);
        if run <= 4 {
            flush::<S, MT, SCALED>(&mut sums, scale, acc);
        }
        eight::<S, C, MT>(2, codes, acts, stride, &mut sums);
        if run <= 2 {
            flush::<S, MT, SCALED>(&mut sums, scale, acc);
        }
        eight::<S, C, MT>(3, codes, acts, stride, &mut sums);
        flush::<S, MT, SCALED>(&mut sums, scale, acc);
    }
}

/// Adds, for part `p`, the products of the 16 codes of half `h` of a group,
/// times `scale`.
///
/// # Safety
/// As [`group`]; the codes are not wide, and `h < 2`.
#[inline(always)]
pub(super) unsafe fn half<S: Simd, C: Codes, const MT: usize>(
    (h, p): (u8, usize),
    codes: *const u8,
    acts: *const ActBlock,
    stride: usize,
    scale: S::I,
    acc: &mut [S::Parts<S::I>; MT],
) {
    // SAFETY: the caller's promises.
    unsafe {
        let run = const { run(C::MAX, S::I32_SUMS) };
        let mut sums = [S::zero(); MT];
        for g in 0..4u8 {
            let w = C::quad::<S>(codes.add(p * S::VECTOR), 4 * h + g);
            for r in 0..MT {
                let q = (*acts.add(r * stride)).q.as_ptr();
                sums[r] = S::dot(sums[r], w, S::splat4(q.add(usize::from(16 * h + 4 * g))));
                if g == 3 || (usize::from(g) + 1) % run == 0 {
                    acc[r][p] = S::add(acc[r][p], S::fold_scaled(sums[r], scale));
                    sums[r] = S::zero();
                }
            }
        }
    }
}

/// Writes sums, row of activations by row.
///
/// # Safety
/// The processor has the family's features.
#[inline(always)]
pub(super) unsafe fn write<S: Simd, const MT: usize>(
    acc: &[S::Parts<S::F>; MT],
    out: &mut [[f32; TILE_ROWS]; MT],
) {
    for r in 0..MT {
        for p in 0..S::PARTS {
            // SAFETY: the caller's promise; PARTS * LANES is TILE_ROWS.
            unsafe { S::store_f(out[r].as_mut_ptr().add(p * S::LANES), acc[r][p]) };
        }
    }
}

/// The reference's sum of products of inputs `from..to` of a group.
pub(super) fn reference<C: Codes>(
    group: &[u8],
    r: usize,
    act: &ActBlock,
    inputs: std::ops::Range<usize>,
) -> i32 {
    inputs
        .map(|i| C::value(group, r, i) * i32::from(act.q[i]))
        .sum()
}
