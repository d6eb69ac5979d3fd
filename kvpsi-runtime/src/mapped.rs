//! Weights that this process has mapped from files.
//!
//! Owns the mappings, and the count of their bytes: to the kernel they are clean
//! page cache, but every step reads them, so a gauge must not take them for
//! memory that reclaim could give. Out of scope: what is in them.

use crate::units::Bytes;
use memmap2::Mmap;
use std::{
    fs::File,
    io,
    ops::Deref,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Of all mappings together: it is the process that a gauge looks at.
static BYTES: AtomicU64 = AtomicU64::new(0);

/// A file of weights, mapped to be read.
#[derive(Debug)]
pub struct MappedWeights(Mmap);

impl MappedWeights {
    /// Maps all of `file`.
    ///
    /// # Errors
    /// The system refuses.
    ///
    /// # Safety
    /// Nobody may write to the file, or cut it, while it is mapped.
    pub unsafe fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the caller's promise.
        let map = unsafe { Mmap::map(file) }?;
        BYTES.fetch_add(map.len() as u64, Relaxed);
        Ok(Self(map))
    }
}

impl Deref for MappedWeights {
    type Target = Mmap;

    fn deref(&self) -> &Mmap {
        &self.0
    }
}

impl Drop for MappedWeights {
    fn drop(&mut self) {
        BYTES.fetch_sub(self.0.len() as u64, Relaxed);
    }
}

/// Bytes of weights that are mapped now.
#[must_use]
pub fn weights() -> Bytes {
    Bytes(BYTES.load(Relaxed))
}
