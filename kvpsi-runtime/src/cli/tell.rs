//! Lines that a command says to its user, on stderr.
//!
//! Owns their two forms: `kvpsi: TEXT`, and under `--log-format json` an entry
//! of the log, so that who reads JSON reads nothing else. Out of scope: what is
//! said, and logs.

use std::{
    fmt::Arguments,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// What such an entry's target is; the filter lets it through.
pub const TARGET: &str = "kvpsi::said";

static JSON: AtomicBool = AtomicBool::new(false);

/// From now on as JSON.
pub fn as_json() {
    JSON.store(true, Relaxed);
}

/// Says it.
pub fn line(text: Arguments<'_>) {
    if JSON.load(Relaxed) {
        tracing::info!(target: TARGET, "{text}");
    } else {
        eprintln!("kvpsi: {text}");
    }
}

/// [`line`] of a format.
macro_rules! tell {
    ($($text:tt)*) => { $crate::cli::tell::line(format_args!($($text)*)) };
}
pub(crate) use tell;
