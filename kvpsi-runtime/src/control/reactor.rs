//! The thread from ring buffer to madvise.
//!
//! Owns the source, the gauges and the controller while it runs. On its path
//! it does not allocate, block, log or take a lock: it polls, drains, reads
//! the walls, trims, and leaves a [`TrimRecord`] in a preallocated queue. It
//! never ends unseen: `Shared::alive` falls whichever way its thread leaves.
//! Out of scope: everything slow; that is for readers of `Shared`.

use super::{
    controller::{Controller, Decision, Gave},
    gate::Gate,
    gauge::{Gauges, Levels, ResidentGauge},
    order::Order,
    record::{Tap, Tapped, TrimRecord},
    report::Verdicts,
    survey::Handover,
    wall::{Depth, Walls},
};
use crate::{
    clock::monotonic_ns,
    kv::{KvPool, Ladder, Step, Trimmed},
    pressure::PressureSource,
    units::Bytes,
};
use crossbeam_queue::ArrayQueue;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Where the reactor and its readers meet: atomics and one lock-free queue.
#[derive(Debug)]
pub(super) struct Shared {
    pub records: ArrayQueue<TrimRecord>,
    /// Records that found the queue full.
    pub records_lost: AtomicU64,
    pub trims: AtomicU64,
    pub trimmed_bytes: AtomicU64,
    /// Stalls by verdict, in the order of [`Verdicts::each`].
    pub verdicts: [AtomicU64; Verdicts::COUNT],
    /// The reactor's thread runs, or is about to.
    pub alive: AtomicBool,
    pub wakeups: AtomicU64,
    /// errno with which the source broke, 0 while it works.
    pub source_errno: AtomicI32,
    /// Start of the last burst as an independent witness saw it, ns; 0: none.
    pub witness_onset_ns: AtomicU64,
    pub paused: AtomicBool,
    /// When the cushion was last filled, ns: a hit at that time is our own.
    pub filled_ns: AtomicU64,
    /// Set with every trim, for work that can wait: it is to stop.
    pub pressure: Arc<AtomicBool>,
    /// Bytes by step, in the order of [`Step::ALL`].
    pub by_step: [AtomicU64; Step::ALL.len()],
    pub dropped_tokens: AtomicU64,
    /// Where trims are to be checked against RSS.
    statm: Option<ResidentGauge>,
    /// Who else wants all of it.
    tap: Option<Arc<Tap>>,
}

impl Shared {
    pub fn new(records: usize, statm: Option<ResidentGauge>, tap: Option<Arc<Tap>>) -> Self {
        Self {
            records: ArrayQueue::new(records),
            records_lost: AtomicU64::new(0),
            trims: AtomicU64::new(0),
            trimmed_bytes: AtomicU64::new(0),
            verdicts: Default::default(),
            alive: AtomicBool::new(true),
            wakeups: AtomicU64::new(0),
            source_errno: AtomicI32::new(0),
            witness_onset_ns: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            filled_ns: AtomicU64::new(0),
            pressure: Arc::default(),
            by_step: Default::default(),
            dropped_tokens: AtomicU64::new(0),
            statm,
            tap,
        }
    }

    fn tap(&self, tapped: impl FnOnce() -> Tapped) {
        if let Some(tap) = &self.tap {
            tap.push(tapped());
        }
    }

    /// The process's resident set, where it is measured.
    pub fn rss(&self) -> Option<Bytes> {
        self.statm.as_ref()?.read()
    }

    /// Counts what was given back, and leaves it for who wants to know.
    pub fn tell(&self, record: TrimRecord) {
        let t = &record.trimmed;
        self.trims.fetch_add(1, Relaxed);
        self.trimmed_bytes.fetch_add(t.bytes.0, Relaxed);
        self.dropped_tokens.fetch_add(t.tokens, Relaxed);
        for (sum, bytes) in self.by_step.iter().zip(t.by_step) {
            sum.fetch_add(bytes.0, Relaxed);
        }
        self.tap(|| Tapped::Trim(record));
        if self.records.push(record).is_err() {
            self.records_lost.fetch_add(1, Relaxed);
        }
    }
}

pub(super) struct Reactor {
    pub source: Box<dyn PressureSource>,
    pub gauges: Gauges,
    pub pool: Arc<KvPool>,
    /// Of the pool; asked what may be given up, and for nothing else.
    pub ladder: Arc<Ladder>,
    pub controller: Controller,
    pub gate: Gate,
    pub order: Arc<Order>,
    pub shared: Arc<Shared>,
    /// Where a new set of walls comes from.
    pub handover: Arc<Handover>,
    /// Readable: stop.
    pub stop: OwnedFd,
    /// Bytes the budget may grow back to.
    pub capacity: Bytes,
}

