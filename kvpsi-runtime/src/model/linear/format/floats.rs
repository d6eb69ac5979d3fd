//! Formats of floats: f32 activations, f32 sums.
//!
//! A tile block: one input of 16 rows.

use super::super::simd::{Simd, TILE_ROWS};
use super::kernels::write;

/// A kind of float.
pub trait Float {
    /// Bytes of one.
    const BYTES: usize;
    /// Those of `LANES` rows.
    ///
    /// # Safety
    /// The processor has the family's features; they are at `p`.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// One.
    fn get(bytes: &[u8]) -> f32;
}

/// Bytes of a tile block.
pub const fn tile_bytes<L: Float>() -> usize {
    TILE_ROWS * L::BYTES
}

/// Puts a row's value.
pub fn pack<L: Float>(src: &[u8], dst: &mut [u8], r: usize) {
    dst[r * L::BYTES..(r + 1) * L::BYTES].copy_from_slice(src);
}

/// The weight of a row.
pub fn values<L: Float>(block: &[u8], r: usize, out: &mut [f32]) {
    out[0] = L::get(&block[r * L::BYTES..(r + 1) * L::BYTES]);
}

/// The scalar reference: two sums, of even and of odd inputs, each a chain of
/// fused multiply-adds.
pub fn product<L: Float>(tile: &[u8], r: usize, acts: &[f32]) -> f32 {
    let mut sums = [0.0f32; 2];
    let blocks = tile.chunks_exact(tile_bytes::<L>());
    for (k, (block, act)) in blocks.zip(acts).enumerate() {
        let w = L::get(&block[r * L::BYTES..(r + 1) * L::BYTES]);
        sums[k % 2] = w.mul_add(*act, sums[k % 2]);
    }
    sums[0] + sums[1]
}

/// The kernel.
///
/// # Safety
/// As [`super::Layout::products`].
#[inline(always)]
pub unsafe fn kernel<S: Simd, L: Float, const MT: usize>(
    tile: *const u8,
    blocks: usize,
    acts: *const f32,
    out: &mut [[f32; TILE_ROWS]; MT],
) {
    let bytes = const { tile_bytes::<L>() };
    // SAFETY: k is a block of the tile and an input of each row.
    unsafe {
        let mut acc = [S::each(S::zero_f()); MT];
        for p in 0..S::PARTS {
            let part = tile.add(p * S::LANES * L::BYTES);
            let mut even = [S::zero_f(); MT];
            let mut odd = [S::zero_f(); MT];
            let mut k = 0;
            while k + 2 <= blocks {
                let at = part.add(k * bytes);
                S::prefetch(at.wrapping_add(S::AHEAD));
                let (w, v) = (L::load::<S>(at), L::load::<S>(at.add(bytes)));
                for r in 0..MT {
                    let a = acts.add(r * blocks + k);
                    even[r] = S::fma(w, S::splat_f(*a), even[r]);
                    odd[r] = S::fma(v, S::splat_f(*a.add(1)), odd[r]);
                }
                k += 2;
            }
            if k < blocks {
                let w = L::load::<S>(part.add(k * bytes));
                for r in 0..MT {
                    even[r] = S::fma(w, S::splat_f(*acts.add(r * blocks + k)), even[r]);
                }
            }
            for r in 0..MT {
                acc[r][p] = S::add_f(even[r], odd[r]);
            }
        }
        write::<S, MT>(&acc, out);
    }
}
