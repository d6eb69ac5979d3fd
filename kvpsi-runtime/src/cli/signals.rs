//! The signals that ask a process to end: SIGINT, SIGTERM and SIGHUP.
//!
//! Owns waiting for them, and how a process ends that was still reading its
//! model: at once, and without its unfinished file of weights. Invariant: a SIGHUP
//! that was ignored at the start, as under nohup, stays ignored. Out of scope: what
//! a command does with a signal afterwards.

use crate::model::weights::Weights;
use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

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

/// Calls `each` with the number of every one of them from now on, on a thread of
/// its own.
///
/// # Errors
/// The system refuses the handlers or the thread.
pub(super) fn on_each(each: impl Fn(i32) + Send + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("listening for signals")?;
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
