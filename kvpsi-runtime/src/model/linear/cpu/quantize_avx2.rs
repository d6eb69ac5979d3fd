//! Activation quantization with AVX2: the same codes as the scalar reference,
//! bit for bit. Used by every x86-64 family.

use super::super::acts::{self, ActBlock, ActKind, QUANT};
use std::arch::x86_64::*;

/// Quantizes whole blocks of `x`.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn quantize(kind: ActKind, x: &[f32], out: &mut [ActBlock]) {
    acts::quantize(
        kind,
        x,
        out,
        |x| largest_magnitude(x),
        |x, scale, out| encode(x, scale, out),
    );
}

/// The largest magnitude; not-a-number is passed over, as `f32::max` does.
#[inline]
#[target_feature(enable = "avx2")]
fn largest_magnitude(x: &[f32]) -> f32 {
    let sign = _mm256_set1_ps(-0.0);
    let mut most = _mm256_setzero_ps();
    for eight in x.as_chunks::<8>().0 {
        // SAFETY: 8 floats are readable.
        let v = unsafe { _mm256_loadu_ps(eight.as_ptr()) };
        // max_ps gives its second operand where either is not a number.
        most = _mm256_max_ps(_mm256_andnot_ps(sign, v), most);
    }
    let m = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)))
}

/// Codes and sums of 32 values.
#[inline]
#[target_feature(enable = "avx2")]
fn encode(x: &[f32; QUANT], scale: f32, out: &mut ActBlock) {
    let scale = _mm256_set1_ps(scale);
    let mut v = [_mm256_setzero_si256(); 4];
    for (v, eight) in v.iter_mut().zip(x.as_chunks::<8>().0) {
        // SAFETY: 8 floats are readable.
        *v = round(_mm256_mul_ps(
            unsafe { _mm256_loadu_ps(eight.as_ptr()) },
            scale,
        ));
    }
    // The packs interleave 128-bit halves; the permutation puts them in order.
    let words = [
        _mm256_packs_epi32(v[0], v[1]),
        _mm256_packs_epi32(v[2], v[3]),
    ];
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]), order);
    // SAFETY: `q` is 32 writable bytes.
    unsafe { _mm256_storeu_si256(out.q.as_mut_ptr().cast(), bytes) };
    let sum = |v: __m256i| {
        let s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        let s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0b00_00_11_10));
        _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)))
    };
    let halves = [
        sum(_mm256_add_epi32(v[0], v[1])),
        sum(_mm256_add_epi32(v[2], v[3])),
    ];
    out.sum = halves[0] + halves[1];
    #[expect(clippy::cast_possible_truncation, reason = "at most 16 * 127")]
    {
        out.halves = [halves[0] as i16, halves[1] as i16];
    }
}

/// Half away from zero, clamped to -127..=127, not-a-number to 0.
#[inline]
#[target_feature(enable = "avx2")]
fn round(v: __m256) -> __m256i {
    let v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
    let v = _mm256_max_ps(
        _mm256_min_ps(v, _mm256_set1_ps(127.0)),
        _mm256_set1_ps(-127.0),
    );
    // Truncating v plus the largest float below a half, with v's sign, is the
    // textbook exact form of rounding half away from zero.
    let sign = _mm256_and_ps(v, _mm256_set1_ps(-0.0));
    let nudge = _mm256_or_ps(sign, _mm256_set1_ps(0.5f32.next_down()));
    _mm256_cvttps_epi32(_mm256_add_ps(v, nudge))
}
