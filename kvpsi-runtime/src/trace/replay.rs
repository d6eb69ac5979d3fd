//! A recording, played to the real rule over a cache that is only counted.
//!
//! Owns the simulated cache, of one conversation, and the order of time. Events reach the controller
//! through [`PressureSource`], the gauges say what they said, more or less
//! what the simulated cache has given back beyond the recorded one. Nothing
//! looks at a clock: the same file gives the same decisions. Out of scope:
//! judging text, which is docs/QUALITY.md's.

mod counted;
mod lacks;
mod plausible;

pub use lacks::lacks;

use super::recording::{Entry, Recording};
use crate::{
    control::{Controller, Decision, Gave, Tuning, gauge::Levels},
    kv::{Profile, Step, evict::Evict},
    pressure::{EventTotals, PressureSource, Readiness, SourceStats},
    units::Bytes,
};
use counted::Counted;
use kvpsi_common::Event;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The events of a recording as a source: those of up to its moment are ready.
#[derive(Debug)]
pub struct ReplaySource {
    events: std::vec::IntoIter<Event>,
    next: Option<Event>,
    stats: Arc<ReplayStats>,
}

/// How far a [`ReplaySource`] is.
#[derive(Debug, Default)]
pub struct ReplayStats {
    /// Events up to here are ready, ns of the recording's clock.
    pub now_ns: AtomicU64,
    delivered: AtomicU64,
    lost: u64,
}

impl ReplaySource {
    /// Over all events of a recording, none of them ready yet.
    #[must_use]
    pub fn new(recording: &Recording) -> Self {
        let event = |e: &Entry| match e {
            Entry::Event(r) => Some(Event::from(r)),
            _ => None,
        };
        let lost = |e: &Entry| if let Entry::Lost(n) = e { *n } else { 0 };
        let events: Vec<Event> = recording.entries.iter().filter_map(event).collect();
        let mut events = events.into_iter();
        Self {
            next: events.next(),
            events,
            stats: Arc::new(ReplayStats {
                lost: recording
                    .entries
                    .iter()
                    .map(lost)
                    .fold(0, u64::saturating_add),
                ..ReplayStats::default()
            }),
        }
    }

    /// What moves it on.
    #[must_use]
    pub fn moment(&self) -> Arc<ReplayStats> {
        Arc::clone(&self.stats)
    }
}

impl PressureSource for ReplaySource {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness {
            fd: None,
            interval: Some(std::time::Duration::ZERO),
        }
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        let now = self.stats.now_ns.load(Relaxed);
        while let Some(e) = self.next.take_if(|e| e.ts_ns <= now) {
            sink(&e);
            self.stats.delivered.fetch_add(1, Relaxed);
            self.next = self.events.next();
        }
        Ok(())
    }

    fn stats(&self) -> Arc<dyn SourceStats> {
        self.moment()
    }
}

impl SourceStats for ReplayStats {
    fn totals(&self) -> EventTotals {
        let delivered = self.delivered.load(Relaxed);
        EventTotals {
            seen: delivered.saturating_add(self.lost),
            delivered,
            coalesced: 0,
            dropped: self.lost,
        }
    }

    fn some_ns(&self) -> Option<u64> {
        None
    }
}

/// What is tried on a recording.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What may be lost.
    pub profile: Profile,
    /// How tokens are chosen: what thinning takes of time.
    pub evict: Evict,
    /// Most that the cache takes, and what it has at first where the recording
    /// does not say.
    pub budget: Option<Bytes>,
    /// What it keeps in any case.
    pub floor: Bytes,
    /// What one token takes in f16.
    pub token: Bytes,
    /// How fast the cache grows where the recording does not say, tokens a
    /// second.
    pub tokens_per_s: u32,
    /// Constants of the rule.
    pub tuning: Tuning,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            evict: Evict::default(),
            budget: None,
            floor: Bytes::mib(4),
            // SmolLM2-135M: 30 layers of 3 KV heads of 64 channels.
            token: Bytes(30 * 2 * 3 * 64 * 2),
            tokens_per_s: 20,
            tuning: Tuning::default(),
        }
    }
}

/// A trim that would have been made.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Made {
    /// Since the recording began, ns.
    pub t_ns: u64,
    /// Why.
    pub trigger: &'static str,
    /// The kernel's event behind it.
    pub kind: &'static str,
    /// Bytes asked for.
    pub wanted: Bytes,
    /// Bytes given back, by step.
    pub by_step: [Bytes; Step::ALL.len()],
    /// Resident after it.
    pub resident: Bytes,
}

impl Made {
    /// Bytes given back.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes(self.by_step.iter().map(|b| b.0).sum())
    }
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Outcome {
    /// Every trim, in order.
    pub trims: Vec<Made>,
    /// Bytes given back, by step.
    pub by_step: [Bytes; Step::ALL.len()],
    /// Positions that lost keys and values for good.
    pub dropped_tokens: u64,
    /// Stalls of others, let pass.
    pub ignored: u64,
    /// Events that were delivered, and that the recording says were lost.
    pub events: EventTotals,
    /// The least that was resident.
    pub least: Bytes,
    /// Resident at the end.
    pub resident: Bytes,
}

