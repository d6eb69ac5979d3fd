//! How many bytes are missing, read without allocating.
//!
//! Owns the reading that a decision is made of: the walls of our cgroups
//! ([`super::wall`]) and the whole system. A wall's numbers say what is missing
//! there once the kernel has dropped clean page cache, and how much room there
//! is. Descriptors stay open, buffers are on the stack: the reactor reads
//! between an event and a trim.
//! Out of scope: whose stall it is and what is done ([`super::controller`]).

use super::{
    cgroup::MemoryCgroup,
    wall::{Depth, Walls, lines},
};
use crate::units::Bytes;
use rustix::io::pread;
use serde::{Deserialize, Serialize};
use std::{fs::File, io, path::Path};

/// All walls that memory can run into.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Our cgroup and those above it, where they count.
    pub walls: Option<Walls>,
    /// The whole system, where it counts.
    pub system: Option<SystemGauge>,
}

/// A cgroup's wall at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupLevel {
    /// What is charged to it.
    pub usage: Bytes,
    /// What may be: the lower of limit and `memory.high`.
    pub limit: Bytes,
    /// Of the usage: clean page cache, which the kernel drops by itself.
    pub file: Option<Bytes>,
    /// Of the usage: anonymous memory.
    pub anonymous: Option<Bytes>,
    /// Times it was hit since the last reading; `None`: not known.
    pub hits: Option<u64>,
    /// Bytes read again since the last reading that had been evicted while they
    /// were in use.
    pub refaulted: Option<Bytes>,
    /// Levels above ours.
    pub up: u32,
}

/// The whole system at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemLevel {
    /// Free pages of all zones.
    pub free: Bytes,
    /// Sum of the high watermarks; for who reads a recording.
    pub high: Bytes,
    /// The same and what zones keep in reserve: what is to stay free.
    pub tight: Bytes,
    /// Clean page cache beyond what may be somebody's working set.
    pub file: Option<Bytes>,
    /// As of a cgroup.
    pub refaulted: Option<Bytes>,
}

/// What a decision is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    /// The cgroup that counts, where one has a limit.
    pub cgroup: Option<CgroupLevel>,
    /// The system, where there is a gauge for it.
    pub system: Option<SystemLevel>,
    /// What anonymous memory may still have of the cgroups' limits.
    pub cgroup_room: Option<Bytes>,
}

impl CgroupLevel {
    /// It was hit since the last reading, or is full where hits are not counted.
    #[must_use]
    pub fn was_hit(&self) -> bool {
        self.hits
            .map_or(self.usage.0 >= self.limit.0 / 128 * 127, |n| n > 0)
    }

    /// What page cache cannot give.
    fn kept(&self) -> Bytes {
        self.usage.saturating_sub(self.file.unwrap_or(Bytes::ZERO))
    }

    /// What is to stay free at least: a 32nd of the limit, 16 MiB at most. More
    /// follows from how fast usage grows, which is the controller's to see.
    #[must_use]
    pub fn headroom(&self) -> Bytes {
        Bytes((self.limit.0 / 32).min(16 << 20))
    }

    /// Bytes missing beyond what the kernel finds in page cache.
    #[must_use]
    pub fn missing(&self) -> Bytes {
        Bytes(self.kept().0.saturating_add(self.headroom().0)).saturating_sub(self.limit)
    }

    /// Bytes that anonymous memory may grow by.
    #[must_use]
    pub fn room(&self) -> Bytes {
        let full = Bytes(self.kept().0.saturating_add(self.headroom().0));
        self.limit.saturating_sub(full)
    }
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

    /// Bytes that anonymous memory may grow by.
    #[must_use]
    pub fn room(&self) -> Bytes {
        self.available().saturating_sub(self.tight)
    }
}

impl Levels {
    /// Bytes that anonymous memory may grow by before any wall is hit.
    #[must_use]
    pub fn room(&self) -> Bytes {
        let cgroup = self.cgroup_room.or(self.cgroup.map(|c| c.room()));
        let system = self.system.map(|s| s.room());
        let rooms = cgroup.into_iter().chain(system);
        rooms.min().unwrap_or(Bytes(u64::MAX))
    }

