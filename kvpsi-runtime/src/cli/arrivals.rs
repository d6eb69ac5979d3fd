//! Waiting for a source of events in the foreground, and for the end of that.

use super::signals::Ending;
use crate::pressure::PressureSource;
use rustix::event::PollFlags;
use std::{io, os::fd::OwnedFd, time::Duration};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};

/// How long an event may wait that woke no thread.
pub(super) const LATENCY: Duration = Duration::from_millis(50);

/// How often PSI's own account and other levels are read.
pub(super) const SAMPLE: Duration = Duration::from_millis(100);

/// What to wait on: a descriptor, if there is one, and how long at most.
pub(super) type Readiness = (Option<(OwnedFd, Interest)>, Duration);

/// Of a source.
pub(super) fn readiness(source: &dyn PressureSource) -> io::Result<Readiness> {
    let r = source.readiness();
    let fd = match r.fd {
        None => None,
        Some((fd, flags)) => {
            let interest = if flags.contains(PollFlags::PRI) {
                Interest::PRIORITY
            } else {
                Interest::READABLE
            };
            Some((fd.try_clone_to_owned()?, interest))
        }
    };
    Ok((fd, r.interval.unwrap_or(LATENCY)))
}

/// What it is time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Events may be there.
    Look,
    /// Reading the levels, and looking for events.
    Sample,
    /// A signal that asks for an end, or the time is over.
    End,
}

/// Waits.
pub(super) struct Arrivals {
    ready: Option<(AsyncFd<OwnedFd>, Interest)>,
    tick: Interval,
    samples: Interval,
    ending: Ending,
    end: Option<Instant>,
}

impl Arrivals {
    /// Within a runtime; ends after `duration`, if there is one.
    pub(super) fn new((fd, longest): Readiness, duration: Option<Duration>) -> io::Result<Self> {
        let register = |(fd, interest)| {
            // SAFETY: an `OwnedFd` is one descriptor for as long as it lives.
            unsafe { AsyncFd::register_with_interest(fd, interest) }.map(|a| (a, interest))
        };
        let every = |time| {
            let mut interval = interval(time);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Ok(Self {
            ready: fd.map(register).transpose()?,
            tick: every(longest),
            samples: every(SAMPLE),
            ending: Ending::listen().map_err(io::Error::other)?,
            end: duration.map(|d| Instant::now() + d),
        })
    }

    /// The next thing to do.
    pub(super) async fn next(&mut self) -> io::Result<Next> {
        let end = async {
            match self.end {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let ready = async {
            match &self.ready {
                Some((fd, interest)) => fd.ready(*interest).await,
                None => std::future::pending().await,
            }
        };
        Ok(tokio::select! {
            biased;
            _ = self.ending.next() => Next::End,
            () = end => Next::End,
            _ = self.samples.tick() => Next::Sample,
            _ = self.tick.tick() => Next::Look,
            guard = ready => {
                guard?.clear_ready();
                Next::Look
            }
        })
    }
}

/// A number of seconds, as a flag takes it.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| "a number of seconds, e.g. 10 or 0.5".to_owned())
}