/// How long after the cushion was filled a hit may be our own.
const OWN_HIT_NS: u64 = 10_000_000;

/// Says that the reactor is gone, also where it panics.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.store(false, Relaxed);
    }
}

impl Reactor {
    /// Runs until told to stop. Without a source, which may break, limits are watched
    /// and the system is looked at where kswapd may work.
    pub fn run(mut self) {
        let _alive = Alive(Arc::clone(&self.shared));
        let mut next_drain_ns = 0u64;
        // The watch begins with a reading.
        self.handover.take(&mut self.gauges.walls);
        let levels = self.levels(Depth::All);
        self.controller.take_in(monotonic_ns(), &levels);
        loop {
            let now = monotonic_ns();
            let interval = self.interval();
            let until_drain =
                interval.map(|_| Duration::from_nanos(next_drain_ns.saturating_sub(now)));
            let until_look = self
                .controller
                .sleep(now, self.pool.budget(), self.capacity);
            let of_system = self.gauges.system.is_some();
            let until_gate = of_system.then(|| self.gate.sleep(now)).flatten();
            let timeouts = [until_drain, until_gate].into_iter().flatten();
            let timeout = timeouts.fold(until_look, Duration::min);
            let (stop, ready) = match self.wait(timeout) {
                Ok(woken) => woken,
                Err(e) => {
                    self.shared.source_errno.store(e.raw_os_error(), Relaxed);
                    break;
                }
            };
            if stop {
                break;
            }
            let now = monotonic_ns();
            let due = interval.is_some() && now >= next_drain_ns;
            let by_event = ready || due;
            if by_event || self.looks(now) || self.gate_asks(now) {
                self.shared.wakeups.fetch_add(u64::from(by_event), Relaxed);
                self.respond(by_event);
                // As the source wants it now: a burst may have begun.
                if let Some(interval) = self.interval() {
                    let step = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
                    next_drain_ns = now.saturating_add(step);
                }
            }
            self.grow();
        }
    }

    /// The source failed once: it is not asked again.
    fn is_broken(&self) -> bool {
        self.shared.source_errno.load(Relaxed) != 0
    }

    /// How often the source wants to be asked.
    fn interval(&self) -> Option<Duration> {
        if self.is_broken() {
            return None;
        }
        self.source.readiness().interval
    }

    /// Sleeps; says (stop was asked for, the source is ready).
    fn wait(&self, timeout: Duration) -> Result<(bool, bool), Errno> {
        let readiness = self.source.readiness();
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let stop = PollFd::new(&self.stop, PollFlags::IN);
        let source = readiness.fd.as_ref().filter(|_| !self.is_broken());
        let result = if let Some((fd, flags)) = source {
            let mut fds = [stop, PollFd::new(fd, *flags)];
            poll(&mut fds, Some(&timeout))
                .map(|_| (!fds[0].revents().is_empty(), !fds[1].revents().is_empty()))
        } else {
            let mut fds = [stop];
            poll(&mut fds, Some(&timeout)).map(|_| (!fds[0].revents().is_empty(), false))
        };
        match result {
            Err(Errno::INTR) => Ok((false, false)),
            other => other,
        }
    }

    /// Reads all gauges.
    fn levels(&mut self, depth: Depth) -> Levels {
        if let Some(walls) = &mut self.gauges.walls {
            walls.held = self.pool.resident();
        }
        self.gauges.levels(depth)
    }

    /// The walls are to be read, event or not.
    fn looks(&mut self, now_ns: u64) -> bool {
        let walls = self.gauges.walls.as_ref();
        let left = || walls.and_then(Walls::above_headroom);
        self.controller.looks(now_ns, left) || self.handover.waits()
    }

    /// The gate is open and a task stalled, or it is time to see whether kswapd
    /// still works.
    fn gate_asks(&mut self, now_ns: u64) -> bool {
        let Some(system) = self.gauges.system.as_mut() else {
            return false;
        };
        self.gate.is_due(now_ns) || (self.gate.is_open() && system.stalled())
    }

