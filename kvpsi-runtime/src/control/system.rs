//! The whole system as a wall, read without allocating.
//!
//! Owns what the zones keep free, free memory, page cache and PSI's total. What
//! zones keep follows `vm.min_free_kbytes`, `vm.watermark_scale_factor` and
//! hotplug: `survey` looks it up anew ([`Marks::refresh`]).
//! Out of scope: whose stall it is and what is done ([`super::controller`]).

use super::{
    bucket::Bucket,
    counters::{VmStat, number, since},
    wall::Depth,
};
use crate::{clock::monotonic_ns, mapped, units::Bytes};
use rustix::io::pread;
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, read_to_string},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The whole system at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemLevel {
    /// Free pages of all zones that any allocation may take: none of CMA's.
    pub free: Bytes,
    /// Sum of the high watermarks; for who reads a recording.
    pub high: Bytes,
    /// The same and what zones keep in reserve: what is to stay free.
    pub tight: Bytes,
    /// Clean page cache beyond what may be somebody's working set.
    pub file: Option<Bytes>,
    /// As of a cgroup.
    pub restored: Option<Bytes>,
}

impl SystemLevel {
    /// Bytes free or soon free: clean page cache beyond a reserve counts.
    fn available(&self) -> Bytes {
        let file = self.file.unwrap_or(Bytes::ZERO);
        Bytes(self.free.0.saturating_add(file.0))
    }

    /// Free memory is below what is to stay free.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.free < self.tight
    }

    /// Bytes by which free memory is short, whatever page cache has.
    #[must_use]
    pub fn short(&self) -> Bytes {
        self.tight.saturating_sub(self.free)
    }

    /// Bytes missing beyond what the kernel finds in page cache.
    #[must_use]
    pub fn missing(&self) -> Bytes {
        self.tight.saturating_sub(self.available())
    }

    /// Clean page cache alone covers all that is to stay free.
    pub(super) fn has_spare_files(&self) -> bool {
        self.file.is_some_and(|file| file >= self.tight)
    }

    /// What plays the part of a cgroup's limit where harm is measured: eight times
    /// what is to stay free.
    pub(super) fn scale(&self) -> Bytes {
        Bytes(self.tight.0.saturating_mul(8))
    }

    /// Bytes that anonymous memory may grow by.
    #[must_use]
    pub fn room(&self) -> Bytes {
        self.available().saturating_sub(self.tight)
    }
}

/// What all zones keep free as it was last looked up, in pages.
#[derive(Debug, Default)]
pub struct Marks {
    high: AtomicU64,
    reserve: AtomicU64,
}

impl Marks {
    /// Looks them up. Slow: not for the reactor.
    ///
    /// # Errors
    /// /proc/zoneinfo cannot be read or names no zone; the marks stay.
    pub fn refresh(&self) -> io::Result<()> {
        let path = "/proc/zoneinfo";
        let text =
            read_to_string(path).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))?;
        let pages = Watermarks::read(&text).ok_or_else(|| {
            let why = format!("{path} names no high watermark");
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        self.high.store(pages.high, Relaxed);
        self.reserve.store(pages.reserve, Relaxed);
        Ok(())
    }
}

/// Distance of the whole system to what its zones keep free.
///
/// Free pages come from `sysinfo(2)`, one system call and no text.
/// MemAvailable is no signal here: it counts the model's own mapped weights
/// as free. Free pages of CMA do not count: kswapd does not count them either
/// (`__zone_watermark_ok` in mm/page_alloc.c).
///
/// Lower zones keep a reserve from allocations that could have come from a
/// higher one (`lowmem_reserve` in mm/page_alloc.c). While any zone still has
/// free pages beyond its high watermark and that reserve, no task reclaims for
/// want of memory; and kswapd, once woken, goes on until one has. So the sum
/// of both over all zones is what is to stay free. The watermarks alone are
/// too little: with 24 GiB in two zones kswapd wakes while 70 MiB more than
/// their sum are free, in the reserve of the lower one.
#[derive(Debug)]
pub struct SystemGauge {
    marks: Arc<Marks>,
    /// Page cache that is taken for somebody's working set beside our weights, an
    /// eighth of all memory: programs and others' weights, which are clean and not
    /// spare.
    reserve: Bytes,
    vmstat: Option<File>,
    pressure: Option<File>,
    cma_free: Bytes,
    /// What global reclaim evicted within a second: no more can come back.
    stolen: Bucket,
    last_stolen: Option<u64>,
    last_restored: Option<u64>,
    last_scanned: Option<u64>,
    last_total: Option<u64>,
    kswapd: bool,
}

