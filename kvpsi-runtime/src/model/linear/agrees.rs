//! Whether a family of kernels gives the reference's bits on this processor.
//!
//! Owns a few tiles and rows of no meaning and the comparison, which takes less
//! than a millisecond, once a process. A family is chosen by what the processor
//! says of itself, and not every processor that has AVX-512 or AVX-VNNI was
//! there when its kernels were written: one that computes something else is not
//! used, and said to be so.

use super::acts::{ActKind, QuantizedRows};
use super::isa::Isa;
use super::matmul::kernel;
use super::pack::{Format, SUPER, TILE_ROWS};

const FORMATS: [Format; 5] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q8_0,
    Format::Q4K,
    Format::Q6K,
];
/// Inputs of a row: two of the larger blocks.
const K: usize = 2 * SUPER;
/// Rows that the kernels take at once, at most.
const ROWS: usize = 4;

/// Numbers in no order, the same each time (Knuth's MMIX generator).
struct Noise(u64);

impl Noise {
    fn byte(&mut self) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0.to_be_bytes()[0]
    }
}

/// Codes of all values; every f16 among them is a number below 2.
fn tile(format: Format, noise: &mut Noise) -> Vec<u8> {
    let bytes = K / format.block_weights() * format.tile_block_bytes();
    let mut tile: Vec<u8> = (0..bytes).map(|_| noise.byte()).collect();
    // The upper byte of each: no exponent of all ones.
    tile.iter_mut().skip(1).step_by(2).for_each(|b| *b &= 0xbf);
    tile
}

fn rows(noise: &mut Noise) -> Vec<f32> {
    let mut value = || f32::from(noise.byte()) / 16.0 - 8.0;
    (0..ROWS * K).map(|_| value()).collect()
}

/// The family computes what the scalar reference does.
pub(super) fn agrees(isa: Isa) -> bool {
    let mut noise = Noise(1);
    let x = rows(&mut noise);
    FORMATS.into_iter().all(|format| {
        let tile = tile(format, &mut noise);
        let kind = ActKind::of(format);
        let acts = QuantizedRows::new(isa, kind, &x, K);
        let want = QuantizedRows::new(Isa::Scalar, kind, &x, K);
        acts.blocks(0, ROWS) == want.blocks(0, ROWS)
            && same::<1>(isa, format, &tile, &want)
            && same::<2>(isa, format, &tile, &want)
            && same::<4>(isa, format, &tile, &want)
    })
}

fn same<const MT: usize>(isa: Isa, format: Format, tile: &[u8], acts: &QuantizedRows) -> bool {
    let products = |isa| {
        let mut out = [[0.0f32; TILE_ROWS]; MT];
        kernel(isa, format, tile, acts.blocks(0, MT), &mut out);
        out.map(|row| row.map(f32::to_bits))
    };
    products(isa) == products(Isa::Scalar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_that_this_processor_has_agrees_with_the_reference() {
        let here = Isa::ALL.into_iter().filter(|isa| isa.available());
        for isa in here {
            assert!(agrees(isa), "{isa:?}");
        }
    }

    #[test]
    fn products_of_other_activations_are_not_the_same() {
        let mut noise = Noise(1);
        let x = rows(&mut noise);
        let y = rows(&mut noise);
        for format in FORMATS {
            let tile = tile(format, &mut noise);
            let kind = ActKind::of(format);
            let products = |x: &[f32]| {
                let acts = QuantizedRows::new(Isa::Scalar, kind, x, K);
                let mut out = [[0.0f32; TILE_ROWS]; 1];
                kernel(Isa::Scalar, format, &tile, acts.blocks(0, 1), &mut out);
                out
            };
            let (a, b) = (products(&x), products(&y));
            assert!(a.iter().flatten().all(|v| v.is_finite()));
            assert_ne!(a, b, "{format:?}");
        }
    }
}
