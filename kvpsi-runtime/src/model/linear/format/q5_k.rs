//! Q5_K: 5-bit codes, 6-bit scales and minimums for 32, two f16 for 256.

use super::codes::Five;
use super::super32;
use super::{ActBlock, ActKind, Layout, Simd, TILE_ROWS, scale_min_6};

/// Q5_K of ggml.
pub struct Q5K;

type C = Five<0>;

impl Layout for Q5K {
    const NAME: &'static str = "Q5_K";
    const ID: u32 = 13;
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 176;
    const TILE_BYTES: usize = super32::tile_bytes::<C>(true);
    const HIGH_BYTES: &'static [usize] = &[1, 3];
    const ACTS: ActKind = ActKind::Super256;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        super32::pack_halves::<C, true>(dst, r, &src[..4]);
        let high = &src[16..48];
        for g in 0..8 {
            let low = &src[48 + g / 2 * 32..][..32];
            let codes =
                std::array::from_fn(|i| low[i] >> (4 * (g % 2)) & 15 | (high[i] >> g & 1) << 4);
            super32::pack_group::<C, true>(dst, r, g, &codes, scale_min_6(&src[4..16], g));
        }
    }

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        super32::values::<C, true>(block, r, out);
    }

    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        super32::product::<C, true>(tile, r, acts)
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const ActBlock,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe { super32::kernel::<S, C, true, MT>(tile, blocks, acts, out) }
    }
}
