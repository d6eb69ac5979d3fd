//! What a file of the cache is of.
//!
//! Owns the digest: the model's stamps, a digest of its first and last bytes,
//! and the layout of tiles. It can be had without reading the model's header,
//! so before a process has given up its privileges. Not all of the model is
//! digested: that would read the file that the cache is there to not read.

use super::file;
use crate::model::{gguf::Stamp, linear::fingerprint};
use sha2::{Digest, Sha256};
use std::{fmt, fs::File, io, os::unix::fs::FileExt};

/// Most bytes at each end of a part that are digested: a header with its
/// tensor table, of small vocabularies all of it.
const ENDS: u64 = 1 << 20;

/// Names a model, the layout of its tiles, and what it was on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub(super) [u8; 32]);

impl Key {
    /// The key of a model whose parts are these.
    ///
    /// # Errors
    /// A part cannot be read.
    pub fn of(files: &[File], stamps: &[Stamp]) -> io::Result<Self> {
        let mut digest = Sha256::new();
        digest.update(file::MAGIC);
        digest.update(file::VERSION.to_le_bytes());
        digest.update(fingerprint());
        let mut buffer = Vec::new();
        for (file, stamp) in files.iter().zip(stamps) {
            for n in [stamp.inode, stamp.len] {
                digest.update(n.to_le_bytes());
            }
            for (seconds, nanoseconds) in [stamp.modified, stamp.changed] {
                digest.update(seconds.to_le_bytes());
                digest.update(nanoseconds.to_le_bytes());
            }
            let some = stamp.len.min(ENDS);
            for at in [0, stamp.len - some] {
                buffer.resize(usize::try_from(some).unwrap_or_default(), 0);
                file.read_exact_at(&mut buffer, at)?;
                digest.update(&buffer);
            }
        }
        Ok(Self(digest.finalize().into()))
    }

    /// The name of the file: half of the digest.
    #[must_use]
    pub fn file_name(&self) -> String {
        let hex: String = self.0[..16].iter().map(|b| format!("{b:02x}")).collect();
        format!("{hex}{}", file::ENDING)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name())
    }
}
