//! BF16: the upper 16 bits of 32-bit floats, which stay 16 bits in memory.

use super::floats::{Float, Floats};
use super::{FileFormat, Simd};

/// BF16.
pub struct BF16;

impl Float for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller's promises.
        unsafe { S::load_bf16(p) }
    }
    fn get(bytes: &[u8]) -> f32 {
        half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

impl FileFormat for BF16 {
    const NAME: &'static str = "BF16";
    const ID: u32 = 30;
    const FILE_BYTES: usize = 2;
    const HIGH_BYTES: &'static [usize] = &[1];
    type Layout = Floats<Self>;

    fn finite(block: &[u8]) -> bool {
        Self::get(block).is_finite()
    }

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        Self::Layout::pack(src, dst, r);
    }
}
