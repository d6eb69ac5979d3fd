//! Rows of activations.
//!
//! Owns the memory of quantized rows. One [`QuantizedRows`] serves every
//! weight of the same [`ActKind`]: q, k and v share one, gate and up another.

use super::acts::{ActBlock, ActKind, QUANT};
use super::isa::Isa;
use super::table;
use crate::profile::{Part, clock};
use crate::thread_pool::{FEW, thread_pool};

/// Rows of activations, quantized once and used by any number of weights.
#[derive(Debug, Clone)]
pub struct QuantizedRows {
    kind: ActKind,
    rows: usize,
    row_blocks: usize,
    blocks: Vec<ActBlock>,
}

/// A pointer that threads write disjoint parts of.
pub(super) struct SendPtr<T>(pub *mut T);
// SAFETY: what is written through it is disjoint per thread, by the users'
// own promises, and of a type that may move between threads.
unsafe impl<T: Send> Sync for SendPtr<T> {}
impl<T> SendPtr<T> {
    /// By method, so that closures capture the wrapper, not the pointer.
    pub(super) fn get(&self) -> *mut T {
        self.0
    }
}

/// Rows from which quantizing is worth the threads.
const PARALLEL_ROWS: usize = 8;

impl QuantizedRows {
    /// Quantizes `x`, rows of `k` values; `k` is a multiple of the kind's
    /// block and `x` of `k`.
    pub fn new(isa: Isa, kind: ActKind, x: &[f32], k: usize) -> QuantizedRows {
        let mut rows = QuantizedRows::with_room(0);
        rows.fill(isa, kind, x, k);
        rows
    }

    /// No rows, and room for so many values before [`QuantizedRows::fill`]
    /// has to ask for memory.
    pub fn with_room(values: usize) -> QuantizedRows {
        QuantizedRows {
            kind: ActKind::Block32,
            rows: 0,
            row_blocks: 0,
            blocks: Vec::with_capacity(values.div_ceil(QUANT)),
        }
    }

    /// Replaces the rows by those of `x`; as [`QuantizedRows::new`], in the
    /// memory at hand.
    pub fn fill(&mut self, isa: Isa, kind: ActKind, x: &[f32], k: usize) {
        let _clock = clock(Part::Linear);
        assert!(k > 0 && k.is_multiple_of(kind.block()) && x.len().is_multiple_of(k));
        let (rows, row_blocks) = (x.len() / k, k / QUANT);
        (self.kind, self.rows, self.row_blocks) = (kind, rows, row_blocks);
        let blocks = &mut self.blocks;
        blocks.resize(rows * row_blocks, ActBlock::ZERO);
        if rows < PARALLEL_ROWS {
            table::quantize(isa, kind, x, blocks);
        } else {
            let base = SendPtr(blocks.as_mut_ptr());
            thread_pool().spread_range(rows, FEW, |range| {
                let len = range.len() * row_blocks;
                // SAFETY: the pool hands out disjoint ranges of 0..rows, each
                // row is `row_blocks` blocks of `blocks`, which outlives the
                // call and is not touched otherwise until it returns.
                let out = unsafe {
                    std::slice::from_raw_parts_mut(base.get().add(range.start * row_blocks), len)
                };
                table::quantize(isa, kind, &x[range.start * k..range.end * k], out);
            });
        }
    }

    /// How the rows were quantized.
    pub fn kind(&self) -> ActKind {
        self.kind
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn k(&self) -> usize {
        self.row_blocks * QUANT
    }

    /// The blocks of rows `from..from + rows`, row by row.
    pub fn blocks(&self, from: usize, rows: usize) -> &[ActBlock] {
        &self.blocks[from * self.row_blocks..(from + rows) * self.row_blocks]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_family_quantizes_exactly_as_the_reference(
            seed in 0u64..1 << 40, rows in 1usize..12, blocks in 1usize..4, big in any::<bool>(), wide in any::<bool>(),
        ) {
            let kind = if big { ActKind::Super256 } else { ActKind::Block32 };
            let k = kind.block() * blocks;
            let mut x = super::super::tests::noise(seed, rows * k);
            if wide {
                // Exact ties, repeated peaks of both signs, zeros, extremes.
                for (i, v) in x.iter_mut().enumerate() {
                    *v = [0.0, 127.0, -127.0, 0.5, -0.5, 2.5, 63.5, f32::NAN, 1e-30, *v][(i * 7 + rows) % 10];
                }
            }
            let want = QuantizedRows::new(Isa::SCALAR, kind, &x, k);
            for isa in Isa::all() {
                let got = QuantizedRows::new(isa, kind, &x, k);
                prop_assert_eq!(&got.blocks, &want.blocks, "{}", isa.name());
            }
        }

        #[test]
        fn a_code_times_its_step_is_within_half_a_step(seed in 0u64..1 << 40, big in any::<bool>()) {
            let kind = if big { ActKind::Super256 } else { ActKind::Block32 };
            let x = super::super::tests::noise(seed, kind.block());
            let got = QuantizedRows::new(Isa::SCALAR, kind, &x, kind.block());
            for (x, b) in x.chunks(QUANT).zip(&got.blocks) {
                for (x, q) in x.iter().zip(b.q) {
                    // The step itself is rounded to f16: 127 times 2^-11.
                    prop_assert!((x - f32::from(q) * b.d).abs() <= 0.57 * b.d.abs());
                }
            }
        }
    }

    #[test]
    fn infinities_and_all_zero_blocks_do_not_panic() {
        for kind in [ActKind::Block32, ActKind::Super256] {
            for v in [
                0.0,
                f32::INFINITY,
                f32::NEG_INFINITY,
                f32::NAN,
                f32::MIN_POSITIVE,
            ] {
                let x = vec![v; kind.block()];
                for isa in Isa::all() {
                    let got = QuantizedRows::new(isa, kind, &x, kind.block());
                    assert!(got.blocks.iter().all(|b| b.q.iter().all(|&q| q != i8::MIN)));
                }
            }
        }
    }
}
