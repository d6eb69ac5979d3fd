//! Q4_1: 4-bit codes, an f16 scale and an f16 minimum for 32.

use super::block32::{Block32, Half};
use super::codes::Four;
use super::{FileFormat, nibbles};

/// Q4_1 of ggml.
pub struct Q4_1;

impl FileFormat for Q4_1 {
    const NAME: &'static str = "Q4_1";
    const ID: u32 = 3;
    const FILE_BYTES: usize = 20;
    const HIGH_BYTES: &'static [usize] = &[1, 3];
    type Layout = Block32<Four<0>, Half, true>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        Self::Layout::pack(dst, r, &nibbles(&src[4..]), &src[..4]);
    }
}
