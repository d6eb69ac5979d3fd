//! When a stall becomes an event of its own.
//!
//! Owns the rule ([`decide`]) and the state it needs ([`Slot`]), run as it is
//! by the eBPF programs and by the tests. Out of scope: ring buffers.
//!
//! Invariants, for one slot used by one CPU at a time:
//! - the first stall after a quiet spell is an onset,
//! - no two events are closer than the interval,
//! - while stalls go on, the first one after the interval is an event,
//! - the counts of the events and what is still pending add up to all stalls.
//!
//! Several CPUs share a slot without fetching atomics: the arm64 JIT of Linux
//! 5.15 refuses them. Two CPUs that decide within the few nanoseconds between
//! a load and a store may both send, and both report the same pending stalls;
//! nothing is ever lost or goes negative by that, and the counters
//! ([`crate::Counters`]) do not depend on it.

use crate::cell::Cell;

/// How stalls are gathered into events. Times in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// At most one event per interval.
    pub interval_ns: u64,
    /// No stall for this long ends a burst; taken as at least the interval.
    pub quiet_ns: u64,
}

/// What to do about one stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send an onset: the first stall after a quiet spell.
    Onset,
    /// Send a summary: stalls go on and the interval is over. No wake-up: a
    /// reader looks by itself each interval until no event came for a quiet
    /// spell.
    Summary,
    /// Send a summary and wake the reader: the burst goes on, but the last
    /// event is a quiet spell ago.
    Resume,
    /// Count it; a later event tells.
    Coalesce,
}

/// The rule. `last_ns` is the last moment of activity, `sent_ns` the last
/// event, 0 for never; `busy` says that another stall is under way, so that
/// the burst cannot have ended. A clock that steps back between CPUs counts
/// as no time at all.
#[inline(always)]
#[must_use]
pub const fn decide(now_ns: u64, last_ns: u64, sent_ns: u64, busy: bool, rule: Rule) -> Decision {
    let quiet = if rule.quiet_ns > rule.interval_ns {
        rule.quiet_ns
    } else {
        rule.interval_ns
    };
    if sent_ns == 0 || (!busy && now_ns.saturating_sub(last_ns) >= quiet) {
        Decision::Onset
    } else if now_ns.saturating_sub(sent_ns) >= quiet {
        Decision::Resume
    } else if now_ns.saturating_sub(sent_ns) >= rule.interval_ns {
        Decision::Summary
    } else {
        Decision::Coalesce
    }
}

/// What an event reports of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Stalls since the last event, the present one included.
    pub count: u64,
    /// Pages reclaimed since the last event.
    pub pages: u64,
    /// `some` time since the last event, in ns.
    pub some_ns: u64,
    arrived: u64,
    reclaimed: u64,
    some_total: u64,
}

/// The state of one stream of events. All zero at first; one cache line.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Slot {
    last_ns: Cell,
    sent_ns: Cell,
    arrived: Cell,
    reclaimed: Cell,
    told_arrived: Cell,
    told_reclaimed: Cell,
    told_some_ns: Cell,
    _pad: u64,
}

impl Slot {
    /// Takes a stall and decides about it. `busy` as in [`decide`].
    #[inline(always)]
    pub fn arrive(&self, now_ns: u64, busy: bool, rule: Rule) -> Decision {
        let last = self.last_ns.load();
        let sent = self.sent_ns.load();
        let decision = decide(now_ns, last, sent, busy, rule);
        if !matches!(decision, Decision::Coalesce) {
            // At once, to keep the window for a second sender short.
            self.sent_ns.store(now_ns);
        }
        self.last_ns.store(now_ns);
        self.arrived.add(1);
        decision
    }

    /// Notes activity that is not a stall of its own: the end of one.
    #[inline(always)]
    pub fn touch(&self, now_ns: u64, pages: u64) {
        self.last_ns.store(now_ns);
        if pages > 0 {
            self.reclaimed.add(pages);
        }
    }

    /// What an event sent now would report. `some_ns` is the scope's total.
    #[inline(always)]
    pub fn pending(&self, some_ns: u64) -> Pending {
        let arrived = self.arrived.load();
        let reclaimed = self.reclaimed.load();
        Pending {
            count: arrived.saturating_sub(self.told_arrived.load()),
            pages: reclaimed.saturating_sub(self.told_reclaimed.load()),
            some_ns: some_ns.saturating_sub(self.told_some_ns.load()),
            arrived,
            reclaimed,
            some_total: some_ns,
        }
    }

