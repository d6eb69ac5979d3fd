//! How much memory this process may still take.
//!
//! Owns two numbers. For weights that are about to be read into private memory, the
//! most that can be had, with harm or without: the least of what the system has
//! available and of what each cgroup from ours upwards leaves, page cache given up and
//! swap taken ([`Room`]). For a request's cache, what cgroups leave without swap and but
//! for a reserve ([`obtainable`]). Slow: not for the reactor, whose walls are
//! [`super::wall`]'s.

use super::cgroup::{MemoryCgroup, Version};
use crate::units::Bytes;
use std::fs;

/// The least room, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// How much.
    pub bytes: Bytes,
    /// Of what, for people.
    pub of: String,
}

impl Room {
    /// What there is now; `None` where /proc does not say.
    #[must_use]
    pub fn now() -> Option<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
        let swap = kib(&meminfo, "SwapFree:").unwrap_or(Bytes::ZERO);
        let system = Self {
            bytes: Bytes(kib(&meminfo, "MemAvailable:")?.0.saturating_add(swap.0)),
            of: "of the system".into(),
        };
        let own = MemoryCgroup::of_self().ok();
        let levels = own.iter().flat_map(MemoryCgroup::levels);
        let cgroups = levels.filter_map(|level| Self::of_cgroup(&level, swap));
        cgroups.chain([system]).min_by_key(|room| room.bytes)
    }

    /// What a cgroup with a limit leaves.
    fn of_cgroup(level: &MemoryCgroup, swap: Bytes) -> Option<Self> {
        let limit = level.limit()?;
        let number = |file: &str| -> Option<Bytes> {
            let text = fs::read_to_string(level.path.join(file)).ok()?;
            text.trim().parse().ok().map(Bytes)
        };
        let swap = match level.version {
            Version::V1 => number("memory.memsw.limit_in_bytes").map(|b| b.saturating_sub(limit)),
            Version::V2 => number("memory.swap.max"),
        }
        .map_or(swap, |most| most.min(swap));
        let taken = level.anonymous().unwrap_or(Bytes::ZERO);
        Some(Self {
            bytes: Bytes(limit.saturating_sub(taken).0.saturating_add(swap.0)),
            of: format!("below the limit of {}", level.path.display()),
        })
    }
}

/// Anonymous memory that the cgroups around this process still have room for,
/// but for a reserve: page cache gives way to it. Everything where none has a
/// limit: the system's own reserves are the kernel's to keep.
#[must_use]
pub fn obtainable() -> Bytes {
    let own = MemoryCgroup::of_self().ok();
    let levels = own.iter().flat_map(MemoryCgroup::levels);
    let rooms = levels.filter_map(|level| Room::of_cgroup(&level, Bytes::ZERO));
    let least = rooms.map(|room| room.bytes.saturating_sub(RESERVE)).min();
    least.unwrap_or(Bytes(u64::MAX))
}

/// What [`obtainable`] leaves: a prompt's rows, and what else a request takes
/// beside its cache.
const RESERVE: Bytes = Bytes::mib(16);

/// A line of `/proc/meminfo`.
fn kib(meminfo: &str, key: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_leaves_its_limit_without_what_is_taken_and_the_swap_it_may_use() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let level = |version| MemoryCgroup {
            path: dir.path().into(),
            version,
        };
        let room = |version| Room::of_cgroup(&level(version), Bytes(500)).map(|r| r.bytes);
        write("memory.max", "max\n");
        assert_eq!(room(Version::V2), None);
        write("memory.max", "10000\n");
        write("memory.stat", "anon 3000\nfile 6000\ntotal_rss 4000\n");
        assert_eq!(room(Version::V2), Some(Bytes(7500)));
        write("memory.swap.max", "200\n");
        assert_eq!(room(Version::V2), Some(Bytes(7200)));
        write("memory.limit_in_bytes", "10000\n");
        write("memory.memsw.limit_in_bytes", "10100\n");
        assert_eq!(room(Version::V1), Some(Bytes(6100)));
        assert_eq!(
            kib("MemTotal: 5 kB\nMemAvailable:   3 kB\n", "MemAvailable:"),
            Some(Bytes(3072))
        );
    }
}
