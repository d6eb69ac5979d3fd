//! The rule that turns stalls into trims. Pure: time and readings come in,
//! decisions go out.
//!
//! - The first slice of a burst is small, so that a stalled allocation is
//!   served in a fraction of a millisecond; each next slice of the burst is
//!   twice as large, until the deficit seen at the last event is met.
//! - A stall in a cgroup that is not at its limit is somebody else's; so is one
//!   of unknown cause while neither our cgroup nor the system is short.
//! - kswapd's wake is early warning: only what is lossless goes.
//! - Where reclaim has other pages to turn to, what costs text waits for the
//!   slow steps, which lose less; not longer than a patience while stalls go on,
//!   nor when these are stuck: they need pages and a CPU themselves.
//!   A stall in a cgroup at its limit, or a victim of the OOM killer, is urgent:
//!   two slices by quick steps at once, the rest of the deficit by slow ones.
//! - After a trim the budget is what is left. When calm, it grows back by a
//!   constant per period (additive), as far as it is used and there is room,
//!   so that two tenants settle and do not oscillate.
//!
//! Refuses to know blocks, rings and clocks.

use super::{gauge::Reading, record::Trigger};
use crate::{
    kv::{Profile, Step, Steps},
    units::Bytes,
};
use kvpsi_common::{Event, Kind, Phase};
use std::time::Duration;

/// Constants of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// First slice of a burst. Returning 1 MiB takes about 60 us.
    pub first_slice: Bytes,
    /// Largest slice: bounds the time until the next look at the world.
    pub max_slice: Bytes,
    /// A burst ends after this long without a stall.
    pub quiet: Duration,
    /// How long stalls may go on before quick steps take what slow ones were
    /// asked for.
    pub patience: Duration,
    /// Slow steps that owe something and gave nothing for so long are stuck: no
    /// burst waits for them. Longer than one step takes, thinning 8 MiB by what
    /// queries are expected being the longest.
    pub stuck: Duration,
    /// No stall for this long: the budget starts to grow.
    pub calm: Duration,
    /// Growth step.
    pub grow_by: Bytes,
    /// Time between growth steps.
    pub grow_every: Duration,
    /// Whether kswapd's wake counts.
    pub early_warning: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            first_slice: Bytes(512 << 10),
            max_slice: Bytes::mib(64),
            quiet: Duration::from_millis(10),
            patience: Duration::from_millis(5),
            stuck: Duration::from_millis(100),
            calm: Duration::from_secs(2),
            grow_by: Bytes::mib(4),
            grow_every: Duration::from_millis(250),
            early_warning: true,
        }
    }
}

/// One trim to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// At least this much, if there is as much.
    pub want: Bytes,
    /// All that is missing; what the quick steps do not give of it may be
    /// asked of the slow ones.
    pub missing: Bytes,
    /// What may be given up.
    pub steps: Steps,
    /// Why.
    pub trigger: Trigger,
    /// When the stall began, ns.
    pub onset_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    kind: Kind,
    onset_ns: u64,
    last_stall_ns: u64,
    /// Size of the next slice.
    slice: Bytes,
    /// Still to be returned for the deficit seen at the last event.
    target: Bytes,
    /// When the slow steps were first asked, and nothing quick was left that
    /// is free.
    ordered_ns: Option<u64>,
    /// The slow steps were stuck when it began.
    stuck: bool,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    kind: Kind,
    onset: bool,
    ts_ns: u64,
    asked: Bytes,
}

/// State of the rule.
#[derive(Debug)]
pub struct Controller {
    tuning: Tuning,
    profile: Profile,
    page: u64,
    pending: Option<Pending>,
    warned: Option<(u64, bool)>,
    burst: Option<Burst>,
    owed_since_ns: Option<u64>,
    last_stall_ns: u64,
    next_grow_ns: u64,
    ignored: u64,
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Controller {
    /// A calm controller. `page_bytes` is the kernel's page size.
    #[must_use]
    pub fn new(tuning: Tuning, profile: Profile, page_bytes: u64) -> Self {
        Self {
            tuning,
            profile,
            page: page_bytes,
            pending: None,
            warned: None,
            burst: None,
            owed_since_ns: None,
            last_stall_ns: 0,
            next_grow_ns: 0,
            ignored: 0,
        }
    }

    /// What may be given up from the next decision on.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
    }

