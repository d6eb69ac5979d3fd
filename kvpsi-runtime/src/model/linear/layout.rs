//! A digest of how formats lie in tiles.
//!
//! Owns what tells tiles that another kvpsi packed from ours. It is computed
//! from what packing does, not kept by hand: a tile that changes changes it, and
//! so do another version of kvpsi and a machine of another byte order. Every family of kernels reads
//! the same tiles, so none is part of it.

use super::choose::Noise;
use super::table::Format;
use sha2::{Digest, Sha256};

/// The digest over a packed tile of every format. Takes some milliseconds.
#[must_use]
pub fn fingerprint() -> [u8; 32] {
    let mut digest = Sha256::new();
    // What a tile does not show: how tiles follow each other.
    digest.update(env!("CARGO_PKG_VERSION"));
    for format in Format::all() {
        digest.update(format.id.to_ne_bytes());
        digest.update(Noise::new().tile(format));
    }
    digest.finalize().into()
}