    /// As they would be with `more` bytes given back beside (or, below zero,
    /// taken).
    #[must_use]
    pub fn with_returned(mut self, more: i64) -> Self {
        let (back, taken) = (
            Bytes(more.max(0).unsigned_abs()),
            Bytes(more.min(0).unsigned_abs()),
        );
        let moved = |b: Bytes| Bytes(b.0.saturating_add(back.0)).saturating_sub(taken);
        if let Some(g) = &mut self.cgroup {
            g.usage = Bytes(g.usage.0.saturating_add(taken.0)).saturating_sub(back);
        }
        if let Some(g) = &mut self.system {
            g.free = moved(g.free);
        }
        self.cgroup_room = self.cgroup_room.map(moved);
        self
    }
}

impl Gauges {
    /// Reads all. A gauge that fails reads as absent.
    pub fn levels(&mut self, depth: Depth) -> Levels {
        let walls = self.walls.as_mut().map(|w| w.read(depth));
        let walls = walls.unwrap_or_default();
        Levels {
            cgroup: walls.binding,
            cgroup_room: walls.room.filter(|_| depth == Depth::All),
            system: self.system.as_mut().map(|s| s.level(depth)),
        }
    }
}

/// Anonymous memory that the cgroups around this process still have room for,
/// but for a reserve: page cache gives way to it. Everything where none has a
/// limit: the system's own reserves are the kernel's to keep. Slow: not for the
/// reactor.
#[must_use]
pub fn obtainable() -> Bytes {
    let Ok(cgroup) = MemoryCgroup::of_self() else {
        return Bytes(u64::MAX);
    };
    let rooms = cgroup.levels().filter_map(|level| {
        let used = level.anonymous().unwrap_or(Bytes::ZERO);
        Some(level.limit()?.saturating_sub(used).saturating_sub(RESERVE))
    });
    rooms.min().unwrap_or(Bytes(u64::MAX))
}

/// What [`obtainable`] leaves: a prompt's rows, and what else a request takes
/// beside its cache.
const RESERVE: Bytes = Bytes::mib(16);

/// The process's resident set.
#[derive(Debug)]
pub struct ResidentGauge {
    statm: File,
    page_bytes: u64,
}

impl ResidentGauge {
    /// Opens /proc/self/statm.
    ///
    /// # Errors
    /// It is not there.
    pub fn open() -> io::Result<Self> {
        let gauge = Self {
            statm: File::open("/proc/self/statm")?,
            page_bytes: rustix::param::page_size() as u64,
        };
        // Now rather than at a full wall: see `super::wall`.
        let _ = gauge.read();
        Ok(gauge)
    }

    /// The second number of `statm`, in pages (proc(5)). Since 6.2 the kernel
    /// sums per-CPU counters there with an error of some dozen pages per CPU.
    #[must_use]
    pub fn read(&self) -> Option<Bytes> {
        let mut buf = [0u8; 128];
        let n = pread(&self.statm, &mut buf, 0).ok()?;
        let pages = buf[..n].split(|b| *b == b' ').nth(1)?;
        let pages = pages.iter().try_fold(0u64, |v, b| {
            b.is_ascii_digit()
                .then(|| v.saturating_mul(10).saturating_add(u64::from(b - b'0')))
        })?;
        Some(Bytes(pages.saturating_mul(self.page_bytes)))
    }
}

/// Distance of the whole system to what its zones keep free.
///
/// The watermarks are summed once from /proc/zoneinfo (they change only when
/// memory is hot-plugged or an admin writes `min_free_kbytes`); free pages
/// come from `sysinfo(2)`, one system call and no text.
/// MemAvailable is no signal here: it counts the model's own mapped weights
/// as free.
///
/// Lower zones keep a reserve from allocations that could have come from a
/// higher one (`lowmem_reserve` in mm/page_alloc.c). While any zone still has
/// free pages beyond its high watermark and that reserve, nobody reclaims for
/// want of memory; and kswapd, once woken, goes on until one has. So the sum
/// of both over all zones is what is to stay free. The watermarks alone are
/// too little: with 24 GiB in two zones kswapd wakes while 70 MiB more than
/// their sum are free, in the reserve of the lower one.
#[derive(Debug)]
pub struct SystemGauge {
    high: Bytes,
    tight: Bytes,
    /// Page cache that is taken for somebody's working set, an eighth of all
    /// memory: mapped weights and programs, which are clean and not spare.
    reserve: Bytes,
    vmstat: Option<File>,
    last_refaults: Option<u64>,
}

/// Several times what is read of /proc/vmstat: the counters that matter are in
/// its first half.
const VMSTAT_BYTES: usize = 8 << 10;

