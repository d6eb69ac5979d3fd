//! IQ4_NL: 4-bit codes of a curve of 16 values, an f16 scale for 32.

use super::block32::Block32;
use super::codes::Curve;
use super::{FileFormat, nibbles};

/// IQ4_NL of ggml.
pub struct Iq4Nl;

impl FileFormat for Iq4Nl {
    const NAME: &'static str = "IQ4_NL";
    const ID: u32 = 20;
    const FILE_BYTES: usize = 18;
    const HIGH_BYTES: &'static [usize] = &[1];
    type Layout = Block32<Curve>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        Self::Layout::pack(dst, r, &nibbles(&src[2..]), &src[..2]);
    }
}
