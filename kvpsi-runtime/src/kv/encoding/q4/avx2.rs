//! [`Passes`] for AVX2, the same bits: what the compiler makes of the plain
//! loops is half as fast.

use super::{CODES, EDGE, GROUP, LANES, NO_NUMBER, Passes, ROUND, STEPS, best, to_try, top};
use std::arch::x86_64::*;

const WORDS: usize = GROUP / LANES;

/// For processors with AVX2.
pub(in super::super) struct Avx2;

impl Passes for Avx2 {
    #[inline(always)]
    unsafe fn top(group: &[f32; GROUP]) -> u8 {
        // SAFETY: the caller's promise; so below.
        unsafe { greatest(group) }
    }

    #[inline(always)]
    unsafe fn choose(group: &[f32; GROUP], top: u8) -> u8 {
        // SAFETY: as above.
        unsafe { choose(group, top) }
    }

    #[inline(always)]
    unsafe fn write(group: &[f32; GROUP], scale: u8, codes: &mut [u8; CODES]) {
        // SAFETY: as above.
        unsafe { write(group, scale, codes) }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(group: &[f32; GROUP]) -> [__m256; WORDS] {
    let eights = group.as_chunks::<LANES>().0;
    // SAFETY: eight values each.
    std::array::from_fn(|i| unsafe { _mm256_loadu_ps(eights[i].as_ptr()) })
}

#[target_feature(enable = "avx2")]
#[inline]
fn lanes_sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn nearest(t: __m256) -> __m256 {
    let t = _mm256_max_ps(t, _mm256_set1_ps(-8.0));
    let t = _mm256_min_ps(t, _mm256_set1_ps(EDGE - 0.5));
    _mm256_add_ps(t, _mm256_set1_ps(ROUND))
}

#[target_feature(enable = "avx2")]
#[inline]
fn greatest(group: &[f32; GROUP]) -> u8 {
    let sign = _mm256_set1_ps(-0.0);
    let sizes = load(group).map(|eight| _mm256_andnot_ps(sign, eight));
    let most = _mm256_max_ps(
        _mm256_max_ps(sizes[0], sizes[1]),
        _mm256_max_ps(sizes[2], sizes[3]),
    );
    let zero = _mm256_setzero_ps();
    let sum = sizes.into_iter().fold(zero, |s, v| _mm256_add_ps(s, v));
    if !lanes_sum(sum).is_finite() {
        return NO_NUMBER;
    }
    let v = _mm_max_ps(
        _mm256_castps256_ps128(most),
        _mm256_extractf128_ps::<1>(most),
    );
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    top(_mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v))))
}

#[target_feature(enable = "avx2")]
#[inline]
fn choose(group: &[f32; GROUP], top: u8) -> u8 {
    let (half, round) = (_mm256_set1_ps(0.5), _mm256_set1_ps(ROUND));
    let eights = load(group);
    let errors = to_try(top).map(|[step, inverse]| {
        let inverse = _mm256_set1_ps(inverse);
        let mut errors = _mm256_setzero_ps();
        for eight in eights {
            let t = _mm256_sub_ps(_mm256_mul_ps(eight, inverse), half);
            let error = _mm256_sub_ps(t, _mm256_sub_ps(nearest(t), round));
            errors = _mm256_add_ps(errors, _mm256_mul_ps(error, error));
        }
        lanes_sum(errors) * (step * step)
    });
    best(top, errors)
}

#[target_feature(enable = "avx2")]
#[inline]
fn write(group: &[f32; GROUP], scale: u8, codes: &mut [u8; CODES]) {
    let inverse = _mm256_set1_ps(STEPS[usize::from(scale)][1]);
    let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    let words = load(group).map(|eight| {
        let t = _mm256_sub_ps(_mm256_mul_ps(eight, inverse), _mm256_set1_ps(0.5));
        let bits = _mm256_and_si256(_mm256_castps_si256(nearest(t)), _mm256_set1_epi32(15));
        _mm256_sllv_epi32(_mm256_xor_si256(bits, _mm256_set1_epi32(8)), shifts)
    });
    // No bit is in two lanes: sums are unions.
    let pairs = [
        _mm256_hadd_epi32(words[0], words[1]),
        _mm256_hadd_epi32(words[2], words[3]),
    ];
    let fours = _mm256_hadd_epi32(pairs[0], pairs[1]);
    let word = _mm_add_epi32(
        _mm256_castsi256_si128(fours),
        _mm256_extracti128_si256::<1>(fours),
    );
    // SAFETY: sixteen bytes.
    unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), word) };
}
