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
//! `survey`'s.
//! Out of scope: what a number means for a trim ([`super::controller`]).
//!
//! Sources: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst;
//! `try_charge_memcg` in mm/memcontrol.c counts a hit before it reclaims.

use super::{
    cgroup::{MemoryCgroup, Version},
    counters::{MemStat, VmStat, lines, read_number, since},
};
use crate::{clock::monotonic_ns, mapped, units::Bytes};
use rustix::io::pread;
use serde::{Deserialize, Serialize};
use std::{fs::File, path::PathBuf};

/// Limits from here on mean none: v1 writes `LONG_MAX` in whole pages.
const NO_LIMIT: u64 = 1 << 60;
/// Most levels that are watched, from ours upwards.
pub const MOST_LEVELS: usize = 32;

/// One level.
#[derive(Debug)]
struct Level {
    version: Version,
    /// Levels above ours, those without the controller counted.
    up: u32,
    usage: File,
    limit: File,
    high: Option<File>,
    hits: Option<File>,
    stat: Option<File>,
    /// v1: usage, limit and failcnt of memory and swap together.
    memsw: Option<[File; 3]>,
    last_hits: Option<u64>,
    /// Memory and swap together had a limit, whose hits are counted in.
    had_both: bool,
    restored: Moved,
    /// Usage of the last reading and what was left above the headroom, where there
    /// is a limit.
    last_left: Option<(u64, i64)>,
}

/// A cgroup's wall at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupLevel {
    /// What is charged to it.
    pub usage: Bytes,
    /// What may be: the lower of limit and `memory.high`.
    pub limit: Bytes,
    /// Of the usage: clean page cache, which the kernel drops by itself, but for
    /// weights that this process has mapped.
    pub file: Option<Bytes>,
    /// Of the usage: anonymous memory.
    pub anonymous: Option<Bytes>,
    /// Times it was hit since the last reading; `None`: not known.
    pub hits: Option<u64>,
    /// Bytes read again since the last reading that had been evicted while they
    /// were in use (`counters`).
    pub restored: Option<Bytes>,
    /// Levels above ours.
    pub up: u32,
    /// Of the usage: this process's cache. Not recorded: a replay has a cache of its
    /// own.
    #[serde(skip)]
    pub held: Bytes,
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

    /// It is full of anonymous memory (and of what the kernel holds for it, which is
    /// not counted here): without swap no reclaim helps.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        let all = self.limit.0 / 16 * 15;
        self.anonymous.is_some_and(|a| a.0 >= all)
    }

    /// What is to stay free at least, beside the cushion: a 64th of the limit, 2 to 8
    /// MiB, and no more than a 16th, and of that as much again as our cache is of the
    /// limit: of two that share a wall the one with more gives first. More follows from
    /// how fast usage grows, which is the controller's to see.
    #[must_use]
    pub fn headroom(&self) -> Bytes {
        let all = (self.limit.0 / 64)
            .clamp(2 << 20, 8 << 20)
            .min(self.limit.0 / 16);
        // In 2048ths: the limit may be any number.
        let share = self.held.min(self.limit).0 / (self.limit.0 / 2048).max(1);
        Bytes(all + all * share.min(2048) / 2048)
    }

    /// Bytes missing beyond what the kernel finds in page cache.
    #[must_use]
    pub fn missing(&self) -> Bytes {
        Bytes(self.kept().0.saturating_add(self.headroom().0)).saturating_sub(self.limit)
    }

    /// [`Self::room`], or less than nothing: [`Self::missing`].
    #[must_use]
    pub fn above_headroom(&self) -> i64 {
        let signed = |b: Bytes| i64::try_from(b.0).unwrap_or(i64::MAX);
        signed(self.room()) - signed(self.missing())
    }

    /// Bytes that anonymous memory may grow by.
    #[must_use]
    pub fn room(&self) -> Bytes {
        let full = Bytes(self.kept().0.saturating_add(self.headroom().0));
        self.limit.saturating_sub(full)
    }
}

/// Our cgroup and those above it.
#[derive(Debug, Default)]
pub struct Walls {
    path: PathBuf,
    levels: Vec<Level>,
    /// v1 does not count restored pages by cgroup: what the whole system restored
    /// is the most that any of them did.
    vmstat: Option<File>,
    restored: Moved,
    /// This process's cache, which who reads says before.
    pub held: Bytes,
}

/// A counter that not every reading reads.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    last: Option<u64>,
    at_ns: u64,
}

