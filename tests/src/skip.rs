//! How a test says that it cannot run where it stands.
//!
//! Invariant: no test passes in silence without having run. The line goes to
//! stderr, and to the file that `cargo xtask test` names in KVPSI_SKIP_LOG, for
//! test runners hide the output of tests that pass.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// Says that the test `name` cannot run here, and why; the test then returns.
///
/// ```
/// # fn root() -> bool { true }
/// if !root() {
///     kvpsi_tests::skip("a_stall_reaches_user_space", "needs root to load BPF");
///     return;
/// }
/// ```
///
/// # Panics
/// If KVPSI_SKIP_LOG is set and cannot be appended to: the account would be
/// short by one.
pub fn skip(name: &str, reason: impl Display) {
    let line = format!("{name}: {reason}");
    eprintln!("skipped: {line}");
    if let Some(log) = std::env::var_os("KVPSI_SKIP_LOG") {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&log)
            .and_then(|mut f| writeln!(f, "{line}"))
            .expect("KVPSI_SKIP_LOG names a file that can be appended to");
    }
}

/// This is an emulated machine, of `cargo xtask vm`: how long things take
/// there says nothing.
#[must_use]
pub fn emulated() -> bool {
    std::env::var_os("KVPSI_VM").is_some()
}
