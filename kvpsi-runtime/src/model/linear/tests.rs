//! The kernels against the scalar reference (bit for bit), the reference
//! against candle and against ggml's own dequantization, and bad weights.

use super::*;
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
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

/// A matrix as a file has it.
#[derive(Debug)]
pub(super) struct Weight {
    format: &'static Format,
    shape: (usize, usize),
    rows: Vec<u8>,
}

impl Weight {
    /// Codes and scales of any bits at all, but finite.
    pub(super) fn wild(format: &'static Format, n: usize, k: usize, seed: u64) -> Self {
        let bytes = format.matrix_bytes(n, k).unwrap();
        let bits = noise(seed, bytes).into_iter().map(f32::to_bits);
        let mut rows: Vec<u8> = bits.map(|bits| bits.to_le_bytes()[1]).collect();
        for block in rows.chunks_mut(format.file_bytes) {
            // Exponents up to 2^-3, either sign.
            for &at in format.high_bytes {
                block[at] &= 0b1011_0011;
            }
        }
        Self {
            format,
            shape: (n, k),
            rows,
        }
    }

    /// What candle makes of noise; `None` where it does not know the format.
    fn tame(format: &'static Format, n: usize, k: usize, seed: u64) -> Option<Self> {
        let dtype = dtype(format)?;
        let w = Tensor::from_vec(noise(seed, n * k), (n, k), &Device::Cpu).unwrap();
        let rows = QTensor::quantize(&w, dtype)
            .unwrap()
            .data()
            .unwrap()
            .into_owned();
        Some(Self {
            format,
            shape: (n, k),
            rows,
        })
    }

    pub(super) fn linear(&self) -> Linear {
        self.linear_with(choose::active().unwrap())
    }

    fn linear_with(&self, isa: Isa) -> Linear {
        Linear::with_isa(isa, "w", self.format, self.shape, &self.rows).unwrap()
    }

    fn candle(&self) -> Option<Arc<QTensor>> {
        let data = Cow::Owned(self.rows.clone());
        let storage = QStorage::from_data(data, &Device::Cpu, dtype(self.format)?).unwrap();
        Some(Arc::new(QTensor::new(storage, self.shape).unwrap()))
    }

    fn dense(&self) -> Vec<f32> {
        let linear = self.linear();
        let (n, k) = self.shape;
        let mut out = vec![f32::NAN; n * k];
        for (id, row) in (0..).zip(out.chunks_exact_mut(k)) {
            linear.row_into(id, row).unwrap();
        }
        out
    }
}

/// candle's type of the same name, if it has one.
fn dtype(format: &Format) -> Option<GgmlDType> {
    use GgmlDType::*;
    let all = [
        F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K,
    ];
    let name = format.name.replace("_K", "K");
    all.into_iter().find(|dtype| format!("{dtype:?}") == name)
}

fn families() -> impl Iterator<Item = Isa> {
    for family in isa::Family::ALL {
        if family.detect().is_none() {
            eprintln!(
                "skipped: kernels of {}: this processor lacks it",
                family.name()
            );
        }
    }
    Isa::all().filter(|isa| *isa != Isa::SCALAR)
}

/// The product of `x`, so many rows, with one weight.
pub(super) fn product(layer: &Linear, x: &[f32], rows: usize) -> Vec<f32> {
    let mut product = vec![f32::NAN; rows * layer.packed.n()];
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

fn formats() -> impl Strategy<Value = &'static Format> {
    (0..Format::all().count()).prop_map(|i| Format::all().nth(i).unwrap())
}

