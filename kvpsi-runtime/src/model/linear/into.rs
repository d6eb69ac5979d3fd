//! Products and embedding rows, written into memory that the caller keeps.
//!
//! Invariant: nothing is allocated once the activations' memory is large
//! enough.

use super::acts::ActKind;
use super::matmul::{Rows, matmul_into};
use super::{Linear, QuantizedRows};
use candle_core::{Result, bail};

impl Linear {
    /// Writes row `id` of the weight as f32 to `out`, `in` values long.
    ///
    /// # Errors
    /// There is no such row, or `out` has another length.
    pub fn row_into(&self, id: u32, out: &mut [f32]) -> Result<()> {
        let (row, packed) = (id as usize, &self.packed);
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
        let packed = &layer.packed;
        if (x.len(), out.len()) != (rows * packed.k(), rows * packed.n()) {
            bail!(
                "{rows} rows in {} values to {} do not fit a weight [{}, {}]",
                x.len(),
                out.len(),
                packed.n(),
                packed.k()
            );
        }
    }
    let kind = |layer: &Linear| (layer.isa, layer.packed.format().acts);
    let Some(first) = layers.first() else {
        return Ok(());
    };
    if layers.iter().all(|layer| kind(layer) == kind(first)) {
        together(layers, x, acts, out);
    } else {
        for (layer, out) in layers.into_iter().zip(out) {
            together([layer], x, acts, [out]);
        }
    }
    Ok(())
}

/// Products with weights that want the same kind of activations.
fn together<const N: usize>(
    layers: [&Linear; N],
    x: &[f32],
    acts: &mut QuantizedRows,
    out: [&mut [f32]; N],
) {
    let (isa, first) = (layers[0].isa, &layers[0].packed);
    let (kind, k) = (first.format().acts, first.k());
    let rows = if kind == ActKind::Floats {
        Rows::Floats { x, k }
    } else {
        acts.fill(isa, kind, x, k);
        Rows::Quantized(acts)
    };
    matmul_into(isa, rows, layers.map(|layer| &*layer.packed), out);
}

#[cfg(test)]
mod tests {
    use super::super::table::Format;
    use super::super::tests::{Weight, noise, product};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_with_several_weights_are_those_with_each_bit_for_bit(
            kinds in prop::array::uniform3(0usize..16), n in prop::array::uniform3(1usize..60),
            rows in 1usize..10, seed in any::<u64>(),
        ) {
            // All formats take 512 inputs.
            let k = 512;
            let formats: Vec<_> = Format::all().collect();
            let linears: Vec<_> = kinds.iter().zip(n).map(|(&kind, n)| {
                Weight::wild(formats[kind], n, k, seed).linear()
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
    fn rows_that_are_not_there_and_rooms_of_another_size_are_an_error() {
        for format in Format::all() {
            let linear = Weight::wild(format, 19, 256, 5).linear();
            let mut row = vec![0.0; 256];
            linear.row_into(18, &mut row).unwrap();
            assert!(linear.row_into(19, &mut row).is_err());
            assert!(linear.row_into(0, &mut row[1..]).is_err());
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_an_error() {
        for format in Format::all() {
            let linear = Weight::wild(format, 20, 256, 1).linear();
            let mut acts = QuantizedRows::with_room(0);
            for (x, rows, out) in [(256, 1, 19), (255, 1, 20), (256, 2, 20), (512, 2, 20)] {
                let (x, mut out) = (vec![0.0; x], vec![0.0; out]);
                assert!(products_into([&linear], &x, rows, &mut acts, [&mut out]).is_err());
            }
        }
    }
}
