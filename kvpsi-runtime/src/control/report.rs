//! The walls for people: what `kvpsi doctor`, `kvpsi top` and `/kvpsi/status`
//! show of them, and what became of the stalls at each.
//!
//! Out of scope: decisions; the reactor reads [`super::gauge`]. All here is slow.

use super::{
    cgroup::MemoryCgroup,
    system::SystemGauge,
    wall::{Depth, Walls},
};
use crate::units::Bytes;
use serde::{Deserialize, Serialize};

/// One wall.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallReport {
    /// The cgroup's directory, or `system`.
    pub level: String,
    /// Levels above ours; none for the system.
    #[serde(default)]
    pub depth: Option<u32>,
    /// Bytes used.
    pub usage: Bytes,
    /// Of these, anonymous; none where it is not counted.
    pub anonymous: Option<Bytes>,
    /// Of these, clean page cache that the kernel can drop.
    pub page_cache: Option<Bytes>,
    /// `memory.high`, where set.
    pub high: Option<Bytes>,
    /// `memory.max` or v1's limit, where set; of the system what is used before
    /// free memory is short.
    pub max: Option<Bytes>,
    /// Times it was hit since it was made; none for the system.
    pub hits: Option<u64>,
    /// Bytes missing now that page cache cannot give.
    pub missing: Bytes,
    /// Bytes that anonymous memory may grow by.
    pub room: Bytes,
    /// Of all it has least room.
    pub binds: bool,
}

/// Each wall that there is, ours first and the system last, as the reactor of a process
/// sees it whose cache has `held` bytes.
#[must_use]
pub fn walls(held: Bytes) -> Vec<WallReport> {
    let own = MemoryCgroup::of_self();
    let mut all = own.map_or_else(|_| Vec::new(), |own| cgroups(&own, held));
    all.extend(system());
    let tightest = all.iter().map(|w| w.room).min();
    for wall in &mut all {
        wall.binds = Some(wall.room) == tightest;
    }
    all
}

fn cgroups(own: &MemoryCgroup, held: Bytes) -> Vec<WallReport> {
    let levels: Vec<MemoryCgroup> = own.levels().collect();
    let one = |l: &super::wall::CgroupLevel| {
        let level = levels.get(l.up as usize)?;
        Some(WallReport {
            level: level.path.display().to_string(),
            depth: Some(l.up),
            usage: l.usage,
            anonymous: l.anonymous,
            page_cache: l.file,
            high: level.high(),
            max: level.limit(),
            hits: level.hits(),
            missing: l.missing(),
            room: l.room(),
            binds: false,
        })
    };
    let mut walls = Walls::open(own);
    walls.held = held;
    walls.each().iter().filter_map(one).collect()
}

fn system() -> Option<WallReport> {
    let s = SystemGauge::open().ok()?.level(Depth::All);
    let info = rustix::system::sysinfo();
    let all = Bytes((info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1))));
    Some(WallReport {
        level: "system".into(),
        usage: all.saturating_sub(s.free),
        page_cache: s.file,
        max: Some(all.saturating_sub(s.tight)),
        missing: s.missing(),
        room: s.room(),
        ..WallReport::default()
    })
}

/// What became of the stalls that the source told of: each is in one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// At a cgroup's wall, and memory was missing: the cache was asked for it, which may
    /// have none to give.
    pub answered_cgroup: u64,
    /// At the system's, and memory was missing.
    pub answered_system: u64,
    /// At a cgroup's wall; page cache covered it.
    pub harmless_cgroup: u64,
    /// At the system's; the same.
    pub harmless_system: u64,
    /// At none of our walls.
    pub foreign: u64,
    /// There is no wall to look at.
    pub no_wall: u64,
}

impl Verdicts {
    /// How many there are.
    pub(super) const COUNT: usize = 6;

    /// Wall, verdict, stalls.
    #[must_use]
    pub fn each(&self) -> [(&'static str, &'static str, u64); Self::COUNT] {
        [
            ("cgroup", "answered", self.answered_cgroup),
            ("system", "answered", self.answered_system),
            ("cgroup", "harmless", self.harmless_cgroup),
            ("system", "harmless", self.harmless_system),
            ("none", "foreign", self.foreign),
            ("none", "no_wall", self.no_wall),
        ]
    }

    pub(super) fn from_counts(n: [u64; Self::COUNT]) -> Self {
        let [
            answered_cgroup,
            answered_system,
            harmless_cgroup,
            harmless_system,
            foreign,
            no_wall,
        ] = n;
        Self {
            answered_cgroup,
            answered_system,
            harmless_cgroup,
            harmless_system,
            foreign,
            no_wall,
        }
    }

    /// Page cache covered them.
    #[must_use]
    pub fn harmless(&self) -> u64 {
        self.harmless_cgroup.saturating_add(self.harmless_system)
    }

    /// Something was missing.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered_cgroup.saturating_add(self.answered_system)
    }

    /// Those that cost nothing.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        let sum = self.foreign.saturating_add(self.no_wall);
        self.harmless().saturating_add(sum)
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let (now, then) = (self.each(), before.each());
        Self::from_counts(std::array::from_fn(|i| now[i].2.saturating_sub(then[i].2)))
    }
}

impl std::fmt::Display for Verdicts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} asked for memory ({} at a cgroup's limit, {} at the system's), {} harmless, {} foreign",
            self.answered(),
            self.answered_cgroup,
            self.answered_system,
            self.harmless(),
            self.foreign
        )?;
        match self.no_wall {
            0 => Ok(()),
            n => write!(f, ", {n} with no limit to look at"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wall_of_this_machine_has_a_row_and_one_binds() {
        let all = walls(Bytes::ZERO);
        assert_eq!(all.last().unwrap().level, "system");
        assert!(all.iter().any(|w| w.binds), "{all:?}");
        for w in &all {
            assert!(w.usage > Bytes::ZERO && w.max.or(w.high).is_some(), "{w:?}");
        }
    }

    #[test]
    fn verdicts_are_read_back_as_they_were_counted() {
        let v = Verdicts::from_counts([1, 2, 3, 4, 5, 6]);
        assert_eq!(v.each().map(|(_, _, n)| n), [1, 2, 3, 4, 5, 6]);
        assert_eq!((v.answered(), v.harmless(), v.ignored()), (3, 7, 18));
        assert_eq!(v.since(&v), Verdicts::default());
        let text = v.to_string();
        assert!(
            text.starts_with(
                "3 asked for memory (1 at a cgroup's limit, 2 at the system's), 7 harmless, 5 foreign, 6"
            ),
            "{text}"
        );
    }
}