/// What a counter moved in a longer time says nothing of now: longer than any source
/// waits for its next event.
const STALE_NS: u64 = 2_000_000_000;

impl Moved {
    /// By how much it moved lately; `None` where it was last read long ago.
    fn since(&mut self, now_ns: u64, now: u64) -> Option<u64> {
        let age = now_ns.saturating_sub(std::mem::replace(&mut self.at_ns, now_ns));
        since(&mut self.last, Some(now)).filter(|_| age <= STALE_NS)
    }
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
        Self::open_beside(cgroup, File::open("/proc/vmstat").ok())
    }

    fn open_beside(cgroup: &MemoryCgroup, vmstat: Option<File>) -> Self {
        let levels = (0..).zip(cgroup.levels().take(MOST_LEVELS));
        let mut new = Self {
            path: cgroup.path.clone(),
            levels: levels.filter_map(|(up, c)| Level::open(&c, up)).collect(),
            restored: Moved::default(),
            vmstat,
            held: Bytes::ZERO,
        };
        // What was counted until now is over. A limit that is set later finds
        // every file read once.
        let now = monotonic_ns();
        new.system_restored(now);
        for level in &mut new.levels {
            level.begin();
            level.read(now, Depth::All, Bytes::ZERO);
            if let Some(stat) = level.stat() {
                level.restored.since(now, stat.again());
            }
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
        self.read_at(monotonic_ns(), depth)
    }

    fn read_at(&mut self, now_ns: u64, depth: Depth) -> WallsReading {
        let mut all = WallsReading::default();
        for level in &mut self.levels {
            let Some(now) = level.read(now_ns, depth, self.held) else {
                continue;
            };
            let limited = now.limit.0 < NO_LIMIT;
            level.last_left = limited.then(|| (now.usage.0, now.above_headroom()));
            if !limited {
                continue;
            }
            let room = now.room();
            all.room = Some(all.room.map_or(room, |r| r.min(room)));
            let rank = |l: &CgroupLevel| (l.was_hit(), l.missing(), std::cmp::Reverse(l.room()));
            if all.binding.is_none_or(|b| rank(&now) > rank(&b)) {
                all.binding = Some(now);
            }
        }
        if let Some(b) = &mut all.binding {
            self.bound(now_ns, b);
        }
        all
    }

    /// Of the refaults of a level that counts no restored pages, no more than the
    /// whole system restored. Costs a read of /proc/vmstat while there are some.
    fn bound(&mut self, now_ns: u64, level: &mut CgroupLevel) {
        // All are of one hierarchy.
        let v1 = self.levels.iter().all(|l| l.version == Version::V1);
        let Some(refaulted) = level.restored.filter(|r| v1 && *r > Bytes::ZERO) else {
            return;
        };
        if self.vmstat.is_some() {
            let restored = self.system_restored(now_ns);
            level.restored = restored.map(|pages| bytes(pages).min(refaulted));
        }
    }

    /// Pages that the system restored since this was last asked.
    fn system_restored(&mut self, now_ns: u64) -> Option<u64> {
        let stat = VmStat::read(self.vmstat.as_ref()?)?;
        self.restored.since(now_ns, stat.restored)
    }

    /// Some level was hit since the last reading: the quickest thing to know.
    #[must_use]
    pub fn were_hit(&self) -> bool {
        let mut limited = self.levels.iter().filter(|l| l.last_left.is_some());
        limited.any(|l| {
            l.last_hits
                .zip(l.hits(l.had_both))
                .is_some_and(|(last, now)| now > last)
        })
    }

    /// What is left above the headroom at the nearest wall, bytes, if all growth of
    /// usage since the last reading is anonymous: a system call for each level with
    /// a limit. `None` without one.
    #[must_use]
    pub fn above_headroom(&self) -> Option<i64> {
        let left = |l: &Level| {
            let (before, left) = l.last_left?;
            let grown = read_number(&l.usage)?.saturating_sub(before);
            Some(left.saturating_sub_unsigned(grown))
        };
        self.levels.iter().filter_map(left).min()
    }

    /// What was left above the headroom of the nearest wall at the last reading.
    #[must_use]
    pub fn nearest(&self) -> Option<i64> {
        let left = self.levels.iter().filter_map(|l| l.last_left);
        left.map(|(_, left)| left).min()
    }

    /// Each level with a limit, ours first. Slow: for people.
    #[must_use]
    pub fn each(&mut self) -> Vec<CgroupLevel> {
        let now = monotonic_ns();
        let levels = self.levels.iter_mut();
        let limited = |l: &CgroupLevel| l.limit.0 < NO_LIMIT;
        let read = levels.filter_map(|level| level.read(now, Depth::All, self.held));
        read.filter(limited).collect()
    }
}

