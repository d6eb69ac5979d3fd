//! MXFP4: 4-bit floats, a power of two for 32 (OCP Microscaling Formats 1.0).

use super::block32::{Block32, HalfPower};
use super::codes::Float4;
use super::{FileFormat, nibbles};

/// MXFP4 of ggml.
pub struct MXFP4;

impl FileFormat for MXFP4 {
    const NAME: &'static str = "MXFP4";
    const ID: u32 = 39;
    const FILE_BYTES: usize = 17;
    const HIGH_BYTES: &'static [usize] = &[0];
    type Layout = Block32<Float4, HalfPower>;

    fn finite(block: &[u8]) -> bool {
        block[0] != 0xff
    }

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        Self::Layout::pack(dst, r, &nibbles(&src[1..]), &src[..1]);
    }
}
