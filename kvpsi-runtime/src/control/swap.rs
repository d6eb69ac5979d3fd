//! When blocks in swap are counted.
//!
//! Owns the looks: the cache's pages are looked at only where what this process has
//! in swap changed, and that is asked only while it has some there or the machine's
//! free swap changed.
//! Out of scope: what follows from a block in swap ([`crate::kv`]).

use super::counters::number;
use crate::kv::KvPool;
use rustix::io::pread;
use std::fs::File;

/// Between two looks, ns.
const EVERY_NS: u64 = 250_000_000;

#[derive(Debug)]
pub(super) struct SwapWatch {
    /// /proc/self/status.
    status: Option<File>,
    /// Of the machine, and KiB of this process there at the last look, where that is
    /// known.
    free: u64,
    ours: Option<u64>,
    next_ns: u64,
}

impl SwapWatch {
    pub fn open() -> Self {
        Self {
            status: File::open("/proc/self/status").ok(),
            free: 0,
            ours: Some(0),
            next_ns: 0,
        }
    }

    /// Counts the blocks in swap, where there may be other ones than at the last look.
    pub fn look(&mut self, now_ns: u64, pool: &KvPool) {
        if now_ns < self.next_ns {
            return;
        }
        self.next_ns = now_ns + EVERY_NS;
        let info = rustix::system::sysinfo();
        let free = info.freeswap as u64;
        let changed = std::mem::replace(&mut self.free, free) != free;
        if !changed && self.ours == Some(0) {
            return;
        }
        let ours = self.ours();
        let moved = std::mem::replace(&mut self.ours, ours) != ours;
        if moved || changed && ours != Some(0) {
            pool.count_swapped();
        }
    }

    fn ours(&self) -> Option<u64> {
        // `VmSwap` stands before byte 1000 (proc_pid_status(5)).
        let mut buf = [0u8; 4096];
        let n = pread(self.status.as_ref()?, &mut buf, 0).ok()?;
        vm_swap(&buf[..n])
    }
}

/// KiB of a process in swap.
fn vm_swap(status: &[u8]) -> Option<u64> {
    let mut lines = status.split(|b| *b == b'\n');
    let line = lines.find_map(|l| l.strip_prefix(b"VmSwap:"))?;
    number(line.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_has_in_swap_is_read() {
        let text = b"VmPTE:\t      56 kB\nVmSwap:\t    1024 kB\nHugetlbPages:\t 0 kB\n";
        assert_eq!(vm_swap(text), Some(1024));
        assert_eq!(vm_swap(b"Name:\tx\n"), None);
        let own = std::fs::read("/proc/self/status").unwrap();
        assert!(vm_swap(&own).is_some());
    }
}
