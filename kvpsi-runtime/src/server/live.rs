//! How the instance is, now and over the last minutes.
//!
//! Owns the samples, and the trims as they are read from the reactor's queue:
//! this is its one reader. Out of scope: who looks.

use super::{
    metrics::Metrics,
    model::Loaded,
    view::{
        Control, Doing, History, Inbound, Kv, Psi, Requests, SAMPLE_MS, SAMPLES, Sample, Sequence,
        Stalls, Status, TRIMS, Trim, TrimDone, Trims,
    },
};
use crate::{
    clock::monotonic_ns,
    control::{TrimRecord, WallReport, cgroup::MemoryCgroup, gauge::ResidentGauge, report},
    kv::{Profile, Step},
    trace,
    units::Bytes,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Samples between two looks at the limits: a second.
const WALLS_EVERY: u64 = 1000 / SAMPLE_MS;

/// A ready instance and its past.
#[derive(Debug)]
pub struct Live {
    /// The model.
    pub loaded: Loaded,
    name: String,
    ready: Instant,
    statm: Option<ResidentGauge>,
    cgroup: Option<MemoryCgroup>,
    refused: AtomicU64,
    walls: Mutex<Vec<WallReport>>,
    past: Mutex<Past>,
}

#[derive(Debug, Default)]
struct Past {
    /// Number of the next sample.
    next: u64,
    samples: VecDeque<Sample>,
    trims: VecDeque<Trim>,
    last: Totals,
}

/// What samples are differences of.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    some_us: u64,
    psi_us: u64,
    stalls: u64,
    tokens: u64,
}

impl Live {
    /// Of a model that clients call `name`.
    #[must_use]
    pub fn new(loaded: Loaded, name: &str) -> Self {
        let new = Self {
            loaded,
            name: name.to_owned(),
            ready: Instant::now(),
            statm: ResidentGauge::open().ok(),
            cgroup: MemoryCgroup::of_self().ok(),
            refused: AtomicU64::new(0),
            walls: Mutex::new(report::walls(Bytes::ZERO)),
            past: Mutex::default(),
        };
        let totals = new.totals();
        new.past().last = totals;
        new
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was turned away.
    pub(super) fn note_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    fn totals(&self) -> Totals {
        let stats = self.loaded.governor.as_ref().map(|g| g.stats());
        let psi = trace::Sample::now();
        Totals {
            some_us: stats.as_ref().and_then(|s| s.some_ns).unwrap_or(0) / 1000,
            psi_us: psi.map_or(0, |p| p.some_us),
            stalls: stats.map_or(0, |s| s.events.seen),
            tokens: self.loaded.account.tokens.load(Relaxed),
        }
    }

    fn kv(&self) -> Kv {
        let pool = &self.loaded.pool;
        Kv::new(&pool.account(), pool.budget(), pool.capacity())
    }

    /// Takes a sample, and what the reactor left.
    fn sample(&self, metrics: &Metrics) {
        let now = self.totals();
        let kv = self.kv();
        let account = &self.loaded.account;
        let governor = self.loaded.governor.as_ref();
        let returned = governor.map_or(Bytes::ZERO, |g| g.stats().trimmed_bytes);
        let mut past = self.past();
        while let Some(record) = governor.and_then(|g| g.next_trim()) {
            let trim = Trim::from(&record);
            metrics.trimmed(&trim);
            push(&mut past.trims, trim, TRIMS);
        }
        let last = std::mem::replace(&mut past.last, now);
        let sample = Sample {
            t_ms: monotonic_ns() / 1_000_000,
            stall_us: now.some_us.saturating_sub(last.some_us),
            psi_some_us: now.psi_us.saturating_sub(last.psi_us),
            stalls: now.stalls.saturating_sub(last.stalls),
            resident: kv.resident,
            in_use: kv.in_use,
            budget: kv.budget,
            returned_total: returned,
            tokens: now.tokens.saturating_sub(last.tokens),
            running: account.running.load(Relaxed),
            waiting: account.waiting.load(Relaxed),
        };
        push(&mut past.samples, sample, SAMPLES);
        past.next += 1;
    }

    /// The limits as they were last looked up.
    fn walls(&self) -> Vec<WallReport> {
        (self.walls.lock().unwrap_or_else(PoisonError::into_inner)).clone()
    }

    /// Looks them up: slow where the kernel is short of memory.
    fn look_up_walls(&self) {
        let walls = report::walls(self.loaded.pool.resident());
        *self.walls.lock().unwrap_or_else(PoisonError::into_inner) = walls;
    }

    /// Samples until the task is dropped.
    pub(super) async fn watch(self: Arc<Self>, metrics: Arc<Metrics>) {
        let mut tick = tokio::time::interval(Duration::from_millis(SAMPLE_MS));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0u64;
        loop {
            tick.tick().await;
            self.sample(&metrics);
            count += 1;
            if count.is_multiple_of(8) {
                metrics.gather();
            }
            if count.is_multiple_of(WALLS_EVERY) {
                let live = Arc::clone(&self);
                let _ = tokio::task::spawn_blocking(move || live.look_up_walls()).await;
            }
        }
    }

    /// What came after sample number `since`.
    #[must_use]
    pub fn history(&self, since: u64) -> History {
        let past = self.past();
        let oldest = past.next - past.samples.len() as u64;
        let skip = usize::try_from(since.saturating_sub(oldest)).unwrap_or(usize::MAX);
        let samples: Vec<Sample> = past.samples.iter().skip(skip).copied().collect();
        // What came since the last sample that the reader has.
        let from = match (skip, samples.first()) {
            (0, _) => 0,
            (_, Some(first)) => first.t_ms.saturating_sub(2 * SAMPLE_MS),
            (_, None) => u64::MAX,
        };
        History {
            next: past.next,
            now_ms: monotonic_ns() / 1_000_000,
            samples,
            trims: (past.trims.iter().filter(|t| t.t_ms >= from).cloned()).collect(),
        }
    }

    /// How it is now.
    #[must_use]
    pub fn status(&self, permits: usize) -> Status {
        let loaded = &self.loaded;
        let governor = loaded.governor.as_ref();
        let stats = governor.map(|g| g.stats());
        let account = &loaded.account;
        let (running, waiting) = (account.running.load(Relaxed), account.waiting.load(Relaxed));
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            model: self.name.clone(),
            uptime_s: self.ready.elapsed().as_secs_f64(),
            signal: stats.as_ref().map_or("none", |s| s.signal).into(),
            rung: governor.and_then(|g| Some(g.source().rung()?.name().into())),
            note: stats.as_ref().and_then(|s| {
                let gone = "the reactor's thread ended; nothing is trimmed any more";
                let broken = |e| {
                    format!("the signal broke: {e}; limits are still watched, stalls are not seen")
                };
                (!s.alive)
                    .then(|| gone.to_owned())
                    .or_else(|| s.source_error.as_ref().map(broken))
                    .or_else(|| s.source_note.clone())
            }),
            profile: loaded.ladder.profile(),
            trimming: governor.is_some_and(|g| g.trimming()),
            kv: self.kv(),
            stalls: stats.as_ref().map_or_else(Stalls::default, |s| Stalls {
                seen: s.events.seen,
                delivered: s.events.delivered,
                coalesced: s.events.coalesced,
                dropped: s.events.dropped,
                some_us: s.some_ns.map(|ns| ns / 1000),
                verdicts: s.verdicts,
            }),
            psi: trace::Sample::now().map(|p| Psi {
                some_us: p.some_us,
                full_us: p.full_us,
            }),
            trims: stats.map_or_else(Trims::default, |s| Trims {
                count: s.trims,
                bytes: s.trimmed_bytes,
                by_step: (s.by_step.iter().map(|(k, v)| ((*k).to_owned(), *v))).collect(),
                tokens: s.dropped_tokens,
            }),
            requests: Requests {
                running,
                // Those on their way to the queue wait too.
                waiting: waiting.max((permits as u64).saturating_sub(running)),
                finished: account.finished.load(Relaxed),
                cancelled: account.cancelled.load(Relaxed),
                refused: self.refused.load(Relaxed) + account.refused.load(Relaxed),
                failed: account.failed.load(Relaxed),
                prompt_tokens: account.prompt_tokens.load(Relaxed),
                tokens: account.tokens.load(Relaxed),
            },
            inbound: Inbound::default(),
            sequences: self.sequences(),
            rss: (self.statm.as_ref().and_then(ResidentGauge::read)).unwrap_or(Bytes::ZERO),
            limit: (self.cgroup.as_ref()).and_then(|c| c.tightest().map(|(_, limit)| limit)),
            walls: self.walls(),
        }
    }