impl SystemGauge {
    /// Reads the watermarks.
    ///
    /// # Errors
    /// /proc/zoneinfo cannot be read or names no zone.
    pub fn open() -> io::Result<Self> {
        let path = Path::new("/proc/zoneinfo");
        let text = std::fs::read_to_string(path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        let pages = Watermarks::read(&text).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/zoneinfo names no high watermark",
            )
        })?;
        let info = rustix::system::sysinfo();
        let all = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1)));
        let vmstat = File::open("/proc/vmstat").ok();
        // Now rather than at a full wall: see `super::wall`.
        let _ = vmstat.as_ref().map(page_cache);
        Ok(Self {
            high: bytes(pages.high),
            tight: bytes(pages.high.saturating_add(pages.reserve)),
            reserve: Bytes(all / 8),
            vmstat,
            last_refaults: None,
        })
    }

    /// Free memory as it is now, and the marks. Page cache is looked at where
    /// free memory is near its mark, and for [`Depth::All`].
    #[must_use]
    pub fn level(&mut self, depth: Depth) -> SystemLevel {
        let mut now = SystemLevel {
            free: free(),
            high: self.high,
            tight: self.tight,
            ..SystemLevel::default()
        };
        if (depth == Depth::All || now.free.0 < 2 * self.tight.0)
            && let Some((file, refaults)) = self.vmstat.as_ref().and_then(page_cache)
        {
            now.file = Some(file.saturating_sub(self.reserve));
            let before = self.last_refaults.replace(refaults);
            now.refaulted = before.map(|b| bytes(refaults.saturating_sub(b)));
        }
        now
    }
}

fn bytes(pages: u64) -> Bytes {
    Bytes(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Clean page cache, and pages of all refaults.
fn page_cache(vmstat: &File) -> Option<(Bytes, u64)> {
    let mut buf = [0u8; VMSTAT_BYTES];
    let mut held = 0;
    while held < buf.len() {
        match pread(vmstat, &mut buf[held..], held as u64) {
            Ok(0) => break,
            Ok(n) => held += n,
            Err(_) => return None,
        }
    }
    let (mut file, mut dirty, mut refaults, mut found) = (0u64, 0u64, 0u64, false);
    for (name, value) in lines(&buf[..held]) {
        match name {
            b"nr_inactive_file" | b"nr_active_file" => {
                found = true;
                file = file.saturating_add(value);
            }
            b"nr_dirty" | b"nr_writeback" => dirty = dirty.saturating_add(value),
            b"workingset_refault" | b"workingset_refault_file" | b"workingset_refault_anon" => {
                refaults = refaults.saturating_add(value);
            }
            _ => {}
        }
    }
    found.then(|| (bytes(file.saturating_sub(dirty)), refaults))
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
        assert!(g.level(Depth::All).refaulted.is_some());
    }

    #[test]
    fn page_cache_covers_what_is_missing_and_what_is_given_back_counts() {
        let mib = Bytes::mib;
        let cgroup = CgroupLevel {
            usage: mib(64),
            limit: mib(64),
            file: Some(mib(10)),
            ..CgroupLevel::default()
        };
        assert_eq!(cgroup.headroom(), mib(2));
        assert_eq!((cgroup.missing(), cgroup.room()), (mib(0), mib(8)));
        let bare = CgroupLevel {
            file: Some(mib(0)),
            ..cgroup
        };
        assert_eq!((bare.missing(), bare.room()), (mib(2), mib(0)));
        let system = SystemLevel {
            free: mib(50),
            high: mib(40),
            tight: mib(60),
            file: Some(mib(4)),
            refaulted: None,
        };
        assert_eq!((system.short(), system.missing()), (mib(10), mib(6)));
        let levels = Levels {
            cgroup: Some(bare),
            system: Some(system),
            cgroup_room: None,
        };
        assert_eq!(levels.room(), mib(0));
        let back = levels.with_returned(20 << 20);
        assert_eq!(back.cgroup.unwrap().missing(), mib(0));
        assert_eq!(back.room(), mib(14));
        let taken = levels.with_returned(-(20 << 20));
        assert_eq!(taken.cgroup.unwrap().missing(), mib(22));
        assert_eq!(taken.system.unwrap().missing(), mib(26));
        assert_eq!(Levels::default().room(), Bytes(u64::MAX));
    }

    #[test]
    fn without_a_count_of_hits_a_full_cgroup_was_hit() {
        let full = CgroupLevel {
            usage: Bytes::mib(199),
            limit: Bytes::mib(200),
            ..CgroupLevel::default()
        };
        assert!(full.was_hit());
        let counted = CgroupLevel {
            hits: Some(0),
            ..full
        };
        assert!(!counted.was_hit());
    }
}
