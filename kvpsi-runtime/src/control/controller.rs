//! The rule that turns stalls into trims. Pure: time and readings come in,
//! decisions go out.
//!
//! - **Whose.** A stall belongs to the cgroup wall that was hit a moment ago,
//!   or to the system where free memory is short or the kernel reclaims for
//!   all. Any other is counted ([`Verdicts`]) and costs nothing.
//! - **Harm.** What clean page cache covers is no harm, unless pages that were in
//!   use come back ([`Tuning::refaults`]; seen without an event where kswapd took
//!   them) or stalls take too much of a second ([`Tuning::stall_time`]). Tokens and
//!   bits go only for harm; where free memory of the system is short, what is
//!   lossless goes at once.
//! - **Cushion.** The OOM killer may come 100 us after the first stall, so a slice
//!   of the free resident blocks goes before page cache is looked at
//!   ([`Controller::return_cushion`]): no token is lost by it.
//! - **Enough.** At a cgroup's wall quick steps give what is missing up to three
//!   quarters of the headroom, in slices that double; slow steps, which lose less, give
//!   the rest and what usage will grow by soon. Both are subtracted. While a
//!   burst there lasts the wall is looked at again each [`Tuning::look`],
//!   whether or not an event comes.
//! - Elsewhere slow steps come first, and quick ones after a patience or where
//!   the slow ones are stuck: they need pages and a CPU themselves.
//! - kswapd's wake is early warning: only what is lossless goes, where page cache does
//!   not cover what kswapd is to free.
//! - **Back.** After a trim the budget is what is left. When no harmful stall
//!   came for a while it follows the room: half of it each time, so that two
//!   instances do not take the same bytes, and later where growth was answered
//!   by a stall, so that they do not take turns.
//!
//! Out of scope: blocks, rings and clocks.

use super::{
    bucket::Bucket, gauge::Levels, record::Trigger, report::Verdicts, system::SystemLevel,
    wall::CgroupLevel,
};
use crate::{
    kv::{Profile, Steps},
    units::Bytes,
};
use kvpsi_common::{Event, Kind, Phase};
use std::time::Duration;

mod budget;
mod burst;
mod deferral;
mod growth;
mod looks;
mod watch;

use burst::{Burst, Wall, weight};
use deferral::Deferral;
use growth::Growth;
use watch::Watch;

/// Constants of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// First slice of a burst. Returning 1 MiB takes about 60 us.
    pub first_slice: Bytes,
    /// Largest slice: bounds the time until the next look at the world.
    pub max_slice: Bytes,
    /// A burst ends after this long without a stall or anything missing.
    pub quiet: Duration,
    /// Time between two looks at a wall while something is missing there.
    pub look: Duration,
    /// Growth of usage that is provided for: as much as comes within this time.
    pub ahead: Duration,
    /// How long stalls may go on before quick steps take what slow ones were
    /// asked for.
    pub patience: Duration,
    /// Slow steps that owe something and gave nothing for so long are stuck: no
    /// burst waits for them. Longer than one step takes, thinning 8 MiB by what
    /// queries are expected being the longest.
    pub stuck: Duration,
    /// Restored pages a second that are no harm yet, as a share of the wall: one
    /// `refaults`-th of the limit.
    pub refaults: u64,
    /// Stall time a second at one of our walls that counts as harm, whatever
    /// page cache there is: a slice for each quarter of it. None by default: a
    /// task that is put aside while it reclaims counts as stalled, so a busy
    /// machine could make a harmless streaming read look like harm.
    pub stall_time: Duration,
    /// No harmful stall for this long: the budget starts to grow.
    pub calm: Duration,
    /// Time between growth steps.
    pub grow_every: Duration,
    /// Whether kswapd's wake counts.
    pub early_warning: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            first_slice: Bytes(512 << 10),
            max_slice: Bytes::mib(4),
            quiet: Duration::from_millis(10),
            look: Duration::from_micros(500),
            ahead: Duration::from_micros(1500),
            patience: Duration::from_millis(5),
            stuck: Duration::from_millis(100),
            refaults: 32,
            stall_time: Duration::MAX,
            calm: Duration::from_millis(250),
            grow_every: Duration::from_millis(250),
            early_warning: true,
        }
    }
}

