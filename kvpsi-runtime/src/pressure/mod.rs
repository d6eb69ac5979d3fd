//! Where memory pressure comes from.
//!
//! Owns the [`PressureSource`] trait, its sources, and the choice between
//! them. Every source produces [`Event`], whatever it reads. Out of scope:
//! what is done about pressure: no KV block, no byte count of ours is here.

pub mod accounting;
mod burst;
pub mod ebpf;
mod hooks;
mod mapped;
pub mod privilege;
pub mod programs;
mod psi;
pub mod psi_poll;
pub mod psi_trigger;
mod refusal;
pub mod systemd;
pub mod vmstat;
pub mod watchdog;

pub(crate) use psi::total_us as psi_total_us;

use kvpsi_common::{Event, Kind, counters::KindCounters};
use rustix::event::PollFlags;
use std::{os::fd::BorrowedFd, path::PathBuf, time::Duration};

/// What a thread waits on for a source.
#[derive(Debug)]
pub struct Readiness<'a> {
    /// Descriptor to poll and the events to ask for; `None` for a source that
    /// only has an interval.
    pub fd: Option<(BorrowedFd<'a>, PollFlags)>,
    /// The source wants `drain` called this often, whether or not `fd` fires.
    pub interval: Option<Duration>,
}

/// Exact accounting of what a source saw: `seen = delivered + coalesced +
/// dropped` at all times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct EventTotals {
    /// Stalls and marks that happened.
    pub seen: u64,
    /// Events handed to the reader.
    pub delivered: u64,
    /// Stalls counted in a later event instead of being sent on their own.
    pub coalesced: u64,
    /// Events lost: no room in the ring buffer.
    pub dropped: u64,
}

/// Reads a source's counters from any thread, apart from the thread that
/// drains it. May allocate and block: never called on the reactor's path.
pub trait SourceStats: Send + Sync {
    /// Totals since the source was opened.
    fn totals(&self) -> EventTotals;
    /// Nanoseconds in which at least one task stalled, system-wide; `None`
    /// where the source cannot tell.
    fn some_ns(&self) -> Option<u64>;
    /// How far up the ladder eBPF goes.
    fn rung(&self) -> Option<programs::Rung> {
        None
    }
    /// Work of kernel threads that it saw: no event tells of it.
    fn background(&self) -> u64 {
        0
    }
    /// Counts by kind, where the source keeps them.
    fn kinds(&self) -> Vec<(Kind, KindCounters)> {
        Vec::new()
    }
    /// What each program cost, where the kernel measures it
    /// ([`programs::enable_statistics`], or `kernel.bpf_stats_enabled`).
    fn costs(&self) -> Vec<(String, programs::Cost)> {
        Vec::new()
    }
    /// A line for people, if the source has come to work otherwise than it was
    /// opened.
    fn note(&self) -> Option<String> {
        None
    }
}

/// A source of pressure events, drained by one thread.
pub trait PressureSource: Send {
    /// Name as `--signal` takes it, e.g. `ebpf`.
    fn name(&self) -> &'static str;

    /// What to wait on before calling [`PressureSource::drain`].
    fn readiness(&self) -> Readiness<'_>;

    /// Hands every pending event to `sink`, in order. Does not allocate,
    /// block or log: this is the reactor's path.
    ///
    /// # Errors
    /// The source is broken (a file vanished, the kernel refused a read) and
    /// will not recover by itself.
    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> std::io::Result<()>;

    /// A handle to the source's counters.
    fn stats(&self) -> std::sync::Arc<dyn SourceStats>;
}

/// Which source to use, as `--signal` takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The first that works: ebpf, systemd where the service manager asks for it, psi-trigger,
    /// psi-poll, vmstat
    #[default]
    Auto,
    /// Kernel tracepoints through eBPF
    Ebpf,
    /// A PSI trigger: the kernel says so when a window's stall time is spent
    PsiTrigger,
    /// Reading PSI's `total` at an interval
    PsiPoll,
    /// Reading /proc/vmstat at an interval: the whole system's reclaim alone
    Vmstat,
    /// What a service manager names in MEMORY_PRESSURE_WATCH
    Systemd,
}

impl Choice {
    /// Who asks for a rung asks for eBPF.
    #[must_use]
    pub fn with_rung(self, rung: programs::Rung) -> Self {
        match self {
            Self::Auto if rung != programs::Rung::Auto => Self::Ebpf,
            other => other,
        }
    }
}

/// The memory cgroup to watch instead of the whole system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupScope {
    /// cgroup v2 id (the inode number of its directory); the programs know
    /// cgroups by it, also where v1 has the memory controller.
    pub id: u64,
    /// Depth below the root cgroup, 0 for the root. With it the cgroup's
    /// descendants are watched too.
    pub level: Option<u32>,
    /// The cgroup's `memory.pressure`, for the PSI sources.
    pub pressure: Option<PathBuf>,
}

