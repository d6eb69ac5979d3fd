//! Attention kernels for AVX2 with FMA and F16C: over blocks' codes, and the softmax. The
//! ones for tiles of f32 are in `avx2_tile`. Shapes as in `kernels`, which
//! checked them; head sizes and matrix widths are multiples of 8.
//!
//! Register plans (16 of them): scores keep 3 queries x 4 keys and widen a key
//! once for all; sums keep 3 queries x 32 values. Twelve accumulators hide the
//! latency of FMA.

#![expect(
    clippy::needless_range_loop,
    reason = "indices name registers of several arrays at once"
)]

use super::coded::{Q4, Q8, Source};
use super::kernels::LANES;
use crate::kv::GROUP;
use half::f16;
use std::arch::x86_64::*;

/// Whether this processor has what the kernels here use.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// Queries to take at once when so many are left: few kinds, and no lone rest
/// where two equal parts do.
fn together(left: usize) -> usize {
    match left {
        0..=4 => left,
        5 | 6 => 3,
        _ => 4,
    }
}

/// What is read eight values at a time.
pub(super) trait Eights: Source {
    /// Eight values, widened.
    ///
    /// # Safety
    /// Features present; there are eight from `at`, a multiple of 8, which is
    /// channel `channel` of its head.
    unsafe fn eight(self, at: usize, channel: usize) -> __m256;
}

// The methods have no `target_feature`, which `inline(always)` excludes: they
// become part of kernels that have it.
impl Eights for &[f16] {
    #[inline(always)]
    unsafe fn eight(self, at: usize, _channel: usize) -> __m256 {
        // SAFETY: the caller's promise; f16 is 16 bits wide.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(self.as_ptr().add(at).cast())) }
    }
}

impl Eights for Q8<'_> {
    #[inline(always)]
    unsafe fn eight(self, at: usize, _channel: usize) -> __m256 {
        // SAFETY: the caller's promise; eight values from a multiple of 8 have
        // one scale.
        unsafe {
            let codes = _mm_loadl_epi64(self.codes.as_ptr().add(at).cast());
            let scale = self.scales.as_ptr().add(at / GROUP).cast::<i16>();
            let scale = _mm256_cvtph_ps(_mm_set1_epi16(scale.read()));
            _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale)
        }
    }
}

impl Eights for Q4<'_> {
    #[inline(always)]
    unsafe fn eight(self, at: usize, channel: usize) -> __m256 {
        // SAFETY: the caller's promise; eight values from a multiple of 8 have
        // one scale and lie in four bytes, and there are as many offsets as
        // channels.
        unsafe {
            let word = self.codes.as_ptr().add(at / 2).cast::<i32>();
            let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
            let codes = _mm256_srlv_epi32(_mm256_set1_epi32(word.read_unaligned()), shifts);
            let codes = _mm256_cvtepi32_ps(_mm256_and_si256(codes, _mm256_set1_epi32(15)));
            let levels = _mm256_sub_ps(codes, _mm256_set1_ps(Self::MIDDLE));
            // The upper half of an f16.
            let scale = i16::from(*self.scales.as_ptr().add(at / GROUP)) << 7;
            let scale = _mm256_cvtph_ps(_mm_set1_epi16(scale));
            // Sign, exponent and mantissa to their places in an f32, of which
            // the exponent is then 120 too small.
            let offsets = _mm_loadl_epi64(self.offsets.as_ptr().add(channel).cast());
            let offsets = _mm256_slli_epi32::<20>(_mm256_cvtepi8_epi32(offsets));
            let kept = _mm256_set1_epi32(0x87f0_0000_u32.cast_signed());
            let offsets = _mm256_castsi256_ps(_mm256_and_si256(offsets, kept));
            let offsets = _mm256_mul_ps(offsets, _mm256_set1_ps(f32::from_bits((127 + 120) << 23)));
            _mm256_fmadd_ps(levels, scale, offsets)
        }
    }
}

/// Asks for the cache lines of `bytes[at..at + len]`, as far as they exist.
/// The processor's own prefetch stops at pages, and one head's part of a block
/// is about a page.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fetch(bytes: &[u8], at: usize, len: usize) {
    for line in (at..bytes.len().min(at + len)).step_by(64) {
        // SAFETY: within `bytes`; a prefetch reads nothing anyway.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().add(line).cast()) };
    }
}

/// Sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum4(v: [__m256; 4]) -> __m128 {
    let pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_add_ps(
        _mm256_castps256_ps128(pairs),
        _mm256_extractf128_ps::<1>(pairs),
    )
}

/// Sum of the lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum(v: __m256) -> f32 {
    let zero = _mm256_setzero_ps();
    _mm_cvtss_f32(sum4([v, zero, zero, zero]))
}

/// Greatest lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn greatest(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
}

