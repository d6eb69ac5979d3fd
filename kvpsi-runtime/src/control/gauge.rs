//! How many bytes are missing, read without allocating.
//!
//! Owns two gauges: the memory cgroup kvpsi runs in, and the whole system.
//! Each answers "how much must become free for the stall to end". Refuses to
//! decide anything. Descriptors stay open, buffers are on the stack: the
//! reactor reads them between an event and a trim.

use super::cgroup::MemoryCgroup;
use crate::units::Bytes;
use rustix::io::pread;
use serde::{Deserialize, Serialize};
use std::{fs::File, io, path::Path};

/// Both walls memory can run into. `None`: that wall is not there.
#[derive(Debug, Default)]
pub struct Gauges {
    /// The cgroup kvpsi runs in, where it has a limit.
    pub cgroup: Option<CgroupGauge>,
    /// The whole system.
    pub system: Option<SystemGauge>,
}

/// What the gauges read at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Bytes missing below the cgroup's limit: usage + headroom - limit.
    pub cgroup_deficit: Option<Bytes>,
    /// Bytes missing in the system: what all zones keep - free. Above it the
    /// kernel reclaims only for a cgroup at its limit, below for everybody.
    pub system_deficit: Option<Bytes>,
    /// Bytes free of both walls, less what is to stay free: the smaller.
    pub room: Bytes,
}

/// A memory cgroup at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupLevel {
    /// What is charged to it.
    pub usage: Bytes,
    /// What may be; `u64::MAX` without a limit.
    pub limit: Bytes,
    /// What is to stay free below the limit.
    pub headroom: Bytes,
}

/// The whole system at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemLevel {
    /// Free pages of all zones.
    pub free: Bytes,
    /// Sum of the high watermarks; for who reads a recording.
    pub high: Bytes,
    /// The same and what zones keep in reserve: what is to stay free.
    pub tight: Bytes,
}

/// What the gauges see before anything is made of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    /// The cgroup, where there is a gauge for it.
    pub cgroup: Option<CgroupLevel>,
    /// The system, where there is a gauge for it.
    pub system: Option<SystemLevel>,
}

impl Levels {
    /// How much is missing and how much room there is.
    #[must_use]
    pub fn reading(&self) -> Reading {
        // Without a limit nothing is missing, and the sum does not reach it.
        let of_cgroup = self.cgroup.map(|g| {
            let full = Bytes(g.usage.0.saturating_add(g.headroom.0));
            (full.saturating_sub(g.limit), g.limit.saturating_sub(full))
        });
        let of_system = self.system.map(|g| g.free.saturating_sub(g.tight));
        let rooms = of_cgroup.map(|d| d.1).into_iter().chain(of_system);
        Reading {
            cgroup_deficit: of_cgroup.map(|d| d.0),
            room: rooms.min().unwrap_or(Bytes(u64::MAX)),
            system_deficit: self.system.map(|g| g.tight.saturating_sub(g.free)),
        }
    }

    /// As they would be with `more` bytes given back beside (or, below zero,
    /// taken).
    #[must_use]
    pub fn with_returned(mut self, more: i64) -> Self {
        let (back, taken) = (
            Bytes(more.max(0).unsigned_abs()),
            Bytes(more.min(0).unsigned_abs()),
        );
        if let Some(g) = &mut self.cgroup {
            g.usage = Bytes(g.usage.0.saturating_add(taken.0)).saturating_sub(back);
        }
        if let Some(g) = &mut self.system {
            g.free = Bytes(g.free.0.saturating_add(back.0)).saturating_sub(taken);
        }
        self
    }
}

impl Gauges {
    /// Reads both. A gauge that fails reads as absent.
    #[must_use]
    pub fn levels(&self) -> Levels {
        Levels {
            cgroup: self.cgroup.as_ref().and_then(|g| g.level().ok()),
            system: self.system.as_ref().map(SystemGauge::level),
        }
    }
}

/// Distance to a memory cgroup's limit.
#[derive(Debug)]
pub struct CgroupGauge {
    usage: File,
    limit: File,
    headroom: Bytes,
}

impl CgroupGauge {
    /// Opens the files of `cgroup`; `headroom` bytes are to stay free.
    ///
    /// # Errors
    /// A file is missing or refused.
    pub fn open(cgroup: &MemoryCgroup, headroom: Bytes) -> io::Result<Self> {
        let open = |name: &str| {
            let path = cgroup.path.join(name);
            File::open(&path)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
        };
        Ok(Self {
            usage: open(cgroup.version.usage_file())?,
            limit: open(cgroup.version.limit_file())?,
            headroom,
        })
    }