    /// The event got out: what it reported is pending no more. Not called
    /// for an event that was dropped, so that the next one reports it.
    #[inline(always)]
    pub fn told(&self, p: &Pending) {
        self.told_arrived.store(p.arrived);
        self.told_reclaimed.store(p.reclaimed);
        self.told_some_ns.store(p.some_total);
    }
}

const _: () = assert!(core::mem::size_of::<Slot>() == 64);

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const RULE: Rule = Rule {
        interval_ns: 1_000_000,
        quiet_ns: 10_000_000,
    };

    #[test]
    fn the_first_stall_ever_is_an_onset_even_at_time_zero() {
        assert_eq!(decide(0, 0, 0, false, RULE), Decision::Onset);
        assert_eq!(decide(5, 5, 0, true, RULE), Decision::Onset);
    }

    #[test]
    fn a_burst_does_not_end_while_a_task_is_still_stalled() {
        let late = 500_000_000;
        assert_eq!(decide(late, 1, 1, false, RULE), Decision::Onset);
        assert_eq!(decide(late, 1, 1, true, RULE), Decision::Resume);
        assert_eq!(
            decide(late, 1, late - 2_000_000, true, RULE),
            Decision::Summary
        );
    }

    #[test]
    fn a_clock_that_steps_back_coalesces() {
        assert_eq!(decide(90, 100, 100, false, RULE), Decision::Coalesce);
    }

    #[test]
    fn a_dropped_event_is_reported_by_the_next_one() {
        let s = Slot::default();
        assert_eq!(s.arrive(1_000_000_000, false, RULE), Decision::Onset);
        s.touch(1_000_500_000, 32);
        // No `told`: the ring buffer was full.
        assert_eq!(s.arrive(1_001_000_000, false, RULE), Decision::Summary);
        let p = s.pending(700);
        assert_eq!((p.count, p.pages, p.some_ns), (2, 32, 700));
        s.told(&p);
        let p = s.pending(900);
        assert_eq!((p.count, p.pages, p.some_ns), (0, 0, 200));
    }

    proptest! {
        #[test]
        fn events_keep_their_distance_and_account_for_every_stall(
            gaps in prop::collection::vec((0u64..25_000_000, any::<bool>(), 0u64..64), 1..300),
            interval in 0u64..5_000_000,
            quiet in 0u64..20_000_000,
        ) {
            let rule = Rule { interval_ns: interval, quiet_ns: quiet };
            let slot = Slot::default();
            let (mut now, mut last, mut told, mut pages, mut told_pages) = (1u64, 0u64, 0, 0, 0);
            let mut sent: Vec<u64> = Vec::new();
            for (n, (gap, busy, reclaimed)) in gaps.iter().enumerate() {
                now += gap;
                let d = slot.arrive(now, *busy, rule);
                let quiet_spell = n == 0 || (!busy && now - last >= quiet.max(interval));
                prop_assert_eq!(d == Decision::Onset, quiet_spell);
                match d {
                    Decision::Coalesce => {
                        prop_assert!(now - sent[sent.len() - 1] < interval);
                    }
                    Decision::Onset | Decision::Summary | Decision::Resume => {
                        if let Some(before) = sent.last() {
                            prop_assert!(now - before >= interval);
                            // Unwoken only while the reader still looks.
                            prop_assert!(d != Decision::Summary || now - before < quiet.max(interval));
                        }
                        let p = slot.pending(0);
                        told += p.count;
                        told_pages += p.pages;
                        slot.told(&p);
                        sent.push(now);
                    }
                }
                prop_assert_eq!(told + slot.pending(0).count, n as u64 + 1);
                slot.touch(now, *reclaimed);
                pages += reclaimed;
                last = now;
            }
            prop_assert_eq!(told_pages + slot.pending(0).pages, pages);
        }
    }

    #[test]
    fn threads_that_share_a_slot_lose_no_stall() {
        let slot = Slot::default();
        std::thread::scope(|s| {
            for t in 0..4u64 {
                let slot = &slot;
                s.spawn(move || {
                    for i in 0..20_000u64 {
                        let now = 1 + i * 1_000 + t;
                        if slot.arrive(now, true, RULE) != Decision::Coalesce {
                            let p = slot.pending(0);
                            assert!(p.count <= 80_000);
                            slot.told(&p);
                        }
                    }
                });
            }
        });
        assert_eq!(slot.arrived.load(), 80_000);
    }
}
