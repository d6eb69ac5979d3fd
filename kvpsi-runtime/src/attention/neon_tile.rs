//! Attention kernels for NEON: tiles of f32. Shapes as in `kernels`, which
//! checked them; head sizes and matrix widths are multiples of 8. The matrix
//! product keeps 4 x 16 sums in registers, of which there are 32.

use super::kernels::{LANES, Rows, padded};
use super::neon::Fours;
use std::arch::aarch64::*;

const FOUR: usize = 4;

/// # Safety
/// Rows of `d` values, `out` at least as long as `v`; where `d` is no multiple
/// of 4, the encoding has no offsets.
#[target_feature(enable = "neon")]
pub(super) unsafe fn widen(v: impl Fours, d: usize, out: &mut [f32]) {
    let whole = v.len() / FOUR * FOUR;
    let mut channel = 0;
    for i in (0..whole).step_by(FOUR) {
        // SAFETY: four values from `i` lie in both.
        unsafe { vst1q_f32(out.as_mut_ptr().add(i), v.four(i, channel)) };
        channel += FOUR;
        if channel >= d {
            channel = 0;
        }
    }
    for (i, o) in out.iter_mut().enumerate().take(v.len()).skip(whole) {
        *o = v.value(i);
    }
}

/// # Safety
/// Shapes as `kernels::widen_transposed` asserts.
#[target_feature(enable = "neon")]
pub(super) unsafe fn widen_transposed(k: impl Fours, d: usize, out: &mut [f32]) {
    let tokens = k.len() / d;
    let columns = padded(tokens);
    for t in (0..columns).step_by(FOUR) {
        for c in (0..d).step_by(FOUR) {
            let mut rows = [vdupq_n_f32(0.0); FOUR];
            for (j, row) in rows.iter_mut().enumerate().take(tokens.saturating_sub(t)) {
                // SAFETY: row `t + j < tokens`, columns `c..c + 4` within `d`.
                *row = unsafe { k.four((t + j) * d + c, c) };
            }
            for (j, row) in transpose(rows).into_iter().enumerate() {
                // SAFETY: `out` has `d` rows of `columns`, a multiple of 8.
                unsafe { vst1q_f32(out.as_mut_ptr().add((c + j) * columns + t), row) };
            }
        }
    }
}

/// A 4 x 4 matrix, rows to columns.
#[inline]
#[target_feature(enable = "neon")]
fn transpose(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let wide = vreinterpretq_f64_f32;
    let (even_01, odd_01) = (wide(vtrn1q_f32(r[0], r[1])), wide(vtrn2q_f32(r[0], r[1])));
    let (even_23, odd_23) = (wide(vtrn1q_f32(r[2], r[3])), wide(vtrn2q_f32(r[2], r[3])));
    [
        vreinterpretq_f32_f64(vtrn1q_f64(even_01, even_23)),
        vreinterpretq_f32_f64(vtrn1q_f64(odd_01, odd_23)),
        vreinterpretq_f32_f64(vtrn2q_f64(even_01, even_23)),
        vreinterpretq_f32_f64(vtrn2q_f64(odd_01, odd_23)),
    ]
}

/// # Safety
/// Shapes as `kernels::matmul` asserts; `n` is a multiple of 8.
#[target_feature(enable = "neon")]
pub(super) unsafe fn matmul(
    a: Rows<'_>,
    b: Rows<'_>,
    k: usize,
    n: usize,
    keep: Option<&[f32]>,
    c: &mut [f32],
) {
    let m = c.len() / n;
    let mut j = 0;
    while j < n {
        let wide = if n - j >= 16 { 4 } else { 2 };
        let mut i = 0;
        while i < m {
            let tall = (m - i).min(4);
            // SAFETY: rows `i..i + tall` within `m`, columns `j..j + 4 * wide`
            // within `n`.
            unsafe {
                match (tall, wide) {
                    (4, 4) => tile::<4, 4>(a, b, k, n, keep, c, i, j),
                    (4, _) => tile::<4, 2>(a, b, k, n, keep, c, i, j),
                    (3, 4) => tile::<3, 4>(a, b, k, n, keep, c, i, j),
                    (3, _) => tile::<3, 2>(a, b, k, n, keep, c, i, j),
                    (2, 4) => tile::<2, 4>(a, b, k, n, keep, c, i, j),
                    (2, _) => tile::<2, 2>(a, b, k, n, keep, c, i, j),
                    (_, 4) => tile::<1, 4>(a, b, k, n, keep, c, i, j),
                    (_, _) => tile::<1, 2>(a, b, k, n, keep, c, i, j),
                }
            }
            i += tall;
        }
        j += wide * LANES / 2;
    }
}

/// # Safety
/// `i + M` rows of `a` and `c`; `j + 4 * N` columns of `b` and `c`.
#[expect(
    clippy::too_many_arguments,
    reason = "a matrix product and where in it"
)]
#[inline]
#[target_feature(enable = "neon")]
unsafe fn tile<const M: usize, const N: usize>(
    a: Rows<'_>,
    b: Rows<'_>,
    k: usize,
    n: usize,
    keep: Option<&[f32]>,
    c: &mut [f32],
    i: usize,
    j: usize,
) {
    // SAFETY: rows and columns within the matrices by the caller's promise,
    // `k` columns of `a` and rows of `b` by the shapes.
    unsafe {
        let (left, right) = (a.data.as_ptr().add(i * a.stride), b.data.as_ptr().add(j));
        let c = c.as_mut_ptr().add(i * n + j);
        let mut acc = [[vdupq_n_f32(0.0); N]; M];
        for t in 0..k {
            let mut row = [vdupq_n_f32(0.0); N];
            for (y, row) in row.iter_mut().enumerate() {
                *row = vld1q_f32(right.add(t * b.stride + y * FOUR));
            }
            for (x, acc) in acc.iter_mut().enumerate() {
                let factor = *left.add(x * a.stride + t);
                for y in 0..N {
                    acc[y] = vfmaq_n_f32(acc[y], row[y], factor);
                }
            }
        }
        for (x, acc) in acc.iter().enumerate() {
            for (y, &product) in acc.iter().enumerate() {
                let at = c.add(x * n + y * FOUR);
                let value = match keep {
                    Some(keep) => vfmaq_n_f32(product, vld1q_f32(at), keep[i + x]),
                    None => product,
                };
                vst1q_f32(at, value);
            }
        }
    }
}