/// Longest spell of the simulated clock between two looks, ns; and most looks
/// between two entries. A recorder that runs leaves several entries a second.
const TICK_NS: u64 = 20_000_000;
const TICKS: u64 = 3000;

struct Simulation {
    source: ReplaySource,
    moment: Arc<ReplayStats>,
    controller: Controller,
    kv: Counted,
    levels: Levels,
    /// Resident by the recording.
    recorded: u64,
    /// The recording says how its cache was.
    known: bool,
    now_ns: u64,
    began_ns: u64,
    out: Outcome,
}

/// Plays a recording to a controller of its own. `on` is called for every trim as
/// it is made, and of the passing of time (`None`) in ns since the beginning.
///
/// # Errors
/// A number of the recording cannot be meant; a source broke.
pub fn simulate(
    recording: &Recording,
    setup: &Setup,
    on: &mut dyn FnMut(u64, Option<&Made>),
) -> io::Result<Outcome> {
    plausible::check(recording)?;
    let source = ReplaySource::new(recording);
    let first = recording.entries.iter().find_map(|e| match e {
        Entry::Kv {
            resident,
            in_use,
            cached,
            floor,
            budget,
            ..
        } => Some((resident.0, in_use.0, cached.0, floor.0, budget.0)),
        _ => None,
    });
    let budget = setup.budget.map(|b| b.0);
    let (resident, in_use, cached, floor, capacity) = first.unwrap_or_else(|| {
        let budget = budget.unwrap_or(64 << 20);
        (budget, budget, 0, setup.floor.0, budget)
    });
    let capacity = budget.unwrap_or(capacity);
    let page = recording.head.page_bytes.max(1);
    let mut s = Simulation {
        moment: source.moment(),
        source,
        controller: Controller::new(setup.tuning, setup.profile, page),
        kv: Counted {
            setup: *setup,
            slack: resident.saturating_sub(in_use.saturating_add(cached)),
            cached,
            live: [in_use, 0, 0],
            budget: capacity,
            capacity,
            floor,
            dropped_tokens: 0,
            rest: 0,
            order: None,
            busy_until_ns: 0,
        },
        levels: Levels::default(),
        recorded: resident,
        known: first.is_some(),
        now_ns: recording.head.began_ns,
        began_ns: recording.head.began_ns,
        out: Outcome {
            least: Bytes(resident),
            ..Outcome::default()
        },
    };
    for entry in &recording.entries {
        s.entry(entry, on)?;
    }
    s.out.ignored = s.controller.verdicts().ignored();
    s.out.events = s.moment.totals();
    s.out.resident = Bytes(s.kv.resident());
    s.out.dropped_tokens = s.kv.dropped_tokens;
    Ok(s.out)
}

impl Simulation {
    fn entry(&mut self, entry: &Entry, on: &mut dyn FnMut(u64, Option<&Made>)) -> io::Result<()> {
        match entry {
            // Waits in the source for the gauges' word.
            Entry::Event(_) | Entry::Head(_) | Entry::Lost(_) | Entry::Psi(_) => {}
            Entry::Levels1 { ts_ns, levels } => self.levels(*ts_ns, levels.into(), on)?,
            Entry::Levels { ts_ns, levels } => self.levels(*ts_ns, *levels, on)?,
            Entry::Kv {
                ts_ns,
                resident,
                floor,
                ..
            } => {
                self.until(*ts_ns, on);
                // Trims were taken off: what is more came in.
                self.kv.append(resident.0.saturating_sub(self.recorded));
                self.kv.floor = floor.0;
                self.recorded = resident.0;
            }
            Entry::Trim(t) => {
                let bytes = t
                    .by_step
                    .iter()
                    .fold(0u64, |sum, b| sum.saturating_add(b.0));
                self.recorded = self.recorded.saturating_sub(bytes);
            }
        }
        Ok(())
    }

    fn levels(
        &mut self,
        ts_ns: u64,
        levels: Levels,
        on: &mut dyn FnMut(u64, Option<&Made>),
    ) -> io::Result<()> {
        self.until(ts_ns, on);
        self.levels = levels;
        self.moment.now_ns.store(ts_ns, Relaxed);
        let (controller, mut delivered) = (&mut self.controller, false);
        self.source.drain(&mut |e| {
            delivered = true;
            controller.observe(e);
        })?;
        let left = self.reading().cgroup.map(|c| c.above_headroom());
        if delivered
            || self.controller.looks(self.now_ns, || left)
            || levels
                .system
                .is_some_and(|s| s.restored > Some(Bytes::ZERO))
        {
            self.respond(on);
        }
        // Counters are differences: what was seen once is not seen again.
        if let Some(c) = &mut self.levels.cgroup {
            c.restored = c.restored.map(|_| Bytes::ZERO);
            c.hits = c.hits.map(|_| 0);
        }
        if let Some(s) = &mut self.levels.system {
            s.restored = s.restored.map(|_| Bytes::ZERO);
        }
        Ok(())
    }

