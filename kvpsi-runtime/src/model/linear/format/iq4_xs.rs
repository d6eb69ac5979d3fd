//! IQ4_XS: 4-bit codes of a curve of 16 values, 6-bit scales for 32, an f16 for 256.

use super::codes::Curve;
use super::super256::Super256;
use super::{FileFormat, nibbles};

/// IQ4_XS of ggml.
pub struct Iq4Xs;

impl FileFormat for Iq4Xs {
    const NAME: &'static str = "IQ4_XS";
    const ID: u32 = 23;
    const FILE_BYTES: usize = 136;
    const HIGH_BYTES: &'static [usize] = &[1];
    type Layout = Super256<Curve, 32>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let high = u16::from_le_bytes([src[2], src[3]]);
        let scales: [u8; 8] = std::array::from_fn(|g| {
            let low = src[4 + g / 2] >> (4 * (g % 2)) & 15;
            let [two, _] = (high >> (2 * g) & 3).to_le_bytes();
            (low | two << 4).wrapping_sub(32)
        });
        Self::Layout::pack(dst, r, &src[..2], &scales, |g| nibbles(&src[8 + g * 16..]));
    }
}
