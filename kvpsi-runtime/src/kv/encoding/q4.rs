//! [`KvType::Q4_0`](super::KvType::Q4_0): 4-bit codes, 8-bit scales and
//! offsets.
//!
//! Owns the rounding of a group and of a plane's offsets. Plain loops in a
//! fixed order, which the compiler turns into vector code: every processor
//! writes the same bits.

use super::{GROUP, LANES, ROUND, lanes_sum};

/// Bytes of the codes of a group.
pub(super) const CODES: usize = GROUP / 2;
/// A scale that no number is.
pub(super) const NO_NUMBER: u8 = 0xff;
/// The greatest scale: 61 440.
const MOST: u8 = 0xf7;
/// Neighbouring scales that are tried, the greatest first: it clips nothing,
/// and three steps of about a tenth below it an outlier is clipped and the
/// other 31 values are finer. Each costs a pass over the group.
const TRIED: usize = 4;
/// The outermost level.
const EDGE: f32 = 7.5;

/// The scale that a byte stands for: 5 bits of exponent, 3 of mantissa, the
/// upper half of a positive f16.
#[inline(always)]
pub const fn scale(byte: u8) -> f32 {
    /// From f32's exponents to f16's.
    const REBIASED: f32 = f32::from_bits((127 + 112) << 23);
    if byte > MOST {
        return f32::NAN;
    }
    f32::from_bits((byte as u32) << 20) * REBIASED
}

/// The scale nearest to a number that is not negative.
#[inline(always)]
fn scale_byte(wanted: f32) -> u8 {
    let nearest = (wanted.to_bits() + (1 << 19)) >> 20;
    let byte = nearest.saturating_sub(112 << 3);
    u8::try_from(byte).map_or(MOST, |b| b.min(MOST))
}

/// The offset that a byte stands for: a sign, 4 bits of exponent, 3 of
/// mantissa; up to 480.
#[inline(always)]
pub const fn offset(byte: u8) -> f32 {
    const REBIASED: f32 = f32::from_bits((127 + 120) << 23);
    let bits = (byte as u32 & 0x80) << 24 | (byte as u32 & 0x7f) << 20;
    f32::from_bits(bits) * REBIASED
}

/// The offset nearest to a number; 0 of what is none, so that one token
/// cannot spoil the others, and of what is smaller than 2^-6.
#[inline(always)]
fn offset_byte(wanted: f32) -> u8 {
    let size = wanted.abs();
    if size.is_nan() || size.is_infinite() || size < 1.0 / 64.0 {
        return 0;
    }
    let nearest = ((size.to_bits() + (1 << 19)) >> 20).saturating_sub(120 << 3);
    let byte = u8::try_from(nearest).map_or(0x7f, |b| b.min(0x7f));
    byte | if wanted < 0.0 { 0x80 } else { 0 }
}

/// The number of the level nearest to `t`, -8 to 7, plus [`ROUND`]; level 0 is
/// at 0.
#[inline(always)]
fn nearest(t: f32) -> f32 {
    // Comparisons so that they become one instruction each.
    let t = if t > -8.0 { t } else { -8.0 };
    (if t < EDGE - 0.5 { t } else { EDGE - 0.5 }) + ROUND
}

/// Scales to try for a group of which `most` is the greatest magnitude.
#[inline(always)]
fn to_try(most: f32) -> [u8; TRIED] {
    let top = scale_byte(most / EDGE);
    [0, 1, 2, 3].map(|down| top.saturating_sub(down))
}

/// The one of the least error, the greatest of about equals. `errors` are sums
/// of squares in steps, which say nothing of a scale of 0.
#[inline(always)]
fn best(bytes: [u8; TRIED], errors: [f32; TRIED]) -> u8 {
    // Without branches, which nobody could foretell: bits of numbers that are
    // not negative are in the numbers' order; the lowest two say which.
    let mut least = u32::MAX;
    for (i, (byte, error)) in (0..).zip(bytes.into_iter().zip(errors)) {
        let bits = if byte == 0 { u32::MAX } else { error.to_bits() };
        least = least.min(bits & !3 | i);
    }
    bytes[least as usize & 3]
}

