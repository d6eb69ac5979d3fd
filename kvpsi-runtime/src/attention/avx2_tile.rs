//! Attention kernels for AVX2 with FMA and F16C: tiles of f32. Shapes as in
//! `kernels`, which checked them; head sizes and matrix widths are multiples
//! of 8. The matrix product keeps 3 x 32 sums in registers, which hides the
//! latency of FMA.

use super::avx2::Eights;
use super::kernels::{LANES, Rows, padded};
use std::arch::x86_64::*;

/// # Safety
/// Features present; rows of `d` values, `out` at least as long as `v`; where
/// `d` is no multiple of 8, the encoding has no offsets.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn widen(v: impl Eights, d: usize, out: &mut [f32]) {
    let whole = v.len() / LANES * LANES;
    let mut channel = 0;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: eight values from `i` lie in both.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(i), v.eight(i, channel)) };
        channel += LANES;
        if channel >= d {
            channel = 0;
        }
    }
    for (i, o) in out.iter_mut().enumerate().take(v.len()).skip(whole) {
        *o = v.value(i);
    }
}

/// # Safety
/// Features present; shapes as `kernels::widen_transposed` asserts.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn widen_transposed(k: impl Eights, d: usize, out: &mut [f32]) {
    let tokens = k.len() / d;
    let columns = padded(tokens);
    for t in (0..tokens).step_by(LANES) {
        for c in (0..d).step_by(LANES) {
            let mut rows = [_mm256_setzero_ps(); LANES];
            for (j, row) in rows.iter_mut().enumerate().take(tokens - t) {
                // SAFETY: row `t + j < tokens`, columns `c..c + 8` within `d`.
                *row = unsafe { k.eight((t + j) * d + c, c) };
            }
            for (j, row) in transpose(rows).into_iter().enumerate() {
                // SAFETY: `out` has `d` rows of `columns`, a multiple of 8.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr().add((c + j) * columns + t), row) };
            }
        }
    }
}

/// An 8 x 8 matrix, rows to columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose(r: [__m256; 8]) -> [__m256; 8] {
    let mut pairs = r;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let mut fours = r;
    for i in 0..2 {
        let p = &pairs[4 * i..];
        fours[4 * i] = _mm256_shuffle_ps::<0x44>(p[0], p[2]);
        fours[4 * i + 1] = _mm256_shuffle_ps::<0xee>(p[0], p[2]);
        fours[4 * i + 2] = _mm256_shuffle_ps::<0x44>(p[1], p[3]);
        fours[4 * i + 3] = _mm256_shuffle_ps::<0xee>(p[1], p[3]);
    }
    let mut out = r;
    for i in 0..4 {
        out[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
        out[4 + i] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
    }
    out
}

/// # Safety
/// Features present; shapes as `kernels::matmul` asserts.
#[target_feature(enable = "avx2,fma,f16c")]
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
        let wide = match n - j {
            32.. => 4,
            16.. => 2,
            _ => 1,
        };
        let mut i = 0;
        while i < m {
            let tall = (m - i).min(3);
            // SAFETY: rows `i..i + tall` within `m`, columns `j..j + 8 * wide`
            // within `n`.
            unsafe {
                match (tall, wide) {
                    (3, 4) => tile::<3, 4>(a, b, k, n, keep, c, i, j),
                    (3, 2) => tile::<3, 2>(a, b, k, n, keep, c, i, j),
                    (3, _) => tile::<3, 1>(a, b, k, n, keep, c, i, j),
                    (2, 4) => tile::<2, 4>(a, b, k, n, keep, c, i, j),
                    (2, 2) => tile::<2, 2>(a, b, k, n, keep, c, i, j),
                    (2, _) => tile::<2, 1>(a, b, k, n, keep, c, i, j),
                    (_, 4) => tile::<1, 4>(a, b, k, n, keep, c, i, j),
                    (_, 2) => tile::<1, 2>(a, b, k, n, keep, c, i, j),
                    (_, _) => tile::<1, 1>(a, b, k, n, keep, c, i, j),
                }
            }
            i += tall;
        }
        j += wide * LANES;
    }
}

/// # Safety
/// `i + M` rows of `a` and `c`; `j + 8 * N` columns of `b` and `c`.
#[expect(
    clippy::too_many_arguments,
    reason = "a matrix product and where in it"
)]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
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
        let mut acc = [[_mm256_setzero_ps(); N]; M];
        for t in 0..k {
            // M factors and one vector at a time: 16 registers hold no more
            // beside 12 sums.
            let mut factors = [_mm256_setzero_ps(); M];
            for (x, factor) in factors.iter_mut().enumerate() {
                *factor = _mm256_broadcast_ss(&*left.add(x * a.stride + t));
            }
            for y in 0..N {
                let row = _mm256_loadu_ps(right.add(t * b.stride + y * LANES));
                for (acc, factor) in acc.iter_mut().zip(factors) {
                    acc[y] = _mm256_fmadd_ps(factor, row, acc[y]);
                }
            }
        }
        for (x, acc) in acc.iter().enumerate() {
            for (y, &product) in acc.iter().enumerate() {
                let at = c.add(x * n + y * LANES);
                let value = match keep {
                    Some(keep) => {
                        _mm256_fmadd_ps(_mm256_set1_ps(keep[i + x]), _mm256_loadu_ps(at), product)
                    }
                    None => product,
                };
                _mm256_storeu_ps(at, value);
            }
        }
    }
}
