//! IQ4_XS: 4-bit codes of a curve of 16 values, 6-bit scales for 32, an f16 for 256.

use super::codes::Curve;
use super::super32;
use super::{ActBlock, ActKind, Layout, Simd, TILE_ROWS};

/// IQ4_XS of ggml.
pub struct Iq4Xs;

type C = Curve;

impl Layout for Iq4Xs {
    const NAME: &'static str = "IQ4_XS";
    const ID: u32 = 23;
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 136;
    const TILE_BYTES: usize = super32::tile_bytes::<C>(false);
    const HIGH_BYTES: &'static [usize] = &[1];
    const ACTS: ActKind = ActKind::Super256;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        super32::pack_halves::<C, false>(dst, r, &src[..2]);
        let high = u16::from_le_bytes([src[2], src[3]]);
        for g in 0..8 {
            let nibbles = &src[8 + g * 16..][..16];
            let codes = std::array::from_fn(|i| nibbles[i % 16] >> (4 * (i / 16)) & 15);
            let low = src[4 + g / 2] >> (4 * (g % 2)) & 15;
            let [two, _] = (high >> (2 * g) & 3).to_le_bytes();
            let scale = (low | two << 4).wrapping_sub(32);
            super32::pack_group::<C, false>(dst, r, g, &codes, (scale, 0));
        }
    }

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        super32::values::<C, false>(block, r, out);
    }

    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        super32::product::<C, false>(tile, r, acts)
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const ActBlock,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe { super32::kernel::<S, C, false, MT>(tile, blocks, acts, out) }
    }
}
