//! The reference family: safe Rust over the tile layout.
//!
//! It fixes the arithmetic that every other family repeats exactly (see the
//! reference of each format), so that families are compared bit for bit.

use super::super::format::Layout;
use super::super::simd::TILE_ROWS;

/// As the other families' entries; any processor will do.
///
/// # Safety
/// Behind `tile` there are `blocks` blocks of 16 rows, behind `acts` `MT` rows
/// of `F::Act` with as many inputs, behind `out` room for `MT` tiles.
pub(in super::super) unsafe fn run<F: Layout, const MT: usize>(
    tile: *const u8,
    blocks: usize,
    acts: *const (),
    out: *mut [f32; TILE_ROWS],
) {
    let per = blocks * F::BLOCK / F::ACT_WEIGHTS;
    // SAFETY: the caller's promises.
    let (tile, acts, out) = unsafe {
        (
            std::slice::from_raw_parts(tile, blocks * F::TILE_BYTES),
            std::slice::from_raw_parts(acts.cast::<F::Act>(), MT * per),
            std::slice::from_raw_parts_mut(out, MT),
        )
    };
    for (m, out) in out.iter_mut().enumerate() {
        let acts = &acts[m * per..(m + 1) * per];
        for (row, out) in out.iter_mut().enumerate() {
            *out = F::reference(tile, row, acts);
        }
    }
}
