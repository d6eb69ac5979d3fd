//! The memory cgroups whose limits stop us: ours and every one above it.
//!
//! Owns their open files and the hit counters as they were last read. All
//! levels are kept whether or not they have a limit, so one that is set later
//! is seen by the next reading. A reading allocates nothing: descriptors stay
//! open, buffers are on the stack. Nor does the kernel: of a file in /proc or a
//! cgroup the first read allocates a buffer, charged to the reader's cgroup
//! (`seq_buf_alloc` in fs/seq_file.c), and at a full wall the reactor would be
//! stalled itself; so each file is read once when it is opened. A file that
//! vanished or holds nonsense makes its number absent, never the reading fail.
//! Finding that the process was moved, or that a level came or went, is
//! [`super::survey`]'s.
//! Out of scope: what a number means for a trim ([`super::controller`]).
//!
//! Sources: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst;
//! `try_charge_memcg` in mm/memcontrol.c counts a hit before it reclaims.

use super::{
    cgroup::{MemoryCgroup, Version},
    gauge::CgroupLevel,
};
use crate::units::Bytes;
use rustix::io::pread;
use std::{fs::File, path::PathBuf};

/// Limits from here on mean none: v1 writes `LONG_MAX` in whole pages.
const NO_LIMIT: u64 = 1 << 60;
/// `memory.stat` has some 2 KiB on a current kernel.
const STAT_BYTES: usize = 8 << 10;
/// Most levels that are watched, from ours upwards.
pub const MOST_LEVELS: usize = 32;

/// One level.
#[derive(Debug)]
struct Level {
    version: Version,
    usage: File,
    limit: File,
    high: Option<File>,
    hits: Option<File>,
    stat: Option<File>,
    last_hits: Option<u64>,
    last_refaults: Option<u64>,
}

/// Our cgroup and those above it.
#[derive(Debug, Default)]
pub struct Walls {
    path: PathBuf,
    levels: Vec<Level>,
}

/// What all levels together say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallsReading {
    /// The wall that counts: of those hit since the last reading the one that
    /// misses most, else the one with least room.
    pub binding: Option<CgroupLevel>,
    /// Bytes that anonymous memory may grow by before any of them is hit, page
    /// cache given up first; `None` without a limit.
    pub room: Option<Bytes>,
}

/// Of which walls page cache is looked at: it costs a read of `memory.stat` for
/// each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Of those hit or nearly full: of others nothing is missing.
    Near,
    /// Of all with a limit.
    All,
}

impl Walls {
    /// Opens the files of `cgroup` and of those above it. Levels without the
    /// memory controller are left out.
    #[must_use]
    pub fn open(cgroup: &MemoryCgroup) -> Self {
        let levels = cgroup.levels().take(MOST_LEVELS);
        let mut new = Self {
            path: cgroup.path.clone(),
            levels: levels.filter_map(|c| Level::open(&c)).collect(),
        };
        // Hits and refaults before this moment are nobody's.
        for level in &mut new.levels {
            let _ = level.limits();
            // As if it had a limit: one that is set later finds all files read.
            level.read(0, 0, Depth::All);
        }
        new
    }

    /// Directory of the innermost level.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// How many levels can be read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.levels.len()
    }

    /// No level can be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Reads all levels.
    pub fn read(&mut self, depth: Depth) -> WallsReading {
        let mut all = WallsReading::default();
        for (up, level) in self.levels.iter_mut().enumerate() {
            let (limit, high) = level.limits();
            let up = u32::try_from(up).unwrap_or(u32::MAX);
            let Some(now) = level.read(up, limit.min(high), depth) else {
                continue;
            };
            if now.limit.0 >= NO_LIMIT {
                continue;
            }
            let room = now.room();
            all.room = Some(all.room.map_or(room, |r| r.min(room)));
            let rank = |l: &CgroupLevel| (l.was_hit(), l.missing(), std::cmp::Reverse(l.room()));
            if all.binding.is_none_or(|b| rank(&now) > rank(&b)) {
                all.binding = Some(now);
            }
        }
        all
    }

    /// Some level was hit since the last reading: the quickest thing to know.
    #[must_use]
    pub fn were_hit(&self) -> bool {
        self.levels.iter().any(|l| {
            let now = l.hits.as_ref().and_then(|f| hits(f, l.version));
            l.last_hits.zip(now).is_some_and(|(last, now)| now > last)
        })
    }

    /// Each level with a limit, ours first. Slow: for people.
    #[must_use]
    pub fn each(&mut self) -> Vec<CgroupLevel> {
        let levels = self.levels.iter_mut().enumerate();
        let one = |(up, level): (usize, &mut Level)| {
            let (limit, high) = level.limits();
            level.read(u32::try_from(up).ok()?, limit.min(high), Depth::All)
        };
        let limited = |l: &CgroupLevel| l.limit.0 < NO_LIMIT;
        levels.filter_map(one).filter(limited).collect()
    }
}

