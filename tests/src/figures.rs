//! Figures that a test reports to the command that started it, for tables.
//!
//! Invariant: a figure is one JSON object on one line, appended to the file
//! that `KVPSI_FIGURES` names. Without that file none are written.

use serde_json::Value;
use std::fs::OpenOptions;
use std::io::Write;

/// Hands out a figure.
///
/// # Panics
/// The file cannot be appended to: the table would be short of a row.
pub fn figure(value: &Value) {
    eprintln!("figure: {value}");
    if let Some(file) = std::env::var_os("KVPSI_FIGURES") {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .and_then(|mut f| writeln!(f, "{value}"))
            .expect("KVPSI_FIGURES names a file that can be appended to");
    }
}
