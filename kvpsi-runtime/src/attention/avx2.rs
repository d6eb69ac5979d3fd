//! AVX2 with FMA and F16C. Of 16 registers, scores take 3 queries x 4 keys or
//! so, sums and matrix products 3 rows x 32 values.

use super::coded::{Q4, Q8};
use super::simd::{Kernel, LANES, Simd};
use crate::kv::GROUP;
use crate::simd_ops::ops;
use half::f16;
use std::arch::x86_64::*;

/// AVX2, FMA and F16C.
pub(super) struct Avx2;

/// Whether this processor has what the kernels here use.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// A kernel, compiled for the family.
///
/// # Safety
/// As [`Kernel::run`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller's promises.
    unsafe { kernel.run::<Avx2>() }
}

impl Simd for Avx2 {
    type V = __m256;
    type Eight = [__m256; 1];
    const WIDTH: usize = 8;
    const KEYS: usize = 4;
    const QUERIES: usize = 3;
    const COLUMNS: usize = 4;
    const TILE: (usize, usize) = (3, 4);

    ops! {
        fn eight(v: f32) -> [__m256; 1] { [_mm256_set1_ps(v)] }
        fn splat(v: f32) -> __m256 { _mm256_set1_ps(v) }
        fn load(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
        fn store(p: *mut f32, v: __m256) { _mm256_storeu_ps(p, v) }
        fn load_first(values: &[f32], fill: f32) -> __m256 {{
            let lanes = first(values.len());
            let v = _mm256_maskload_ps(values.as_ptr(), lanes);
            _mm256_blendv_ps(_mm256_set1_ps(fill), v, _mm256_castsi256_ps(lanes))
        }}
        fn store_first(to: &mut [f32], v: __m256) {
            _mm256_maskstore_ps(to.as_mut_ptr(), first(to.len()), v)
        }
        fn f16(values: &[f16], at: usize) -> __m256 {
            _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().add(at).cast()))
        }
        // Eight values from a multiple of 8 have one scale.
        fn q8(values: Q8<'_>, at: usize) -> __m256 {{
            let codes = _mm_loadl_epi64(values.codes.as_ptr().add(at).cast());
            let scale = values.scales.as_ptr().add(at / GROUP).cast::<i16>();
            let scale = _mm256_cvtph_ps(_mm_set1_epi16(scale.read()));
            _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale)
        }}
        // And lie in four bytes; there are as many offsets as channels.
        fn q4(values: Q4<'_>, at: usize, channel: usize) -> __m256 {{
            let word = values.codes.as_ptr().add(at / 2).cast::<i32>();
            let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
            let codes = _mm256_srlv_epi32(_mm256_set1_epi32(word.read_unaligned()), shifts);
            let codes = _mm256_cvtepi32_ps(_mm256_and_si256(codes, _mm256_set1_epi32(15)));
            let levels = _mm256_sub_ps(codes, _mm256_set1_ps(Q4::MIDDLE));
            // The upper half of an f16.
            let scale = i16::from(*values.scales.as_ptr().add(at / GROUP)) << 7;
            let scale = _mm256_cvtph_ps(_mm_set1_epi16(scale));
            // Sign, exponent and mantissa to their places in an f32, of which
            // the exponent is then 120 too small.
            let offsets = _mm_loadl_epi64(values.offsets.as_ptr().add(channel).cast());
            let offsets = _mm256_slli_epi32::<20>(_mm256_cvtepi8_epi32(offsets));
            let kept = _mm256_set1_epi32(0x87f0_0000_u32.cast_signed());
            let offsets = _mm256_castsi256_ps(_mm256_and_si256(offsets, kept));
            let offsets = _mm256_mul_ps(offsets, _mm256_set1_ps(f32::from_bits((127 + 120) << 23)));
            _mm256_fmadd_ps(levels, scale, offsets)
        }}
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        // The second operand is given where either is not a number.
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn at_least(v: __m256, least: __m256) -> __m256 { _mm256_max_ps(least, v) }
        fn round(v: __m256) -> __m256 {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
        }
        fn power(whole: __m256) -> __m256 {{
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }}
        fn unless_less(v: __m256, x: __m256, least: __m256) -> __m256 {
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x, least), v)
        }
        fn unless_zero(v: __m256, x: __m256) -> __m256 {
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NEQ_UQ>(x, _mm256_setzero_ps()), v)
        }
        fn greatest(v: __m256) -> f32 {{
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }}
        fn sum(v: __m256) -> f32 { _mm_cvtss_f32(sums([v, Self::splat(0.0), Self::splat(0.0), Self::splat(0.0)])) }
        fn transpose(rows: [[__m256; 1]; LANES]) -> [[__m256; 1]; LANES] { transpose(rows.map(|[r]| r)).map(|r| [r]) }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_sums<const J: usize>(p: *mut f32, v: [[__m256; 1]; J]) {
        // SAFETY: the caller's promises: there is room for 4 sums, or for one.
        unsafe {
            if J == 4 {
                _mm_storeu_ps(p, sums(std::array::from_fn(|j| v[j][0])));
            } else {
                *p = Self::sum(v[0][0]);
            }
        }
    }
}

/// Sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums(v: [__m256; 4]) -> __m128 {
    let pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_add_ps(
        _mm256_castps256_ps128(pairs),
        _mm256_extractf128_ps::<1>(pairs),
    )
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