/// Inputs of so many blocks; of floats, which have no blocks, any number.
fn inputs(format: &Format, blocks: usize) -> usize {
    if format.block == 1 {
        13 * blocks + blocks % 2
    } else {
        format.block * blocks
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_family_gives_the_bits_of_the_scalar_reference(
        format in formats(), n in 1usize..70, blocks in 1usize..6, m in 1usize..20,
        seed in any::<u64>(), wild in any::<bool>(),
    ) {
        let k = inputs(format, blocks);
        let tame = if wild { None } else { Weight::tame(format, n, k, seed) };
        let w = tame.unwrap_or_else(|| Weight::wild(format, n, k, seed));
        let x = noise(seed ^ 77, m * k);
        let want = product(&w.linear_with(Isa::SCALAR), &x, m);
        for isa in families() {
            let got = product(&w.linear_with(isa), &x, m);
            prop_assert_eq!(bits(&got), bits(&want), "{} {:?}", isa.name(), format);
        }
    }

    #[test]
    fn the_scalar_reference_agrees_with_candle(
        format in formats(), n in 1usize..40, blocks in 1usize..4, m in 1usize..6, seed in any::<u64>(),
    ) {
        // candle's Q4_1 wants an even number of blocks.
        let k = 2 * blocks * format.block.max(8);
        let Some(w) = Weight::tame(format, n, k, seed) else { return Ok(()) };
        // candle rounds activations to f16 for f16 weights, and sums bf16 in its own way.
        prop_assume!(format.block > 1);
        let x = noise(seed ^ 5, m * k);
        let got = product(&w.linear_with(Isa::SCALAR), &x, m);
        let x = Tensor::from_vec(x, (m, k), &Device::Cpu).unwrap();
        let want = values(&QMatMul::from_arc(w.candle().unwrap()).unwrap().forward(&x).unwrap());
        // Only the order of f32 sums differs: relative to the sums' size. For
        // Q5_0 and Q5_1 candle multiplies in another way on some processors.
        let size = want.iter().fold(1f32, |a, v| a.max(v.abs()));
        for (g, w) in got.iter().zip(&want) {
            prop_assert!((g - w).abs() <= 1e-5 * size, "{format:?} {g} {w}");
        }
    }

    #[test]
    fn products_are_those_of_the_dense_matrix(
        format in formats(), n in 1usize..20, blocks in 1usize..4, m in 1usize..4, seed in any::<u64>(),
    ) {
        let k = inputs(format, blocks);
        let w = Weight::wild(format, n, k, seed);
        let (x, dense) = (noise(seed ^ 5, m * k), w.dense());
        let got = product(&w.linear(), &x, m);
        for (x, got) in x.chunks_exact(k).zip(got.chunks_exact(n)) {
            for (w, got) in dense.chunks_exact(k).zip(got) {
                let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                // Activations are rounded to a 127th of their peak, at most 9.
                let most: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
                let off = if format.block == 1 { 1e-5 * 9.0 } else { 9.0 / 127.0 };
                prop_assert!((f64::from(*got) - want).abs() <= off * most + 1e-6, "{format:?} {got} {want}");
            }
        }
    }

    #[test]
    fn rows_read_back_are_candles_dequantization_bit_for_bit(
        format in formats(), n in 1usize..40, blocks in 1usize..4, seed in any::<u64>(), wild in any::<bool>(),
    ) {
        let k = format.block.max(8) * blocks;
        let tame = if wild { None } else { Weight::tame(format, n, k, seed) };
        let w = tame.unwrap_or_else(|| Weight::wild(format, n, k, seed));
        let Some(candle) = w.candle() else { return Ok(()) };
        let want = values(&candle.dequantize(&Device::Cpu).unwrap());
        prop_assert_eq!(bits(&w.dense()), bits(&want));
    }
}

/// What ggml's own code makes of blocks of random bytes: see the script beside
/// the data.
const GGML: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/data/ggml_dequant.json"
));

#[test]
fn every_format_is_read_as_ggml_reads_it_bit_for_bit() {
    let bytes = |hex: &serde_json::Value| -> Vec<u8> {
        let hex = hex.as_str().unwrap().as_bytes().as_chunks::<2>().0;
        let byte = |two: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16);
        hex.iter().map(|two| byte(two).unwrap()).collect()
    };
    let all: serde_json::Value = serde_json::from_str(GGML).unwrap();
    for format in Format::all() {
        let case = &all[format.name];
        let rows = bytes(&case["bytes"]);
        let want = bytes(&case["f32"]);
        let want: Vec<u32> = want
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
            .collect();
        let w = Weight {
            format,
            shape: (1, want.len()),
            rows,
        };
        // -0 and 0 are the same weight.
        let zero = |bits: &mut u32| {
            if *bits == 1 << 31 {
                *bits = 0
            }
        };
        let (mut got, mut want) = (bits(&w.dense()), want);
        got.iter_mut().for_each(zero);
        want.iter_mut().for_each(zero);
        assert_eq!(got, want, "{format:?}");
    }
}