/// 2^x for x <= 0, relative error below 3e-7; 0 below 2^-126, not-a-number
/// stays so. Taylor series of 2^r on -0.5..=0.5, coefficients ln(2)^k / k!.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn exp2(x: __m256) -> __m256 {
    let least = _mm256_set1_ps(-126.0);
    let clamped = _mm256_max_ps(least, x);
    let whole = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(clamped);
    let r = _mm256_sub_ps(clamped, whole);
    let mut poly = _mm256_set1_ps(1.540_353e-4);
    for c in [
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        std::f32::consts::LN_2,
        1.0,
    ] {
        poly = _mm256_fmadd_ps(poly, r, _mm256_set1_ps(c));
    }
    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent));
    let kept = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, least);
    _mm256_and_ps(kept, _mm256_mul_ps(poly, power))
}

/// Lanes below `n` set, for a masked load or store.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn first(n: usize) -> __m256i {
    let n = i32::try_from(n.min(LANES)).unwrap_or(8);
    _mm256_cmpgt_epi32(
        _mm256_set1_epi32(n),
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
    )
}

/// # Safety
/// Features present; shapes as `kernels::scores` asserts.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn scores<S: Eights>(
    q: &[f32],
    k: S,
    d: usize,
    out: &mut [f32],
    stride: usize,
    mut next: &[u8],
) {
    let queries = q.len() / d;
    let mut i = 0;
    while i < queries {
        let n = together(queries - i);
        let (q, out) = (&q[i * d..], &mut out[i * stride..]);
        // SAFETY: `n` queries of `d` values and `n` rows of `stride` scores
        // are left; `stride` is at least the tokens of `k`.
        unsafe {
            match n {
                1 => scores_of::<1, S>(q, k, d, out, stride, next),
                2 => scores_of::<2, S>(q, k, d, out, stride, next),
                3 => scores_of::<3, S>(q, k, d, out, stride, next),
                _ => scores_of::<4, S>(q, k, d, out, stride, next),
            }
        }
        i += n;
        next = &[];
    }
}

/// # Safety
/// `q` has `H` rows of `d`, `out` `H` rows of `stride`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scores_of<const H: usize, S: Eights>(
    q: &[f32],
    k: S,
    d: usize,
    out: &mut [f32],
    stride: usize,
    next: &[u8],
) {
    let tokens = k.len() / d;
    let mut t = 0;
    // SAFETY: `t + 4 <= tokens` (or `t < tokens`), so the keys lie in `k`, the
    // scores in the first `tokens <= stride` values of each of `H` rows of
    // `out`; `c + 8 <= d` as `d` is a multiple of 8.
    unsafe {
        let (q, out) = (q.as_ptr(), out.as_mut_ptr());
        while t + 4 <= tokens {
            fetch(next, S::bytes(t * d), S::bytes(4 * d));
            let mut acc = [[_mm256_setzero_ps(); 4]; H];
            let mut c = 0;
            while c < d {
                let mut query = [_mm256_setzero_ps(); H];
                for h in 0..H {
                    query[h] = _mm256_loadu_ps(q.add(h * d + c));
                }
                for j in 0..4 {
                    let key = k.eight((t + j) * d + c, c);
                    for h in 0..H {
                        acc[h][j] = _mm256_fmadd_ps(query[h], key, acc[h][j]);
                    }
                }
                c += LANES;
            }
            for (h, acc) in acc.iter().enumerate() {
                _mm_storeu_ps(out.add(h * stride + t), sum4(*acc));
            }
            t += 4;
        }
        while t < tokens {
            let mut acc = [_mm256_setzero_ps(); H];
            let mut c = 0;
            while c < d {
                let key = k.eight(t * d + c, c);
                for (h, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_fmadd_ps(_mm256_loadu_ps(q.add(h * d + c)), key, *acc);
                }
                c += LANES;
            }
            for (h, acc) in acc.iter().enumerate() {
                *out.add(h * stride + t) = sum(*acc);
            }
            t += 1;
        }
    }
}

/// # Safety
/// Features present; shapes as `kernels::weigh` asserts.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn weigh<S: Eights>(
    p: &[f32],
    stride: usize,
    v: S,
    d: usize,
    keep: &[f32],
    acc: &mut [f32],
    mut next: &[u8],
) {
    let queries = acc.len() / d;
    let mut i = 0;
    while i < queries {
        let n = together(queries - i);
        let (p, keep, acc) = (&p[i * stride..], &keep[i..], &mut acc[i * d..]);
        // SAFETY: `n` rows of each are left.
        unsafe {
            match n {
                1 => weigh_of::<1, S>(p, stride, v, d, keep, acc, next),
                2 => weigh_of::<2, S>(p, stride, v, d, keep, acc, next),
                3 => weigh_of::<3, S>(p, stride, v, d, keep, acc, next),
                _ => {
                    weigh_of::<2, S>(p, stride, v, d, keep, acc, next);
                    weigh_of::<2, S>(
                        &p[2 * stride..],
                        stride,
                        v,
                        d,
                        &keep[2..],
                        &mut acc[2 * d..],
                        &[],
                    );
                }
            }
        }
        i += n;
        next = &[];
    }
}