    /// Usage and limit as they are now.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn level(&self) -> io::Result<CgroupLevel> {
        Ok(CgroupLevel {
            usage: Bytes(read_number(&self.usage)?.unwrap_or(0)),
            // "max" is not a number.
            limit: Bytes(read_number(&self.limit)?.unwrap_or(u64::MAX)),
            headroom: self.headroom,
        })
    }
}

/// Anonymous memory that the tightest cgroup around this process still has room
/// for, but for a reserve: page cache gives way to it. Everything where no
/// cgroup has a limit: the system's own reserves are the kernel's to keep. Slow:
/// not for the reactor.
#[must_use]
pub fn obtainable() -> Bytes {
    let tightest = MemoryCgroup::of_self().ok().and_then(|c| c.tightest());
    let Some((cgroup, limit)) = tightest else {
        return Bytes(u64::MAX);
    };
    let used = cgroup.anonymous().unwrap_or(Bytes::ZERO);
    limit.saturating_sub(used).saturating_sub(RESERVE)
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
        Ok(Self {
            statm: File::open("/proc/self/statm")?,
            page_bytes: rustix::param::page_size() as u64,
        })
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

/// The decimal number a file starts with, `None` if it starts with none.
fn read_number(file: &File) -> io::Result<Option<u64>> {
    let mut buf = [0u8; 32];
    let n = pread(file, &mut buf, 0)?;
    let mut value = None;
    for d in buf[..n].iter().take_while(|b| b.is_ascii_digit()) {
        value = Some(
            value
                .unwrap_or(0u64)
                .saturating_mul(10)
                .saturating_add(u64::from(d - b'0')),
        );
    }
    Ok(value)
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
}

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
        let bytes = |pages: u64| Bytes(pages.saturating_mul(rustix::param::page_size() as u64));
        Ok(Self {
            high: bytes(pages.high),
            tight: bytes(pages.high.saturating_add(pages.reserve)),
        })
    }

    /// Free memory as it is now, and the marks.
    #[must_use]
    pub fn level(&self) -> SystemLevel {
        SystemLevel {
            free: free(),
            high: self.high,
            tight: self.tight,
        }
    }
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
    use std::io::Write;

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
    fn a_number_is_read_and_max_is_none() {
        for (text, want) in [("123\n", Some(123)), ("max\n", None), ("", None)] {
            let mut f = tempfile::tempfile().unwrap();
            f.write_all(text.as_bytes()).unwrap();
            assert_eq!(read_number(&f).unwrap(), want, "{text:?}");
        }
        let mut f = tempfile::tempfile().unwrap();
        f.write_all(&[b'9'; 32]).unwrap();
        assert_eq!(read_number(&f).unwrap(), Some(u64::MAX));
    }

    #[test]
    fn the_system_gauge_reads_this_machine() {
        let g = SystemGauge::open().unwrap();
        assert!(g.high > Bytes::ZERO);
        // Nobody runs the tests with less free memory than a watermark.
        let level = g.level();
        let levels = Levels {
            cgroup: None,
            system: Some(level),
        };
        assert!(levels.reading().system_deficit.unwrap() <= g.tight);
    }

    #[test]
    fn what_is_missing_follows_from_the_levels_and_from_what_is_given_back() {
        let mib = Bytes::mib;
        let levels = Levels {
            cgroup: Some(CgroupLevel {
                usage: mib(90),
                limit: mib(100),
                headroom: mib(16),
            }),
            system: Some(SystemLevel {
                free: mib(50),
                high: mib(40),
                tight: mib(60),
            }),
        };
        let r = levels.reading();
        assert_eq!((r.cgroup_deficit, r.room), (Some(mib(6)), mib(0)));
        assert_eq!(r.system_deficit, Some(mib(10)));
        let back = levels.with_returned(20 << 20).reading();
        assert_eq!((back.cgroup_deficit, back.room), (Some(mib(0)), mib(10)));
        let taken = levels.with_returned(-(20 << 20)).reading();
        assert_eq!(taken.cgroup_deficit, Some(mib(26)));
        assert_eq!(taken.system_deficit, Some(mib(30)));
        let unlimited = CgroupLevel {
            usage: mib(90),
            limit: Bytes(u64::MAX),
            headroom: mib(16),
        };
        let r = Levels {
            cgroup: Some(unlimited),
            system: None,
        };
        assert_eq!(r.reading().cgroup_deficit, Some(Bytes::ZERO));
        assert!(r.reading().room > mib(1 << 30));
    }
}