impl SystemGauge {
    /// Reads the watermarks.
    ///
    /// # Errors
    /// /proc/zoneinfo cannot be read or names no zone.
    pub fn open() -> io::Result<Self> {
        let marks = Arc::<Marks>::default();
        marks.refresh()?;
        let info = rustix::system::sysinfo();
        let all = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1)));
        let mut gauge = Self {
            marks,
            reserve: Bytes(all / 8),
            vmstat: File::open("/proc/vmstat").ok(),
            pressure: File::open("/proc/pressure/memory").ok(),
            cma_free: Bytes::ZERO,
            stolen: Bucket::default(),
            last_stolen: None,
            last_restored: None,
            last_scanned: None,
            last_total: None,
            kswapd: false,
        };
        // Now rather than at a full wall: see `super::wall`.
        let _ = (gauge.level(Depth::All), gauge.stalled());
        Ok(gauge)
    }

    /// For who looks them up anew.
    #[must_use]
    pub fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks)
    }

    /// Free memory as it is now, and the marks. Page cache is looked at where
    /// free memory is near its mark, and for [`Depth::All`].
    #[must_use]
    pub fn level(&mut self, depth: Depth) -> SystemLevel {
        let high = self.marks.high.load(Relaxed);
        let tight = high.saturating_add(self.marks.reserve.load(Relaxed));
        let mut now = SystemLevel {
            free: free().saturating_sub(self.cma_free),
            high: bytes(high),
            tight: bytes(tight),
            ..SystemLevel::default()
        };
        if (depth == Depth::All || now.free.0 < 2 * now.tight.0)
            && let Some(stat) = self.vmstat.as_ref().and_then(VmStat::read)
        {
            self.cma_free = bytes(stat.cma_free);
            let weights = mapped::weights().0 / rustix::param::page_size() as u64;
            now.file = Some(bytes(stat.spare(weights)).saturating_sub(self.reserve));
            now.restored = self.restored(monotonic_ns(), &stat).map(bytes);
            let scanned = since(&mut self.last_scanned, Some(stat.kswapd_scanned));
            self.kswapd = scanned.is_some_and(|n| n > 0);
        } else {
            self.kswapd = false;
        }
        now
    }

    /// Pages restored since the last reading, of those that global reclaim evicted:
    /// what a cgroup's limit costs those below it is theirs.
    fn restored(&mut self, now_ns: u64, stat: &VmStat) -> Option<u64> {
        let stolen = since(&mut self.last_stolen, Some(stat.stolen));
        self.stolen.add(now_ns, stolen.unwrap_or(0));
        let restored = since(&mut self.last_restored, Some(stat.restored))?;
        let restored = restored.min(self.stolen.level(now_ns));
        self.stolen.less(now_ns, restored);
        Some(restored)
    }

    /// Free memory is near its mark, and kswapd reclaimed between the last two
    /// readings.
    #[must_use]
    pub fn kswapd_works(&self) -> bool {
        self.kswapd
    }

    /// Some task stalled since the last call, as PSI's total has it; `true`
    /// where there is no PSI. Costs a tenth of reading /proc/vmstat.
    #[must_use]
    pub fn stalled(&mut self) -> bool {
        let total = self.pressure.as_ref().and_then(some_total);
        since(&mut self.last_total, total).is_none_or(|us| us > 0)
    }
}

