//! A BPF array that user space sees as memory.
//!
//! Owns one read-only mapping of an array map made with `BPF_F_MMAPABLE`
//! (kernel 5.5, kernel/bpf/arraymap.c). Reading it is no system call: kernels
//! before 5.19 refuse map look-ups to a process without capabilities where
//! `kernel.unprivileged_bpf_disabled` is set, and kvpsi has dropped its own by
//! then. Out of scope: what the values mean.

use bytemuck::Pod;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::{
    io,
    marker::PhantomData,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

const WORD: usize = size_of::<u64>();

/// The values of an array map, each a whole number of 8-byte words.
pub(super) struct MappedArray<T> {
    words: NonNull<AtomicU64>,
    bytes: usize,
    entries: usize,
    value: PhantomData<T>,
}

// SAFETY: the mapping is read through atomics only and belongs to no thread.
unsafe impl<T: Send> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    /// Maps the `entries` values of the map `fd`.
    ///
    /// # Errors
    /// The map cannot be mapped.
    pub fn new(fd: impl AsFd, entries: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(WORD) && align_of::<T>() <= WORD) };
        let bytes = entries
            .checked_mul(size_of::<T>())
            .filter(|b| *b > 0)
            .ok_or(io::ErrorKind::InvalidInput)?
            .next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping at an address of the kernel's choice; the
        // kernel refuses one that is larger than the map.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        Ok(Self {
            words: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            bytes,
            entries,
            value: PhantomData,
        })
    }

    /// Copies value `index` word by word: programs may be writing, so words
    /// that belong together may be of different moments. `None` beyond the end.
    pub fn get(&self, index: usize) -> Option<T> {
        if index >= self.entries {
            return None;
        }
        let words = size_of::<T>() / WORD;
        let mut value = T::zeroed();
        let to: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut value));
        for (i, w) in to.iter_mut().enumerate() {
            // SAFETY: index < entries and i < words, so the word lies in the
            // mapping, which is as long as `self`; programs write it too, and
            // an aligned 8-byte load is atomic.
            *w = unsafe { self.words.add(index * words + i).as_ref() }.load(Relaxed);
        }
        Some(value)
    }

    /// All values in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        (0..self.entries).map_while(|i| self.get(i))
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), self.bytes) };
    }
}
