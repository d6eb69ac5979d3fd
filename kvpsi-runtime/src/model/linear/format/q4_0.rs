//! Q4_0: 4-bit codes minus 8, an f16 scale for 32.

use super::block32::Block32;
use super::codes::Four;
use super::{FileFormat, nibbles};

/// Q4_0 of ggml.
pub struct Q4_0;

impl FileFormat for Q4_0 {
    const NAME: &'static str = "Q4_0";
    const ID: u32 = 2;
    const FILE_BYTES: usize = 18;
    const HIGH_BYTES: &'static [usize] = &[1];
    type Layout = Block32<Four<8>>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        Self::Layout::pack(dst, r, &nibbles(&src[2..]), &src[..2]);
    }
}
