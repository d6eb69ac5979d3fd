//! The kernels against the scalar reference (bit for bit), the reference
//! against candle, and bad weights.

use super::*;
use candle_core::{
    Module, Tensor,
    quantized::{GgmlDType, QStorage},
};
use proptest::prelude::*;
use std::borrow::Cow;

/// Reproducible values, mostly in -1..1, now and then an outlier.
pub(super) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len)
        .map(|_| {
            let v = (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            if next() % 61 == 0 { 9.0 * v } else { v }
        })
        .collect()
}

pub(super) const TYPES: [GgmlDType; 5] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q6K,
];

pub(super) fn weight(dtype: GgmlDType, n: usize, k: usize, seed: u64) -> Arc<QTensor> {
    let w = Tensor::from_vec(noise(seed, n * k), (n, k), &Device::Cpu).unwrap();
    Arc::new(QTensor::quantize(&w, dtype).unwrap())
}

/// Weights whose codes and scales are any bits at all, but finite.
fn wild_weight(dtype: GgmlDType, n: usize, k: usize, seed: u64) -> Arc<QTensor> {
    let format = Format::of(dtype).unwrap();
    let len = n * k / format.block_weights() * format.file_block_bytes();
    let mut data: Vec<u8> = noise(seed, len)
        .iter()
        .map(|v| v.to_bits().to_le_bytes()[1])
        .collect();
    for block in data.chunks_mut(format.file_block_bytes()) {
        let at: &[usize] = match format {
            Format::Q4_0 | Format::Q8_0 => &[1],
            Format::Q4_1 | Format::Q4K => &[1, 3],
            Format::Q6K => &[209],
        };
        // Exponents up to 2^-3, either sign.
        at.iter().for_each(|&at| block[at] &= 0b1011_0011);
    }
    let storage = QStorage::from_data(Cow::Owned(data), &Device::Cpu, dtype).unwrap();
    Arc::new(QTensor::new(storage, (n, k)).unwrap())
}

fn families() -> impl Iterator<Item = Isa> {
    let mut all = Isa::ALL.to_vec();
    all.retain(|isa| {
        let there = isa.available();
        if !there {
            eprintln!(
                "skipped: kernels of {}: this processor lacks it",
                isa.name()
            );
        }
        there && *isa != Isa::Scalar
    });
    all.into_iter()
}

/// The product of `x`, so many rows, with one weight.
pub(super) fn product(layer: &Linear, x: &[f32], rows: usize) -> Vec<f32> {
    let out = match &layer.weight {
        Weight::Packed { packed, .. } => packed.n(),
        Weight::Candle(w) => w.dequantize_f16().unwrap().dim(0).unwrap(),
    };
    let mut product = vec![f32::NAN; rows * out];
    let mut acts = QuantizedRows::with_room(0);
    products_into([layer], x, rows, &mut acts, [&mut product]).unwrap();
    product
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_family_gives_the_bits_of_the_scalar_reference(
        kind in 0..TYPES.len(), n in 1usize..70, blocks in 1usize..6, m in 1usize..12,
        seed in any::<u64>(), wild in any::<bool>(),
    ) {
        let dtype = TYPES[kind];
        let k = blocks * Format::of(dtype).unwrap().block_weights();
        let w = if wild { wild_weight(dtype, n, k, seed) } else { weight(dtype, n, k, seed) };
        let x = noise(seed ^ 77, m * k);
        let scalar = Linear::with_isa(Isa::Scalar, "w", w.clone()).unwrap();
        let want = product(&scalar, &x, m);
        for isa in families() {
            let got = product(&Linear::with_isa(isa, "w", w.clone()).unwrap(), &x, m);
            prop_assert_eq!(bits(&got), bits(&want), "{} {:?}", isa.name(), dtype);
        }
    }

    #[test]
    fn the_scalar_reference_agrees_with_candle(
        kind in 0..TYPES.len(), n in 1usize..40, blocks in 1usize..4, m in 1usize..6, seed in any::<u64>(),
    ) {
        let dtype = TYPES[kind];
        // candle's Q4_1 wants an even number of blocks.
        let k = 2 * blocks * Format::of(dtype).unwrap().block_weights();
        let w = weight(dtype, n, k, seed);
        let x = noise(seed ^ 5, m * k);
        let got = product(&Linear::with_isa(Isa::Scalar, "w", w.clone()).unwrap(), &x, m);
        let x = Tensor::from_vec(x, (m, k), &Device::Cpu).unwrap();
        let want = values(&QMatMul::from_arc(w).unwrap().forward(&x).unwrap());
        // Only the order of f32 sums differs: relative to the sums' size.
        let size = want.iter().fold(1f32, |a, v| a.max(v.abs()));
        for (g, w) in got.iter().zip(&want) {
            prop_assert!((g - w).abs() <= 1e-5 * size, "{dtype:?} {g} {w}");
        }
    }

    #[test]
    fn rows_read_back_are_candles_dequantization_bit_for_bit(
        kind in 0..TYPES.len(), n in 1usize..40, blocks in 1usize..4, seed in any::<u64>(), wild in any::<bool>(),
    ) {
        let dtype = TYPES[kind];
        let k = blocks * Format::of(dtype).unwrap().block_weights();
        let w = if wild { wild_weight(dtype, n, k, seed) } else { weight(dtype, n, k, seed) };
        let want = values(&w.dequantize(&Device::Cpu).unwrap());
        let layer = Linear::new(w).unwrap();
        let mut row = vec![0.0; k];
        for (id, want) in (0..).zip(want.chunks_exact(k)) {
            layer.row_into(id, &mut row).unwrap();
            prop_assert_eq!(bits(&row), bits(want));
        }
    }
}

