//! The file that `kvpsi record` writes and `kvpsi replay` reads.
//!
//! Eight bytes `KVPSIREC`, the version in 16 bits, then entries: the length of
//! the payload in 16 bits, the payload ([`Entry`] as postcard writes it:
//! variable-length integers, in the order of the fields), and a CRC-32 (IEEE)
//! of both; numbers are little-endian. The first entry is a [`Head`]. A file
//! that ends anywhere is readable up to its last whole entry. Out of scope:
//! where entries come from.

use crate::{
    control::{gauge::Levels, system::SystemLevel, wall::CgroupLevel},
    kv::Step,
    units::Bytes,
};
use bytemuck::Zeroable;
use kvpsi_common::{Event, Kind};
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};

/// First bytes of a recording.
pub const MAGIC: [u8; 8] = *b"KVPSIREC";
/// Version that is written, and the newest that is read.
pub const VERSION: u16 = 2;
/// Bytes before the first entry.
pub const PREFIX: usize = MAGIC.len() + 2;

/// Where a recording was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Linux' release.
    pub kernel: String,
    /// CPUs.
    pub cpus: u32,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Name of the source.
    pub signal: String,
    /// Version of kvpsi.
    pub kvpsi: String,
    /// Start in seconds since 1970.
    pub began_unix_s: u64,
    /// The same moment by `CLOCK_MONOTONIC`, ns.
    pub began_ns: u64,
}

impl Head {
    /// Here and now, by a source of that name.
    #[must_use]
    pub fn here(signal: &str) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into(),
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            page_bytes: rustix::param::page_size() as u64,
            signal: signal.into(),
            kvpsi: env!("CARGO_PKG_VERSION").into(),
            began_unix_s: now.map_or(0, |d| d.as_secs()),
            began_ns: crate::clock::monotonic_ns(),
        }
    }
}

/// An [`Event`], field by field: its layout in memory is the kernel's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of `Event`")]
pub struct Recorded {
    pub ts_ns: u64,
    pub stall_ns: u64,
    pub count: u64,
    pub pages: u64,
    pub cgroup_id: u64,
    pub tgid: u32,
    pub tid: u32,
    pub cpu: u32,
    pub stalled_now: u32,
    pub order: i32,
    pub node: u32,
    pub kind: u16,
    pub phase: u16,
    pub comm: [u8; 16],
    pub detail: u64,
}

impl From<&Event> for Recorded {
    fn from(e: &Event) -> Self {
        Self {
            ts_ns: e.ts_ns,
            stall_ns: e.stall_ns,
            count: e.count,
            pages: e.pages,
            cgroup_id: e.cgroup_id,
            tgid: e.tgid,
            tid: e.tid,
            cpu: e.cpu,
            stalled_now: e.stalled_now,
            order: e.order,
            node: e.node,
            kind: e.kind,
            phase: e.phase,
            comm: e.comm,
            detail: e.detail,
        }
    }
}

impl From<&Recorded> for Event {
    fn from(r: &Recorded) -> Self {
        Self {
            ts_ns: r.ts_ns,
            stall_ns: r.stall_ns,
            count: r.count,
            pages: r.pages,
            cgroup_id: r.cgroup_id,
            tgid: r.tgid,
            tid: r.tid,
            cpu: r.cpu,
            stalled_now: r.stalled_now,
            order: r.order,
            node: r.node,
            kind: r.kind,
            phase: r.phase,
            comm: r.comm,
            detail: r.detail,
            ..Self::zeroed()
        }
    }
}

/// A trim as it was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trim {
    /// Why: `onset`, `ongoing`, `follow_up`, `early_warning`, `background`.
    pub trigger: String,
    /// The kernel's event behind it, by number.
    pub kind: u16,
    /// When the stall behind it began, ns.
    pub onset_ns: u64,
    /// When the reader was handed the event, ns.
    pub noticed_ns: u64,
    /// When the pages were returned, ns.
    pub returned_ns: u64,
    /// Bytes asked of the pool.
    pub wanted: Bytes,
    /// Bytes given back, by step in the ladder's order.
    pub by_step: Vec<Bytes>,
    /// Positions that lost keys and values.
    pub tokens: u64,
    /// Share of recent attention mass that fell on what was dropped.
    pub mass_dropped: f32,
}

impl Trim {
    /// Bytes given back.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        let all = self.by_step.iter();
        Bytes(all.fold(0, |sum, b| b.0.saturating_add(sum)))
    }

    /// The step that lost most, by its name.
    #[must_use]
    pub fn deepest(&self) -> &'static str {
        let steps = Step::ALL.iter().zip(&self.by_step);
        let taken = steps.filter(|(_, b)| **b > Bytes::ZERO).map(|(s, _)| *s);
        taken.max().map_or("", Step::name)
    }

    /// The kernel's event behind it, by its name.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        Kind::from_raw(self.kind).map_or("", Kind::name)
    }
}

/// What the gauges said in version 1: one limit, and no page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels1 {
    /// Usage, limit, and what was to stay free below it.
    pub cgroup: Option<[Bytes; 3]>,
    /// Free, the high watermarks, and what is to stay free.
    pub system: Option<[Bytes; 3]>,
}

