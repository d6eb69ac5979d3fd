//! SIGINT and SIGTERM: a thread that waits for them.
//!
//! Owns the thread, and how a process ends that was still reading its model: at
//! once, and without its unfinished file of weights. Out of scope: what a command
//! does with a signal afterwards.

use crate::model::weights::Weights;
use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Calls `each` with the number of every SIGINT and SIGTERM from now on, on a
/// thread of its own.
///
/// # Errors
/// The system refuses the handlers or the thread.
pub(super) fn on_each(each: impl Fn(i32) + Send + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("listening for signals")?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    drop(guard);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    each(tokio::select! {
                        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
                        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
                    });
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
