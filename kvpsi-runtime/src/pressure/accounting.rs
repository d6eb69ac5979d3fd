//! Stall time since a moment: by kvpsi's own clocks, and beside them the
//! kernel's PSI where there is one.
//!
//! Owns what was read at the start. Reads files and formats text: never on
//! the reactor's path. Where the clocks differ by design is said in
//! [`kvpsi_common::scope`].

use crate::{
    clock::monotonic_ns,
    pressure::{ebpf::EbpfStats, psi::total_us},
};
use kvpsi_common::{Kind, SharedReading, scope::ScopeReading, shared};
use serde::Serialize;
use std::{fmt, fs, time::Duration};

/// Time in which at least one task stalled, and in which all did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StallTime {
    /// At least one, in ns.
    pub some_ns: u64,
    /// PSI: all that are not idle. Ours: as many as there are CPUs. In ns.
    pub full_ns: u64,
}

impl StallTime {
    fn of(scope: &ScopeReading, now_ns: u64) -> Self {
        Self {
            some_ns: scope.some_ns(now_ns),
            full_ns: scope.full_ns(now_ns),
        }
    }

    /// The system's PSI; `None` if this kernel keeps none.
    #[must_use]
    pub fn of_kernel() -> Option<Self> {
        let text = fs::read("/proc/pressure/memory").ok()?;
        Some(Self {
            some_ns: total_us(&text, b"some ")?.saturating_mul(1000),
            full_ns: total_us(&text, b"full ")?.saturating_mul(1000),
        })
    }

    fn since(self, start: Self) -> Self {
        Self {
            some_ns: self.some_ns.saturating_sub(start.some_ns),
            full_ns: self.full_ns.saturating_sub(start.full_ns),
        }
    }
}

impl fmt::Display for StallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns| Duration::from_nanos(ns).as_secs_f64() * 1e3;
        write!(
            f,
            "some {:.1} ms, full {:.1} ms",
            ms(self.some_ns),
            ms(self.full_ns)
        )
    }
}

/// One kind's outermost stalls that are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// What they turned out to be.
    pub kind: &'static str,
    /// How many.
    pub stalls: u64,
    /// How long they took, summed over tasks, in ns.
    pub stall_ns: u64,
}

/// Stall time since [`Accounting::start`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Every task of the system that any hook saw stall.
    pub system: StallTime,
    /// What PSI counts, the kernel's own threads included; `None` without the
    /// memstall rung.
    pub memstall: Option<StallTime>,
    /// The kernel's PSI, if it keeps one.
    pub psi: Option<StallTime>,
    /// Stalls by what they turned out to be, kinds that occurred.
    pub kinds: Vec<Settled>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stall time: {}", self.system)?;
        if let Some(m) = &self.memstall {
            write!(f, "; as PSI counts: {m}")?;
        }
        match &self.psi {
            Some(psi) => write!(f, "; the kernel's PSI: {psi}")?,
            None => write!(f, "; this kernel keeps no PSI")?,
        }
        for (i, k) in self.kinds.iter().enumerate() {
            let (lead, ms) = (if i == 0 { "; " } else { ", " }, k.stall_ns / 1_000_000);
            write!(f, "{lead}{} {} in {ms} ms", k.stalls, k.kind)?;
        }
        Ok(())
    }
}

/// The clocks at the start.
#[derive(Debug)]
pub struct Accounting {
    system: StallTime,
    memstall: StallTime,
    psi: Option<StallTime>,
}

fn both(reading: &SharedReading) -> (StallTime, StallTime) {
    let now = monotonic_ns();
    (
        StallTime::of(&reading.scopes[shared::SYSTEM], now),
        StallTime::of(&reading.scopes[shared::MEMSTALL], now),
    )
}

impl Accounting {
    /// From now on.
    #[must_use]
    pub fn start(stats: &EbpfStats) -> Self {
        let (system, memstall) = both(&stats.shared());
        Self {
            system,
            memstall,
            psi: StallTime::of_kernel(),
        }
    }

    /// Until now. `memstall` says whether that rung is in use.
    #[must_use]
    pub fn read(&self, stats: &EbpfStats, memstall: bool) -> Account {
        let (system, stalled) = both(&stats.shared());
        let counters = stats.counters();
        let kinds = Kind::ALL
            .into_iter()
            .map(|k| (k, counters.of(k)))
            .filter(|(_, c)| c.settled > 0)
            .map(|(k, c)| Settled {
                kind: k.name(),
                stalls: c.settled,
                stall_ns: c.stall_ns,
            })
            .collect();
        Account {
            system: system.since(self.system),
            memstall: memstall.then(|| stalled.since(self.memstall)),
            psi: StallTime::of_kernel()
                .zip(self.psi)
                .map(|(now, then)| now.since(then)),
            kinds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_says_what_is_missing_and_what_the_stalls_were() {
        let time = |ms: u64| StallTime {
            some_ns: ms * 1_000_000,
            full_ns: ms * 500_000,
        };
        let mut account = Account {
            system: time(10),
            memstall: None,
            psi: None,
            kinds: vec![Settled {
                kind: "refault",
                stalls: 3,
                stall_ns: 7_000_000,
            }],
        };
        let text = account.to_string();
        assert!(text.contains("some 10.0 ms, full 5.0 ms"), "{text}");
        assert!(text.contains("no PSI") && text.ends_with("3 refault in 7 ms"));
        account.psi = Some(time(20));
        account.memstall = Some(time(19));
        let text = account.to_string();
        assert!(text.contains("PSI counts: some 19.0") && text.contains("PSI: some 20.0"));
    }

    #[test]
    fn clocks_that_step_back_give_no_time() {
        let later = StallTime {
            some_ns: 5,
            full_ns: 9,
        };
        assert_eq!(StallTime::default().since(later), StallTime::default());
    }
}
