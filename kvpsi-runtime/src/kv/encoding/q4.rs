//! [`KvType::Q4_0`](super::KvType::Q4_0): 4-bit codes, 8-bit scales and
//! offsets.
//!
//! Owns the rounding of a group and of a plane's offsets. Plain loops in a
//! fixed order, which the compiler turns into vector code: every processor
//! writes the same bits.

use super::{GROUP, LANES, ROUND, lanes_sum};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;

/// Bytes of the codes of a group.
pub(super) const CODES: usize = GROUP / 2;
/// A scale that no number is.
const NO_NUMBER: u8 = 0xff;
/// The greatest scale: 61 440.
const MOST: u8 = 0xf7;
/// Neighbouring scales that are tried, the greatest first: it clips nothing,
/// and a step of about a tenth below it an outlier is clipped and the other 31
/// values are finer. Each costs a pass over the group, and more gain little:
/// the error of groups of normal numbers is 0.832 % of their squares' sum with
/// one, 0.763 with two, 0.761 with four.
const TRIED: usize = 2;
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

/// Scales and their inverses, by byte.
static STEPS: [[f32; 2]; 256] = steps();

const fn steps() -> [[f32; 2]; 256] {
    let (mut all, mut byte) = ([[0.0; 2]; 256], 0u8);
    loop {
        let step = scale(byte);
        all[byte as usize] = [step, 1.0 / step];
        if byte == u8::MAX {
            return all;
        }
        byte += 1;
    }
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

/// The scale that clips nothing of a group whose greatest magnitude is `most`.
#[inline(always)]
fn top(most: f32) -> u8 {
    scale_byte(most / EDGE)
}

/// Scales to try, with their inverses: the one that clips nothing, and the
/// next below.
#[inline(always)]
fn to_try(top: u8) -> [[f32; 2]; TRIED] {
    [top, top.saturating_sub(1)].map(|byte| STEPS[usize::from(byte)])
}

/// The one of the least error, the greatest of equals. `errors` are sums of
/// squares in steps, which say nothing of a scale of 0.
#[inline(always)]
fn best(top: u8, errors: [f32; TRIED]) -> u8 {
    // Sums without a branch, which could not be predicted.
    top - (u8::from(errors[1] < errors[0]) & u8::from((2..=MOST).contains(&top)))
}

/// The three passes that choose a group's scale and write it. Each is short,
/// so that a processor works on several groups at a time where all groups take
/// one pass before any takes the next.
pub(super) trait Passes {
    /// The scale that clips nothing; [`NO_NUMBER`] where one value is none.
    ///
    /// # Safety
    /// The processor has what the implementation is for; so below.
    unsafe fn top(group: &[f32; GROUP]) -> u8;
    /// The scale to use, after that one.
    ///
    /// # Safety
    /// As [`Self::top`].
    unsafe fn choose(group: &[f32; GROUP], top: u8) -> u8;
    /// Writes the codes.
    ///
    /// # Safety
    /// As [`Self::top`].
    unsafe fn write(group: &[f32; GROUP], scale: u8, codes: &mut [u8; CODES]);

    /// All three; returns the scale.
    ///
    /// # Safety
    /// As [`Self::top`].
    #[inline(always)]
    unsafe fn encode(group: &[f32; GROUP], codes: &mut [u8; CODES]) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = Self::choose(group, Self::top(group));
            Self::write(group, scale, codes);
            scale
        }
    }
}

/// [`Passes`] for every processor.
pub(super) struct Plain;

impl Passes for Plain {
    #[inline(always)]
    unsafe fn top(group: &[f32; GROUP]) -> u8 {
        let (mut most, mut sum) = ([0f32; LANES], [0f32; LANES]);
        for eight in group.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                let size = eight[i].abs();
                most[i] = if size > most[i] { size } else { most[i] };
                sum[i] += size;
            }
        }
        if !lanes_sum(sum).is_finite() {
            return NO_NUMBER;
        }
        top(most.into_iter().fold(0f32, f32::max))
    }

    #[inline(always)]
    unsafe fn choose(group: &[f32; GROUP], top: u8) -> u8 {
        let errors = to_try(top).map(|[step, inverse]| {
            let mut errors = [0f32; LANES];
            for eight in group.as_chunks::<LANES>().0 {
                for i in 0..LANES {
                    let t = eight[i] * inverse - 0.5;
                    let error = t - (nearest(t) - ROUND);
                    errors[i] += error * error;
                }
            }
            lanes_sum(errors) * (step * step)
        });
        best(top, errors)
    }

    #[inline(always)]
    unsafe fn write(group: &[f32; GROUP], scale: u8, codes: &mut [u8; CODES]) {
        let [_, inverse] = STEPS[usize::from(scale)];
        let eights = group.as_chunks::<LANES>().0;
        for (eight, codes) in eights.iter().zip(codes.as_chunks_mut::<4>().0) {
            let mut word = 0;
            for (i, v) in eight.iter().enumerate() {
                // Two's complement of -8..=7 in the lowest bits, to 0..=15.
                word |= (nearest(v * inverse - 0.5).to_bits() & 15 ^ 8) << (4 * i);
            }
            *codes = u32::to_le_bytes(word);
        }
    }
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

    fn encode(group: &[f32; GROUP], codes: &mut [u8; CODES]) -> u8 {
        // SAFETY: every processor has what that needs.
        unsafe { Plain::encode(group, codes) }
    }

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
            let byte = encode(values, &mut codes);
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
        let byte = encode(&[0.0; GROUP], &mut codes);
        decode_group(&codes, byte, &mut got);
        assert_eq!(got, [0.0; GROUP]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [1.0; GROUP];
            row[7] = bad;
            assert_eq!(encode(&row, &mut codes), NO_NUMBER);
        }
    }
}
