//! A burst: stalls at one wall with less than [`super::Tuning::quiet`]
//! between them.
//!
//! Owns what is known of it, and what is missing at its wall. Out of scope: whose
//! stalls they are ([`super`]).

use super::{Controller, Decision, Levels, Pending, Trigger, ns};
use crate::{
    control::wall::CgroupLevel,
    kv::{Step, Steps},
    units::Bytes,
};
use kvpsi_common::Kind;

/// Where a burst presses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wall {
    Cgroup,
    System,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Burst {
    pub wall: Wall,
    pub kind: Kind,
    pub onset_ns: u64,
    /// The last stall or look that found something missing.
    pub active_ns: u64,
    /// Size of the next slice.
    pub slice: Bytes,
    /// Most that an allocation asked for, still to be given.
    pub asked: Bytes,
    /// When the slow steps were first asked.
    pub ordered_ns: Option<u64>,
    /// The slow steps were stuck when it began.
    pub stuck: bool,
    /// Something was missing at some time.
    pub harmful: bool,
    /// Quick steps have nothing more to give until somebody stalls again.
    pub exhausted: bool,
    /// What was to be taken is held by somebody until about then.
    pub not_before_ns: u64,
}

/// What is missing now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    /// At once.
    pub quick: Bytes,
    /// Altogether.
    pub all: Bytes,
    /// The same before what is owed or on its way.
    pub missing: Bytes,
    /// The kernel is about to kill: no time for slow steps.
    pub hard: bool,
    /// Nearly all of the headroom is gone: the kernel kills next, so the last running
    /// sequence may go too. Growth to come does not count, nor do dirty pages, which
    /// reclaim waits for: a sequence that went for these each time would never get on.
    pub last: bool,
    /// Only what is lossless.
    pub lossless: bool,
}

/// Which of two kinds says more about the wall and the hurry.
pub(super) const fn weight(kind: Kind) -> u8 {
    match kind {
        Kind::OomVictim => 9,
        Kind::MemcgReclaim => 8,
        Kind::MemcgThrottle => 7,
        Kind::Throttled => 6,
        Kind::SwapIn => 5,
        Kind::Refault => 4,
        Kind::DirectReclaim => 3,
        Kind::Memstall | Kind::NodeReclaim => 2,
        _ => 1,
    }
}

/// Nearly all of the headroom is gone.
fn is_last(missing: Bytes, c: CgroupLevel) -> bool {
    missing.0 >= c.headroom().0 / 4 * 3
}

impl Controller {
    /// Starts a burst or goes on with it.
    pub(super) fn stalled(&mut self, now_ns: u64, p: &Pending, wall: Wall) {
        self.stalled[wall as usize].add(now_ns, p.stall_ns);
        let late = |since: u64| now_ns.saturating_sub(since) > ns(self.tuning.stuck);
        let stuck = self.owed.0.is_some_and(late);
        let going_on = self.burst.filter(|b| {
            b.wall == wall && now_ns.saturating_sub(b.active_ns) <= ns(self.tuning.quiet)
        });
        self.burst = Some(match going_on {
            Some(b) => Burst {
                active_ns: now_ns,
                asked: b.asked.max(p.asked),
                exhausted: false,
                kind: if weight(p.kind) > weight(b.kind) {
                    p.kind
                } else {
                    b.kind
                },
                ..b
            },
            None => Burst {
                wall,
                kind: p.kind,
                onset_ns: p.ts_ns,
                active_ns: now_ns,
                slice: self.tuning.first_slice,
                asked: p.asked,
                ordered_ns: None,
                stuck,
                harmful: false,
                exhausted: false,
                not_before_ns: 0,
            },
        });
    }

    /// What the burst asks for now.
    pub(super) fn burst(
        &mut self,
        now_ns: u64,
        p: Option<&Pending>,
        levels: &Levels,
    ) -> Option<Decision> {
        let mut b = self.burst?;
        if p.is_none() && now_ns.saturating_sub(b.active_ns) > ns(self.tuning.quiet) {
            self.burst = None;
            return None;
        }
        let need = self.need(&b, now_ns, levels);
        self.missing = need.missing;
        if let Some(p) = p {
            // What a harmful burst lacks may be on its way.
            let answered = need.all > Bytes::ZERO || b.harmful;
            let v = &mut self.verdicts;
            *match (b.wall, answered) {
                (Wall::Cgroup, true) => &mut v.answered_cgroup,
                (Wall::System, true) => &mut v.answered_system,
                (Wall::Cgroup, false) => &mut v.harmless_cgroup,
                (Wall::System, false) => &mut v.harmless_system,
            } += p.count;
        }
        if need.all == Bytes::ZERO || (b.exhausted && p.is_none()) {
            return None;
        }
        b.active_ns = now_ns;
        if b.wall == Wall::Cgroup {
            self.watch.pressed(now_ns);
        }
        if !need.lossless {
            self.harm(now_ns, b.harmful);
            b.harmful = true;
        }
        self.burst = Some(b);
        let urgent = need.hard || self.late(&b, now_ns);
        // What was asked of the slow steps is theirs until somebody stalls
        // again, or the wall is near.
        let waits = b.ordered_ns.is_some() && p.is_none() && !need.hard;
        if now_ns < b.not_before_ns || waits {
            return None;
        }
        let trigger = match p {
            Some(p) if p.onset => Trigger::Onset(b.kind),
            Some(_) => Trigger::Ongoing(b.kind),
            None => Trigger::FollowUp(b.kind),
        };
        let want = if urgent && !need.hard {
            need.all
        } else {
            need.quick
        };
        // The rest is not asked of the slow steps before a second slice: the
        // first is small for the sake of who stalls now.
        let want = want.min(b.slice);
        let first = b.slice == self.tuning.first_slice && need.hard;
        Some(Decision {
            want,
            missing: if first { want } else { need.all },
            steps: match self.profile.steps(urgent) {
                _ if need.lossless => Steps::FREE,
                // More of what the same guard keeps would come no sooner.
                _ if need.last && self.deferral.overdue(now_ns) => {
                    Steps::FREE.with(Step::Preempt).to_the_last()
                }
                steps if need.last => steps.to_the_last(),
                steps => steps,
            },
            trigger,
            harm: !need.lossless,
            onset_ns: p.map_or(b.onset_ns, |p| p.ts_ns),
        })
    }

