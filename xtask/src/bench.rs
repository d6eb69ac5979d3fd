//! What benchmarks share: the program that measures, and its output.
//!
//! Invariant: what is compared is measured in one run, in turn.

use crate::say;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// The program that measures.
///
/// # Errors
/// It does not build.
pub fn build(sh: &Shell, target: &Path, flags: &str) -> Result<PathBuf> {
    say(format!("building in release {flags}"));
    cmd!(
        sh,
        "cargo build --release --package kvpsi-tests --bin kvpsi-bench --target-dir {target}"
    )
    .env("RUSTFLAGS", flags)
    .quiet()
    .run()
    .context("kvpsi-bench did not build")?;
    Ok(target.join("release/kvpsi-bench"))
}

/// What a program told, a JSON object a line.
///
/// # Errors
/// A line is something else.
pub fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines()
        .map(|l| serde_json::from_str(l).with_context(|| format!("kvpsi-bench said `{l}`")))
        .collect()
}

/// The processor's name.
pub fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or_else(
            || std::env::consts::ARCH.to_owned(),
            |l| l.trim_start_matches([' ', '\t', ':']).to_owned(),
        )
}
