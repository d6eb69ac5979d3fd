//! The product of quantized activations with a packed weight: blocking,
//! threads, and the choice of the kernel.
//!
//! Work is split over tiles of output rows, which the thread pool takes one by one.

use super::acts::{ActBlock, QuantizedRows};
use super::isa::Isa;
use super::pack::{Format, Packed, QUANT, TILE_ROWS};
use super::scalar;
use crate::profile::{Part, clock};
use crate::thread_pool::{FEW, MANY, thread_pool};

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

/// Bytes of activations that go round while a group of tiles stays in the L1
/// and L2 caches.
const ACTS_BYTES: usize = 96 * 1024;

/// Multiplications that one thread does sooner than the pool can be woken and
/// waited for (some microseconds, and far longer where a worker's processor is
/// busy with somebody else's work).
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
    acts: &QuantizedRows,
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
/// nobody else touches. All of it is written.
unsafe fn products<const N: usize>(
    isa: Isa,
    acts: &QuantizedRows,
    jobs: [(&Packed, SendPtr<f32>); N],
) {
    assert!(isa.available(), "kernels of a family this processor lacks");
    for (weight, _) in &jobs {
        assert_eq!(acts.k(), weight.k(), "activations and weight differ in k");
    }
    let rows = acts.rows();
    let row_bytes = size_of_val(acts.blocks(0, rows.min(1)));
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
/// `out` has room for all rows of `weight.n()`, and nobody else touches the
/// tile's columns. The processor has `isa`.
unsafe fn tile_rows(
    isa: Isa,
    weight: &Packed,
    tile: usize,
    acts: &QuantizedRows,
    rows: std::ops::Range<usize>,
    out: *mut f32,
) {
    let mut row = rows.start;
    while row < rows.end {
        // SAFETY: the caller's promises; `step` takes rows that are there.
        row += unsafe {
            match rows.end - row {
                4.. => step::<4>(isa, weight, tile, acts, row, out),
                2.. => step::<2>(isa, weight, tile, acts, row, out),
                _ => step::<1>(isa, weight, tile, acts, row, out),
            }
        };
    }
}

/// `MT` rows from `row` on; returns `MT`.
///
/// # Safety
/// As [`tile_rows`], and the rows are there.
unsafe fn step<const MT: usize>(
    isa: Isa,
    weight: &Packed,
    tile: usize,
    acts: &QuantizedRows,
    row: usize,
    out: *mut f32,
) -> usize {
    let mut products = [[0.0; TILE_ROWS]; MT];
    let acts = acts.blocks(row, MT);
    kernel(isa, weight.format(), weight.tile(tile), acts, &mut products);
    let columns = TILE_ROWS.min(weight.n() - tile * TILE_ROWS);
    for (r, products) in products.iter().enumerate() {
        // SAFETY: the row and the tile's columns lie within `out`.
        unsafe {
            let to = out.add((row + r) * weight.n() + tile * TILE_ROWS);
            std::ptr::copy_nonoverlapping(products.as_ptr(), to, columns);
        }
    }
    MT
}

/// Runs the family's kernel: one tile of `format`, whole blocks, with `MT` rows
/// of activations that have its inputs. Callers have checked that the processor
/// has the family.
pub(super) fn kernel<const MT: usize>(
    isa: Isa,
    format: Format,
    tile: &[u8],
    acts: &[ActBlock],
    out: &mut [[f32; TILE_ROWS]; MT],
) {
    debug_assert!(isa.available());
    debug_assert_eq!(
        acts.len() * QUANT * format.tile_block_bytes(),
        MT * tile.len() * format.block_weights()
    );
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `products` checked that the processor has the family; a tile of
        // `weight` is whole blocks, and `acts` are MT rows of its k.
        Isa::Avx2 => unsafe { super::avx2::tile_rows(format, tile, acts, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `products` checked that the processor has the family; a tile of
        // `weight` is whole blocks, and `acts` are MT rows of its k.
        Isa::AvxVnni => unsafe { super::avxvnni::tile_rows(format, tile, acts, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `products` checked that the processor has the family; a tile of
        // `weight` is whole blocks, and `acts` are MT rows of its k.
        Isa::Avx512Vnni => unsafe { super::avx512vnni::tile_rows(format, tile, acts, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::Neon => unsafe { super::neon::tile_rows(format, tile, acts, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::NeonDot => unsafe { super::neon_dot::tile_rows(format, tile, acts, out) },
        _ => {
            for (acts, out) in acts.chunks_exact(acts.len() / MT).zip(out) {
                *out = scalar::tile_row(format, tile, acts);
            }
        }
    }
}