    fn sequences(&self) -> Vec<Sequence> {
        let all = self.loaded.account.in_flight();
        let one = |f: crate::engine::batch::InFlight| Sequence {
            id: f.id,
            doing: match f.doing {
                "prefill" => Doing::Prefill,
                "decode" => Doing::Decode,
                "preempted" => Doing::Preempted,
                _ => Doing::Waiting,
            },
            prompt_tokens: f.prompt_tokens as u64,
            tokens: f.tokens as u64,
            lost_tokens: f.lost_tokens,
            age_s: f.arrived.elapsed().as_secs_f64(),
        };
        all.into_iter().map(one).collect()
    }

    /// Gives something back now, whether or not events are taken.
    pub(super) fn trim(&self, bytes: Bytes) -> TrimDone {
        let done = if let Some(governor) = &self.loaded.governor {
            governor.trim(bytes)
        } else {
            let steps = self.loaded.ladder.profile().steps(true);
            self.loaded.pool.trim(bytes, steps.without(Step::Preempt))
        };
        TrimDone {
            bytes: done.bytes,
            tokens: done.tokens,
        }
    }

    /// Changes what is named; false where nothing can trim.
    pub(super) fn control(&self, control: Control) -> bool {
        if let Some(profile) = control.profile {
            self.loaded.ladder.set_profile(profile);
        }
        match (control.trimming, &self.loaded.governor) {
            (Some(on), Some(governor)) => {
                governor.set_trimming(on);
                true
            }
            (Some(true), None) => false,
            _ => true,
        }
    }

    /// What may be lost to return memory.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.loaded.ladder.profile()
    }
}

impl From<&TrimRecord> for Trim {
    fn from(r: &TrimRecord) -> Self {
        let t = &r.trimmed;
        Self {
            t_ms: t.returned_ns / 1_000_000,
            trigger: r.trigger.name().into(),
            kind: r.trigger.kind_name().into(),
            step: t.deepest.map_or("", Step::name).into(),
            bytes: t.bytes,
            tokens: t.tokens,
            mass_dropped: t.mass_dropped,
            onset_to_returned_us: t.returned_ns.saturating_sub(r.onset_ns) / 1000,
        }
    }
}

fn push<T>(all: &mut VecDeque<T>, one: T, most: usize) {
    while all.len() >= most {
        all.pop_front();
    }
    all.push_back(one);
}
