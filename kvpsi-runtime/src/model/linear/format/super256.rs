//! Super-blocks of 256 weights: a scale for `PER` of them, 16 or 32, and an f16 for all.
//!
//! A tile block: 8 groups of codes; scales, a byte each, `i * 16 + row`, signed
//! unless there are minimums; `d`, and with `MIN` `dmin`. Minimums follow the
//! scales of 32 weights, and are the high four bits of those of 16.

use super::super::acts::ActBlock;
use super::super::simd::{Simd, TILE_ROWS};
use super::codes::Codes;
use super::kernels::{fetch_ahead, group, half, reference, write};
use super::{ActKind, Layout, half_at};
use std::marker::PhantomData;

/// Codes `C` with a scale for `PER` of them, and with `MIN` a minimum.
pub struct Super256<C, const PER: usize, const MIN: bool = false>(PhantomData<C>);

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

impl<C: Codes, const PER: usize, const MIN: bool> Super256<C, PER, MIN> {
    /// Scales of a row.
    const SCALES: usize = 256 / PER;
    /// Where they are in a tile block.
    const SCALES_AT: usize = 8 * C::BYTES;
    /// Whether minimums are bytes of their own.
    const APART: bool = MIN && PER == 32;
    /// Where the minimums are that are.
    const MINS_AT: usize = Self::SCALES_AT + Self::SCALES * TILE_ROWS;
    /// Where `d` is.
    const D_AT: usize = Self::MINS_AT + Self::APART as usize * Self::SCALES * TILE_ROWS;

    /// Puts a row's `d` (and `dmin`), the bytes of its scales (and minimums)
    /// in the order of the tile, and the codes of each group.
    pub fn pack(
        dst: &mut [u8],
        r: usize,
        halves: &[u8],
        scales: &[u8],
        codes: impl Fn(usize) -> [u8; 32],
    ) {
        for (i, half) in halves.chunks_exact(2).enumerate() {
            dst[Self::D_AT + i * HALVES + 2 * r..][..2].copy_from_slice(half);
        }
        for (i, scale) in scales.iter().enumerate() {
            dst[Self::SCALES_AT + i * TILE_ROWS + r] = *scale;
        }
        for g in 0..8 {
            C::put(&mut dst[g * C::BYTES..][..C::BYTES], r, &codes(g));
        }
    }

    /// A scale and a minimum as they count.
    fn scale(block: &[u8], i: usize, r: usize) -> (i32, i32) {
        let byte = block[Self::SCALES_AT + i * TILE_ROWS + r];
        match MIN {
            true if Self::APART => {
                let min = block[Self::MINS_AT + i * TILE_ROWS + r];
                (i32::from(byte), i32::from(min))
            }
            true => (i32::from(byte & 15), i32::from(byte >> 4)),
            false => (i32::from(byte.cast_signed()), 0),
        }
    }

    /// Adds the products of group `g` to `dots`, and those of its minimums.
    ///
    /// # Safety
    /// As [`group`]; `t` is a tile block, `a` the group's activations.
    #[inline(always)]
    unsafe fn scaled_32<S: Simd, const MT: usize>(
        (t, g): (*const u8, usize),
        a: *const ActBlock,
        stride: usize,
        dots: &mut [S::Parts<S::I>; MT],
        mins: &mut [S::Parts<S::I>; MT],
    ) {
        const {
            assert!(
                PER != 32 || C::OFFSET == 0,
                "offsets are in the minimum, or in wide codes"
            )
        };
        // SAFETY: the caller's promises.
        unsafe {
            let mut scales = S::each(S::zero());
            for p in 0..S::PARTS {
                let at = t.add(Self::SCALES_AT + g * TILE_ROWS + p * S::LANES);
                scales[p] = if MIN { S::load_u8(at) } else { S::load_i8(at) };
                if MIN {
                    let min = S::load_u8(at.add(Self::SCALES * TILE_ROWS));
                    for r in 0..MT {
                        let sum = S::splat((*a.add(r * stride)).sum);
                        mins[r][p] = S::add(mins[r][p], S::mul_pairs(min, sum));
                    }
                }
            }
            group::<S, C, MT, true>(t.add(g * C::BYTES), a, stride, scales, dots);
        }
    }