    /// Stalls that were not ours: a cgroup stalled that is not at its limit.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Takes in since when the slow steps owe something and gave nothing;
    /// `None`: they owe nothing.
    pub fn owed(&mut self, since_ns: Option<u64>) {
        self.owed_since_ns = since_ns;
    }

    /// Takes in one event.
    pub fn observe(&mut self, e: &Event) {
        let Some(kind) = Kind::from_raw(e.kind) else {
            return;
        };
        if kind == Kind::KswapdWake {
            self.warned = self.tuning.early_warning.then_some((e.ts_ns, false));
        } else if kind.is_stall() || kind == Kind::OomVictim {
            let order = u32::try_from(e.order).unwrap_or(0).min(10);
            let asked = Bytes((self.page << order).saturating_mul(u64::from(e.stalled_now.max(1))));
            let onset = e.phase == Phase::Onset as u16;
            self.pending = Some(match self.pending {
                // Several events before one decision: the earliest onset
                // counts for latency, the largest demand for size.
                Some(p) => Pending {
                    onset: p.onset || onset,
                    ts_ns: p.ts_ns.min(e.ts_ns),
                    asked: p.asked.max(asked),
                    kind,
                },
                None => Pending {
                    kind,
                    onset,
                    ts_ns: e.ts_ns,
                    asked,
                },
            });
        }
    }

    /// The next trim to make, or `None` when there is nothing to do now.
    /// Call again after [`Controller::trimmed`] until it is `None`.
    pub fn decide(&mut self, now_ns: u64, reading: Reading) -> Option<Decision> {
        if let Some(p) = self.pending.take()
            && let Some(b) = self.stall(now_ns, p, reading)
        {
            let trigger = if p.onset {
                Trigger::Onset(p.kind)
            } else {
                Trigger::Ongoing(p.kind)
            };
            self.warned = None;
            let (want, steps) = (b.slice.min(b.target).max(p.asked), self.steps(&b, now_ns));
            // The rest is not asked of the slow steps before a second slice: the
            // first is small for the sake of who stalls now.
            let first = b.slice == self.tuning.first_slice && steps.has(Step::Window);
            return Some(Decision {
                want,
                missing: if first { want } else { b.target.max(p.asked) },
                steps,
                trigger,
                onset_ns: p.ts_ns,
            });
        }
        if let Some(warning) = self.early(reading) {
            return Some(warning);
        }
        let b = self.burst?;
        // What was asked of the slow steps is theirs until somebody stalls
        // again.
        if b.ordered_ns.is_some()
            || b.target == Bytes::ZERO
            || missing(b.kind, reading)? == Bytes::ZERO
        {
            return None;
        }
        Some(Decision {
            want: b.slice.min(b.target),
            missing: b.target,
            steps: self.steps(&b, now_ns),
            trigger: Trigger::FollowUp(b.kind),
            onset_ns: b.onset_ns,
        })
    }

    /// All slack, then what is cached as far as free memory is short.
    fn early(&mut self, reading: Reading) -> Option<Decision> {
        let (onset_ns, slack_gone) = self.warned?;
        let deficit = reading.system_deficit.unwrap_or(Bytes::ZERO);
        self.warned = (!slack_gone).then_some((onset_ns, true));
        if slack_gone && deficit == Bytes::ZERO {
            return None;
        }
        Some(Decision {
            want: if slack_gone { deficit } else { Bytes(u64::MAX) },
            missing: Bytes::ZERO,
            steps: if slack_gone {
                Steps::FREE
            } else {
                Steps::SLACK
            },
            trigger: Trigger::EarlyWarning,
            onset_ns,
        })
    }

    /// There is no time for the slow steps: the wall is hard, they are stuck,
    /// or they were asked and stalls went on.
    fn urgent(&self, b: &Burst, now_ns: u64) -> bool {
        let hard = matches!(
            b.kind,
            Kind::MemcgReclaim | Kind::MemcgThrottle | Kind::OomVictim | Kind::Throttled
        );
        let late = |asked: u64| now_ns.saturating_sub(asked) > ns(self.tuning.patience);
        hard || b.stuck || b.ordered_ns.is_some_and(late)
    }

    fn steps(&self, b: &Burst, now_ns: u64) -> Steps {
        self.profile.steps(self.urgent(b, now_ns))
    }

