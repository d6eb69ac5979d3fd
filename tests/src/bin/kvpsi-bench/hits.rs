//! What of a burst is pressure, and which turns of the neighbour it meets.
//!
//! Owns the counters that are read around a burst and the sorting of turns by
//! time. Out of scope: quantiles (xtask).

use kvpsi::{clock::monotonic_ns, control::cgroup::MemoryCgroup};
use kvpsi_tests::storm::meminfo;
use serde_json::{Value, json};
use std::fs;

/// The kernel's counters since boot; of the whole machine but for `hits`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// The limit was hit: charges refused at first; where the machine is the
    /// wall, allocations that had to reclaim themselves.
    hits: u64,
    refaults: u64,
    /// Pages that kswapd looked at, and that allocations did.
    kswapd: u64,
    direct: u64,
}

impl Counts {
    /// As of now, of a cgroup or of the machine.
    pub fn now(cgroup: Option<&MemoryCgroup>) -> Self {
        let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
        let sum = |key: &str| sum_of(&text, key);
        Self {
            hits: cgroup.map_or_else(|| sum("allocstall_"), |c| c.hits().unwrap_or(0)),
            refaults: sum("workingset_refault_"),
            kswapd: sum("pgscan_kswapd"),
            direct: sum("pgscan_direct"),
        }
    }

    /// What was counted since, and whether it was pressure: a cgroup's limit was
    /// hit, or the machine looked for pages to reclaim.
    pub fn since(self, before: Self, of_cgroup: bool) -> Value {
        let by = |n: fn(&Self) -> u64| n(&self).saturating_sub(n(&before));
        let (hits, kswapd, direct) = (by(|c| c.hits), by(|c| c.kswapd), by(|c| c.direct));
        let pressed = hits > 0 || !of_cgroup && kswapd + direct > 0;
        json!({
            "pressed": pressed, "hits": hits, "refaults": by(|c| c.refaults),
            "kswapd_pages": kswapd, "direct_pages": direct,
        })
    }
}

/// The sum of the lines of /proc/vmstat that begin so; 0 of what is not there.
/// `pgscan_direct_throttle` counts events, not pages.
pub fn sum_of(text: &str, key: &str) -> u64 {
    let of = |l: &str| {
        let (name, n) = l.split_once(' ')?;
        let ours = name.starts_with(key) && !name.ends_with("_throttle");
        ours.then(|| n.parse::<u64>().ok())?
    };
    text.lines().filter_map(of).fold(0, u64::saturating_add)
}

/// Bytes that are free below the limit, or in the machine.
pub fn free(cgroup: Option<&MemoryCgroup>) -> u64 {
    let below = |c: &MemoryCgroup| Some(c.limit()?.0.saturating_sub(c.usage()?.0));
    cgroup
        .and_then(below)
        .unwrap_or_else(|| meminfo("MemFree:"))
}

/// One burst, and what was seen of it.
#[derive(Debug)]
pub struct Burst {
    /// When it began to take memory, and when it gave it back, in ns.
    pub begins: u64,
    pub ends: u64,
    /// When it had all; `None` of one that was killed.
    pub has_all: Option<u64>,
    /// Free memory before it and the least in it, in bytes.
    pub room: u64,
    pub low: u64,
    pub counted: Value,
}

impl Burst {
    /// One that says nothing yet: it is over when it says so, or now.
    pub fn new(room: u64) -> Self {
        let now = monotonic_ns();
        Self {
            begins: now,
            ends: 0,
            has_all: None,
            room,
            low: room,
            counted: Value::Null,
        }
    }

    /// Takes a line of the program's.
    pub fn told(&mut self, line: &Value) {
        let of = |key: &str| line[key].as_u64();
        self.begins = of("begins").unwrap_or(self.begins);
        self.has_all = of("has_all").or(self.has_all);
        self.ends = of("ends").unwrap_or(self.ends);
    }
}

/// A turn of the neighbour, in ns: its beginning, its length, processor time, and
/// time ready without a processor.
pub type Turn = (u64, u64, u64, u64);

/// Turns by burst: those that it meets, up to `after` ns after its end; and those
/// from then to the next burst.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Met {
    pub within: Vec<Turn>,
    pub later: Vec<Turn>,
}

/// Sorts turns by the bursts (beginning and end, in ns) that they meet; the first
/// list is of those before any burst.
pub fn sort(turns: &[Turn], bursts: &[(u64, u64)], after: u64) -> (Vec<Turn>, Vec<Met>) {
    let mut calm = Vec::new();
    let mut met: Vec<Met> = bursts.iter().map(|_| Met::default()).collect();
    for &turn in turns {
        let (began, ended) = (turn.0, turn.0 + turn.1);
        // The last one that had begun when the turn ended.
        match bursts.iter().rposition(|b| b.0 <= ended) {
            None => calm.push(turn),
            Some(i) if began <= bursts[i].1 + after => met[i].within.push(turn),
            Some(i) => met[i].later.push(turn),
        }
    }
    (calm, met)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_belongs_to_the_burst_that_it_meets() {
        let turn = |began, length| (began, length, 0, 0);
        let turns = [
            turn(0, 5),    // calm
            turn(90, 20),  // begins before the first burst and is caught by it
            turn(150, 5),  // within
            turn(205, 5),  // the burst is over, its wake is not
            turn(250, 5),  // later
            turn(290, 20), // caught by the second
        ];
        let (calm, met) = sort(&turns, &[(100, 200), (300, 400)], 10);
        assert_eq!(calm, turns[..1]);
        assert_eq!(met[0].within, turns[1..4]);
        assert_eq!(met[0].later, turns[4..5]);
        assert_eq!(met[1].within, turns[5..]);
        assert_eq!(sort(&turns, &[], 10).0.len(), turns.len());
    }

    #[test]
    fn only_a_hit_limit_is_pressure_in_a_cgroup() {
        let before = Counts::default();
        let kswapd = Counts {
            kswapd: 7,
            ..before
        };
        assert_eq!(kswapd.since(before, true)["pressed"], false);
        assert_eq!(kswapd.since(before, false)["pressed"], true);
        assert_eq!(before.since(before, false)["pressed"], false);
        let hit = Counts { hits: 1, ..before };
        assert_eq!(hit.since(before, true)["pressed"], true);
    }

    #[test]
    fn counters_of_all_zones_and_kinds_are_summed() {
        let text =
            "allocstall_dma 1\nallocstall_normal 2\npgscan_direct 5\npgscan_direct_throttle 9\n";
        assert_eq!(sum_of(text, "allocstall_"), 3);
        assert_eq!(sum_of(text, "pgscan_direct"), 5);
        assert_eq!(sum_of(text, "oom_kill"), 0);
    }
}
