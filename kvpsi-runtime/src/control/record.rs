//! What the reactor leaves behind of a trim, for slow readers.
//!
//! Plain data of fixed size, pushed into a preallocated lock-free queue;
//! a full queue counts, it never blocks. Refuses to format itself: text and
//! JSON are made where they are shown.

use super::gauge::Levels;
use crate::{kv::Trimmed, units::Bytes};
use crossbeam_queue::ArrayQueue;
use kvpsi_common::{Event, Kind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a trim was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// First stall after a quiet spell.
    Onset(Kind),
    /// Stalls went on.
    Ongoing(Kind),
    /// The same burst, its target not met yet.
    FollowUp(Kind),
    /// The low watermark was crossed, nobody has stalled: lossless only.
    EarlyWarning,
    /// A slow step that such a stall had ordered.
    Background(Kind),
    /// Somebody asked for it.
    ByHand,
}

impl Trigger {
    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Onset(_) => "onset",
            Self::Ongoing(_) => "ongoing",
            Self::FollowUp(_) => "follow_up",
            Self::EarlyWarning => "early_warning",
            Self::Background(_) => "background",
            Self::ByHand => "by_hand",
        }
    }

    /// The kernel's event behind it, if there is one.
    #[must_use]
    pub const fn kind(self) -> Option<Kind> {
        match self {
            Self::Onset(k) | Self::Ongoing(k) | Self::FollowUp(k) | Self::Background(k) => Some(k),
            Self::EarlyWarning => Some(Kind::KswapdWake),
            Self::ByHand => None,
        }
    }

    /// Its name in text and JSON; empty without one.
    #[must_use]
    pub fn kind_name(self) -> &'static str {
        self.kind().map_or("", Kind::name)
    }
}

/// One trim.
#[derive(Clone, Copy, Debug)]
pub struct TrimRecord {
    /// Why.
    pub trigger: Trigger,
    /// When the stall behind it began, `CLOCK_MONOTONIC` in ns.
    pub onset_ns: u64,
    /// When the reader of the source was handed the event, ns.
    pub noticed_ns: u64,
    /// Bytes asked of the pool.
    pub wanted: Bytes,
    /// What the pool did, with the times it began and had returned the pages.
    pub trimmed: Trimmed,
    /// The process's resident set before, where measured (`statm`).
    pub rss_before: Option<Bytes>,
    /// The process's resident set after, where measured.
    pub rss_after: Option<Bytes>,
}

/// What a [`Tap`] carries, in the order in which the reactor saw it.
#[derive(Clone, Copy, Debug)]
pub enum Tapped {
    /// The source's event.
    Event(Event),
    /// What the gauges said when it was decided what to do about events.
    Levels {
        /// `CLOCK_MONOTONIC`, ns.
        ts_ns: u64,
        /// As they were.
        levels: Levels,
    },
    /// What was given back.
    Trim(TrimRecord),
}

/// A second way out of the reactor, for a recorder: lock-free, preallocated,
/// and what finds it full is counted.
#[derive(Debug)]
pub struct Tap {
    queue: ArrayQueue<Tapped>,
    lost: AtomicU64,
}

impl Tap {
    /// With room for so many entries.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self {
            queue: ArrayQueue::new(room),
            lost: AtomicU64::new(0),
        }
    }

    pub(super) fn push(&self, tapped: Tapped) {
        if self.queue.push(tapped).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// The oldest entry nobody has read yet.
    #[must_use]
    pub fn pop(&self) -> Option<Tapped> {
        self.queue.pop()
    }

    /// Entries that found it full, so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}
