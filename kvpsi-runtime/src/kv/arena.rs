//! One anonymous mapping, reserved up front, cut into blocks.
//!
//! Owns the address space and the calls that give pages back. Knows nothing
//! of who uses a block. A page is charged when it is first touched, and gone
//! when `madvise(MADV_DONTNEED)` returns (madvise(2)).
//!
//! In builds with debug assertions a returned block is unreadable until it
//! is handed out again: a use of it is a fault, not zeros. Where the kernel has
//! guard regions (`MADV_GUARD_INSTALL`, Linux 6.13) it is by them: `mprotect`
//! waits for every fault in the mapping, with the address space locked.

use super::types::KvError;
use crate::units::Bytes;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};
use std::{ops::Range, ptr::NonNull};

#[derive(Debug)]
pub(super) struct Arena {
    base: NonNull<u8>,
    block_bytes: usize,
    blocks: usize,
    seal: Seal,
}

/// How a returned block is made unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seal {
    /// It is not.
    None,
    /// By guard regions, beside faults of others.
    Guard,
    /// By `mprotect`.
    Protect,
}

/// `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE` of the kernel's
/// `include/uapi/asm-generic/mman-common.h`.
const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;

// SAFETY: the arena is an address range; it reads and writes nothing itself.
// Who may touch a block is the pool's matter.
unsafe impl Send for Arena {}
// SAFETY: as above; madvise and mprotect may be called from any thread.
unsafe impl Sync for Arena {}

/// Huge pages: the kernel would keep, or take anew, more than one block.
const HUGE_PAGE: usize = 2 << 20;