#[test]
fn no_rows_in_give_no_rows_out() {
    for format in Format::all() {
        assert!(product(&Weight::wild(format, 20, 256, 1).linear(), &[], 0).is_empty());
    }
}

#[test]
fn a_scale_that_is_not_finite_is_refused_by_the_tensors_name() {
    for format in Format::all() {
        for &high in format.high_bytes {
            let mut w = Weight::wild(format, 3, 256, 7);
            // A scale of the last row is made an infinity or not a number.
            let block = w.rows.len() - format.file_bytes;
            w.rows[block + high] = 0xff;
            if format.name == "BF16" || format.name == "F32" {
                w.rows[block + high - 1] |= 0x80;
            }
            let e = Linear::from_rows("blk.3.attn_q.weight", format, w.shape, &w.rows);
            let e = e.unwrap_err().to_string();
            assert!(
                e.contains("blk.3.attn_q.weight") && e.contains("row 2"),
                "{format:?}: {e}"
            );
        }
    }
}

#[test]
fn data_that_is_not_whole_rows_is_refused_by_the_tensors_name() {
    for format in Format::all() {
        let w = Weight::wild(format, 2, 256, 3);
        let short = &w.rows[..w.rows.len() - 1];
        for (shape, rows) in [
            ((2, 256), short),
            ((2, 257), &w.rows),
            ((3, 256), &w.rows),
            ((2, 0), &w.rows),
            ((2, 0), &[]),
            ((usize::MAX, 256), &w.rows),
        ] {
            let e = Packed::new("out", format, shape, rows)
                .unwrap_err()
                .to_string();
            assert!(e.contains("tensor out") && e.contains(format.name), "{e}");
        }
    }
}

#[test]
fn data_at_any_address_gives_the_same_weight() {
    for format in Format::all() {
        let w = Weight::wild(format, 5, 256, 9);
        let want = w.dense();
        for shift in 1..4 {
            let mut moved = vec![0; shift];
            moved.extend(&w.rows);
            let linear = Linear::from_rows("w", format, w.shape, &moved[shift..]).unwrap();
            let mut row = vec![0.0; 256];
            linear.row_into(4, &mut row).unwrap();
            assert_eq!(bits(&row), bits(&want[4 * 256..]), "{format:?}");
        }
    }
}

#[test]
fn packed_weights_take_at_most_a_twentieth_more_than_the_file() {
    for format in Format::all() {
        let w = Weight::wild(format, 192, 768, 2);
        let (file, packed) = (w.rows.len(), w.linear().packed().bytes());
        assert!(packed * 20 <= file * 21, "{format:?}: {packed} of {file}");
    }
}

#[test]
fn the_largest_codes_and_activations_do_not_saturate() {
    for format in Format::all() {
        let k = 2 * format.block.max(32);
        for fill in [0xff, 0x00, 0x80, 0x7f] {
            let mut w = Weight::wild(format, 16, k, 1);
            w.rows.fill(fill);
            for block in w.rows.chunks_mut(format.file_bytes) {
                for &at in format.high_bytes {
                    block[at] = 0x3c;
                }
            }
            let dense = w.dense();
            for sign in [1.0f32, -1.0] {
                // 127 steps of one: the activations are exact, so the dense
                // product is the truth, not only another kernel.
                let x = vec![127.0 * sign; k];
                let rows = dense.chunks_exact(k);
                let want = rows.map(|row| row.iter().map(|w| 127.0 * sign * w).sum::<f32>());
                let want: Vec<f32> = want.collect();
                for isa in Isa::all() {
                    let got = product(&w.linear_with(isa), &x, 1);
                    for (g, w) in got.iter().zip(&want) {
                        let off = (g - w).abs();
                        assert!(
                            off <= 2e-3 * w.abs() + 1.0,
                            "{} {format:?} {fill:#x}: {g}, not {w}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}
