//! Starts and stops the reactor, and reads what it left behind.
//!
//! Owns the thread's life. Refuses to run on the reactor's path: all here
//! may allocate and block.

use super::{
    cgroup::MemoryCgroup,
    controller::{Controller, Tuning},
    gate::Gate,
    gauge::{Gauges, ResidentGauge},
    harden::{self, Hardening},
    order::Order,
    reactor::{Reactor, Shared},
    record::{Tap, Trigger, TrimRecord},
    report::Verdicts,
    survey::{Handover, Signature, Survey},
    swap::SwapWatch,
    system::SystemGauge,
    wall::Walls,
    witness,
    worker::Worker,
};
use crate::{
    clock::monotonic_ns,
    kv::{Ladder, Step, Trimmed},
    pressure::{EventTotals, PressureSource, SourceStats, privilege},
    units::Bytes,
};
use rustix::event::{EventfdFlags, eventfd};
use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
};
use thiserror::Error;

/// Trims kept for a slow reader before they are counted as lost.
const RECORDS: usize = 4096;

/// Whose shortage counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// Our cgroup and those above it where they have a limit, and the system
    #[default]
    Auto,
    /// The whole system only
    System,
    /// The memory cgroup kvpsi runs in and those above it only
    Cgroup,
}

/// How a governor is to run.
#[derive(Debug)]
pub struct GovernorConfig {
    /// Whose shortage counts.
    pub scope: Scope,
    /// Constants of the rule.
    pub tuning: Tuning,
    /// Measure the resident set around each trim (two reads of `statm`).
    pub measure_rss: bool,
    /// Watch and decide, but give nothing back.
    pub observe_only: bool,
    /// Who wants to know all that the reactor sees and does.
    pub tap: Option<Arc<Tap>>,
    /// For whom its threads are to work; `None`: as before.
    pub ids: Option<privilege::Ids>,
}

impl Default for GovernorConfig {
    fn default() -> Self {
        Self {
            scope: Scope::Auto,
            tuning: Tuning::default(),
            measure_rss: false,
            observe_only: false,
            tap: None,
            ids: None,
        }
    }
}

/// Why a governor did not start.
#[derive(Debug, Error)]
pub enum GovernorError {
    /// The scope asked for has no gauge.
    #[error("--scope {scope}: {why}")]
    Scope {
        /// As the flag takes it.
        scope: &'static str,
        /// What is missing, and what to do.
        why: String,
    },
    /// A thread or descriptor could not be made.
    #[error("cannot start the reactor thread: {0}")]
    Io(#[from] io::Error),
}

/// Totals of a governor.
#[derive(Clone, Debug, serde::Serialize)]
pub struct GovernorStats {
    /// Name of the source.
    pub signal: &'static str,
    /// What the source saw.
    pub events: EventTotals,
    /// Nanoseconds in which at least one task stalled; `None` where the source
    /// cannot tell.
    pub some_ns: Option<u64>,
    /// Trims that gave something back.
    pub trims: u64,
    /// Bytes given back.
    pub trimmed_bytes: Bytes,
    /// The same by step.
    pub by_step: std::collections::BTreeMap<&'static str, Bytes>,
    /// Bytes that slow steps were asked for and have not given yet.
    pub owed_bytes: Bytes,
    /// Positions that lost keys and values.
    pub dropped_tokens: u64,
    /// Stalls by what became of them.
    pub verdicts: Verdicts,
    /// The reactor's thread runs.
    pub alive: bool,
    /// Times the reactor was woken by its source.
    pub wakeups: u64,
    /// Trim records lost because nobody read them.
    pub records_lost: u64,
    /// The source broke with this error: limits are watched, and no stall is seen. Where
    /// the reactor is not [`Self::alive`], why it ended.
    pub source_error: Option<String>,
    /// What became of the source since it was opened, if anything did.
    pub source_note: Option<String>,
}

/// Threads that are told to stop, and joined, when this is dropped.
#[derive(Default)]
struct Threads(Vec<(JoinHandle<()>, OwnedFd)>);

impl Threads {
    fn spawn(&mut self, name: &str, f: impl FnOnce(OwnedFd) + Send + 'static) -> io::Result<()> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let theirs = stop.try_clone()?;
        let handle = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || f(theirs))?;
        self.0.push((handle, stop));
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for (handle, stop) in self.0.drain(..) {
            let _ = rustix::io::write(&stop, &1u64.to_ne_bytes());
            if handle.join().is_err() {
                tracing::error!("a control thread panicked");
            }
        }
    }
}

/// A reactor thread that is set up and waits for a pool.
///
/// Made while the process still has privileges; the thread takes its
/// real-time class and locks its pages, and needs nothing after. So the
/// process can give its privileges up before it opens a model.
pub struct Prepared {
    signal: &'static str,
    shared: Arc<Shared>,
    stats: Arc<dyn SourceStats>,
    hardening: Hardening,
    /// Before `threads`: dropped first, it ends the wait of the reactor.
    pool: mpsc::SyncSender<Arc<Ladder>>,
    order: Arc<Order>,
    watches_system: bool,
    threads: Threads,
}

