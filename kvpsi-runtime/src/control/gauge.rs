//! How many bytes are missing, read without allocating.
//!
//! Owns the reading that a decision is made of: the walls of our cgroups
//! ([`super::wall`]) and the whole system. A wall's numbers say what is missing
//! there once the kernel has dropped clean page cache, and how much room there
//! is. Descriptors stay open, buffers are on the stack: the reactor reads
//! between an event and a trim.
//! Out of scope: whose stall it is and what is done ([`super::controller`]).

use super::{
    system::{SystemGauge, SystemLevel},
    wall::{CgroupLevel, Depth, Walls},
};
use crate::units::Bytes;
use rustix::io::pread;
use serde::{Deserialize, Serialize};
use std::{fs::File, io};

/// All walls that memory can run into.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Our cgroup and those above it, where they count.
    pub walls: Option<Walls>,
    /// The whole system, where it counts.
    pub system: Option<SystemGauge>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_cache_covers_what_is_missing_and_what_is_given_back_counts() {
        let mib = Bytes::mib;
        let cgroup = CgroupLevel {
            usage: mib(128),
            limit: mib(128),
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
            restored: None,
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
