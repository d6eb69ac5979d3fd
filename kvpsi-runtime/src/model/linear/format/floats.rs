//! Formats of floats: f32 activations, f32 sums.
//!
//! A tile block: one input of 16 rows.

use super::super::simd::{Simd, TILE_ROWS};
use super::kernels::write;
use super::{ActKind, Layout};
use std::marker::PhantomData;

/// A kind of float.
pub trait Float: 'static {
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

/// Floats of one kind.
pub struct Floats<L>(PhantomData<L>);

impl<L: Float> Floats<L> {
    /// Puts a row's value.
    pub fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        dst[r * L::BYTES..(r + 1) * L::BYTES].copy_from_slice(src);
    }

    fn value(block: &[u8], r: usize) -> f32 {
        L::get(&block[r * L::BYTES..(r + 1) * L::BYTES])
    }
}

impl<L: Float> Layout for Floats<L> {
    const BLOCK: usize = 1;
    const TILE_BYTES: usize = TILE_ROWS * L::BYTES;
    const ACTS: ActKind = ActKind::Floats;
    type Act = f32;
    const ACT_WEIGHTS: usize = 1;

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        out[0] = Self::value(block, r);
    }

    /// Two sums, of even and of odd inputs, each a chain of fused multiply-adds.
    fn reference(tile: &[u8], r: usize, acts: &[f32]) -> f32 {
        let mut sums = [0.0f32; 2];
        let blocks = tile.chunks_exact(Self::TILE_BYTES);
        for (k, (block, act)) in blocks.zip(acts).enumerate() {
            sums[k % 2] = Self::value(block, r).mul_add(*act, sums[k % 2]);
        }
        sums[0] + sums[1]
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const f32,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: k is a block of the tile and an input of each row.
        unsafe {
            let mut acc = [S::each(S::zero_f()); MT];
            for p in 0..S::PARTS {
                let part = tile.add(p * S::LANES * L::BYTES);
                let mut even = [S::zero_f(); MT];
                let mut odd = [S::zero_f(); MT];
                let mut k = 0;
                while k + 2 <= blocks {
                    let at = part.add(k * Self::TILE_BYTES);
                    S::prefetch(at.wrapping_add(S::AHEAD));
                    let (w, v) = (L::load::<S>(at), L::load::<S>(at.add(Self::TILE_BYTES)));
                    for r in 0..MT {
                        let a = acts.add(r * blocks + k);
                        even[r] = S::fma(w, S::splat_f(*a), even[r]);
                        odd[r] = S::fma(v, S::splat_f(*a.add(1)), odd[r]);
                    }
                    k += 2;
                }
                if k < blocks {
                    let w = L::load::<S>(part.add(k * Self::TILE_BYTES));
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
}