/// How a source is to work.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// At most one event per interval while stalls go on.
    pub interval: Duration,
    /// A spell without stalls after which the next one is an onset.
    pub quiet: Duration,
    /// The cgroup to watch; `None` watches the whole system.
    pub cgroup: Option<CgroupScope>,
    /// Size of the event ring buffer; rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// Trace mode: size of the ring buffer that takes every event.
    pub trace_ring_bytes: Option<u32>,
    /// How far up the ladder eBPF is to go.
    pub rung: programs::Rung,
    /// The programs' own diagnostics, read by [`ebpf::EbpfSource::log`].
    pub program_log: bool,
    /// How often a polling source looks while pressure is recent.
    pub poll_interval: Duration,
    /// And while it is not.
    pub poll_calm: Duration,
    /// Stall time within the trigger's window that fires it.
    pub trigger_stall: Duration,
    /// The trigger's window, 0.5 to 10 s; becomes 2 s where the kernel grants
    /// nothing else.
    pub trigger_window: Duration,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(1),
            quiet: Duration::from_millis(10),
            cgroup: None,
            ring_bytes: 256 << 10,
            trace_ring_bytes: None,
            rung: programs::Rung::Auto,
            program_log: false,
            // As Android's lmkd does (PSI_POLL_PERIOD_SHORT_MS and _LONG_MS).
            poll_interval: Duration::from_millis(10),
            poll_calm: Duration::from_millis(100),
            trigger_stall: Duration::from_millis(10),
            trigger_window: Duration::from_millis(500),
        }
    }
}

impl SourceConfig {
    fn pace(&self) -> burst::Pace {
        burst::Pace {
            busy: self.poll_interval,
            calm: self.poll_calm,
        }
    }
}

/// Why a source cannot be had. One line each, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// The binary holds no eBPF object.
    #[error(
        "eBPF: this binary was built without the eBPF object (build it with `cargo xtask build-ebpf`)"
    )]
    NoObject,
    /// The object and this binary disagree.
    #[error(
        "eBPF: the object has ABI version {found}, this binary {expected} (rebuild both: `cargo xtask build-ebpf`, then cargo build)"
    )]
    Abi {
        /// Version in the object.
        found: u32,
        /// [`kvpsi_common::ABI_VERSION`].
        expected: u32,
    },
    /// The object is not what `cargo xtask build-ebpf` makes.
    #[error("eBPF: the object cannot be read: {0} (rebuild it with `cargo xtask build-ebpf`)")]
    BadObject(String),
    /// The kernel refused.
    #[error("eBPF: {0}")]
    Refused(String),
    /// A file that tells of pressure cannot be used.
    #[error("{name}: {path}: {why}")]
    File {
        /// Source, as `--signal` names it.
        name: &'static str,
        /// File that was tried.
        path: PathBuf,
        /// What went wrong and what to do.
        why: String,
    },
    /// `auto` found nothing.
    #[error("no source of memory pressure works here: {0}")]
    Nothing(String),
    /// The service manager turned watching off.
    #[error(
        "MEMORY_PRESSURE_WATCH=/dev/null says not to watch memory pressure (unset it, or name a --signal)"
    )]
    Unwanted,
}

/// An open source and what was refused on the way to it.
pub struct Opened {
    /// The source.
    pub source: Box<dyn PressureSource>,
    /// One line for each source or program that was tried in vain.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("source", &self.source.name())
            .field("notes", &self.notes)
            .finish()
    }
}

/// Opens the chosen source. `Auto` takes the first that works: eBPF, with the
/// kernel's own account beside it in case the programs are silent; what a
/// service manager names; a PSI trigger; polling PSI; polling /proc/vmstat.
///
/// # Errors
/// The chosen source does not work here, or with `Auto` none does; or the
/// service manager turned watching off.
pub fn open(choice: Choice, config: &SourceConfig) -> Result<Opened, SignalError> {
    let quietly = |source: Box<dyn PressureSource>| Opened {
        source,
        notes: Vec::new(),
    };
    match choice {
        Choice::Ebpf => {
            let source = ebpf::EbpfSource::open(config)?;
            let note = programs::missing(source.programs());
            Ok(Opened {
                source: Box::new(source),
                notes: note.into_iter().collect(),
            })
        }
        Choice::Systemd => Ok(quietly(Box::new(systemd::Systemd::open(config)?))),
        Choice::PsiTrigger => {
            let (source, note) = psi_trigger::PsiTrigger::open(config)?;
            Ok(Opened {
                source: Box::new(source),
                notes: note.into_iter().collect(),
            })
        }
        Choice::PsiPoll => Ok(quietly(Box::new(psi_poll::PsiPoll::open(config)?))),
        Choice::Vmstat => Ok(quietly(Box::new(vmstat::Vmstat::open(config)?))),
        Choice::Auto => open_best(config),
    }
}

fn open_best(config: &SourceConfig) -> Result<Opened, SignalError> {
    let mut order = vec![Choice::Ebpf];
    match systemd::asked() {
        Ok(systemd::Asked::Off) => return Err(SignalError::Unwanted),
        Ok(systemd::Asked::Nothing) => {}
        // What cannot be read is refused by name when it is its turn.
        Ok(systemd::Asked::Watch(_)) | Err(_) => order.push(Choice::Systemd),
    }
    order.extend([Choice::PsiTrigger, Choice::PsiPoll, Choice::Vmstat]);
    let mut notes = Vec::new();
    for choice in order {
        match open(choice, config) {
            Ok(mut opened) => {
                notes.append(&mut opened.notes);
                opened.notes = notes;
                if choice == Choice::Ebpf {
                    opened.source = watched(opened.source, config);
                }
                return Ok(opened);
            }
            Err(e) => notes.push(e.to_string()),
        }
    }
    Err(SignalError::Nothing(notes.join("; ")))
}

/// `source` with the kernel's own account beside it, where it keeps one.
fn watched(source: Box<dyn PressureSource>, config: &SourceConfig) -> Box<dyn PressureSource> {
    for choice in [Choice::PsiPoll, Choice::Vmstat] {
        if let Ok(other) = open(choice, config) {
            return Box::new(watchdog::Watched::new(source, other.source));
        }
    }
    source
}

/// An I/O error without Rust's "(os error N)".
pub(crate) fn plain(e: &std::io::Error) -> String {
    let text = e.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}