/// Writes a group; returns its scale.
#[inline(always)]
pub(super) fn encode_group(values: &[f32; GROUP], codes: &mut [u8; CODES]) -> u8 {
    let eights = values.as_chunks::<LANES>().0;
    let (mut most, mut sum) = ([0f32; LANES], [0f32; LANES]);
    for eight in eights {
        for i in 0..LANES {
            let size = eight[i].abs();
            most[i] = if size > most[i] { size } else { most[i] };
            sum[i] += size;
        }
    }
    if !lanes_sum(sum).is_finite() {
        codes.fill(0);
        return NO_NUMBER;
    }
    let most = most.into_iter().fold(0f32, f32::max);
    let tried = to_try(most);
    let best = best(
        tried,
        tried.map(|byte| {
            let step = scale(byte);
            let (inverse, mut errors) = (1.0 / step, [0f32; LANES]);
            for eight in eights {
                for i in 0..LANES {
                    let t = eight[i] * inverse - 0.5;
                    let error = t - (nearest(t) - ROUND);
                    errors[i] += error * error;
                }
            }
            lanes_sum(errors) * (step * step)
        }),
    );
    let inverse = 1.0 / scale(best);
    for (eight, codes) in eights.iter().zip(codes.as_chunks_mut::<4>().0) {
        let mut word = 0;
        for (i, v) in eight.iter().enumerate() {
            // Two's complement of -8..=7 in the lowest bits, to 0..=15.
            word |= (nearest(v * inverse - 0.5).to_bits() & 15 ^ 8) << (4 * i);
        }
        *codes = u32::to_le_bytes(word);
    }
    best
}

