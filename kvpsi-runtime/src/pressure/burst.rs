//! For sources that look by themselves: where a burst begins, and how often to
//! look.

use kvpsi_common::Phase;
use std::time::Duration;

/// Pressure counts as recent for so long, and is looked at often. Android's
/// lmkd polls for as long after PSI told it of pressure: its PSI window is a
/// second (system/memory/lmkd/lmkd.cpp, `PSI_WINDOW_SIZE_MS`).
const RECENT: Duration = Duration::from_secs(1);

/// When a source last saw a stall.
#[derive(Clone, Copy, Debug)]
pub(super) struct Burst {
    quiet_ns: u64,
    last_ns: Option<u64>,
}

impl Burst {
    /// A stall after a spell of `quiet` without one begins the next burst.
    pub(super) fn new(quiet: Duration) -> Self {
        Self {
            quiet_ns: ns(quiet),
            last_ns: None,
        }
    }

    /// A stall is seen at `now_ns`: whether it is the first of a burst.
    pub(super) fn stall(&mut self, now_ns: u64) -> Phase {
        let onset = self
            .last_ns
            .is_none_or(|t| now_ns.saturating_sub(t) > self.quiet_ns);
        self.last_ns = Some(now_ns);
        if onset { Phase::Onset } else { Phase::Summary }
    }

    fn is_recent(&self, now_ns: u64) -> bool {
        self.last_ns
            .is_some_and(|t| now_ns.saturating_sub(t) < ns(RECENT))
    }
}

/// How often to look: often while pressure is recent, else seldom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) busy: Duration,
    pub(super) calm: Duration,
}

impl Pace {
    /// Until the next look.
    pub(super) fn interval(self, burst: &Burst, now_ns: u64) -> Duration {
        if burst.is_recent(now_ns) {
            self.busy
        } else {
            self.calm
        }
    }

    /// The quiet spell after which a burst is over: a look without a stall.
    pub(super) fn quiet(self) -> Duration {
        self.busy * 3 / 2
    }
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_burst_begins_after_a_quiet_spell_and_is_looked_at_often_for_a_second() {
        let pace = Pace {
            busy: Duration::from_millis(10),
            calm: Duration::from_millis(100),
        };
        let mut burst = Burst::new(pace.quiet());
        assert_eq!(pace.interval(&burst, 0), pace.calm);
        assert_eq!(burst.stall(100 * MS), Phase::Onset);
        assert_eq!(burst.stall(110 * MS), Phase::Summary);
        assert_eq!(burst.stall(130 * MS), Phase::Onset);
        assert_eq!(pace.interval(&burst, 1129 * MS), pace.busy);
        assert_eq!(pace.interval(&burst, 1130 * MS), pace.calm);
    }
}