#[test]
fn no_rows_in_give_no_rows_out() {
    for dtype in [GgmlDType::Q4_1, GgmlDType::Q6K] {
        let layer = Linear::new(weight(dtype, 20, 256, 1)).unwrap();
        assert!(product(&layer, &[], 0).is_empty());
    }
}

#[test]
fn a_scale_that_is_not_finite_is_refused_by_the_tensors_name() {
    let types = TYPES.into_iter().chain([
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q5K,
        GgmlDType::F16,
        GgmlDType::F32,
    ]);
    for dtype in types {
        let w = weight(dtype, 3, 256, 7);
        let mut data = w.data().unwrap().into_owned();
        // The last scale of the last row is made an infinity.
        let size = dtype.type_size();
        let at = data.len() - size
            + match dtype {
                GgmlDType::Q4_0 | GgmlDType::Q8_0 | GgmlDType::Q5_0 | GgmlDType::F16 => 0,
                GgmlDType::Q2K => 82,
                GgmlDType::Q3K => 108,
                GgmlDType::Q6K => 208,
                _ => 2,
            };
        data[at..at + 2].copy_from_slice(&[0x80, 0x7f]);
        if dtype != GgmlDType::F32 {
            data[at..at + 2].copy_from_slice(&[0x00, 0xfc]);
        }
        let storage = QStorage::from_data(Cow::Owned(data), &Device::Cpu, dtype).unwrap();
        let w = Arc::new(QTensor::new(storage, (3, 256)).unwrap());
        let e = Linear::with_isa(Isa::active().unwrap(), "blk.3.attn_q.weight", w)
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("blk.3.attn_q.weight") && e.contains("row 2"),
            "{dtype:?}: {e}"
        );
    }
}

#[test]
fn data_that_is_not_whole_rows_is_refused_by_the_tensors_name() {
    let data = vec![0u8; 2 * 20 - 1];
    let e = Packed::new("out", Format::Q4_1, GgmlDType::Q4_1, (2, 32), &data).unwrap_err();
    assert!(e.to_string().contains("out"), "{e}");
    assert!(Packed::new("out", Format::Q4_1, GgmlDType::Q4_1, (2, 33), &data).is_err());
    assert!(
        Packed::new(
            "out",
            Format::Q4_1,
            GgmlDType::Q4_1,
            (usize::MAX, 64),
            &data
        )
        .is_err()
    );
}

#[test]
fn packed_weights_take_at_most_a_twentieth_more_than_the_file() {
    for dtype in TYPES {
        let w = weight(dtype, 192, 768, 2);
        let file = w.storage_size_in_bytes();
        let packed = Linear::new(w).unwrap().packed_bytes().unwrap();
        assert!(packed * 20 <= file * 21, "{dtype:?}: {packed} of {file}");
    }
}

#[test]
fn types_without_kernels_go_through_candle_and_are_counted() {
    let before = fallbacks();
    let w = weight(GgmlDType::Q5_1, 8, 64, 2);
    let x = Tensor::from_vec(noise(3, 64), (1, 64), &Device::Cpu).unwrap();
    let want = values(&QMatMul::from_arc(w.clone()).unwrap().forward(&x).unwrap());
    let layer = Linear::new(w.clone()).unwrap();
    assert!(fallbacks() > before);
    assert_eq!(bits(&product(&layer, &values(&x), 1)), bits(&want));
    let mut row = [0.0; 64];
    layer.row_into(7, &mut row).unwrap();
    let want = values(&w.dequantize(&Device::Cpu).unwrap().narrow(0, 7, 1).unwrap());
    assert_eq!(bits(&row), bits(&want));
}

#[test]
fn the_largest_codes_and_activations_do_not_saturate() {
    for dtype in TYPES {
        let format = Format::of(dtype).unwrap();
        let k = 2 * format.block_weights();
        for fill in [0xff, 0x00, 0x80, 0x7f] {
            let mut data = vec![fill; 16 * k / format.block_weights() * format.file_block_bytes()];
            for block in data.chunks_mut(format.file_block_bytes()) {
                let at: &[usize] = match format {
                    Format::Q4_0 | Format::Q8_0 => &[0],
                    Format::Q4_1 | Format::Q4K => &[0, 2],
                    Format::Q6K => &[208],
                };
                at.iter()
                    .for_each(|&at| block[at..at + 2].copy_from_slice(&[0x00, 0x3c]));
            }
            let storage = QStorage::from_data(Cow::Owned(data), &Device::Cpu, dtype).unwrap();
            let w = Arc::new(QTensor::new(storage, (16, k)).unwrap());
            let dense = w.dequantize(&Device::Cpu).unwrap();
            for sign in [1.0f32, -1.0] {
                // 127 steps of one: the activations are exact, so the dense
                // product is the truth, not only another kernel.
                let x = Tensor::full(127.0 * sign, (1, k), &Device::Cpu).unwrap();
                let want = x
                    .matmul(&dense.t().unwrap())
                    .unwrap()
                    .to_vec2::<f32>()
                    .unwrap();
                for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                    let layer = Linear::with_isa(isa, "w", w.clone()).unwrap();
                    let got = product(&layer, &values(&x), 1);
                    for (g, w) in got.iter().zip(&want[0]) {
                        let off = (g - w).abs();
                        assert!(
                            off <= 2e-3 * w.abs() + 1.0,
                            "{} {dtype:?} {fill:#x}: {g}, not {w}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}
