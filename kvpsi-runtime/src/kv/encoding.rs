//! How keys and values are written.
//!
//! Owns the encodings, their sizes and their rounding. A row is what one KV
//! head has for one token. Refuses to know which blocks there are.

use half::f16;

/// Values that share a scale in [`KvType::Q8_0`].
pub const GROUP: usize = 32;

/// An encoding of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KvType {
    /// 16-bit floats: 2 bytes a value.
    #[default]
    F16,
    /// Whole numbers of 8 bits and a 16-bit scale for 32 of them (llama.cpp's
    /// `q8_0`, ggml-quants.c): 1.06 bytes a value.
    #[value(name = "q8_0")]
    Q8_0,
}

impl KvType {
    /// All of them, by their number, and the widest first.
    pub const ALL: [Self; 2] = [Self::F16, Self::Q8_0];

    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Values that a row must be a multiple of.
    #[must_use]
    pub const fn group(self) -> usize {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => GROUP,
        }
    }

    /// Bytes of so many values, in whole groups.
    #[must_use]
    pub const fn bytes(self, values: usize) -> usize {
        match self {
            Self::F16 => 2 * values,
            Self::Q8_0 => values + 2 * (values / GROUP),
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A row as [`KvType::Q8_0`]: the scale is the largest magnitude by 127,
/// rounded to f16 after the codes were made, as in llama.cpp. What is not a
/// number makes its group's scale not a number: it is not hidden.
pub(super) fn encode_q8_0(row: &[f32], codes: &mut [i8], scales: &mut [f16]) {
    let groups = row.as_chunks::<GROUP>().0.iter();
    let places = codes.as_chunks_mut::<GROUP>().0.iter_mut().zip(scales);
    for (values, (codes, scale)) in groups.zip(places) {
        let most = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        let step = most / 127.0;
        let inverse = if step > 0.0 { step.recip() } else { 0.0 };
        let mut sum = 0.0;
        for (code, v) in codes.iter_mut().zip(values) {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "within 127, and what is no number becomes 0"
            )]
            {
                *code = (v * inverse).round() as i8;
            }
            sum += v;
        }
        *scale = f16::from_f32(if sum.is_nan() { f32::NAN } else { step });
    }
}

pub(super) unsafe fn encode_row(kind: KvType, to: *mut u8, values: usize, at: usize, row: &[f32]) {
    use half::slice::HalfFloatSliceExt;
    use std::slice::from_raw_parts_mut;
    unsafe {
        match kind {
            KvType::F16 => {
                let to = from_raw_parts_mut(to.cast::<f16>().add(at), row.len());
                to.convert_from_f32_slice(row);
            }
            KvType::Q8_0 => {
                let codes = from_raw_parts_mut(to.cast::<i8>().add(at), row.len());
                let scales = to.add(values).cast::<f16>();
                let scales = from_raw_parts_mut(scales.add(at / GROUP), row.len() / GROUP);
                encode_q8_0(row, codes, scales);
            }
        }
    }
}
pub(super) unsafe fn decode_row(
    kind: KvType,
    from: *const u8,
    values: usize,
    at: usize,
    out: &mut [f32],
) {
    unsafe {
        for (i, o) in out.iter_mut().enumerate() {
            let at = at + i;
            *o = match kind {
                KvType::F16 => (*from.cast::<f16>().add(at)).to_f32(),
                KvType::Q8_0 => {
                    let scale = *from.add(values).cast::<f16>().add(at / GROUP);
                    f32::from(*from.cast::<i8>().add(at)) * scale.to_f32()
                }
            };
        }
    }
}
pub(super) unsafe fn recode_plane(
    from: KvType,
    src: *const u8,
    to: KvType,
    dst: *mut u8,
    values: usize,
) {
    let mut row = [0f32; GROUP];
    for at in (0..values).step_by(GROUP) {
        let n = GROUP.min(values - at);
        unsafe {
            decode_row(from, src, values, at, &mut row[..n]);
            encode_row(to, dst, values, at, &row[..n]);
        }
    }
}
pub fn to_head_basis(_row: &mut [f32]) {}

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
            encode_q8_0(&row, &mut codes, &mut scales);
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
        let (mut codes, mut scales) = ([1; GROUP], [f16::ONE]);
        encode_q8_0(&[0.0; GROUP], &mut codes, &mut scales);
        assert_eq!((codes, scales), ([0; GROUP], [f16::ZERO]));
        let mut row = [1.0; GROUP];
        row[7] = f32::NAN;
        encode_q8_0(&row, &mut codes, &mut scales);
        assert!(scales[0].is_nan());
    }
}