    /// Drains the source and trims until the controller has had enough,
    /// looking for new events after each slice. What came `by_event` may wait where the
    /// last look found nothing to do.
    fn respond(&mut self, by_event: bool) {
        loop {
            self.drain();
            let walls = self.gauges.walls.as_ref();
            let was_hit = || walls.is_some_and(Walls::were_hit);
            if by_event && self.controller.is_idle(monotonic_ns(), was_hit) {
                return;
            }
            self.handover.take(&mut self.gauges.walls);
            self.return_cushion();
            let noticed_ns = monotonic_ns();
            let levels = self.levels(self.controller.depth());
            let walls = self.gauges.walls.as_ref();
            self.controller.nearest(walls.and_then(Walls::nearest));
            if let Some(s) = &self.gauges.system {
                self.gate.looked(noticed_ns, s.kswapd_works());
            }
            self.controller.set_profile(self.ladder.profile());
            self.controller
                .owed(self.order.owed(), self.order.owed_since());
            self.shared.tap(|| Tapped::Levels {
                ts_ns: noticed_ns,
                levels,
            });
            self.controller.retired(noticed_ns, self.pool.retired());
            let decision = self.controller.decide(noticed_ns, levels);
            if let Some(missing) = self.controller.still_missing(noticed_ns) {
                self.order.lower(missing);
            }
            let Some(decision) = decision else {
                let counts = self.controller.verdicts().each();
                for (sum, (_, _, n)) in self.shared.verdicts.iter().zip(counts) {
                    sum.store(n, Relaxed);
                }
                return;
            };
            if self.shared.paused.load(Relaxed) {
                self.controller
                    .trimmed(noticed_ns, &decision, Gave::default());
                continue;
            }
            self.trim(&decision, noticed_ns);
        }
    }

    /// Free blocks go before page cache is looked at, where a wall of ours was
    /// hit.
    fn return_cushion(&mut self) {
        if self.shared.paused.load(Relaxed) {
            return;
        }
        let now = monotonic_ns();
        // Filling it may hit the wall where page cache is all that has room.
        if now.saturating_sub(self.shared.filled_ns.load(Relaxed)) < OWN_HIT_NS {
            return;
        }
        let walls = self.gauges.walls.as_ref();
        let was_hit = || walls.is_some_and(Walls::were_hit);
        if let Some(decision) = self.controller.return_cushion(now, was_hit) {
            self.trim(&decision, now);
        }
    }

    fn drain(&mut self) {
        if self.is_broken() {
            return;
        }
        let (controller, gate, shared) = (&mut self.controller, &mut self.gate, &self.shared);
        let drained = self.source.drain(&mut |e| {
            shared.tap(|| Tapped::Event(*e));
            gate.observe(e);
            controller.observe(e);
        });
        if let Err(e) = drained {
            let errno = e.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            shared.source_errno.store(errno, Relaxed);
            // No event will tell whether kswapd wakes.
            gate.loses_its_events();
        }
    }

    fn trim(&mut self, decision: &Decision, noticed_ns: u64) {
        self.shared.pressure.store(true, Relaxed);
        let rss_before = self.shared.rss();
        let trimmed = self.pool.trim(decision.want, decision.steps);
        let ordered = self.order_rest(decision, &trimmed);
        let gave = Gave {
            bytes: trimmed.bytes,
            deferred: trimmed.deferred,
            contended: trimmed.contended,
            ordered,
        };
        self.controller.trimmed(trimmed.returned_ns, decision, gave);
        if trimmed.given() == Bytes::ZERO && trimmed.swapped == Bytes::ZERO {
            return;
        }
        let rss_after = self.shared.rss();
        if decision.harm {
            let left = self.pool.resident().saturating_sub(self.pool.retired());
            self.pool.set_budget(left.max(self.pool.account().floor));
        }
        let witness = self.shared.witness_onset_ns.load(Relaxed);
        let onset_ns = if witness == 0 {
            decision.onset_ns
        } else {
            witness
        };
        self.shared.tell(TrimRecord {
            trigger: decision.trigger,
            onset_ns,
            noticed_ns,
            wanted: decision.want,
            trimmed,
            rss_before,
            rss_after,
        });
    }

    /// What the quick steps did not give is ordered of the slow ones, where
    /// they are allowed.
    fn order_rest(&self, decision: &Decision, trimmed: &Trimmed) -> bool {
        let slow = decision.steps.has(Step::Pack) || decision.steps.has(Step::Thin);
        let left = decision.missing.saturating_sub(trimmed.given());
        let Some(kind) = decision.trigger.kind() else {
            return false;
        };
        if !slow || left == Bytes::ZERO {
            return false;
        }
        self.order.place(left, kind, decision.onset_ns);
        true
    }

    fn grow(&mut self) {
        let budget = self.pool.budget();
        let now = monotonic_ns();
        if !self.controller.may_grow(now, budget, self.capacity) {
            return;
        }
        let resident = self.pool.resident();
        self.handover.take(&mut self.gauges.walls);
        let levels = self.levels(Depth::All);
        if let Some(b) = self
            .controller
            .grow(now, budget, resident, self.capacity, levels)
        {
            self.pool.set_budget(b);
        }
    }
}