    fn reading(&self) -> Levels {
        let recorded = i64::try_from(self.recorded).unwrap_or(i64::MAX);
        let simulated = i64::try_from(self.kv.resident()).unwrap_or(i64::MAX);
        let mut now = self.levels.with_returned(recorded - simulated);
        if let Some(c) = &mut now.cgroup {
            c.held = Bytes(self.kv.resident()).min(c.usage);
        }
        now
    }

    /// As the reactor does; but slow steps are never stuck here.
    fn respond(&mut self, on: &mut dyn FnMut(u64, Option<&Made>)) {
        loop {
            let owed = self.kv.order.map_or(Bytes::ZERO, |(left, _)| Bytes(left));
            self.controller.owed(owed, None);
            let Some(decision) = self.controller.decide(self.now_ns, self.reading()) else {
                return;
            };
            let by_step = self.kv.trim(decision.want.0, decision.steps);
            let bytes = Bytes(by_step.iter().map(|b| b.0).sum());
            let left = decision.missing.saturating_sub(bytes);
            let slow = decision.steps.has(Step::Pack) || decision.steps.has(Step::Thin);
            let ordered = slow && left > Bytes::ZERO;
            if ordered {
                self.kv.order = Some((left.0, decision));
                self.kv.busy_until_ns = self.kv.busy_until_ns.max(self.now_ns);
            }
            let gave = Gave {
                bytes,
                ordered,
                ..Gave::default()
            };
            self.controller.trimmed(self.now_ns, &decision, gave);
            if bytes == Bytes::ZERO {
                continue;
            }
            if decision.harm {
                self.kv.budget = self.kv.resident().max(self.kv.floor);
            }
            self.made(&decision, decision.trigger.name(), by_step, on);
            self.now_ns += self.kv.ns(Step::Window, 0, bytes.0);
        }
    }

    fn made(
        &mut self,
        decision: &Decision,
        trigger: &'static str,
        by_step: [Bytes; Step::ALL.len()],
        on: &mut dyn FnMut(u64, Option<&Made>),
    ) {
        let made = Made {
            t_ns: self.now_ns.saturating_sub(self.began_ns),
            trigger,
            kind: decision.trigger.kind_name(),
            wanted: decision.want,
            by_step,
            resident: Bytes(self.kv.resident()),
        };
        for (sum, got) in self.out.by_step.iter_mut().zip(by_step) {
            sum.0 += got.0;
        }
        self.out.least = self.out.least.min(made.resident);
        on(made.t_ns, Some(&made));
        self.out.trims.push(made);
    }

    /// Time passes: slow steps, new tokens, growth.
    fn until(&mut self, then_ns: u64, on: &mut dyn FnMut(u64, Option<&Made>)) {
        let tick = TICK_NS.max(then_ns.saturating_sub(self.now_ns) / TICKS);
        while self.now_ns < then_ns {
            let next = then_ns.min(self.now_ns + tick);
            self.slow_until(next, on);
            if !self.known {
                self.kv.append_for(next - self.now_ns);
            }
            self.now_ns = next;
            let (budget, capacity) = (Bytes(self.kv.budget), Bytes(self.kv.capacity));
            let resident = Bytes(self.kv.resident());
            let reading = self.reading();
            let grown = self
                .controller
                .grow(next, budget, resident, capacity, reading);
            if let Some(b) = grown {
                self.kv.budget = b.0;
            }
            on(next.saturating_sub(self.began_ns), None);
        }
    }

    fn slow_until(&mut self, then_ns: u64, on: &mut dyn FnMut(u64, Option<&Made>)) {
        let steps = self.kv.setup.profile.steps(false);
        while let Some((left, decision)) = self.kv.order {
            if self.kv.busy_until_ns >= then_ns {
                return;
            }
            let Some((step, got, ns)) = self.kv.slow(left, steps) else {
                self.kv.order = None;
                return;
            };
            let start = self.kv.busy_until_ns.max(self.now_ns);
            self.kv.busy_until_ns = start + ns;
            self.kv.order = (left > got).then(|| (left - got, decision));
            self.kv.budget = self.kv.budget.min(self.kv.resident().max(self.kv.floor));
            let mut by_step = [Bytes::ZERO; Step::ALL.len()];
            for (s, bytes) in Step::ALL.iter().zip(&mut by_step) {
                if *s == step {
                    *bytes = Bytes(got);
                }
            }
            let now = std::mem::replace(&mut self.now_ns, self.kv.busy_until_ns);
            self.made(&decision, "background", by_step, on);
            self.now_ns = now;
        }
    }
}

#[cfg(test)]
mod tests;