impl Arena {
    pub fn reserve(block_bytes: usize, blocks: usize) -> Result<Self, KvError> {
        let len = block_bytes * blocks;
        let fail = |e: rustix::io::Errno| KvError::Reserve {
            bytes: Bytes(len as u64),
            reason: format!("{e} (see `ulimit -v` and vm.overcommit_memory)"),
        };
        // SAFETY: a new private mapping at an address the kernel chooses.
        let base = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(fail)?;
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| fail(rustix::io::Errno::NOMEM))?;
        let mut arena = Self {
            base,
            block_bytes,
            blocks,
            seal: Seal::None,
        };
        if !block_bytes.is_multiple_of(HUGE_PAGE) {
            // Kernels without huge pages answer EINVAL, and need no advice.
            // SAFETY: advice on our own mapping changes no content.
            let _ = unsafe { mm::madvise(base.as_ptr().cast(), len, Advice::LinuxNoHugepage) };
        }
        if cfg!(debug_assertions) {
            arena.seal = if arena.guard(0, blocks, GUARD_INSTALL) {
                Seal::Guard
            } else {
                Seal::Protect
            };
            arena.seal(0, blocks);
        }
        Ok(arena)
    }

    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Where block `i` begins.
    pub fn block(&self, i: usize) -> NonNull<u8> {
        assert!(i < self.blocks);
        // SAFETY: inside the mapping, checked above.
        unsafe { self.base.add(i * self.block_bytes) }
    }

    /// Makes a returned block usable (debug builds only).
    pub fn unseal(&self, i: usize) {
        let done = match self.seal {
            Seal::None => true,
            Seal::Guard => self.guard(i, 1, GUARD_REMOVE),
            Seal::Protect => self.protect(i, 1, MprotectFlags::READ | MprotectFlags::WRITE),
        };
        debug_assert!(done, "block {i} stays sealed");
    }

    fn seal(&self, first: usize, n: usize) {
        let done = match self.seal {
            Seal::None => true,
            Seal::Guard => self.guard(first, n, GUARD_INSTALL),
            Seal::Protect => self.protect(first, n, MprotectFlags::empty()),
        };
        debug_assert!(done, "blocks {first}+{n} are not sealed");
    }

    /// Has the kernel find these pages of block `i`; what is in them means
    /// nothing afterwards. By a fault of each, not by `MADV_POPULATE_WRITE`:
    /// that reclaims with the address space locked.
    ///
    /// # Safety
    /// The block is the caller's alone.
    pub unsafe fn touch(&self, i: usize, pages: Range<usize>) {
        let size = rustix::param::page_size();
        assert!(pages.end * size <= self.block_bytes);
        let at = self.block(i).as_ptr();
        for page in pages {
            // SAFETY: within the block, checked above, and not shared.
            unsafe { at.add(page * size).write_volatile(0) };
        }
    }

    /// Gives the pages of `n` blocks from `first` back, in one call.
    ///
    /// # Safety
    /// No thread reads or writes these blocks until they are handed out again.
    pub unsafe fn give_back(&self, first: usize, n: usize) -> Result<(), rustix::io::Errno> {
        assert!(first + n <= self.blocks);
        let at = self.block(first).as_ptr().cast();
        // SAFETY: our own mapping, whole pages, unused as the caller says.
        unsafe { mm::madvise(at, n * self.block_bytes, Advice::LinuxDontNeed)? };
        self.seal(first, n);
        Ok(())
    }

    /// Gives the pages of block `i` back although it may be read and written to:
    /// what is read is the old content or zeros.
    ///
    /// # Safety
    /// What is read of it from now on is used for nothing, and it is given back once
    /// more before it is handed out again.
    pub unsafe fn empty(&self, i: usize) -> Result<(), rustix::io::Errno> {
        let at = self.block(i).as_ptr().cast();
        // SAFETY: our own mapping, whole pages; readers go on as said above.
        unsafe { mm::madvise(at, self.block_bytes, Advice::LinuxDontNeed) }
    }

    /// Gives back the pages of block `i` behind its first `bytes`.
    ///
    /// # Safety
    /// No thread reads or writes them until the block is handed out again.
    pub unsafe fn give_back_tail(&self, i: usize, bytes: usize) -> Result<(), rustix::io::Errno> {
        assert!(bytes <= self.block_bytes);
        // SAFETY: within the block, checked above.
        let at = unsafe { self.block(i).add(bytes) };
        // SAFETY: our own mapping, whole pages, unused as the caller says.
        unsafe {
            mm::madvise(
                at.as_ptr().cast(),
                self.block_bytes - bytes,
                Advice::LinuxDontNeed,
            )
        }
    }

    /// How many of the first `pages` of block `i` are in RAM, none in swap.
    pub fn in_ram(&self, i: usize, pages: usize) -> Option<usize> {
        let size = rustix::param::page_size();
        assert!(pages * size <= self.block_bytes);
        let (mut found, mut there) = (0, [0u8; 256]);
        for first in (0..pages).step_by(there.len()) {
            let n = there.len().min(pages - first);
            // SAFETY: within the block, checked above.
            let at = unsafe { self.block(i).add(first * size) };
            // SAFETY: a range of our own mapping, and a byte for each of its pages.
            let r = unsafe { libc::mincore(at.as_ptr().cast(), n * size, there.as_mut_ptr()) };
            if r != 0 {
                return None;
            }
            found += there[..n].iter().filter(|page| **page & 1 != 0).count();
        }
        Some(found)
    }

    /// Has the kernel read what it swapped out of block `i`, into memory where a
    /// fault finds it without waiting.
    pub fn will_need(&self, i: usize) {
        // SAFETY: advice on our own mapping changes no content. A refusal leaves it to
        // the faults.
        let _ = unsafe {
            mm::madvise(
                self.block(i).as_ptr().cast(),
                self.block_bytes,
                Advice::WillNeed,
            )
        };
    }

    fn protect(&self, first: usize, n: usize, flags: MprotectFlags) -> bool {
        let at = self.block(first).as_ptr().cast();
        // SAFETY: our own mapping; blocks change hands only between owners.
        unsafe { mm::mprotect(at, n * self.block_bytes, flags) }.is_ok()
    }

    fn guard(&self, first: usize, n: usize, advice: i32) -> bool {
        let at = self.block(first).as_ptr().cast();
        // SAFETY: as for `protect`; what is behind a new guard goes.
        unsafe { libc::madvise(at, n * self.block_bytes, advice) == 0 }
    }

    #[cfg(test)]
    pub fn range(&self) -> Range<usize> {
        let a = self.base.as_ptr().expose_provenance();
        a..a + self.blocks * self.block_bytes
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the pool that handed out its
        // addresses is gone with it.
        let r = unsafe { mm::munmap(self.base.as_ptr().cast(), self.blocks * self.block_bytes) };
        debug_assert!(r.is_ok());
    }
}

// Blocks are sealed in such builds alone.
#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::Command};

    const READ: &str = "KVPSI_TEST_READS_A_RETURNED_BLOCK";
    const NAME: &str = "kv::arena::tests::a_returned_block_that_is_read_is_caught";

    /// The test runs itself as a child that makes the mistake.
    #[test]
    fn a_returned_block_that_is_read_is_caught() {
        if std::env::var_os(READ).is_none() {
            let child = |word: &str| {
                let mut c = Command::new(std::env::current_exe().unwrap());
                let out = c.args(["--exact", NAME]).env(READ, word).output().unwrap();
                out.status
            };
            assert!(child("kept").success());
            // SIGSEGV, from signal(7).
            assert_eq!(child("returned").signal(), Some(11));
            return;
        }
        let arena = Arena::reserve(1 << 16, 3).unwrap();
        let block = arena.block(1).as_ptr();
        arena.unseal(1);
        // SAFETY: handed out, and not shared.
        unsafe { block.write(7) };
        if std::env::var(READ).unwrap() == "returned" {
            // SAFETY: that it is used all the same is what is to be caught.
            unsafe { arena.give_back(1, 1) }.unwrap();
        }
        // SAFETY: within the mapping; of a returned block it is a fault.
        assert_eq!(unsafe { block.read_volatile() }, 7);
    }
}