    /// Slow steps are stuck, or they were asked and stalls went on.
    pub(super) fn late(&self, b: &Burst, now_ns: u64) -> bool {
        let late = |asked: u64| now_ns.saturating_sub(asked) > ns(self.tuning.patience);
        b.stuck || b.ordered_ns.is_some_and(late)
    }

    /// What is on its way to the kernel and comes before it kills.
    fn on_the_way(&self, b: &Burst, now_ns: u64, levels: &Levels) -> Bytes {
        let kills = |c: CgroupLevel| c.is_anonymous() && is_last(c.missing(), c);
        let cgroup = levels.cgroup.filter(|_| b.wall == Wall::Cgroup);
        if self.deferral.overdue(now_ns) && cgroup.is_some_and(kills) {
            return Bytes::ZERO;
        }
        self.deferral.bytes
    }

    fn need(&self, b: &Burst, now_ns: u64, levels: &Levels) -> Need {
        let on_the_way = self.on_the_way(b, now_ns, levels);
        let owed = if b.stuck { Bytes::ZERO } else { self.owed.1 };
        let coming = Bytes(on_the_way.0.saturating_add(owed.0));
        let at = b.wall as usize;
        let (hard_missing, spared_quick, wall) = match b.wall {
            Wall::Cgroup => {
                let Some(c) = levels.cgroup else {
                    return Need::default();
                };
                // With the growth of the next moment: the OOM killer comes
                // within 100 us where page cache ran out. What is taken under
                // a guard comes later than that.
                let ahead = ns(self.tuning.ahead) + self.deferral.latency_ns();
                // Growth of page cache is none, and not every reading has both.
                let ahead = match c.file {
                    Some(_) => self.usage.within(ahead).min(Bytes(c.limit.0 / 8)),
                    None => Bytes::ZERO,
                };
                let soon = c.missing().0 + ahead.saturating_sub(c.room()).0;
                (Bytes(soon), Bytes(c.headroom().0 / 4), c.limit)
            }
            Wall::System => {
                let Some(s) = levels.system else {
                    return Need::default();
                };
                (s.missing(), Bytes::ZERO, s.scale())
            }
        };
        let spared = self.spared(wall);
        let restored = Bytes(self.restored[at].level(now_ns)).saturating_sub(spared);
        let too_long = self.stalled[at].level(now_ns) > ns(self.tuning.stall_time);
        let soft = if too_long {
            restored.max(self.tuning.first_slice)
        } else {
            restored
        };
        let oom = b.kind == Kind::OomVictim && b.asked > Bytes::ZERO;
        let hard_missing = if oom {
            hard_missing.max(self.tuning.first_slice)
        } else {
            hard_missing
        };
        if hard_missing == Bytes::ZERO && soft == Bytes::ZERO {
            let short = match (b.wall, levels.system) {
                (Wall::System, Some(s)) => s.short().max(b.asked),
                _ => Bytes::ZERO,
            };
            let all = short.saturating_sub(on_the_way);
            return Need {
                quick: all,
                all,
                missing: Bytes::ZERO,
                hard: false,
                last: false,
                lossless: true,
            };
        }
        let asked = if hard_missing > Bytes::ZERO {
            b.asked
        } else {
            Bytes::ZERO
        };
        let missing = hard_missing.max(soft).max(asked);
        let all = missing.saturating_sub(coming);
        let near = hard_missing
            .saturating_sub(spared_quick)
            .max(if hard_missing > spared_quick {
                b.asked
            } else {
                Bytes::ZERO
            })
            .saturating_sub(on_the_way);
        let hard = b.wall == Wall::Cgroup && near > Bytes::ZERO;
        Need {
            quick: if hard { near } else { all },
            all: all.max(if hard { near } else { Bytes::ZERO }),
            missing,
            hard,
            last: hard
                && levels.cgroup.is_some_and(|c| {
                    c.is_anonymous() && is_last(c.missing().saturating_sub(on_the_way), c)
                }),
            lossless: false,
        }
    }
}
