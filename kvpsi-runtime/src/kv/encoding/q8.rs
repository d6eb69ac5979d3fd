//! [`KvType::Q8_0`](super::KvType::Q8_0): 8-bit codes and f16 scales.
//!
//! Owns the rounding of a group, in plain loops that the compiler turns into
//! vector code: every processor writes the same bits.

use super::{GROUP, LANES, ROUND, lanes_sum};
use half::f16;

/// Writes a group and returns its scale: the largest magnitude by 127, rounded
/// to f16 after the codes were made, as in llama.cpp. What is not a number
/// makes the scale not a number: it is not hidden.
#[inline(always)]
pub(super) fn encode_group(values: &[f32; GROUP], codes: &mut [i8; GROUP]) -> f16 {
    let (mut most, mut sum) = ([0f32; LANES], [0f32; LANES]);
    for eight in values.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let size = eight[i].abs();
            most[i] = if size > most[i] { size } else { most[i] };
            sum[i] += size;
        }
    }
    let step = most.into_iter().fold(0f32, f32::max) / 127.0;
    let inverse = if step > 0.0 { step.recip() } else { 0.0 };
    for (code, v) in codes.iter_mut().zip(values) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "two's complement of -127..=127 in the lowest bits"
        )]
        {
            *code = ((v * inverse + ROUND).to_bits() as u8).cast_signed();
        }
    }
    f16::from_f32(if lanes_sum(sum).is_nan() {
        f32::NAN
    } else {
        step
    })
}

/// Reads a group.
#[inline(always)]
pub(super) fn decode_group(codes: &[i8; GROUP], scale: f16, out: &mut [f32; GROUP]) {
    let scale = scale.to_f32();
    for (out, code) in out.iter_mut().zip(codes) {
        *out = f32::from(*code) * scale;
    }
}

#[cfg(all(test, feature = "llm"))]
mod tests {
    use super::*;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn q8_0_rows_are_read_back_as_candles(row in prop::collection::vec(-300f32..300.0, GROUP * 3)) {
            let (mut codes, mut scales) = (vec![0; row.len()], vec![f16::ZERO; 3]);
            for (g, scale) in scales.iter_mut().enumerate() {
                let group = row.as_chunks().0;
                *scale = encode_group(&group[g], &mut codes.as_chunks_mut().0[g]);
            }
            let t = Tensor::from_slice(&row, row.len(), &Device::Cpu).unwrap();
            let want = QTensor::quantize(&t, GgmlDType::Q8_0).unwrap();
            let want = want.dequantize(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
            for (i, want) in want.into_iter().enumerate() {
                let got = f32::from(codes[i]) * scales[i / GROUP].to_f32();
                prop_assert!((got - want).abs() <= want.abs() * 1e-3 + scales[i / GROUP].to_f32() * 1.01);
                prop_assert!((got - row[i]).abs() <= 300.0 / 127.0);
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_no_number_is_seen() {
        let mut codes = [1; GROUP];
        let scale = encode_group(&[0.0; GROUP], &mut codes);
        assert_eq!((codes, scale), ([0; GROUP], f16::ZERO));
        let mut row = [1.0; GROUP];
        row[7] = f32::NAN;
        assert!(encode_group(&row, &mut codes).is_nan());
    }
}
