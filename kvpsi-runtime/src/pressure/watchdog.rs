//! Listens to one source, and falls back to another when the first should have
//! reported.
//!
//! Programs can be attached and still see nothing: a kernel may reclaim where
//! no hook of ours is, or call what we hook no more. So the
//! kernel's own account of stalls, which is cheap and late, is read once a
//! second. While it counts stalls and the first source reports none, events are
//! made of that account; the first source stays open, and takes over again as
//! soon as it reports. A false alarm costs only late events in addition.
//! Draining does not allocate.

use crate::clock::monotonic_ns;
use crate::pressure::{
    EventTotals, PressureSource, Readiness, SourceStats,
    programs::{Cost, Rung},
};
use kvpsi_common::{Event, Kind, counters::KindCounters};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Between two readings of the other account.
const LOOK: Duration = Duration::from_secs(1);
/// Readings that find stalls, without an event between them, before the source
/// counts as silent: a stall that one source reports at its begin and the other
/// at its end can fall into different readings.
const PATIENCE: u32 = 3;
/// Stall time between two readings that a source must have reported: more than
/// what may be due to other clocks, in ns.
const NOTICEABLE_NS: u64 = 20_000_000;
/// The same for an account that counts stalls and no time.
const NOTICEABLE_STALLS: u64 = 10;

/// The rule: pure, so that it can be tested without a kernel that fails.
#[derive(Clone, Copy, Debug, Default)]
struct Rule {
    /// The first source reported since the last reading.
    reported: bool,
    stall_ns: u64,
    stalls: u64,
    suspicious: u32,
    silent: bool,
}

impl Rule {
    /// The first source reported.
    fn reported(&mut self) {
        self.reported = true;
        self.suspicious = 0;
        self.silent = false;
    }

    /// The other account holds this.
    fn counted(&mut self, e: &Event) {
        self.stall_ns = self.stall_ns.saturating_add(e.stall_ns);
        if e.stall_ns == 0 && e.kind().is_some_and(kvpsi_common::Kind::is_stall) {
            self.stalls = self.stalls.saturating_add(e.count);
        }
    }

    /// The time of a reading: whether the first source has just been found
    /// silent.
    fn look(&mut self) -> bool {
        let stalled = self.stall_ns >= NOTICEABLE_NS || self.stalls >= NOTICEABLE_STALLS;
        if stalled && !self.reported {
            self.suspicious += 1;
        }
        (self.stall_ns, self.stalls, self.reported) = (0, 0, false);
        let found = !self.silent && self.suspicious >= PATIENCE;
        self.silent |= found;
        found
    }
}

/// What became of the first source, readable from any thread.
struct WatchedStats {
    first: Arc<dyn SourceStats>,
    other: Arc<dyn SourceStats>,
    names: [&'static str; 2],
    /// Times the first was found silent.
    found: AtomicU64,
    silent: AtomicBool,
    /// Events of the other that were handed on.
    delivered: AtomicU64,
}

impl SourceStats for WatchedStats {
    fn totals(&self) -> EventTotals {
        let mut t = self.first.totals();
        let more = self.delivered.load(Relaxed);
        t.seen += more;
        t.delivered += more;
        t
    }

    fn some_ns(&self) -> Option<u64> {
        if self.silent.load(Relaxed) {
            self.other.some_ns()
        } else {
            self.first.some_ns()
        }
    }

    fn rung(&self) -> Option<Rung> {
        self.first.rung()
    }

    fn kinds(&self) -> Vec<(Kind, KindCounters)> {
        self.first.kinds()
    }

    fn costs(&self) -> Vec<(String, Cost)> {
        self.first.costs()
    }

    fn note(&self) -> Option<String> {
        let found = self.found.load(Relaxed);
        if found == 0 {
            return self.first.note();
        }
        let [first, other] = self.names;
        let now = if self.silent.load(Relaxed) {
            format!("falling back to {other} (higher latency)")
        } else {
            format!("fell back to {other} until it reported again")
        };
        Some(format!(
            "{first} broke or was silent while {other} counted stalls ({found} times): {now} (`kvpsi doctor` shows what is attached)"
        ))
    }
}

/// A source, and another in case it is silent.
pub struct Watched {
    first: Box<dyn PressureSource>,
    other: Box<dyn PressureSource>,
    /// The first source failed, and is not asked again.
    broken: bool,
    rule: Rule,
    /// Work of kernel threads that the first source saw until the last look: the other
    /// account holds it too.
    background: u64,
    next_look_ns: u64,
    stats: Arc<WatchedStats>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched")
            .field("names", &self.stats.names)
            .field("rule", &self.rule)
            .finish_non_exhaustive()
    }
}

