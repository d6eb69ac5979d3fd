//! F32: floats of 32 bits.

use super::floats::{Float, Floats};
use super::{FileFormat, Simd};

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

impl FileFormat for F32 {
    const NAME: &'static str = "F32";
    const ID: u32 = 0;
    const FILE_BYTES: usize = 4;
    const HIGH_BYTES: &'static [usize] = &[3];
    type Layout = Floats<Self>;

    fn finite(block: &[u8]) -> bool {
        Self::get(block).is_finite()
    }

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        Self::Layout::pack(src, dst, r);
    }
}
