//! Formats with a scale, and perhaps a minimum, for 32 weights.
//!
//! A tile block: the codes of a group, then 16 scales, then 16 minimums.

use super::super::acts::ActBlock;
use super::super::simd::{Simd, TILE_ROWS};
use super::codes::Codes;
use super::half_at;
use super::kernels::{fetch_ahead, group, reference, write};
use super::{ActKind, Layout};
use std::marker::PhantomData;

/// How scales lie in a tile block.
pub trait Scale: 'static {
    /// Bytes of one.
    const BYTES: usize;
    /// Those of `LANES` rows.
    ///
    /// # Safety
    /// The processor has the family's features; they are at `p`.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// That of row `r`.
    fn get(scales: &[u8], r: usize) -> f32;
}

/// An f16.
pub struct Half;

impl Scale for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's promises.
        unsafe { S::load_f16(p) }
    }
    fn get(scales: &[u8], r: usize) -> f32 {
        half_at(scales, 2 * r)
    }
}

/// Half a power of two (OCP MX, E8M0; halved as codes are doubled). An
/// exponent of 0, below what f32 holds in full precision, reads as zero.
pub struct HalfPower;

impl Scale for HalfPower {
    const BYTES: usize = 1;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's promises.
        unsafe { S::mul(S::as_f32(S::shl32(S::load_u8(p), 23)), S::splat_f(0.5)) }
    }
    fn get(scales: &[u8], r: usize) -> f32 {
        f32::from_bits(u32::from(scales[r]) << 23) * 0.5
    }
}

/// Codes `C` with scales `L`, and with `MIN` minimums of the same kind.
pub struct Block32<C, L = Half, const MIN: bool = false>(PhantomData<(C, L)>);

impl<C: Codes, L: Scale, const MIN: bool> Block32<C, L, MIN> {
    /// Puts a row's codes and the bytes of its scale (and minimum).
    pub fn pack(dst: &mut [u8], r: usize, codes: &[u8; 32], scales: &[u8]) {
        C::put(dst, r, codes);
        for (i, scale) in scales.chunks_exact(L::BYTES).enumerate() {
            let at = C::BYTES + (i * TILE_ROWS + r) * L::BYTES;
            dst[at..at + L::BYTES].copy_from_slice(scale);
        }
    }
}

impl<C: Codes, L: Scale, const MIN: bool> Layout for Block32<C, L, MIN> {
    const BLOCK: usize = 32;
    const TILE_BYTES: usize = C::BYTES + TILE_ROWS * L::BYTES * (1 + MIN as usize);
    const ACTS: ActKind = ActKind::Block32;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    #[expect(clippy::cast_precision_loss, reason = "codes have 8 bits at most")]
    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        let scales = &block[C::BYTES..];
        let d = L::get(scales, r);
        for (i, out) in out.iter_mut().enumerate() {
            *out = C::value(block, r, i) as f32 * d;
            if MIN {
                *out += L::get(&scales[TILE_ROWS * L::BYTES..], r);
            }
        }
    }

    /// One fused multiply-add a block for the scale and one for the minimum,
    /// in the order of the blocks.
    #[expect(clippy::cast_precision_loss, reason = "the kernels convert the same")]
    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        let mut acc = 0.0f32;
        for (block, act) in tile.chunks_exact(Self::TILE_BYTES).zip(acts) {
            let scales = &block[C::BYTES..];
            let sum = reference::<C>(block, r, act, 0..32);
            acc = (sum as f32).mul_add(L::get(scales, r) * act.d, acc);
            if MIN {
                acc = L::get(&scales[TILE_ROWS * L::BYTES..], r).mul_add(act.s, acc);
            }
        }
        acc
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const ActBlock,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: b is a block of the tile and of each row.
        unsafe {
            let mut acc = [S::each(S::zero_f()); MT];
            for b in 0..blocks {
                let (t, a) = (tile.add(b * Self::TILE_BYTES), acts.add(b));
                fetch_ahead::<S>(t, Self::TILE_BYTES);
                let mut sums = [S::each(S::zero()); MT];
                group::<S, C, MT, false>(t, a, blocks, S::each(S::zero()), &mut sums);
                for p in 0..S::PARTS {
                    let scales = t.add(C::BYTES + p * S::LANES * L::BYTES);
                    let d = L::load::<S>(scales);
                    let m = if MIN {
                        L::load::<S>(scales.add(TILE_ROWS * L::BYTES))
                    } else {
                        S::zero_f()
                    };
                    for r in 0..MT {
                        let a = &*a.add(r * blocks);
                        let mut sum = sums[r][p];
                        if C::OFFSET != 0 {
                            sum = S::sub(sum, S::splat(C::OFFSET * a.sum));
                        }
                        acc[r][p] = S::fma(S::to_f32(sum), S::mul(d, S::splat_f(a.d)), acc[r][p]);
                        if MIN {
                            acc[r][p] = S::fma(m, S::splat_f(a.s), acc[r][p]);
                        }
                    }
                }
            }
            write::<S, MT>(&acc, out);
        }
    }
}
