//! Super-blocks of 256 weights with a scale for 32, and an f16 for all.
//!
//! A tile block: 8 groups of codes; scales, a byte each, `group * 16 + row`;
//! with `MIN` minimums likewise; `d`, and with `MIN` `dmin`.

use super::super::acts::ActBlock;
use super::super::simd::{Simd, TILE_ROWS};
use super::codes::Codes;
use super::half_at;
use super::kernels::{fetch_ahead, group, reference, write};

/// Bytes of the scales of 8 groups.
const SCALES: usize = 8 * TILE_ROWS;
/// Bytes of 16 f16.
const HALVES: usize = 2 * TILE_ROWS;

const fn scales_at<C: Codes>() -> usize {
    8 * C::BYTES
}

const fn d_at<C: Codes>(min: bool) -> usize {
    8 * C::BYTES + SCALES * (1 + min as usize)
}

/// Bytes of a tile block.
pub const fn tile_bytes<C: Codes>(min: bool) -> usize {
    d_at::<C>(min) + HALVES * (1 + min as usize)
}

/// Puts what belongs to the whole block: `d` and `dmin`.
pub fn pack_halves<C: Codes, const MIN: bool>(dst: &mut [u8], r: usize, halves: &[u8]) {
    for (i, half) in halves.chunks_exact(2).enumerate() {
        dst[d_at::<C>(MIN) + i * HALVES + 2 * r..][..2].copy_from_slice(half);
    }
}

/// Puts a group: its codes, its scale and its minimum.
pub fn pack_group<C: Codes, const MIN: bool>(
    dst: &mut [u8],
    r: usize,
    g: usize,
    codes: &[u8; 32],
    (scale, min): (u8, u8),
) {
    C::put(&mut dst[g * C::BYTES..][..C::BYTES], r, codes);
    dst[scales_at::<C>() + g * TILE_ROWS + r] = scale;
    if MIN {
        dst[scales_at::<C>() + SCALES + g * TILE_ROWS + r] = min;
    }
}

/// A scale as it counts: with minimums it is unsigned.
fn scale<C: Codes, const MIN: bool>(block: &[u8], g: usize, r: usize) -> (i32, i32) {
    let at = scales_at::<C>() + g * TILE_ROWS + r;
    match MIN {
        true => (i32::from(block[at]), i32::from(block[at + SCALES])),
        false => (i32::from(block[at].cast_signed()), 0),
    }
}

/// The weights of a row.
#[expect(clippy::cast_precision_loss, reason = "codes and scales have 8 bits")]
pub fn values<C: Codes, const MIN: bool>(block: &[u8], r: usize, out: &mut [f32]) {
    let halves = &block[d_at::<C>(MIN)..];
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale::<C, MIN>(block, g, r);
        let d = half_at(halves, 2 * r) * scale as f32;
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * C::value(&block[g * C::BYTES..], r, i) as f32;
            if MIN {
                *out -= half_at(halves, HALVES + 2 * r) * min as f32;
            }
        }
    }
}

/// The scalar reference: sums in integers, then one fused multiply-add a block
/// for the scale and one for the minimum, in the order of the blocks.
#[expect(clippy::cast_precision_loss, reason = "the kernels convert the same")]
pub fn product<C: Codes, const MIN: bool>(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
    let mut acc = 0.0f32;
    let blocks = tile.chunks_exact(tile_bytes::<C>(MIN));
    for (block, acts) in blocks.zip(acts.chunks_exact(8)) {
        let (mut sum, mut mins) = (0, 0);
        for (g, act) in acts.iter().enumerate() {
            let (scale, min) = scale::<C, MIN>(block, g, r);
            sum += reference::<C>(&block[g * C::BYTES..], r, act, 0..32) * scale;
            mins += act.sum * min;
        }
        let halves = &block[d_at::<C>(MIN)..];
        acc = (sum as f32).mul_add(half_at(halves, 2 * r) * acts[0].d, acc);
        if MIN {
            acc = (-(mins as f32)).mul_add(half_at(halves, HALVES + 2 * r) * acts[0].d, acc);
        }
    }
    acc
}

/// The kernel.
///
/// # Safety
/// As [`super::Layout::products`].
#[inline(always)]
pub unsafe fn kernel<S: Simd, C: Codes, const MIN: bool, const MT: usize>(
    tile: *const u8,
    blocks: usize,
    acts: *const ActBlock,
    out: &mut [[f32; TILE_ROWS]; MT],
) {
    const {
        assert!(
            C::OFFSET == 0,
            "offsets are in the minimum, or in wide codes"
        )
    };
    let (bytes, stride) = (const { tile_bytes::<C>(MIN) }, 8 * blocks);
    // SAFETY: b is a block of the tile and of each row.
    unsafe {
        let mut acc = [S::each(S::zero_f()); MT];
        for b in 0..blocks {
            let (t, a) = (tile.add(b * bytes), acts.add(8 * b));
            let mut dots = [S::each(S::zero()); MT];
            let mut mins = [S::each(S::zero()); MT];
            for g in 0..8 {
                let (t_group, a) = (t.add(g * C::BYTES), a.add(g));
                fetch_ahead::<S>(t_group, C::BYTES);
                let mut scales = S::each(S::zero());
                for p in 0..S::PARTS {
                    let at = t.add(scales_at::<C>() + g * TILE_ROWS + p * S::LANES);
                    scales[p] = if MIN { S::load_u8(at) } else { S::load_i8(at) };
                    if MIN {
                        let min = S::load_u8(at.add(SCALES));
                        for r in 0..MT {
                            let sum = S::splat((*a.add(r * stride)).sum);
                            mins[r][p] = S::add(mins[r][p], S::mul_pairs(min, sum));
                        }
                    }
                }
                group::<S, C, MT, true>(t_group, a, stride, scales, &mut dots);
            }
            for p in 0..S::PARTS {
                let halves = t.add(d_at::<C>(MIN) + p * 2 * S::LANES);
                let d = S::load_f16(halves);
                let dmin = if MIN {
                    S::load_f16(halves.add(HALVES))
                } else {
                    S::zero_f()
                };
                for r in 0..MT {
                    let step = S::splat_f((*a.add(r * stride)).d);
                    acc[r][p] = S::fma(S::to_f32(dots[r][p]), S::mul(d, step), acc[r][p]);
                    if MIN {
                        acc[r][p] = S::fnma(S::to_f32(mins[r][p]), S::mul(dmin, step), acc[r][p]);
                    }
                }
            }
        }
        write::<S, MT>(&acc, out);
    }
}