    /// As [`Self::scaled_32`], of two scales.
    ///
    /// # Safety
    /// The same.
    #[inline(always)]
    unsafe fn scaled_16<S: Simd, const MT: usize>(
        (t, g): (*const u8, usize),
        a: *const ActBlock,
        stride: usize,
        dots: &mut [S::Parts<S::I>; MT],
        mins: &mut [S::Parts<S::I>; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe {
            let t_group = t.add(g * C::BYTES);
            for p in 0..S::PARTS {
                let at = t.add(Self::SCALES_AT + 2 * g * TILE_ROWS + p * S::LANES);
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
                half::<S, C, MT>((0, p), t_group, a, stride, first, dots);
                half::<S, C, MT>((1, p), t_group, a, stride, last, dots);
                if C::OFFSET != 0 {
                    // The codes' offset, taken off both halves.
                    let pair = S::pair(first, last);
                    let by = const { log2(if C::OFFSET == 0 { 1 } else { C::OFFSET }) };
                    for r in 0..MT {
                        let [x, y] = (*a.add(r * stride)).halves;
                        let off = S::mul_pairs(pair, S::splat_pair(x, y));
                        dots[r][p] = S::sub(dots[r][p], S::shl32(off, by));
                    }
                }
            }
        }
    }
}

impl<C: Codes, const PER: usize, const MIN: bool> Layout for Super256<C, PER, MIN> {
    const BLOCK: usize = 256;
    const TILE_BYTES: usize = Self::D_AT + HALVES * (1 + MIN as usize);
    const ACTS: ActKind = ActKind::Super256;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    #[expect(clippy::cast_precision_loss, reason = "codes and scales have 8 bits")]
    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        let halves = &block[Self::D_AT..];
        for (i, out) in out.chunks_exact_mut(PER).enumerate() {
            let (scale, min) = Self::scale(block, i, r);
            let d = half_at(halves, 2 * r) * scale as f32;
            let codes = &block[i * PER / 32 * C::BYTES..];
            for (n, out) in out.iter_mut().enumerate() {
                *out = d * C::value(codes, r, i * PER % 32 + n) as f32;
                if MIN {
                    *out -= half_at(halves, HALVES + 2 * r) * min as f32;
                }
            }
        }
    }

    /// Sums in integers, then one fused multiply-add a block for the scale and
    /// one for the minimum, in the order of the blocks.
    #[expect(clippy::cast_precision_loss, reason = "the kernels convert the same")]
    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        let mut acc = 0.0f32;
        let blocks = tile.chunks_exact(Self::TILE_BYTES);
        for (block, acts) in blocks.zip(acts.chunks_exact(8)) {
            let (mut sum, mut mins) = (0, 0);
            for i in 0..Self::SCALES {
                let (scale, min) = Self::scale(block, i, r);
                let (act, from) = (&acts[i * PER / 32], i * PER % 32);
                let codes = &block[i * PER / 32 * C::BYTES..];
                sum += reference::<C>(codes, r, act, from..from + PER) * scale;
                mins += min
                    * match PER {
                        32 => act.sum,
                        _ => i32::from(act.halves[from / PER]),
                    };
            }
            let halves = &block[Self::D_AT..];
            acc = (sum as f32).mul_add(half_at(halves, 2 * r) * acts[0].d, acc);
            if MIN {
                acc = (-(mins as f32)).mul_add(half_at(halves, HALVES + 2 * r) * acts[0].d, acc);
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
        let stride = 8 * blocks;
        // SAFETY: b is a block of the tile and of each row.
        unsafe {
            let mut acc = [S::each(S::zero_f()); MT];
            for b in 0..blocks {
                let (t, a) = (tile.add(b * Self::TILE_BYTES), acts.add(8 * b));
                let mut dots = [S::each(S::zero()); MT];
                let mut mins = [S::each(S::zero()); MT];
                for g in 0..8 {
                    fetch_ahead::<S>(t.add(g * C::BYTES), C::BYTES);
                    if PER == 32 {
                        Self::scaled_32::<S, MT>((t, g), a.add(g), stride, &mut dots, &mut mins);
                    } else {
                        Self::scaled_16::<S, MT>((t, g), a.add(g), stride, &mut dots, &mut mins);
                    }
                }
                for p in 0..S::PARTS {
                    let halves = t.add(Self::D_AT + p * 2 * S::LANES);
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
                            acc[r][p] =
                                S::fnma(S::to_f32(mins[r][p]), S::mul(dmin, step), acc[r][p]);
                        }
                    }
                }
            }
            write::<S, MT>(&acc, out);
        }
    }
}