/// One trim to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// At least this much, if there is as much; 0: slow steps only.
    pub want: Bytes,
    /// All that is missing; what the quick steps do not give of it may be
    /// asked of the slow ones.
    pub missing: Bytes,
    /// What may be given up.
    pub steps: Steps,
    /// Why.
    pub trigger: Trigger,
    /// Something is missing: the budget is what is left afterwards.
    pub harm: bool,
    /// When the stall began, ns.
    pub onset_ns: u64,
}

/// What became of a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gave {
    /// Bytes that the kernel has again.
    pub bytes: Bytes,
    /// Bytes that it gets a moment later, when the last reader leaves.
    pub deferred: Bytes,
    /// Somebody held what was to be taken: look again.
    pub contended: bool,
    /// The rest was ordered of the slow steps.
    pub ordered: bool,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    /// The kind that says most of those that came.
    kind: Kind,
    /// The kernel reclaims for everybody.
    global: bool,
    onset: bool,
    ts_ns: u64,
    asked: Bytes,
    count: u64,
    stall_ns: u64,
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
    owed: (Option<u64>, Bytes),
    hit_ns: Option<u64>,
    restored: [Bucket; 2],
    restored_read_ns: [u64; 2],
    stalled: [Bucket; 2],
    usage: Growth,
    watch: Watch,
    deferral: Deferral,
    /// What is left above the headroom of the nearest wall, bytes.
    nearest: Option<i64>,
    /// Until then events of a burst wait: the last look found nothing to do.
    idle_until_ns: u64,
    /// When a slice of the cushion was last returned.
    cushion_ns: Option<u64>,
    missing: Bytes,
    last_harm_ns: u64,
    last_grow_ns: Option<u64>,
    next_grow_ns: u64,
    calm: Duration,
    verdicts: Verdicts,
}

