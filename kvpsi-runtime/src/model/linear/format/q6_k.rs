//! Q6_K: 6-bit codes minus 32, 8-bit scales for 16, an f16 for 256.

use super::codes::Six;
use super::super16;
use super::{ActBlock, ActKind, Layout, Simd, TILE_ROWS};

/// Q6_K of ggml.
pub struct Q6K;

type C = Six;

impl Layout for Q6K {
    const NAME: &'static str = "Q6_K";
    const ID: u32 = 14;
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 210;
    const TILE_BYTES: usize = super16::tile_bytes::<C>(false);
    const HIGH_BYTES: &'static [usize] = &[209];
    const ACTS: ActKind = ActKind::Super256;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let scales = std::array::from_fn(|i| src[192 + i]);
        super16::pack_scales::<C>(dst, r, &src[208..], &scales);
        for g in 0..8 {
            // The file keeps 128 inputs together: four groups of 32.
            let low = &src[g / 4 * 64 + g % 2 * 32..][..32];
            let high = &src[128 + g / 4 * 32..][..32];
            let codes = std::array::from_fn(|i| {
                low[i] >> (4 * (g % 4 / 2)) & 15 | (high[i] >> (2 * (g % 4)) & 3) << 4
            });
            super16::pack_group::<C>(dst, r, g, &codes);
        }
    }

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        super16::values::<C, false>(block, r, out);
    }

    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        super16::product::<C, false>(tile, r, acts)
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const ActBlock,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe { super16::kernel::<S, C, false, MT>(tile, blocks, acts, out) }
    }
}
