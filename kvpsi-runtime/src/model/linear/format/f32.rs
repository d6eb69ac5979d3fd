//! F32: floats of 32 bits.

use super::floats::{self, Float};
use super::{ActKind, Layout, Simd, TILE_ROWS};

/// F32.
pub struct F32;

impl Float for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's promises.
        unsafe { S::load_f32(p) }
    }
    fn get(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Layout for F32 {
    const NAME: &'static str = "F32";
    const ID: u32 = 0;
    const BLOCK: usize = 1;
    const FILE_BYTES: usize = 4;
    const TILE_BYTES: usize = floats::tile_bytes::<Self>();
    const HIGH_BYTES: &'static [usize] = &[3];
    const ACTS: ActKind = ActKind::Floats;
    type Act = f32;
    const ACT_WEIGHTS: usize = 1;

    fn finite(block: &[u8]) -> bool {
        Self::get(block).is_finite()
    }

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        floats::pack::<Self>(src, dst, r);
    }

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        floats::values::<Self>(block, r, out);
    }

    fn reference(tile: &[u8], r: usize, acts: &[f32]) -> f32 {
        floats::product::<Self>(tile, r, acts)
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const f32,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe { floats::kernel::<S, Self, MT>(tile, blocks, acts, out) }
    }
}