/// Growth that reaches a wall within this time is harm already.
const SOON: Duration = Duration::from_millis(20);

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
            owed: (None, Bytes::ZERO),
            hit_ns: None,
            restored: Default::default(),
            restored_read_ns: [0; 2],
            stalled: Default::default(),
            usage: Growth::default(),
            watch: Watch::default(),
            deferral: Deferral::default(),
            nearest: None,
            idle_until_ns: 0,
            cushion_ns: None,
            missing: Bytes::ZERO,
            last_harm_ns: 0,
            last_grow_ns: None,
            next_grow_ns: 0,
            calm: tuning.calm,
            verdicts: Verdicts::default(),
        }
    }

    /// What may be given up from the next decision on.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
    }

    /// What became of the stalls.
    #[must_use]
    pub fn verdicts(&self) -> Verdicts {
        self.verdicts
    }

    /// Takes in what the slow steps owe, and since when they gave nothing of
    /// it.
    pub fn owed(&mut self, bytes: Bytes, since_ns: Option<u64>) {
        self.owed = (since_ns, bytes);
    }

    /// Takes in what is left above the headroom of the nearest wall, which need not be the
    /// one that counts.
    pub fn nearest(&mut self, left: Option<i64>) {
        self.nearest = left;
    }

    /// Takes in how much is on its way to the kernel: whoever closes a guard
    /// returns it.
    pub fn retired(&mut self, now_ns: u64, bytes: Bytes) {
        self.deferral.look(now_ns, bytes);
    }

    /// What is missing at the wall of a burst that goes on, before what is
    /// owed or on its way: slow steps need give no more. `None`: no burst.
    #[must_use]
    pub fn still_missing(&self, now_ns: u64) -> Option<Bytes> {
        self.goes_on(now_ns).then_some(self.missing)
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
            // Of who stalls now: others may stall elsewhere, and ask by an event of their own.
            let asked = Bytes(self.page << order);
            let new = Pending {
                kind,
                global: matches!(
                    kind,
                    Kind::DirectReclaim | Kind::NodeReclaim | Kind::SoftlimitReclaim
                ),
                onset: e.phase == Phase::Onset as u16,
                ts_ns: e.ts_ns,
                asked,
                count: e.count.max(1),
                stall_ns: e.stall_ns,
            };
            // Several events before one decision: the earliest onset counts for
            // latency, the largest demand for size, and no kind hides another.
            self.pending = Some(self.pending.map_or(new, |p| Pending {
                kind: if weight(p.kind) > weight(kind) {
                    p.kind
                } else {
                    kind
                },
                global: p.global || new.global,
                onset: p.onset || new.onset,
                ts_ns: p.ts_ns.min(new.ts_ns),
                asked: p.asked.max(asked),
                count: p.count.saturating_add(new.count),
                stall_ns: p.stall_ns.saturating_add(new.stall_ns),
            }));
        }
    }

    /// At the first stall of a burst, if a wall of ours `was_hit`: a slice of the
    /// free blocks is to go at once. The hit is looked up last.
    pub fn return_cushion(
        &mut self,
        now_ns: u64,
        was_hit: impl FnOnce() -> bool,
    ) -> Option<Decision> {
        let p = self.pending?;
        let recent = |t: u64| now_ns.saturating_sub(t) <= ns(self.tuning.quiet);
        let goes_on = self.burst.is_some_and(|b| recent(b.active_ns));
        if goes_on || self.cushion_ns.is_some_and(recent) || !was_hit() {
            return None;
        }
        self.cushion_ns = Some(now_ns);
        Some(Decision {
            want: self.tuning.first_slice,
            missing: Bytes::ZERO,
            steps: Steps::SLACK,
            trigger: Trigger::Onset(p.kind),
            harm: false,
            onset_ns: p.ts_ns,
        })
    }

    /// The next trim to make, or `None` when there is nothing to do now.
    /// Call again after [`Controller::trimmed`] until it is `None`.
    pub fn decide(&mut self, now_ns: u64, levels: Levels) -> Option<Decision> {
        self.take_in(now_ns, &levels);
        let seen = self.pending.take().and_then(|p| {
            let wall = self.wall_of(&p, now_ns, &levels);
            if wall.is_none() && levels.cgroup.is_none() && levels.system.is_none() {
                self.verdicts.no_wall += p.count;
            } else if wall.is_none() {
                self.verdicts.foreign += p.count;
            }
            Some((p, wall?))
        });
        let pending = seen.or_else(|| self.unseen(now_ns, &levels));
        if let Some((p, wall)) = &pending {
            self.stalled(now_ns, p, *wall);
        }
        let pending = pending.map(|(p, _)| p);
        if let Some(trim) = self.burst(now_ns, pending.as_ref(), &levels) {
            self.warned = None;
            return Some(trim);
        }
        let harmed = now_ns.saturating_sub(self.last_harm_ns) <= ns(self.tuning.quiet);
        let harmless = self.burst.is_none() || self.missing == Bytes::ZERO;
        if (harmless && !harmed) || self.is_exhausted() {
            self.idles(now_ns);
        }
        self.early(levels.system)
    }

    /// Takes in a reading. Its counters are differences: each is taken in once.
    pub fn take_in(&mut self, now_ns: u64, levels: &Levels) {
        self.watch.looked(now_ns, levels.cgroup.as_ref());
        if let Some(c) = &levels.cgroup {
            if c.was_hit() {
                self.hit_ns = Some(now_ns);
            }
            self.add_restored(now_ns, Wall::Cgroup, c.restored);
            if let Some(file) = c.file {
                self.usage.look(now_ns, c.up, c.usage.saturating_sub(file));
            }
        }
        if let Some(s) = &levels.system {
            self.add_restored(now_ns, Wall::System, s.restored);
        }
    }

    /// `restored` came since the last reading that had it: an hour ago, it may be.
    fn add_restored(&mut self, now_ns: u64, wall: Wall, restored: Option<Bytes>) {
        let Some(restored) = restored else { return };
        let last = std::mem::replace(&mut self.restored_read_ns[wall as usize], now_ns);
        let over = now_ns.saturating_sub(last);
        self.restored[wall as usize].add_over(now_ns, restored.0, over);
    }

    /// What no event tells of: something is missing at a wall that was pressed lately
    /// or that usage is about to reach, or a working set that kswapd took is read again.
    fn unseen(&self, now_ns: u64, levels: &Levels) -> Option<(Pending, Wall)> {
        let short = |c: &CgroupLevel| c.missing() > self.deferral.bytes;
        let near = |c: &CgroupLevel| {
            let left = c.headroom().saturating_sub(c.missing());
            self.watch.is_recent() || self.usage.within(ns(SOON)) > left
        };
        let watched = levels.cgroup.is_some_and(|c| short(&c) && near(&c));
        let restored = |s: SystemLevel| {
            let restored = self.restored[Wall::System as usize].level(now_ns);
            restored > self.spared(s.scale()).0
        };
        // A burst that goes on looks again by itself, and ends where nothing is left to
        // give.
        let goes_on = self.goes_on(now_ns);
        let (kind, wall) = if watched && !goes_on {
            (Kind::MemcgReclaim, Wall::Cgroup)
        } else if levels.system.is_some_and(restored)
            && !(goes_on && self.burst.is_some_and(|b| b.wall == Wall::System))
        {
            (Kind::Refault, Wall::System)
        } else {
            return None;
        };
        let p = Pending {
            kind,
            global: wall == Wall::System,
            onset: true,
            ts_ns: now_ns,
            asked: Bytes::ZERO,
            count: 0,
            stall_ns: 0,
        };
        Some((p, wall))
    }

    /// Bytes restored a second that are no harm yet at a wall of that size.
    fn spared(&self, wall: Bytes) -> Bytes {
        Bytes(wall.0 / self.tuning.refaults.max(1))
    }

    /// The wall that a stall hit.
    fn wall_of(&self, p: &Pending, now_ns: u64, levels: &Levels) -> Option<Wall> {
        let recent = |t: u64| now_ns.saturating_sub(t) <= ns(self.tuning.quiet);
        let hit = levels.cgroup.is_some() && self.hit_ns.is_some_and(recent);
        let system = |s: SystemLevel| p.global || s.is_short();
        if hit && !(p.global && levels.system.is_some_and(|s| s.is_short())) {
            Some(Wall::Cgroup)
        } else {
            levels.system.is_some_and(system).then_some(Wall::System)
        }
    }

    /// All slack, then what is cached as far as free memory is short. Nothing where
    /// kswapd has plenty of clean page cache to take: on a machine that has been up for a
    /// while it wakes whenever a file is read.
    fn early(&mut self, system: Option<SystemLevel>) -> Option<Decision> {
        let (onset_ns, slack_gone) = self.warned?;
        if system.is_some_and(|s| s.has_spare_files()) {
            self.warned = None;
            return None;
        }
        let deficit = system.map_or(Bytes::ZERO, |s| s.short());
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
            harm: false,
            onset_ns,
        })
    }

    /// Takes in what a decision gave back.
    pub fn trimmed(&mut self, now_ns: u64, decision: &Decision, gave: Gave) {
        self.usage.returned(gave.bytes);
        if decision.trigger == Trigger::EarlyWarning || decision.steps == Steps::SLACK {
            return;
        }
        let Some(b) = &mut self.burst else { return };
        self.stalled[b.wall as usize].less(now_ns, ns(self.tuning.stall_time) / 4);
        for bucket in &mut self.restored {
            bucket.less(now_ns, gave.bytes.0.saturating_add(gave.deferred.0));
        }
        b.slice = Bytes(b.slice.0.saturating_mul(2)).min(self.tuning.max_slice);
        b.asked = b.asked.saturating_sub(gave.bytes);
        if gave.ordered && b.ordered_ns.is_none() {
            b.ordered_ns = Some(now_ns);
        }
        let nothing = gave.bytes == Bytes::ZERO && gave.deferred == Bytes::ZERO;
        if gave.contended && nothing {
            b.not_before_ns = now_ns.saturating_add(ns(self.tuning.look));
        }
        b.exhausted = nothing && !gave.contended;
        if self.is_exhausted() {
            self.idles(now_ns);
        }
    }
}

#[cfg(test)]
mod tests;
