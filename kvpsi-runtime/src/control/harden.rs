//! Makes the reactor's thread hard to stall.
//!
//! Owns its scheduling class, timer slack and locked pages. Everything here
//! is best effort and reported: an unprivileged process runs on without.
//! The whole process is never locked (`mlockall`): a locked page of the KV
//! arena could not be given back, `madvise(MADV_DONTNEED)` refuses it.

use crate::units::Bytes;
use std::fs;

/// What could be had.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Hardening {
    /// `SCHED_FIFO` was granted.
    pub realtime: bool,
    /// Bytes of code locked into memory.
    pub locked: Bytes,
    /// What was refused, in words.
    pub refused: Vec<String>,
}

/// Stack touched ahead, so that the path does not fault on it.
const STACK_PREFAULT: usize = 64 << 10;

/// Applies everything to the calling thread. May allocate: called once,
/// before the thread's first event.
#[must_use]
pub fn current_thread() -> Hardening {
    let mut h = Hardening::default();
    prefault_stack();
    if let Err(e) = rustix::thread::set_current_timer_slack(None) {
        h.refused.push(format!("timer slack: {e}"));
    }
    match fifo() {
        Ok(()) => h.realtime = true,
        Err(e) => h
            .refused
            .push(format!("SCHED_FIFO: {e} (CAP_SYS_NICE, or RLIMIT_RTPRIO)")),
    }
    match lock_code() {
        Ok(b) => h.locked = b,
        Err(e) => h
            .refused
            .push(format!("mlock of the program's code: {e} (RLIMIT_MEMLOCK)")),
    }
    h
}

#[inline(never)]
fn prefault_stack() {
    let mut area = [0u8; STACK_PREFAULT];
    for i in (0..area.len()).step_by(1024) {
        area[i] = 1;
    }
    std::hint::black_box(&mut area);
}

/// Lowest real-time priority: above every ordinary thread, below the threads
/// of whoever cares more. It does not spin, so it cannot starve the compute
/// threads it waits for.
fn fifo() -> std::io::Result<()> {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: `param` outlives the call; pid 0 is the calling thread.
    let r = unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const param,
        )
    };
    if r == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Locks the executable mappings of files: under pressure it is just these
/// that the kernel would drop, and the trim would wait for the disk.
fn lock_code() -> std::io::Result<Bytes> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut locked = 0;
    for (start, len) in maps.lines().filter_map(code_range) {
        // SAFETY: the range is a mapping of this process that is never
        // unmapped (program and shared libraries); locking changes no content.
        unsafe { rustix::mm::mlock(std::ptr::with_exposed_provenance_mut(start), len)? };
        locked += len as u64;
    }
    Ok(Bytes(locked))
}

/// (start, length) of a line of `maps` that is executable code of a file.
fn code_range(line: &str) -> Option<(usize, usize)> {
    let mut f = line.split_whitespace();
    let (range, perms, path) = (f.next()?, f.next()?, f.nth(3)?);
    if !perms.starts_with("r-x") || !path.starts_with('/') {
        return None;
    }
    let (a, b) = range.split_once('-')?;
    let (a, b) = (
        usize::from_str_radix(a, 16).ok()?,
        usize::from_str_radix(b, 16).ok()?,
    );
    Some((a, b.checked_sub(a)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_locked() {
        let line = |p, f| format!("1000-3000 {p} 00000000 fe:00 12 {f}");
        assert_eq!(code_range(&line("r-xp", "/bin/x")), Some((0x1000, 0x2000)));
        assert_eq!(code_range(&line("rw-p", "/bin/x")), None);
        assert_eq!(code_range(&line("r-xp", "[vdso]")), None);
        assert_eq!(code_range("nonsense"), None);
    }

    #[test]
    fn hardening_reports_what_it_was_refused() {
        let h = std::thread::spawn(current_thread).join().unwrap();
        assert_eq!(h.refused.is_empty(), h.realtime && h.locked > Bytes::ZERO);
    }
}
