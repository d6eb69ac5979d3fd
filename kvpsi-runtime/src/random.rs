//! Numbers that nobody can guess: seeds and ids.
//!
//! Out of scope: keys of any secret.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Another one at each call: std keys its hash maps by the kernel's random bytes.
#[must_use]
pub fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}
