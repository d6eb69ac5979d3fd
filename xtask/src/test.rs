//! `cargo xtask test`: every test, and an account of those that could not run.
//!
//! Owns the environment that tests may count on: KVPSI_TEST_MODEL,
//! KVPSI_BIN, KVPSI_SKIP_LOG. Invariant: a test that was skipped is named at
//! the end, whatever the test runner did with its output.

use crate::{cross, ebpf, model, places, say, setup};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use xshell::{Cmd, Shell, cmd};

const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "kvpsi-ebpf"];

/// # Errors
/// If the set-up or the build failed, or any test did.
pub fn run(sh: &Shell, args: &[String]) -> Result<()> {
    setup::on_the_way(sh)?;
    ebpf::build_if_possible(sh)?;
    let model = match std::env::var_os("KVPSI_TEST_MODEL") {
        Some(set) => PathBuf::from(set),
        None => model::get(sh, None)?,
    };
    // All targets: the end-to-end tests start the binary that this builds.
    cmd!(sh, "cargo build {PACKAGES...} --all-targets")
        .quiet()
        .run()
        .context("kvpsi or its tests did not build")?;

    let skipped = places::target().join(format!("skipped.{}", std::process::id()));
    fs::write(&skipped, "").with_context(|| format!("cannot write {}", skipped.display()))?;
    let tests = |command: Cmd<'_>| {
        command
            .env("KVPSI_TEST_MODEL", &model)
            .env("KVPSI_BIN", places::target().join("debug/kvpsi"))
            .env("KVPSI_SKIP_LOG", &skipped)
            .quiet()
            .run()
    };
    let mut failed = Vec::new();
    let mut note = |what: &str, done: xshell::Result<()>| {
        if let Err(e) = done {
            failed.push(format!("{what}: {e}"));
        }
    };
    if has_nextest(sh) {
        note(
            "tests",
            tests(cmd!(sh, "cargo nextest run {PACKAGES...} {args...}")),
        );
    } else {
        say("no cargo-nextest here: cargo test does it, end-to-end tests one at a time");
        let others = ["--exclude", "kvpsi-tests", "--no-fail-fast"];
        note(
            "unit tests",
            tests(cmd!(
                sh,
                "cargo test {PACKAGES...} {others...} --all-targets {args...}"
            )),
        );
        let serial = cmd!(
            sh,
            "cargo test --package kvpsi-tests --no-fail-fast --all-targets {args...}"
        );
        note(
            "end-to-end tests",
            tests(serial.env("RUST_TEST_THREADS", "1")),
        );
    }
    if args.is_empty() {
        note(
            "documentation tests",
            tests(cmd!(sh, "cargo test {PACKAGES...} --quiet --doc")),
        );
    }

    if args.is_empty() {
        match cross::missing(sh, true) {
            None => {
                if let Err(e) = cross::test(sh) {
                    failed.push(format!("arm64: {e:#}"));
                }
            }
            Some(why) => skip(&skipped, &format!("kernels_for_arm64: {why}"))?,
        }
    }

    let account = fs::read_to_string(&skipped).unwrap_or_default();
    let account: BTreeSet<&str> = account.lines().collect();
    for line in &account {
        println!("skipped: {line}");
    }
    println!(
        "skipped for want of something on this machine: {}",
        account.len()
    );
    fs::remove_file(&skipped).ok();
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("{}", failed.join("; "))
    }
}

/// As a test does it.
fn skip(log: &Path, what: &str) -> Result<()> {
    let mut log = fs::OpenOptions::new().append(true).open(log)?;
    Ok(writeln!(log, "{what}")?)
}

fn has_nextest(sh: &Shell) -> bool {
    cmd!(sh, "cargo nextest --version")
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .is_ok()
}