/// [`encode_group`], the same bits. What the compiler makes of the loops there
/// is half as fast.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(super) fn encode_group_avx2(values: &[f32; GROUP], codes: &mut [u8; CODES]) -> u8 {
    use std::arch::x86_64::*;
    let lanes_sum = |v: __m256| {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    };
    let greatest = |v: __m256| {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
    };
    let half = _mm256_set1_ps(0.5);
    let round = _mm256_set1_ps(ROUND);
    let nearest = |t: __m256| {
        let t = _mm256_max_ps(t, _mm256_set1_ps(-8.0));
        _mm256_add_ps(_mm256_min_ps(t, _mm256_set1_ps(EDGE - 0.5)), round)
    };
    let sign = _mm256_set1_ps(-0.0);
    let (mut most, mut sum) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    let mut eights = [_mm256_setzero_ps(); GROUP / LANES];
    for (eight, values) in eights.iter_mut().zip(values.as_chunks::<LANES>().0) {
        // SAFETY: eight values.
        *eight = unsafe { _mm256_loadu_ps(values.as_ptr()) };
        let size = _mm256_andnot_ps(sign, *eight);
        most = _mm256_max_ps(size, most);
        sum = _mm256_add_ps(sum, size);
    }
    if !lanes_sum(sum).is_finite() {
        codes.fill(0);
        return NO_NUMBER;
    }
    let tried = to_try(greatest(most));
    let steps = tried.map(scale);
    // SAFETY: four values.
    let steps = unsafe { _mm_loadu_ps(steps.as_ptr()) };
    let mut inverses = [0f32; TRIED];
    // SAFETY: four values.
    unsafe { _mm_storeu_ps(inverses.as_mut_ptr(), _mm_div_ps(_mm_set1_ps(1.0), steps)) };
    let [a, b, c, d] = inverses.map(|inverse| {
        let inverse = _mm256_set1_ps(inverse);
        let mut errors = _mm256_setzero_ps();
        for eight in eights {
            let t = _mm256_sub_ps(_mm256_mul_ps(eight, inverse), half);
            let error = _mm256_sub_ps(t, _mm256_sub_ps(nearest(t), round));
            errors = _mm256_add_ps(errors, _mm256_mul_ps(error, error));
        }
        _mm_add_ps(
            _mm256_castps256_ps128(errors),
            _mm256_extractf128_ps::<1>(errors),
        )
    });
    let add_halves = |a, b| _mm_add_ps(_mm_movelh_ps(a, b), _mm_shuffle_ps::<0xee>(a, b));
    let sums = _mm_hadd_ps(add_halves(a, b), add_halves(c, d));
    let mut errors = [0f32; TRIED];
    // SAFETY: four values.
    unsafe {
        _mm_storeu_ps(
            errors.as_mut_ptr(),
            _mm_mul_ps(sums, _mm_mul_ps(steps, steps)),
        )
    };
    let best = best(tried, errors);
    let inverse = _mm256_set1_ps(1.0 / scale(best));
    let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    let words = eights.map(|eight| {
        let t = _mm256_sub_ps(_mm256_mul_ps(eight, inverse), half);
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
    best
}

/// Reads a group, without the offset.
#[inline(always)]
pub(super) fn decode_group(codes: &[u8; CODES], byte: u8, out: &mut [f32; GROUP]) {
    let step = scale(byte);
    let eights = out.as_chunks_mut::<LANES>().0;
    for (codes, eight) in codes.as_chunks::<4>().0.iter().zip(eights) {
        let word = u32::from_le_bytes(*codes);
        for (i, v) in eight.iter_mut().enumerate() {
            *v = ((word >> (4 * i) & 15) as f32 - EDGE) * step;
        }
    }
}

/// The offset nearest to a mean, for each channel of a group.
#[inline(always)]
pub(super) fn offsets(sums: &[f32; GROUP], tokens: usize, out: &mut [u8]) {
    let share = 1.0 / tokens.max(1) as f32;
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = offset_byte(sum * share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scales_and_offsets_that_bytes_stand_for_are_nearest_to_themselves() {
        for byte in 8..=MOST {
            assert_eq!(scale_byte(scale(byte)), byte);
            let half = half::f16::from_bits(u16::from(byte) << 7);
            assert_eq!(scale(byte), half.to_f32());
        }
        for byte in (8..=0x7f).chain(0x88..=0xff) {
            assert_eq!(offset_byte(offset(byte)), byte);
        }
        assert_eq!((scale(0), offset(0), offset(0x7f)), (0.0, 0.0, 480.0));
        assert!(scale(NO_NUMBER).is_nan());
        assert_eq!(offset_byte(1e9), 0x7f);
        assert_eq!([f32::NAN, f32::INFINITY, 1e-9].map(offset_byte), [0; 3]);
    }

    proptest! {
        #[test]
        fn no_value_is_further_off_than_two_thirds_of_an_eighth_of_the_greatest(
            values in prop::collection::vec(-1f32..1.0, GROUP), size in 1e-3f32..1e4,
        ) {
            let values: Vec<f32> = values.iter().map(|v| v * size).collect();
            let values: &[f32; GROUP] = values.as_slice().try_into().unwrap();
            let (mut codes, mut got) = ([0; CODES], [0.0; GROUP]);
            let byte = encode_group(values, &mut codes);
            decode_group(&codes, byte, &mut got);
            let most = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            let squares = |of: &dyn Fn(usize) -> f32| (0..GROUP).map(|i| of(i) * of(i)).sum::<f32>();
            let error = squares(&|i| values[i] - got[i]);
            // Never worse than the scale that clips nothing, which is at most
            // a sixteenth off the wanted one.
            let bound = most / EDGE * 17.0 / 16.0 / 2.0 + most / 16.0;
            prop_assert!(error <= bound * bound * GROUP as f32);
            prop_assert!(error.sqrt() <= 0.15 * most * (GROUP as f32).sqrt());
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_no_number_is_seen() {
        let (mut codes, mut got) = ([1; CODES], [1.0; GROUP]);
        let byte = encode_group(&[0.0; GROUP], &mut codes);
        decode_group(&codes, byte, &mut got);
        assert_eq!(got, [0.0; GROUP]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [1.0; GROUP];
            row[7] = bad;
            assert_eq!(encode_group(&row, &mut codes), NO_NUMBER);
        }
    }
}