/// Microseconds of the line `some` of a pressure file.
fn some_total(pressure: &File) -> Option<u64> {
    let mut buf = [0u8; 256];
    let n = pread(pressure, &mut buf, 0).ok()?;
    let line = buf[..n].split(|b| *b == b'\n').next()?;
    let total = line.windows(6).position(|w| w == b"total=")?;
    number(&line[total + 6..])
}

fn bytes(pages: u64) -> Bytes {
    Bytes(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Free pages of all zones, in bytes.
fn free() -> Bytes {
    let info = rustix::system::sysinfo();
    Bytes((info.freeram as u64).saturating_mul(u64::from(info.mem_unit.max(1))))
}

/// What all zones together keep, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watermarks {
    high: u64,
    reserve: u64,
}

impl Watermarks {
    /// Sums every zone's `high` and the largest of its `protection`, which is
    /// no more than the zone has. `None` if no zone has a `high`.
    pub(crate) fn read(zoneinfo: &str) -> Option<Self> {
        let mut sum = Self::default();
        let mut found = false;
        let mut managed = 0u64;
        for line in zoneinfo.lines() {
            let line = line.trim_start();
            let number = |key: &str| line.strip_prefix(key)?.trim().parse::<u64>().ok();
            // Per-CPU page sets have a line "high: N", with a colon.
            if let Some(n) = number("high ") {
                sum.high = sum.high.saturating_add(n);
                found = true;
            } else if let Some(n) = number("managed ") {
                managed = n;
            } else if let Some(list) = line.strip_prefix("protection:") {
                let largest = list
                    .split(|c: char| !c.is_ascii_digit())
                    .filter_map(|n| n.parse::<u64>().ok())
                    .max();
                let reserve = largest.unwrap_or(0).min(managed);
                sum.reserve = sum.reserve.saturating_add(reserve);
            }
        }
        found.then_some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_and_reserves_are_summed_and_page_sets_are_not() {
        let text = "Node 0, zone DMA\n  pages free 100\n  min 1\n  low 2\n  high     3\n\
                    managed  3840\n  protection: (0, 2932, 23900, 23900)\n\
                    pagesets\n    cpu: 0\n   count: 5\n   high:  700\n\
                    Node 0, zone Normal\n  high     40\n managed 9000\n  protection: (0, 0)\n";
        let want = Watermarks {
            high: 43,
            reserve: 3840,
        };
        assert_eq!(Watermarks::read(text), Some(want));
        assert_eq!(Watermarks::read("nothing"), None);
    }

    #[test]
    fn the_system_gauge_reads_this_machine() {
        let mut g = SystemGauge::open().unwrap();
        let level = g.level(Depth::All);
        assert!(level.high > Bytes::ZERO && level.file.is_some());
        // Nobody runs the tests with less free memory than a watermark.
        assert!(level.missing() <= level.tight);
        assert!(level.restored.is_some());
    }

    #[test]
    fn what_comes_back_of_a_cgroups_own_reclaim_is_not_the_systems() {
        let mut g = SystemGauge::open().unwrap();
        let stat = |restored, stolen| VmStat {
            restored,
            stolen,
            ..VmStat::default()
        };
        let second = 1_000_000_000;
        let mut last = |t: u64, restored, stolen| g.restored(t * second, &stat(restored, stolen));
        last(10_000_000, 0, 0);
        assert_eq!(last(10_000_010, 500, 0), Some(0));
        assert_eq!(last(10_000_020, 600, 40), Some(40));
        assert_eq!(last(10_000_030, 610, 440), Some(10));
        assert_eq!(last(10_000_040, 700, 440), Some(0));
    }

    #[test]
    fn marks_are_looked_up_anew_and_keep_their_value_on_failure() {
        let g = SystemGauge::open().unwrap();
        let marks = g.marks();
        let high = marks.high.swap(1, Relaxed);
        marks.refresh().unwrap();
        assert_eq!(marks.high.load(Relaxed), high);
    }
}
