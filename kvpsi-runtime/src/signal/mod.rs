//! Where memory pressure comes from.
//!
//! Owns the [`PressureSource`] trait, its sources, and the choice between
//! them. Every source speaks [`Event`], whatever it reads. Refuses to know
//! what is done about pressure: no KV block, no byte count of ours is here.

use kvpsi_common::Event;
use rustix::event::PollFlags;
use std::{os::fd::BorrowedFd, time::Duration};

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
    /// Nanoseconds in which at least one task stalled, system-wide.
    fn some_ns(&self) -> u64;
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
