//! A second source that only watches, so that slow ones are measured against it.
//!
//! Owns nothing: the start of the last burst goes to [`Shared`].

use super::reactor::Shared;
use crate::pressure::PressureSource;
use kvpsi_common::{Kind, Phase};
use rustix::event::{PollFd, PollFlags, poll};
use std::{os::fd::OwnedFd, sync::atomic::Ordering::Relaxed};

/// Keeps the start of the last burst until told to stop.
pub(super) fn watch(mut source: Box<dyn PressureSource>, shared: &Shared, stop: &OwnedFd) {
    loop {
        let woken = {
            let r = source.readiness();
            let Some((fd, flags)) = &r.fd else { return };
            let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(fd, *flags)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            !fds[0].revents().is_empty()
        };
        let drained = source.drain(&mut |e| {
            if e.phase == Phase::Onset as u16 && Kind::from_raw(e.kind).is_some_and(Kind::is_stall)
            {
                shared.witness_onset_ns.store(e.ts_ns, Relaxed);
            }
        });
        if woken || drained.is_err() {
            return;
        }
    }
}
