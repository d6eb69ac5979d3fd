//! Super-blocks of 256 weights with a scale for 16, and an f16 for all.
//!
//! A tile block: 8 groups of codes; scales, a byte each,
//! `(2 * group + half) * 16 + row`, signed, or with `MIN` the scale in the low
//! and the minimum in the high four bits; `d`, and with `MIN` `dmin`.

use super::super::acts::ActBlock;
use super::super::simd::{Simd, TILE_ROWS};
use super::codes::Codes;
use super::half_at;
use super::kernels::{fetch_ahead, half, reference, write};

/// Bytes of 16 f16.
const HALVES: usize = 2 * TILE_ROWS;

/// The power of two that an offset is.
const fn log2(offset: i32) -> u8 {
    let mut power = 0;
    while 1 << power < offset {
        power += 1;
    }
    assert!(offset == 1 << power);
    power
}

const fn scales_at<C: Codes>() -> usize {
    8 * C::BYTES
}

const fn d_at<C: Codes>() -> usize {
    8 * C::BYTES + 16 * TILE_ROWS
}

/// Bytes of a tile block.
pub const fn tile_bytes<C: Codes>(min: bool) -> usize {
    d_at::<C>() + HALVES * (1 + min as usize)
}

/// Puts what belongs to the whole block: `d` and `dmin`, and 16 scales.
pub fn pack_scales<C: Codes>(dst: &mut [u8], r: usize, halves: &[u8], scales: &[u8; 16]) {
    for (i, half) in halves.chunks_exact(2).enumerate() {
        dst[d_at::<C>() + i * HALVES + 2 * r..][..2].copy_from_slice(half);
    }
    for (i, scale) in scales.iter().enumerate() {
        dst[scales_at::<C>() + i * TILE_ROWS + r] = *scale;
    }
}

/// Puts the codes of a group.
pub fn pack_group<C: Codes>(dst: &mut [u8], r: usize, g: usize, codes: &[u8; 32]) {
    C::put(&mut dst[g * C::BYTES..][..C::BYTES], r, codes);
}

fn scale<C: Codes, const MIN: bool>(block: &[u8], i: usize, r: usize) -> (i32, i32) {
    let byte = block[scales_at::<C>() + i * TILE_ROWS + r];
    match MIN {
        true => (i32::from(byte & 15), i32::from(byte >> 4)),
        false => (i32::from(byte.cast_signed()), 0),
    }
}

/// The weights of a row.
#[expect(clippy::cast_precision_loss, reason = "codes and scales have 8 bits")]
pub fn values<C: Codes, const MIN: bool>(block: &[u8], r: usize, out: &mut [f32]) {
    let halves = &block[d_at::<C>()..];
    for (n, out) in out.iter_mut().enumerate() {
        let (scale, min) = scale::<C, MIN>(block, n / 16, r);
        let code = C::value(&block[n / 32 * C::BYTES..], r, n % 32);
        *out = half_at(halves, 2 * r) * scale as f32 * code as f32;
        if MIN {
            *out -= half_at(halves, HALVES + 2 * r) * min as f32;
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
        for i in 0..16 {
            let (scale, min) = scale::<C, MIN>(block, i, r);
            let (act, h) = (&acts[i / 2], i % 2);
            let codes = &block[i / 2 * C::BYTES..];
            sum += reference::<C>(codes, r, act, 16 * h..16 * h + 16) * scale;
            mins += i32::from(act.halves[h]) * min;
        }
        let halves = &block[d_at::<C>()..];
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
                for p in 0..S::PARTS {
                    let at = t.add(scales_at::<C>() + 2 * g * TILE_ROWS + p * S::LANES);
                    let (first, last) = if MIN {
                        let (first, last) = (S::load_u8(at), S::load_u8(at.add(TILE_ROWS)));
                        let high = S::pair(S::shr(first, 4), S::shr(last, 4));
                        let pair = S::and_bytes(high, 15);
                        for r in 0..MT {
                            let [x, y] = (*a.add(r * stride)).halves;
                            let min = S::mul_pairs(pair, S::splat_pair(x, y));
                            mins[r][p] = S::add(mins[r][p], min);
                        }
                        (S::and_bytes(first, 15), S::and_bytes(last, 15))
                    } else {
                        (S::load_i8(at), S::load_i8(at.add(TILE_ROWS)))
                    };
                    half::<S, C, MT>((0, p), t_group, a, stride, first, &mut dots);
                    half::<S, C, MT>((1, p), t_group, a, stride, last, &mut dots);
                    if C::OFFSET != 0 {
                        // The codes' offset, taken off both halves.
                        let pair = S::pair(first, last);
                        for r in 0..MT {
                            let [x, y] = (*a.add(r * stride)).halves;
                            let off = S::mul_pairs(pair, S::splat_pair(x, y));
                            let off = S::shl32(
                                off,
                                const { log2(if C::OFFSET == 0 { 1 } else { C::OFFSET }) },
                            );
                            dots[r][p] = S::sub(dots[r][p], off);
                        }
                    }
                }
            }
            for p in 0..S::PARTS {
                let halves = t.add(d_at::<C>() + p * 2 * S::LANES);
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
