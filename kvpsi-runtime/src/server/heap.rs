//! Memory that the allocator keeps for later.
//!
//! Owns one call. glibc keeps what was freed in the arena of each thread:
//! after large requests that is some hundred MiB that a neighbour lacks.
//! Out of scope: when to call it, and the KV arena, which is a mapping.

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
