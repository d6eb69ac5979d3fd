//! `cargo xtask test`: every test, and an account of those that could not run.
//!
//! Owns the environment that tests may count on: KVPSI_TEST_MODEL,
//! KVPSI_BIN, KVPSI_SKIP_LOG. Invariant: a test that was skipped is named at
//! the end, whatever the test runner did with its output.

use crate::{cross, ebpf, loom, model, npm, pip, places, say, setup, vm};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use xshell::{Cmd, Shell, cmd};

const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "kvpsi-ebpf"];

/// # Errors
/// If the set-up or the build failed, or any test did.
pub fn run(sh: &Shell, args: &[String], machines: bool) -> Result<()> {
    setup::on_the_way(sh)?;
    pip::fetch_if_possible(sh);
    npm::fetch_if_possible(sh);
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
            // None writes into the user's cache; those of the cache say what they want.
            .env("KVPSI_WEIGHTS_CACHE", "off")
            .env("KVPSI_OPENAI", pip::OPENAI.folder())
            .env("KVPSI_ANTHROPIC", pip::ANTHROPIC.folder())
            .env("KVPSI_LANGCHAIN", pip::LANGCHAIN.folder())
            .env("KVPSI_LITELLM", pip::LITELLM.folder())
            .env("KVPSI_JSONSCHEMA", pip::JSONSCHEMA.folder())
            .env("KVPSI_OLLAMA", npm::ollama())
            .env("KVPSI_OPENAI_NPM", npm::openai())
            .env("KVPSI_LLAMAINDEX", pip::LLAMAINDEX.folder())
            .env("KVPSI_PERFETTO", pip::PERFETTO.folder())
            .env("KVPSI_VOCABULARIES", npm::vocabularies())
            .quiet()
            .run()
    };
    let until = until();
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
        // The same packages each time: others would have other features, and
        // most of what is built would be built again.
        let serial = |targets: &[&str]| {
            cmd!(
                sh,
                "cargo test {PACKAGES...} --no-fail-fast {targets...} {args...}"
            )
            .env("RUST_TEST_THREADS", "1")
        };
        if args.is_empty() {
            let unit = ["--lib", "--bins", "--examples"];
            let done = tests(cmd!(
                sh,
                "cargo test {PACKAGES...} --no-fail-fast {unit...}"
            ));
            note("unit tests", done);
            note("end-to-end tests", tests(serial(&["--test", "*"])));
        } else {
            note("tests", tests(serial(&["--all-targets"])));
        }
    }
    if args.is_empty() {
        note(
            "documentation tests",
            tests(cmd!(sh, "cargo test {PACKAGES...} --quiet --doc")),
        );
        if let Err(e) = loom::run(sh) {
            failed.push(format!("loom: {e:#}"));
        }
    }

    if args.is_empty() {
        match cross::missing(sh, true) {
            None if until.is_some_and(|u| u < Instant::now()) => {
                skip(&skipped, "kernels_for_arm64: no time left for it here")?;
            }
            None => match cross::test(sh) {
                Ok(left_out) => {
                    for what in left_out {
                        skip(&skipped, &what)?;
                    }
                }
                Err(e) => failed.push(format!("arm64: {e:#}")),
            },
            Some(why) => skip(&skipped, &format!("kernels_for_arm64: {why}"))?,
        }
    }

    if args.is_empty() && machines {
        match vm::all(sh, until) {
            Ok(account) => {
                failed.extend(account.failed);
                for line in &account.skipped {
                    skip(&skipped, line)?;
                }
            }
            Err(e) => failed.push(format!("other kernels: {e:#}")),
        }
    } else if args.is_empty() {
        skip(&skipped, "kernel tests on other kernels: --no-vm")?;
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

/// When emulation must be over: a moment that KVPSI_TEST_UNTIL names in seconds
/// since 1970, by which a continuous integration must have its verdict.
fn until() -> Option<Instant> {
    let seconds = std::env::var("KVPSI_TEST_UNTIL").ok()?.parse().ok()?;
    let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let left = moment.duration_since(SystemTime::now()).unwrap_or_default();
    Some(Instant::now() + left)
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