impl Level {
    fn open(cgroup: &MemoryCgroup, up: u32) -> Option<Self> {
        let open = |name: &str| File::open(cgroup.path.join(name)).ok();
        let memsw = |file: &str| open(&format!("memory.memsw.{file}"));
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
            up,
            usage: open(cgroup.version.usage_file())?,
            limit: open(cgroup.version.limit_file())?,
            high,
            hits,
            stat: open("memory.stat"),
            memsw: memsw("usage_in_bytes")
                .zip(memsw("limit_in_bytes"))
                .zip(memsw("failcnt"))
                .map(|((usage, limit), hits)| [usage, limit, hits]),
            last_hits: None,
            had_both: false,
            restored: Moved::default(),
            last_left: None,
        })
    }

    /// Reads what a reading without a limit leaves out.
    fn begin(&mut self) {
        let _ = read_number(&self.usage);
        for file in self.memsw.iter().flatten() {
            let _ = read_number(file);
        }
        self.last_hits = self.hits(false);
    }

    /// The lower of limit and `memory.high`; `u64::MAX` where there is none.
    fn limit(&self) -> u64 {
        let number = |f: &File| read_number(f).unwrap_or(u64::MAX);
        let high = self.high.as_ref().map_or(u64::MAX, number);
        number(&self.limit).min(high)
    }

    /// Usage of memory and swap together, and their limit, where there is one.
    fn both(&self) -> Option<(Option<u64>, u64)> {
        let [all, limit, _] = self.memsw.as_ref()?;
        let limit = read_number(limit).filter(|l| *l < NO_LIMIT)?;
        Some((read_number(all), limit))
    }

    /// Times that a limit was hit: `memory.failcnt` and that of memory and swap,
    /// or `max` and `high` of `memory.events.local`. `both`: of memory and swap, too.
    fn hits(&self, both: bool) -> Option<u64> {
        let file = self.hits.as_ref()?;
        match self.version {
            Version::V1 => {
                let memsw = self.memsw.as_ref().filter(|_| both);
                let both = memsw.and_then(|[_, _, hits]| read_number(hits));
                Some(read_number(file)?.wrapping_add(both.unwrap_or(0)))
            }
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

    fn stat(&self) -> Option<MemStat> {
        MemStat::read(self.stat.as_ref()?, self.version)
    }

    fn read(&mut self, now_ns: u64, depth: Depth, held: Bytes) -> Option<CgroupLevel> {
        let (mut limit, both) = (self.limit(), self.both());
        if limit >= NO_LIMIT && both.is_none() {
            // It stops nothing, and its other files need not be read to know. Hits of the
            // limit that it had are over.
            if self.last_left.take().is_some() {
                self.last_hits = self.hits(false);
            }
            self.had_both = false;
            return None;
        }
        if std::mem::replace(&mut self.had_both, both.is_some()) != both.is_some() {
            self.last_hits = None;
        }
        let usage = read_number(&self.usage)?;
        if let Some((Some(all), most)) = both {
            limit = limit.min(most.saturating_sub(all.saturating_sub(usage)));
        }
        let hits_now = self.hits(self.had_both);
        let hits = since(&mut self.last_hits, hits_now);
        let mut now = CgroupLevel {
            usage: Bytes(usage),
            limit: Bytes(limit),
            hits,
            up: self.up,
            held: held.min(Bytes(usage)),
            ..CgroupLevel::default()
        };
        let full = limit.saturating_sub(limit / 16);
        let near = usage.saturating_add(now.headroom().0) >= full;
        if limit < NO_LIMIT
            && (depth == Depth::All || near || now.was_hit())
            && let Some(stat) = self.stat()
        {
            now.file = Some(stat.spare(mapped::weights()));
            now.anonymous = Some(Bytes(stat.anonymous));
            now.restored = self.restored.since(now_ns, stat.again()).map(bytes);
        }
        Some(now)
    }
}

fn bytes(pages: u64) -> Bytes {
    Bytes(pages.saturating_mul(rustix::param::page_size() as u64))
}

#[cfg(test)]
mod tests;