    /// Starts a burst or goes on with it; `None` for somebody else's stall.
    fn stall(&mut self, now_ns: u64, p: Pending, reading: Reading) -> Option<Burst> {
        let Some(deficit) = missing(p.kind, reading) else {
            self.ignored += 1;
            return None;
        };
        self.last_stall_ns = now_ns;
        let owed = |since: u64| now_ns.saturating_sub(since) > ns(self.tuning.stuck);
        let stuck = self.owed_since_ns.is_some_and(owed);
        let target = deficit.max(p.asked).max(self.tuning.first_slice);
        let going_on = self
            .burst
            .filter(|b| now_ns.saturating_sub(b.last_stall_ns) <= ns(self.tuning.quiet));
        self.burst = Some(match going_on {
            Some(b) => Burst {
                last_stall_ns: now_ns,
                target: b.target.max(target),
                ..b
            },
            None => Burst {
                kind: p.kind,
                onset_ns: p.ts_ns,
                last_stall_ns: now_ns,
                slice: self.tuning.first_slice,
                target,
                ordered_ns: None,
                stuck,
            },
        });
        self.burst
    }

    /// Takes in what a decision gave back; `bytes` 0 means there is nothing
    /// left to give, unless the rest was `ordered` of the slow steps.
    pub fn trimmed(&mut self, decision: &Decision, bytes: Bytes, ordered: bool) {
        if decision.trigger == Trigger::EarlyWarning {
            return;
        }
        let Some(b) = &mut self.burst else { return };
        b.slice = Bytes(b.slice.0.saturating_mul(2)).min(self.tuning.max_slice);
        let urgent = decision.steps.has(Step::Window);
        let waits = ordered && !urgent;
        if ordered && b.ordered_ns.is_none() {
            b.ordered_ns = Some(b.last_stall_ns);
        }
        b.target = if bytes == Bytes::ZERO && !waits {
            Bytes::ZERO
        } else {
            b.target.saturating_sub(bytes)
        };
    }

    /// It is time to think of growing.
    #[must_use]
    pub fn may_grow(&self, now_ns: u64, budget: Bytes, capacity: Bytes) -> bool {
        budget < capacity && now_ns >= self.next_growth()
    }

    /// The next budget, when it is time to grow: at most a step above what is
    /// resident and `wanted`, and only while there is room for what it would
    /// let in and a step more.
    pub fn grow(
        &mut self,
        now_ns: u64,
        budget: Bytes,
        resident: Bytes,
        wanted: Bytes,
        capacity: Bytes,
        reading: Reading,
    ) -> Option<Bytes> {
        if !self.may_grow(now_ns, budget, capacity) {
            return None;
        }
        self.next_grow_ns = now_ns.saturating_add(ns(self.tuning.grow_every));
        let step = self.tuning.grow_by.0;
        let unused = budget.saturating_sub(resident).0;
        let too_much = unused > wanted.0.saturating_add(step);
        if too_much || reading.room.0 < unused.saturating_add(2 * step) {
            return None;
        }
        Some(Bytes(budget.0.saturating_add(step)).min(capacity))
    }

    fn next_growth(&self) -> u64 {
        self.last_stall_ns
            .saturating_add(ns(self.tuning.calm))
            .max(self.next_grow_ns)
    }

    /// How long to sleep at most when no event comes: until the next growth,
    /// if the budget is below the capacity.
    #[must_use]
    pub fn sleep(&self, now_ns: u64, budget: Bytes, capacity: Bytes) -> Option<Duration> {
        (budget < capacity).then(|| Duration::from_nanos(self.next_growth().saturating_sub(now_ns)))
    }
}

/// Bytes missing at the wall that a stall of this kind hits; `None` when the
/// wall is not there or is not hit.
fn missing(kind: Kind, r: Reading) -> Option<Bytes> {
    let cgroup = r.cgroup_deficit.filter(|d| *d > Bytes::ZERO);
    match kind {
        Kind::MemcgReclaim => cgroup,
        // These do not say which wall: a full cgroup first. A neighbour that
        // thrashes below its own limit is helped by nothing of ours.
        Kind::Memstall
        | Kind::Refault
        | Kind::SwapIn
        | Kind::MemcgThrottle
        | Kind::OomVictim
        | Kind::Throttled => cgroup.or(r.system_deficit.filter(|d| *d > Bytes::ZERO)),
        _ => r.system_deficit,
    }
}

#[cfg(test)]
mod tests;
