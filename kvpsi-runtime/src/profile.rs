//! Where the time of the model goes: matrix products, attention, the rest.
//!
//! Owns two clocks of the whole process, which stand still until a caller
//! asks for them ([`enable`]): a step then reads the time some hundred times,
//! which is a thousandth of it. Out of scope: threads: a part is timed
//! where the calling thread enters and leaves it.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

static ON: AtomicBool = AtomicBool::new(false);
static LINEAR_NS: AtomicU64 = AtomicU64::new(0);
static ATTENTION_NS: AtomicU64 = AtomicU64::new(0);

/// A part that is timed.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// Products with weights, and the quantization of what goes in.
    Linear,
    /// Attention, with the store of keys and values.
    Attention,
}

/// Time by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// In [`Part::Linear`].
    pub linear: Duration,
    /// In [`Part::Attention`].
    pub attention: Duration,
}

/// Starts the clocks of the process, or stops them.
pub fn enable(on: bool) {
    ON.store(on, Relaxed);
}

/// What the clocks show; sets them to zero.
pub fn take() -> Parts {
    Parts {
        linear: Duration::from_nanos(LINEAR_NS.swap(0, Relaxed)),
        attention: Duration::from_nanos(ATTENTION_NS.swap(0, Relaxed)),
    }
}

/// A clock that runs until it is dropped.
#[must_use = "the clock stops when it is dropped"]
pub(crate) struct Running {
    part: Part,
    since: Option<Instant>,
}

/// Starts the clock of `part`, if it is on.
pub(crate) fn clock(part: Part) -> Running {
    let since = ON.load(Relaxed).then(Instant::now);
    Running { part, since }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(since) = self.since else { return };
        let clock = match self.part {
            Part::Linear => &LINEAR_NS,
            Part::Attention => &ATTENTION_NS,
        };
        #[expect(clippy::cast_possible_truncation, reason = "less than 500 years")]
        clock.fetch_add(since.elapsed().as_nanos() as u64, Relaxed);
    }
}