/// # Safety
/// `H` rows of `p`, `keep` and `acc`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh_of<const H: usize, S: Eights>(
    p: &[f32],
    stride: usize,
    v: S,
    d: usize,
    keep: &[f32],
    acc: &mut [f32],
    next: &[u8],
) {
    let (mut c, mut next) = (0, next);
    while c < d {
        // SAFETY: the columns taken lie within `d`.
        unsafe {
            match d - c {
                32.. => {
                    weigh_columns::<H, 4, S>(p, stride, v, d, c, keep, acc, next);
                    c += 32;
                }
                16.. => {
                    weigh_columns::<H, 2, S>(p, stride, v, d, c, keep, acc, next);
                    c += 16;
                }
                _ => {
                    weigh_columns::<H, 1, S>(p, stride, v, d, c, keep, acc, next);
                    c += 8;
                }
            }
        }
        next = &[];
    }
}

/// # Safety
/// `H` rows of `p`, `keep` and `acc`; `c + 8 * N <= d`.
#[expect(clippy::too_many_arguments, reason = "matrices and where in them")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh_columns<const H: usize, const N: usize, S: Eights>(
    p: &[f32],
    stride: usize,
    v: S,
    d: usize,
    c: usize,
    keep: &[f32],
    acc: &mut [f32],
    next: &[u8],
) {
    let tokens = v.len() / d;
    // SAFETY: columns `c..c + 8 * N` of `tokens` rows of `v` and `H` rows of
    // `acc`; `tokens <= stride` weights of `H` rows of `p`.
    unsafe {
        let p = p.as_ptr();
        let acc = acc.as_mut_ptr().add(c);
        let mut sums = [[_mm256_setzero_ps(); N]; H];
        for t in 0..tokens {
            fetch(next, S::bytes(t * d), S::bytes(d));
            let mut weight = [_mm256_setzero_ps(); H];
            for h in 0..H {
                weight[h] = _mm256_broadcast_ss(&*p.add(h * stride + t));
            }
            for j in 0..N {
                let value = v.eight(t * d + c + j * LANES, c + j * LANES);
                for h in 0..H {
                    sums[h][j] = _mm256_fmadd_ps(weight[h], value, sums[h][j]);
                }
            }
        }
        for h in 0..H {
            let keep = _mm256_set1_ps(keep[h]);
            for j in 0..N {
                let at = acc.add(h * d + j * LANES);
                _mm256_storeu_ps(at, _mm256_fmadd_ps(keep, _mm256_loadu_ps(at), sums[h][j]));
            }
        }
    }
}

/// # Safety
/// Features present.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn softmax_step(scores: &mut [f32], max: f32) -> (f32, f32) {
    let (n, at) = (scores.len(), scores.as_mut_ptr());
    let whole = n / LANES * LANES;
    let rest = first(n - whole);
    let least = _mm256_set1_ps(f32::NEG_INFINITY);
    // SAFETY: whole vectors lie in `scores`; the rest is masked to its length.
    unsafe {
        let mut most = _mm256_set1_ps(max);
        for i in (0..whole).step_by(LANES) {
            most = _mm256_max_ps(_mm256_loadu_ps(at.add(i)), most);
        }
        if whole < n {
            let last = _mm256_maskload_ps(at.add(whole), rest);
            let last = _mm256_blendv_ps(least, last, _mm256_castsi256_ps(rest));
            most = _mm256_max_ps(last, most);
        }
        let max = greatest(most);
        let most = _mm256_set1_ps(max);
        let mut total = _mm256_setzero_ps();
        for i in (0..whole).step_by(LANES) {
            let p = exp2(_mm256_sub_ps(_mm256_loadu_ps(at.add(i)), most));
            total = _mm256_add_ps(total, p);
            _mm256_storeu_ps(at.add(i), p);
        }
        if whole < n {
            let last = _mm256_maskload_ps(at.add(whole), rest);
            let p = exp2(_mm256_sub_ps(last, most));
            total = _mm256_add_ps(total, _mm256_and_ps(p, _mm256_castsi256_ps(rest)));
            _mm256_maskstore_ps(at.add(whole), rest, p);
        }
        (max, sum(total))
    }
}

/// # Safety
/// Features present; as many `at` as `mass`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn settle(mass: &mut [f32], at: &[f32], max: f32) {
    let most = _mm256_set1_ps(max);
    for i in (0..mass.len()).step_by(LANES) {
        let lanes = first(mass.len() - i);
        // SAFETY: masked to the length of both.
        unsafe {
            let sums = _mm256_maskload_ps(mass.as_ptr().add(i), lanes);
            let at = _mm256_maskload_ps(at.as_ptr().add(i), lanes);
            let factor = exp2(_mm256_sub_ps(at, most));
            let some = _mm256_cmp_ps::<_CMP_NEQ_UQ>(sums, _mm256_setzero_ps());
            let settled = _mm256_and_ps(some, _mm256_mul_ps(sums, factor));
            _mm256_maskstore_ps(mass.as_mut_ptr().add(i), lanes, settled);
        }
    }
}
