//! The one atomic operation that every JIT has: an addition without a result.

use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering::Relaxed;

/// A number that many CPUs add to, read and store; never read and changed in
/// one step.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Cell(AtomicU64);

impl Cell {
    /// The value now.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        #[cfg(not(target_arch = "bpf"))]
        return self.0.load(Relaxed);
        // Not every LLVM selects an atomic load for BPF; an aligned volatile
        // one is the same single instruction.
        // SAFETY: `self` keeps the u64 alive and aligned.
        #[cfg(target_arch = "bpf")]
        unsafe {
            core::ptr::read_volatile(self.0.as_ptr())
        }
    }

    /// Replaces the value.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        #[cfg(not(target_arch = "bpf"))]
        self.0.store(value, Relaxed);
        // SAFETY: as in `load`.
        #[cfg(target_arch = "bpf")]
        unsafe {
            core::ptr::write_volatile(self.0.as_ptr(), value);
        }
    }

    /// Adds, wrapping; adding `n.wrapping_neg()` subtracts.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        #[cfg(not(target_arch = "bpf"))]
        self.0.fetch_add(n, Relaxed);
        // Spelled out: rustc has no read-modify-write atomics for BPF, and
        // this form, unlike a fetching one, is in every JIT.
        // SAFETY: an aligned u64 that `self` keeps alive; the instruction
        // touches nothing else.
        #[cfg(target_arch = "bpf")]
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({at} + 0) += {n}",
                at = in(reg) self.0.as_ptr(),
                n = in(reg) n,
            );
        }
    }

    /// The cell at `at`.
    ///
    /// # Safety
    /// `at` is aligned and valid for `'a`, and every other access to it does
    /// so through a `Cell`.
    #[inline(always)]
    #[must_use]
    pub unsafe fn at<'a>(at: *mut u64) -> &'a Self {
        // SAFETY: the caller's; `Cell` is transparent over `AtomicU64`, which
        // has the layout of `u64`.
        unsafe { &*at.cast::<Self>() }
    }
}
