//! Products and embedding rows, written into memory that the caller keeps.
//!
//! Invariant: where all weights have kernels here, nothing is allocated once
//! the activations' memory is large enough. Weights that go through candle's
//! `QMatMul` are served as well, with the tensors that it wants.

use super::matmul::matmul_into;
use super::{ActKind, Linear, QuantizedRows, Weight};
use candle_core::{Device, Module, Result, Tensor, bail};

impl Linear {
    /// Whether products of this weight run on kernels here.
    pub fn is_packed(&self) -> bool {
        matches!(self.weight, Weight::Packed { .. })
    }

    /// Writes row `id` of the weight as f32 to `out`, `in` values long.
    ///
    /// # Errors
    /// There is no such row, or `out` has another length.
    pub fn row_into(&self, id: u32, out: &mut [f32]) -> Result<()> {
        match &self.weight {
            Weight::Packed { packed, .. } => {
                let row = id as usize;
                if row >= packed.n() || out.len() != packed.k() {
                    bail!(
                        "row {row} to {} values, of a weight [{}, {}]",
                        out.len(),
                        packed.n(),
                        packed.k()
                    );
                }
                packed.dequantize_row(row, out);
                Ok(())
            }
            Weight::Candle(weight) => {
                let row = weight.embedding(&Tensor::new(&[id], &Device::Cpu)?)?;
                copy(&row, out)
            }
        }
    }
}

/// The products of `x`, f32 `[rows, in]`, with several weights: to each `out`
/// f32 `[rows, out]`. `acts` is memory for the quantized rows; what it holds
/// before and after means nothing.
///
/// # Errors
/// A length does not fit.
pub fn products_into<const N: usize>(
    layers: [&Linear; N],
    x: &[f32],
    rows: usize,
    acts: &mut QuantizedRows,
    out: [&mut [f32]; N],
) -> Result<()> {
    for (layer, out) in layers.iter().zip(&out) {
        if let Weight::Packed { packed, .. } = &layer.weight
            && (x.len(), out.len()) != (rows * packed.k(), rows * packed.n())
        {
            bail!(
                "{rows} rows in {} values to {} do not fit a weight [{}, {}]",
                x.len(),
                out.len(),
                packed.n(),
                packed.k()
            );
        }
    }
    let mut together = layers.iter().map(|layer| match &layer.weight {
        Weight::Packed { isa, packed } => Some((*isa, ActKind::of(packed.format()), packed)),
        Weight::Candle(_) => None,
    });
    let first = together.next().flatten();
    if let Some((isa, kind, packed)) = first
        && together.all(|other| other.is_some_and(|(i, k, _)| (i, k) == (isa, kind)))
    {
        acts.fill(isa, kind, x, packed.k());
        let weights = layers.map(|layer| match &layer.weight {
            Weight::Packed { packed, .. } => &**packed,
            Weight::Candle(_) => unreachable!("all are packed"),
        });
        matmul_into(isa, acts, weights, out);
        return Ok(());
    }
    for (layer, out) in layers.into_iter().zip(out) {
        match &layer.weight {
            Weight::Packed { isa, packed } => {
                acts.fill(*isa, ActKind::of(packed.format()), x, packed.k());
                matmul_into(*isa, acts, [packed], [out]);
            }
            Weight::Candle(weight) => {
                let x = Tensor::from_slice(x, (rows, x.len() / rows.max(1)), &Device::Cpu)?;
                copy(&weight.forward(&x)?, out)?;
            }
        }
    }
    Ok(())
}

/// Values of a contiguous f32 tensor.
fn copy(from: &Tensor, to: &mut [f32]) -> Result<()> {
    let from = from.contiguous()?;
    let (storage, layout) = from.storage_and_layout();
    let (candle_core::Storage::Cpu(storage), Some((start, end))) =
        (&*storage, layout.contiguous_offsets())
    else {
        bail!("a product that is not on the CPU");
    };
    let from = &storage.as_slice::<f32>()?[start..end];
    if from.len() != to.len() {
        bail!("a product of {} values for {}", from.len(), to.len());
    }
    to.copy_from_slice(from);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{TYPES, noise, product, weight};
    use super::*;
    use candle_core::quantized::{GgmlDType, QTensor};
    use proptest::prelude::*;
    use std::sync::Arc;

    proptest! {
        #[test]
        fn products_with_several_weights_are_those_with_each_bit_for_bit(
            kinds in prop::array::uniform3(0..TYPES.len() + 1), n in prop::array::uniform3(1usize..60),
            rows in 1usize..10, seed in any::<u64>(),
        ) {
            // All formats take 512 inputs; the last kind has no kernels here.
            let k = 512;
            let linears: Vec<_> = kinds.iter().zip(n).map(|(&kind, n)| {
                let dtype = TYPES.get(kind).copied().unwrap_or(GgmlDType::Q5_0);
                Linear::new(weight(dtype, n, k, seed)).unwrap()
            }).collect();
            let x = noise(seed ^ 3, rows * k);
            let mut out = n.map(|n| vec![f32::NAN; rows * n]);
            let mut acts = QuantizedRows::with_room(0);
            let [a, b, c] = &mut out;
            products_into([&linears[0], &linears[1], &linears[2]], &x, rows, &mut acts, [a, b, c]).unwrap();
            for (linear, out) in linears.iter().zip(out) {
                prop_assert_eq!(out, product(linear, &x, rows));
            }
        }
    }

    #[test]
    fn rows_of_an_embedding_are_those_of_the_tensor_and_no_others() {
        for dtype in [GgmlDType::Q4_1, GgmlDType::F16] {
            let w: Arc<QTensor> = weight(dtype, 19, 64, 5);
            let linear = Linear::new(w.clone()).unwrap();
            let want = w
                .dequantize(&Device::Cpu)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap();
            let mut row = vec![0.0; 64];
            for id in [0, 18] {
                linear.row_into(id, &mut row).unwrap();
                assert_eq!(row, want[id as usize]);
            }
            assert!(linear.row_into(19, &mut row).is_err());
            assert!(linear.row_into(0, &mut row[1..]).is_err());
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_an_error() {
        let linear = Linear::new(weight(GgmlDType::Q4_0, 20, 64, 1)).unwrap();
        let mut acts = QuantizedRows::with_room(0);
        for (x, rows, out) in [(64, 1, 19), (63, 1, 20), (64, 2, 20), (128, 2, 20)] {
            let (x, mut out) = (vec![0.0; x], vec![0.0; out]);
            assert!(products_into([&linear], &x, rows, &mut acts, [&mut out]).is_err());
        }
    }
}