impl From<&Levels1> for Levels {
    /// Page cache counts as memory in use: it is not known how much there was.
    /// What was to stay free follows from the limit today.
    fn from(old: &Levels1) -> Self {
        Self {
            cgroup: old.cgroup.map(|[usage, limit, _]| CgroupLevel {
                usage,
                limit,
                ..CgroupLevel::default()
            }),
            system: old.system.map(|[free, high, tight]| SystemLevel {
                free,
                high,
                tight,
                ..SystemLevel::default()
            }),
            cgroup_room: None,
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Entry {
    /// Where and when; the first of every file.
    Head(Head),
    /// The source's event.
    Event(Recorded),
    /// What the gauges said after the events before it, in version 1.
    Levels1 {
        /// `CLOCK_MONOTONIC`, ns.
        ts_ns: u64,
        /// As they were.
        levels: Levels1,
    },
    /// PSI's own account.
    Psi(super::Sample),
    /// The KV pool.
    Kv {
        /// `CLOCK_MONOTONIC`, ns.
        ts_ns: u64,
        /// Resident blocks.
        resident: Bytes,
        /// Blocks of open sequences.
        in_use: Bytes,
        /// Blocks of ended and idle sequences.
        cached: Bytes,
        /// What trims cannot take.
        floor: Bytes,
        /// The budget.
        budget: Bytes,
        /// Positions with keys and values.
        tokens: u64,
    },
    /// A trim.
    Trim(Trim),
    /// So many entries were lost before this one.
    Lost(u64),
    /// What the gauges said after the events before it.
    Levels {
        /// `CLOCK_MONOTONIC`, ns.
        ts_ns: u64,
        /// As they were.
        levels: Levels,
    },
}

impl Entry {
    /// Writes the entry behind `out`.
    ///
    /// # Panics
    /// The payload is longer than 65 535 bytes, which names of machines are
    /// not.
    pub fn write(&self, out: &mut Vec<u8>) {
        let payload = postcard::to_stdvec(self).expect("all types are writable");
        let length = u16::try_from(payload.len()).expect("entries are short");
        let begin = out.len();
        out.extend(length.to_le_bytes());
        out.extend(payload);
        let crc = crc32fast::hash(&out[begin..]);
        out.extend(crc.to_le_bytes());
    }
}

/// The first bytes of a file.
#[must_use]
pub fn prefix() -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out
}

/// Why a file is no recording for this kvpsi.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Something else.
    #[error("is no recording of kvpsi")]
    Foreign,
    /// Made by a newer kvpsi.
    #[error("is a recording of version {0}; this kvpsi reads up to {VERSION}: use a newer one")]
    Newer(u16),
    /// Its beginning is missing.
    #[error("has no readable first entry ({0})")]
    Headless(String),
}

/// Where reading ended before the file did, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Bytes that are good.
    pub whole: usize,
    /// Bytes after them.
    pub left: usize,
    /// What is wrong with these.
    pub why: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at byte {}: the {} bytes from there on are left out",
            self.why, self.whole, self.left
        )
    }
}

/// What was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// Where and when.
    pub head: Head,
    /// Everything after.
    pub entries: Vec<Entry>,
    /// Set where not all of the file could be read.
    pub damage: Option<Damage>,
}

impl Recording {
    /// Reads a file.
    ///
    /// # Errors
    /// It is none, or nothing of it can be read.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        Self::parse(&std::fs::read(path)?)
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordingError> {
        let Some(rest) = bytes.strip_prefix(&MAGIC) else {
            return Err(RecordingError::Foreign);
        };
        let Some((version, mut rest)) = rest.split_first_chunk() else {
            return Err(RecordingError::Headless("it ends before".into()));
        };
        let version = u16::from_le_bytes(*version);
        if version > VERSION {
            return Err(RecordingError::Newer(version));
        }
        let mut entries = Vec::new();
        let mut damage = None;
        while !rest.is_empty() {
            match split(rest) {
                Ok((entry, after)) => {
                    entries.push(entry);
                    rest = after;
                }
                Err(why) => {
                    damage = Some(Damage {
                        whole: bytes.len() - rest.len(),
                        left: rest.len(),
                        why,
                    });
                    break;
                }
            }
        }
        let mut entries = entries.into_iter();
        let Some(Entry::Head(head)) = entries.next() else {
            let why = damage.map_or_else(|| "there is none".into(), |d| d.to_string());
            return Err(RecordingError::Headless(why));
        };
        Ok(Self {
            head,
            entries: entries.collect(),
            damage,
        })
    }

    /// What follows in another file of the same recording.
    pub fn append(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.damage = self.damage.take().or(other.damage);
    }
}

/// The first entry, and what is behind it.
fn split(bytes: &[u8]) -> Result<(Entry, &[u8]), &'static str> {
    const CUT: &str = "the last entry is cut off";
    let length = *bytes.first_chunk::<2>().ok_or(CUT)?;
    let end = 2 + usize::from(u16::from_le_bytes(length));
    let checked = bytes.get(..end).ok_or(CUT)?;
    let (crc, rest) = bytes[end..].split_first_chunk::<4>().ok_or(CUT)?;
    if crc32fast::hash(checked) != u32::from_le_bytes(*crc) {
        return Err("an entry's checksum is wrong");
    }
    let (entry, left) =
        postcard::take_from_bytes(&checked[2..]).map_err(|_| "an entry is of no known kind")?;
    if left.is_empty() {
        Ok((entry, rest))
    } else {
        Err("an entry is too long")
    }
}

#[cfg(test)]
pub(super) mod tests;