impl Prepared {
    /// Name of the source.
    #[must_use]
    pub fn signal(&self) -> &'static str {
        self.signal
    }

    /// What the reactor's thread was granted.
    #[must_use]
    pub fn hardening(&self) -> &Hardening {
        &self.hardening
    }

    /// Lets the reactor run over the pool of `ladder`, and another thread take
    /// its slow steps.
    ///
    /// # Errors
    /// That thread could not be made.
    pub fn start(mut self, ladder: Arc<Ladder>) -> Result<Governor, GovernorError> {
        let (order, shared) = (Arc::clone(&self.order), Arc::clone(&self.shared));
        let of_worker = Arc::clone(&ladder);
        let system = self.watches_system.then(SystemGauge::open);
        let system = system.and_then(Result::ok);
        let swap = SwapWatch::open();
        self.threads.spawn("kvpsi-reclaim", move |stop| {
            Worker {
                ladder: of_worker,
                order,
                shared,
                system,
                swap,
                stop,
            }
            .run();
        })?;
        // The thread ends only when this sender is dropped or told to stop.
        let _ = self.pool.send(Arc::clone(&ladder));
        Ok(Governor {
            signal: self.signal,
            ladder,
            order: self.order,
            shared: self.shared,
            stats: self.stats,
            hardening: self.hardening,
            _threads: self.threads,
        })
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("signal", &self.signal)
            .finish_non_exhaustive()
    }
}

/// A running reactor. Dropping it stops the thread and detaches the source.
pub struct Governor {
    signal: &'static str,
    ladder: Arc<Ladder>,
    order: Arc<Order>,
    shared: Arc<Shared>,
    stats: Arc<dyn SourceStats>,
    hardening: Hardening,
    _threads: Threads,
}

impl std::fmt::Debug for Governor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Governor")
            .field("signal", &self.signal)
            .finish_non_exhaustive()
    }
}

impl Governor {
    /// Starts the reactor's thread over `source`. `witness`, where given,
    /// only watches: the onset of a trim is then what the witness saw, so
    /// that slow sources are measured against the truth.
    ///
    /// # Errors
    /// The scope has no gauge, or a thread could not be made.
    pub fn prepare(
        source: Box<dyn PressureSource>,
        witness: Option<Box<dyn PressureSource>>,
        config: &GovernorConfig,
    ) -> Result<Prepared, GovernorError> {
        // First: who is moved meanwhile is found by the first look.
        let signature = MemoryCgroup::of_self()
            .map_or_else(|_| Signature::default(), |own| Signature::of(&own));
        let gauges = open_gauges(config)?;
        let page_bytes = rustix::param::page_size() as u64;
        let statm = config.measure_rss.then(ResidentGauge::open);
        let statm = statm.and_then(Result::ok);
        let shared = Arc::new(Shared::new(RECORDS, statm, config.tap.clone()));
        shared.paused.store(config.observe_only, Relaxed);
        let (signal, stats) = (source.name(), source.stats());
        let tuning = config.tuning;
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let order = Arc::new(Order::new(wake));
        let of_reactor = Arc::clone(&order);
        let mut threads = Threads::default();
        let handover = Handover::new();
        // Each thread lets its end go once it has given up its privileges: the
        // sandbox, which comes next, refuses the call for it.
        let (giving_up, given_up) = mpsc::channel::<()>();
        let survey = Survey {
            walls: gauges.walls.is_some().then(|| Arc::clone(&handover)),
            marks: gauges.system.as_ref().map(SystemGauge::marks),
            signature,
        };
        if survey.walls.is_some() || survey.marks.is_some() {
            let ids = config.ids.clone();
            let giving_up = giving_up.clone();
            threads.spawn("kvpsi-walls", move |stop| {
                give_up("walls", ids.as_ref());
                drop(giving_up);
                survey.run(&stop);
            })?;
        }
        if let Some(w) = witness {
            let (shared, ids) = (Arc::clone(&shared), config.ids.clone());
            let giving_up = giving_up.clone();
            threads.spawn("kvpsi-witness", move |stop| {
                give_up("witness", ids.as_ref());
                drop(giving_up);
                witness::watch(w, &shared, &stop);
            })?;
        }
        let (tell, told) = mpsc::sync_channel(1);
        let (pool_tx, pool_rx) = mpsc::sync_channel::<Arc<Ladder>>(1);
        let in_thread = Arc::clone(&shared);
        let ids = config.ids.clone();
        threads.spawn("kvpsi-reactor", move |stop| {
            let hardening = harden::current_thread();
            give_up("reactor", ids.as_ref());
            drop(giving_up);
            let _ = tell.send(hardening);
            let Ok(ladder) = pool_rx.recv() else { return };
            let pool = Arc::clone(ladder.pool());
            let controller = Controller::new(tuning, ladder.profile(), page_bytes);
            let capacity = pool.budget();
            let shared = in_thread;
            Reactor {
                source,
                gauges,
                pool,
                ladder,
                controller,
                gate: Gate::default(),
                order: of_reactor,
                shared,
                handover,
                stop,
                capacity,
            }
            .run();
        })?;
        let hardening = told.recv().unwrap_or_default();
        // Ends when the last of them is gone; nothing is sent.
        let _ = given_up.recv();
        for r in &hardening.refused {
            tracing::debug!("reactor: {r}");
        }
        Ok(Prepared {
            signal,
            shared,
            stats,
            hardening,
            threads,
            pool: pool_tx,
            order,
            watches_system: config.scope != Scope::Cgroup,
        })
    }