impl Watched {
    /// `other` has an interval and no descriptor: it is asked, and waits for
    /// nothing.
    #[must_use]
    pub fn new(first: Box<dyn PressureSource>, other: Box<dyn PressureSource>) -> Self {
        let stats = Arc::new(WatchedStats {
            first: first.stats(),
            other: other.stats(),
            names: [first.name(), other.name()],
            found: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
        });
        Self {
            first,
            other,
            broken: false,
            rule: Rule::default(),
            background: 0,
            next_look_ns: monotonic_ns().saturating_add(LOOK_NS),
            stats,
        }
    }

    fn drain_first(&mut self, sink: &mut dyn FnMut(&Event)) {
        if self.broken {
            return;
        }
        let mut spoke = false;
        let drained = self.first.drain(&mut |e| {
            spoke = true;
            sink(e);
        });
        if spoke {
            self.rule.reported();
        }
        if drained.is_err() {
            self.broken = true;
            self.rule.silent = true;
            self.stats.found.fetch_add(1, Relaxed);
        }
    }
}

/// [`LOOK`] in ns.
const LOOK_NS: u64 = 1_000_000_000 * LOOK.as_secs();

impl PressureSource for Watched {
    fn name(&self) -> &'static str {
        self.first.name()
    }

    fn readiness(&self) -> Readiness<'_> {
        let mut of_first = if self.broken {
            Readiness {
                fd: None,
                interval: None,
            }
        } else {
            self.first.readiness()
        };
        let ours = if self.rule.silent {
            self.other.readiness().interval.unwrap_or(LOOK)
        } else {
            Duration::from_nanos(self.next_look_ns.saturating_sub(monotonic_ns()))
        };
        of_first.interval = Some(of_first.interval.map_or(ours, |i| i.min(ours)));
        of_first
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        self.drain_first(sink);
        let now = monotonic_ns();
        let look = now >= self.next_look_ns;
        if look || self.rule.silent {
            let (rule, stats) = (&mut self.rule, &*self.stats);
            let drained = self.other.drain(&mut |e| {
                rule.counted(e);
                if rule.silent {
                    stats.delivered.fetch_add(1, Relaxed);
                    sink(e);
                }
            });
            // An account that cannot be read is no reason to stop listening to
            // a source that works.
            if self.broken {
                drained?;
            }
        }
        if look {
            self.next_look_ns = now.saturating_add(LOOK_NS);
            // Its programs run: the other account holds this work, too.
            let background = self.stats.first.background();
            if std::mem::replace(&mut self.background, background) != background {
                self.rule.reported();
            }
            if self.rule.look() {
                self.stats.found.fetch_add(1, Relaxed);
            }
        }
        self.stats.silent.store(self.rule.silent, Relaxed);
        Ok(())
    }

    fn stats(&self) -> Arc<dyn SourceStats> {
        self.stats.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;
    use kvpsi_common::Kind;

    fn stalled(ms: u64) -> Event {
        Event {
            kind: Kind::Memstall as u16,
            stall_ns: ms * 1_000_000,
            count: 1,
            ..Event::zeroed()
        }
    }

    #[test]
    fn silence_while_others_count_stalls_is_found_out_after_some_looks() {
        let mut rule = Rule::default();
        for look in 1..=3 {
            rule.counted(&stalled(30));
            assert_eq!(rule.look(), look == 3);
        }
        assert!(rule.silent);
        rule.counted(&stalled(30));
        assert!(!rule.look() && rule.silent, "found once");
        rule.reported();
        assert!(!rule.silent);
    }

    #[test]
    fn a_word_now_and_then_or_a_calm_account_is_no_silence() {
        let mut rule = Rule::default();
        for _ in 0..10 {
            for _ in 0..2 {
                rule.counted(&stalled(500));
                assert!(!rule.look());
            }
            rule.reported();
        }
        for _ in 0..100 {
            rule.counted(&stalled(1));
            assert!(!rule.look());
        }
        assert!(!rule.silent);
    }

    #[test]
    fn an_account_without_time_is_weighed_by_its_stalls_alone() {
        let mut rule = Rule::default();
        let stalls = Event {
            kind: Kind::DirectReclaim as u16,
            count: 10,
            ..Event::zeroed()
        };
        let kswapd = Event {
            kind: Kind::KswapdWake as u16,
            ..stalls
        };
        for _ in 0..9 {
            rule.counted(&kswapd);
            assert!(!rule.look());
        }
        for _ in 0..2 {
            rule.counted(&stalls);
            assert!(!rule.look());
        }
        rule.counted(&stalls);
        assert!(rule.look());
    }
}
