//! Q5_1: 5-bit codes, an f16 scale and an f16 minimum for 32.

use super::block32::{Block32, Half};
use super::codes::Five;
use super::{FileFormat, nibbles};

/// Q5_1 of ggml.
pub struct Q5_1;

impl FileFormat for Q5_1 {
    const NAME: &'static str = "Q5_1";
    const ID: u32 = 7;
    const FILE_BYTES: usize = 24;
    const HIGH_BYTES: &'static [usize] = &[1, 3];
    type Layout = Block32<Five<0>, Half, true>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let (high, low) = (&src[4..8], nibbles(&src[8..]));
        let codes = std::array::from_fn(|i| low[i] | (high[i / 8] >> (i % 8) & 1) << 4);
        Self::Layout::pack(dst, r, &codes, &src[..4]);
    }
}