    /// The next trim nobody has read yet.
    #[must_use]
    pub fn next_trim(&self) -> Option<TrimRecord> {
        self.shared.records.pop()
    }

    /// What the reactor's thread was granted.
    #[must_use]
    pub fn hardening(&self) -> &Hardening {
        &self.hardening
    }

    /// Set with every trim; whoever does work that can wait clears it first
    /// and stops when it is set.
    #[must_use]
    pub fn pressure(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.shared.pressure)
    }

    /// Lets it give back, or only watch and decide.
    pub fn set_trimming(&self, on: bool) {
        self.shared.paused.store(!on, Relaxed);
    }

    /// Whether it gives back what it decides to.
    #[must_use]
    pub fn trimming(&self) -> bool {
        !self.shared.paused.load(Relaxed)
    }

    /// Gives so many bytes back now, as far as the profile's quick steps have
    /// as much without taking a sequence as a whole; counted and kept as any
    /// trim. The budget stays as it is.
    #[must_use]
    pub fn trim(&self, bytes: Bytes) -> Trimmed {
        let now_ns = monotonic_ns();
        let steps = self.ladder.profile().steps(true).without(Step::Preempt);
        let trimmed = self.ladder.pool().trim(bytes, steps);
        if trimmed.given() > Bytes::ZERO {
            self.shared.tell(TrimRecord {
                trigger: Trigger::ByHand,
                onset_ns: now_ns,
                noticed_ns: now_ns,
                wanted: bytes,
                trimmed,
                rss_before: None,
                rss_after: None,
            });
        }
        trimmed
    }

    /// The source's own counters.
    #[must_use]
    pub fn source(&self) -> &dyn SourceStats {
        &*self.stats
    }

    /// Totals so far.
    #[must_use]
    pub fn stats(&self) -> GovernorStats {
        let s = &self.shared;
        let errno = s.source_errno.load(Relaxed);
        let verdicts = std::array::from_fn(|i| s.verdicts[i].load(Relaxed));
        GovernorStats {
            signal: self.signal,
            events: self.stats.totals(),
            some_ns: self.stats.some_ns(),
            trims: s.trims.load(Relaxed),
            trimmed_bytes: Bytes(s.trimmed_bytes.load(Relaxed)),
            by_step: Step::ALL
                .iter()
                .zip(&s.by_step)
                .map(|(step, b)| (step.name(), Bytes(b.load(Relaxed))))
                .filter(|(_, b)| *b > Bytes::ZERO)
                .collect(),
            owed_bytes: self.order.owed(),
            dropped_tokens: s.dropped_tokens.load(Relaxed),
            verdicts: Verdicts::from_counts(verdicts),
            alive: s.alive.load(Relaxed),
            wakeups: s.wakeups.load(Relaxed),
            records_lost: s.records_lost.load(Relaxed),
            source_note: self.stats.note(),
            source_error: (errno != 0).then(|| io::Error::from_raw_os_error(errno).to_string()),
        }
    }
}

/// Ids and capabilities are per thread on Linux: each of ours gives up its
/// own. `confine` finds one that could not.
fn give_up(name: &str, ids: Option<&privilege::Ids>) {
    if let Err(e) = privilege::leave(ids) {
        tracing::warn!("the {name}'s thread keeps its privileges: {e}");
    }
}

/// The gauges of a scope.
///
/// # Errors
/// The scope has none.
pub fn open_gauges(config: &GovernorConfig) -> Result<Gauges, GovernorError> {
    let mut gauges = Gauges::default();
    if config.scope != Scope::System {
        // With or without a limit: one may be set later.
        match MemoryCgroup::of_self() {
            Ok(c) => gauges.walls = Some(Walls::open(&c)),
            Err(e) if config.scope == Scope::Cgroup => {
                return Err(GovernorError::Scope {
                    scope: "cgroup",
                    why: e.to_string(),
                });
            }
            Err(_) => {}
        }
    }
    if config.scope != Scope::Cgroup {
        match SystemGauge::open() {
            Ok(g) => gauges.system = Some(g),
            Err(e) if config.scope == Scope::System => {
                return Err(GovernorError::Scope {
                    scope: "system",
                    why: e.to_string(),
                });
            }
            Err(e) => tracing::warn!("no system gauge: {e}"),
        }
    }
    Ok(gauges)
}
