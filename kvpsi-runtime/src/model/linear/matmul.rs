//! The product of activations with packed weights: blocking and threads.
//!
//! Work is split over tiles of output rows, which the thread pool takes one by one.

use super::isa::Isa;
use super::packed::Packed;
use super::rows::{QuantizedRows, SendPtr};
use super::simd::TILE_ROWS;
use super::table::{Acts, STEPS, most_rows};
use crate::profile::{Part, clock};
use crate::thread_pool::{FEW, MANY, thread_pool};

/// Rows of activations.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Quantized for the weights' formats.
    Quantized(&'a QuantizedRows),
    /// Rows of `k` floats.
    Floats {
        /// All rows.
        x: &'a [f32],
        /// Inputs of a row.
        k: usize,
    },
}

impl<'a> Rows<'a> {
    fn rows(self) -> usize {
        match self {
            Rows::Quantized(acts) => acts.rows(),
            Rows::Floats { x, k } => x.len() / k,
        }
    }

    fn k(self) -> usize {
        match self {
            Rows::Quantized(acts) => acts.k(),
            Rows::Floats { k, .. } => k,
        }
    }

    fn row_bytes(self) -> usize {
        match self {
            Rows::Quantized(acts) => size_of_val(acts.blocks(0, acts.rows().min(1))),
            Rows::Floats { k, .. } => k * size_of::<f32>(),
        }
    }

    fn some(self, from: usize, rows: usize) -> Acts<'a> {
        match self {
            Rows::Quantized(acts) => Acts::Quantized(acts.blocks(from, rows)),
            Rows::Floats { x, k } => Acts::Floats(&x[from * k..(from + rows) * k]),
        }
    }
}

/// Bytes of activations that go round while a group of tiles stays in the L1
/// and L2 caches.
const ACTS_BYTES: usize = 96 * 1024;

/// Multiplications that one thread does sooner than the pool can be woken and
/// waited for (some microseconds, and far longer where a worker's processor is
/// busy with other work).
const ALONE: usize = 192 * 1024;

/// Rows from which a product takes long enough to be cut into many pieces.
const LONG_ROWS: usize = 16;

/// `acts` times each transposed weight, to its `out`, `[rows, n]`. Their tiles
/// are shared out together: the threads meet once, and small weights are no
/// one thread's alone. Every weight is read once for all rows.
///
/// The activations were quantized for the weights' formats and have their `k`.
pub fn matmul_into<const N: usize>(
    isa: Isa,
    acts: Rows<'_>,
    weights: [&Packed; N],
    out: [&mut [f32]; N],
) {
    let mut out = out.into_iter();
    let jobs = weights.map(|weight| {
        let out = out.next().unwrap_or_default();
        assert_eq!(out.len(), acts.rows() * weight.n(), "room for the product");
        (weight, SendPtr(out.as_mut_ptr()))
    });
    // SAFETY: each slice is `[rows, n]` of its weight, and borrowed mutably.
    unsafe { products(isa, acts, jobs) };
}

/// The products of the same rows with each weight.
///
/// # Safety
/// Behind each pointer there is room for `[rows, n]` of its weight, which
/// no other thread touches. All of it is written.
unsafe fn products<const N: usize>(isa: Isa, acts: Rows<'_>, jobs: [(&Packed, SendPtr<f32>); N]) {
    for (weight, _) in &jobs {
        assert_eq!(acts.k(), weight.k(), "activations and weight differ in k");
    }
    let rows = acts.rows();
    let row_bytes = acts.row_bytes();
    let chunk = (ACTS_BYTES / row_bytes.max(1)).max(8);
    let work = |tiles: std::ops::Range<usize>| {
        let mut first = 0;
        for (weight, out) in &jobs {
            let after = first + weight.tiles();
            let own = tiles.start.max(first)..tiles.end.min(after);
            let mut from = if own.is_empty() { rows } else { 0 };
            while from < rows {
                let until = rows.min(from + chunk);
                for tile in own.clone() {
                    // SAFETY: the pool hands out disjoint tiles, each its own
                    // columns of an `out`, which has room by the caller's promise.
                    unsafe { tile_rows(isa, weight, tile - first, acts, from..until, out.get()) };
                }
                from = until;
            }
            first = after;
        }
    };
    let tiles = jobs.iter().map(|(weight, _)| weight.tiles()).sum();
    let columns: usize = jobs.iter().map(|(weight, _)| weight.n()).sum();
    let _clock = clock(Part::Linear);
    if rows * columns * acts.k() <= ALONE {
        work(0..tiles);
    } else {
        let pieces = if rows < LONG_ROWS { FEW } else { MANY };
        thread_pool().spread_range(tiles, pieces, work);
    }
}

/// One tile against a range of rows, in steps of as many rows as the kernels
/// take at once.
///
/// # Safety
/// `out` has room for all rows of `weight.n()`, and no other thread touches the
/// tile's columns.
unsafe fn tile_rows(
    isa: Isa,
    weight: &Packed,
    tile: usize,
    acts: Rows<'_>,
    rows: std::ops::Range<usize>,
    out: *mut f32,
) {
    const MOST: usize = STEPS[STEPS.len() - 1];
    let most = most_rows(isa);
    let columns = TILE_ROWS.min(weight.n() - tile * TILE_ROWS);
    let mut row = rows.start;
    while row < rows.end {
        let left = most.min(rows.end - row);
        let step = STEPS.iter().rposition(|rows| *rows <= left).unwrap_or(0);
        let rows = STEPS[step];
        let mut products = [[0.0; TILE_ROWS]; MOST];
        let kernel = weight.format().kernel(isa, step);
        kernel.run(
            weight.tile(tile),
            acts.some(row, rows),
            &mut products[..rows],
        );
        for (r, products) in products[..rows].iter().enumerate() {
            // SAFETY: the row and the tile's columns lie within `out`.
            unsafe {
                let to = out.add((row + r) * weight.n() + tile * TILE_ROWS);
                std::ptr::copy_nonoverlapping(products.as_ptr(), to, columns);
            }
        }
        row += rows;
    }
}
