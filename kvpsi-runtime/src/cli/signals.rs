//! The signals that ask a process to end: SIGINT, SIGTERM and SIGHUP.
//!
//! Owns the runtime in which they are waited for, and how a process ends that was
//! still reading its model: at once, and without its unfinished file of weights. Invariant: a SIGHUP
//! that was ignored at the start, as under nohup, stays ignored. Out of scope: what
//! a command does with a signal afterwards.

use crate::model::weights::Weights;
use anyhow::Context;
use rustix::process::{Resource, getrlimit};
use std::{io, os::unix::net::UnixStream};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

/// Pairs of descriptors that a runtime makes: for epoll and a copy of it, its waker,
/// and the sockets by which tokio hears of signals.
const PAIRS: usize = 4;

/// Signals that ask for an end.
#[derive(Debug)]
pub(crate) struct Ending {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Ending {
    /// From now on these signals end nothing by themselves. Within a runtime.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn listen() -> anyhow::Result<Self> {
        let hangup = SignalKind::hangup();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("listening for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("listening for SIGTERM")?,
            hangup: (!ignored(hangup))
                .then(|| signal(hangup).context("listening for SIGHUP"))
                .transpose()?,
        })
    }

    /// Waits for the next one; its number.
    pub async fn next(&mut self) -> i32 {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = hangup => SignalKind::hangup(),
        };
        kind.as_raw_value()
    }
}

/// Whether the kernel drops this signal; where /proc does not say, its action is
/// left as it is, too.
fn ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (kind.as_raw_value() - 1) & 1 != 0)
}

/// A runtime of tokio's with all its drivers. Its signals are made with the first
/// one, and tokio panics where it gets no descriptors for them: they are tried before.
///
/// # Errors
/// The system refuses descriptors or threads.
pub(crate) fn runtime(mut builder: Builder) -> anyhow::Result<Runtime> {
    let tried: io::Result<Vec<_>> = (0..PAIRS).map(|_| UnixStream::pair()).collect();
    let built = tried.and_then(|held| {
        drop(held);
        builder.enable_all().build()
    });
    built.map_err(|e| match e.raw_os_error() {
        Some(libc::EMFILE) => {
            let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            anyhow::anyhow!(
                "cannot wait for signals: {e}; this process may have {most}, raise that \
                 (`ulimit -n`, LimitNOFILE= of a service)"
            )
        }
        _ => anyhow::Error::new(e).context("cannot start the threads that wait for signals"),
    })
}

/// [`runtime`] on the thread that blocks on it.
///
/// # Errors
/// As [`runtime`].
pub(crate) fn one_thread() -> anyhow::Result<Runtime> {
    runtime(Builder::new_current_thread())
}

/// Calls `each` with the number of every one of them from now on, on a thread of
/// its own.
///
/// # Errors
/// The system refuses the handlers or the thread.
pub(super) fn on_each(each: impl Fn(i32) + Send + 'static) -> anyhow::Result<()> {
    let runtime = one_thread()?;
    let guard = runtime.enter();
    let mut ending = Ending::listen()?;
    drop(guard);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    each(ending.next().await);
                }
            });
        })
        .context("listening for signals")?;
    Ok(())
}

/// Ends the process as a shell tells of one that a signal ended, and takes the
/// file of weights away that it was writing.
pub(super) fn end(number: i32, weights: Option<&Weights>) -> ! {
    if let Some(weights) = weights {
        weights.abandon();
    }
    std::process::exit(128 + number)
}
