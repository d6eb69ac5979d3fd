//! The runner of benchmarks: the program that measures, built and run.
//!
//! Invariant: what is compared is measured in one run, in turn.

use crate::{ebpf, places, say, setup};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use xshell::{Cmd, Shell, cmd};

/// The program that measures.
///
/// # Errors
/// It does not build.
pub fn build(sh: &Shell, target: &Path, flags: &str) -> Result<PathBuf> {
    say(format!("building in release {flags}"));
    cmd!(
        sh,
        "cargo build --release --workspace --exclude kvpsi-ebpf --bin kvpsi-bench --target-dir {target}"
    )
    .env("RUSTFLAGS", flags)
    .quiet()
    .run()
    .context("kvpsi-bench did not build")?;
    Ok(target.join("release/kvpsi-bench"))
}

/// Sets up what is missing, and builds the program that measures.
///
/// # Errors
/// Something could not be installed or built.
pub fn prepare(sh: &Shell) -> Result<PathBuf> {
    setup(sh)?;
    build(sh, &places::target(), "")
}

/// Sets up what is missing, and builds the eBPF object.
///
/// # Errors
/// Something could not be installed or built.
pub fn setup(sh: &Shell) -> Result<()> {
    setup::on_the_way(sh)?;
    ebpf::build_if_possible(sh)
}

/// Runs a measurement: its rows, a JSON object a line.
///
/// # Errors
/// It fails, or a line is something else.
pub fn rows(command: Cmd<'_>) -> Result<Vec<Value>> {
    let text = command.quiet().read()?;
    text.lines()
        .map(|l| serde_json::from_str(l).with_context(|| format!("kvpsi-bench said `{l}`")))
        .collect()
}