impl Level {
    fn open(cgroup: &MemoryCgroup) -> Option<Self> {
        let open = |name: &str| File::open(cgroup.path.join(name)).ok();
        let (high, hits) = match cgroup.version {
            Version::V1 => (None, open("memory.failcnt")),
            // The hierarchical file counts the hits of those below it too.
            Version::V2 => (
                open("memory.high"),
                open("memory.events.local").or_else(|| open("memory.events")),
            ),
        };
        Some(Self {
            version: cgroup.version,
            usage: open(cgroup.version.usage_file())?,
            limit: open(cgroup.version.limit_file())?,
            high,
            hits,
            stat: open("memory.stat"),
            last_hits: None,
            last_refaults: None,
        })
    }

    /// (limit, high); `u64::MAX` where there is none.
    fn limits(&self) -> (u64, u64) {
        let number = |f: &File| read_number(f).unwrap_or(u64::MAX);
        (
            number(&self.limit),
            self.high.as_ref().map_or(u64::MAX, number),
        )
    }

    fn read(&mut self, up: u32, limit: u64, depth: Depth) -> Option<CgroupLevel> {
        let usage = read_number(&self.usage)?;
        let hits_now = self.hits.as_ref().and_then(|f| hits(f, self.version));
        let hits = since(&mut self.last_hits, hits_now);
        let mut now = CgroupLevel {
            usage: Bytes(usage),
            limit: Bytes(limit),
            hits,
            up,
            ..CgroupLevel::default()
        };
        let near = usage.saturating_add(limit / 16) >= limit;
        if limit < NO_LIMIT
            && (depth == Depth::All || near || now.was_hit())
            && let Some(stat) = self.stat.as_ref().and_then(|f| Stat::read(f, self.version))
        {
            now.file = Some(Bytes(stat.file.saturating_sub(stat.dirty)));
            now.anonymous = Some(Bytes(stat.anonymous));
            now.refaulted = since(&mut self.last_refaults, Some(stat.refaults))
                .map(|pages| Bytes(pages.saturating_mul(rustix::param::page_size() as u64)));
        }
        Some(now)
    }
}

/// How far a counter moved; `None` at first and where it is not there. A counter
/// that went back (the cgroup was made anew) begins again.
fn since(last: &mut Option<u64>, now: Option<u64>) -> Option<u64> {
    let before = std::mem::replace(last, now)?;
    Some(now?.saturating_sub(before))
}

/// Times that the limit was hit: `memory.failcnt`, or `max` and `high` of
/// `memory.events.local`.
fn hits(file: &File, version: Version) -> Option<u64> {
    match version {
        Version::V1 => read_number(file),
        Version::V2 => {
            let mut buf = [0u8; 512];
            let n = pread(file, &mut buf, 0).ok()?;
            let (mut sum, mut found) = (0u64, false);
            for (name, value) in lines(&buf[..n]) {
                if matches!(name, b"max" | b"high") {
                    sum = sum.wrapping_add(value);
                    found = true;
                }
            }
            found.then_some(sum)
        }
    }
}

/// What matters of `memory.stat`: bytes, and pages of refaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stat {
    pub file: u64,
    pub dirty: u64,
    pub anonymous: u64,
    pub refaults: u64,
}

impl Stat {
    fn read(file: &File, version: Version) -> Option<Self> {
        let mut buf = [0u8; STAT_BYTES];
        let mut held = 0;
        while held < buf.len() {
            match pread(file, &mut buf[held..], held as u64) {
                Ok(0) => break,
                Ok(n) => held += n,
                Err(_) => return None,
            }
        }
        Self::parse(&buf[..held], version)
    }

    /// v1 has its own pages first and those of all below as `total_`; v2 counts
    /// all. `None` where it names no file pages.
    pub(crate) fn parse(text: &[u8], version: Version) -> Option<Self> {
        let mut sum = Self::default();
        let mut found = false;
        for (name, value) in lines(text) {
            let name = match version {
                Version::V2 => name,
                Version::V1 => match name.strip_prefix(b"total_") {
                    Some(name) => name,
                    None => continue,
                },
            };
            let field = match name {
                b"inactive_file" | b"active_file" => {
                    found = true;
                    &mut sum.file
                }
                b"dirty" | b"writeback" | b"file_dirty" | b"file_writeback" => &mut sum.dirty,
                b"rss" | b"anon" => &mut sum.anonymous,
                // Until 5.8 one counter, then one each.
                b"workingset_refault" | b"workingset_refault_file" | b"workingset_refault_anon" => {
                    &mut sum.refaults
                }
                _ => continue,
            };
            *field = field.saturating_add(value);
        }
        found.then_some(sum)
    }
}

/// Pairs of a flat keyed file. Lines that are none are passed over.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let space = line.iter().position(|b| *b == b' ')?;
        Some((&line[..space], number(&line[space + 1..])?))
    })
}

/// The decimal number that a text starts with.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(None, |value, d| {
        let value = value.unwrap_or(0u64).saturating_mul(10);
        Some(value.saturating_add(u64::from(d - b'0')))
    })
}

/// The decimal number that a file starts with: none of `max`, nor of nonsense.
fn read_number(file: &File) -> Option<u64> {
    let mut buf = [0u8; 32];
    let n = pread(file, &mut buf, 0).ok()?;
    number(&buf[..n])
}

#[cfg(test)]
mod tests;
