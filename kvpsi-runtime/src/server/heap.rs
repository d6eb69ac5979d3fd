//! Memory that the allocator keeps for later.
//!
//! Owns two calls. glibc keeps what was freed in the arena of each thread:
//! after large requests that is some hundred MiB that a neighbour lacks, and
//! what stays in use keeps others' pages. Out of scope: when to call them, and
//! the KV arena, which is a mapping.

/// Has all threads share one arena: after 16 long bodies and 300 connections the
/// heap is 1 MiB smaller than before and not 15 MiB larger. To be called before
/// there are other threads; each keeps its own cache of small allocations.
#[cfg(target_env = "gnu")]
pub fn share_one_arena() {
    // SAFETY: the call takes no pointer, and no other thread allocates yet
    // (mallopt(3)).
    let _done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Other C libraries have no such call.
#[cfg(not(target_env = "gnu"))]
pub fn share_one_arena() {}

/// Returns free pages of the heap to the kernel. Takes milliseconds, in which
/// threads that allocate may wait.
#[cfg(target_env = "gnu")]
pub(super) fn give_back() {
    // SAFETY: the call takes no pointer and is safe in threads (malloc_trim(3)).
    let _some = unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have no such call.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}
