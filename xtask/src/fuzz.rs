//! `cargo xtask fuzz`: random bytes for everything that reads from outside.
//!
//! Owns the list of targets, the limits of a run and the line about each.
//! Invariants: a crash, a hang or an excess of memory is a failure, told with
//! the input's file and the command that repeats it; what a run found worth
//! keeping is where the next one begins. The stable toolchain does: the flags
//! that it keeps from stable programs are let through for this build alone.

use crate::{places, say, setup};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};
use xshell::{Shell, cmd};

/// The cargo-fuzz that the flags were written for.
const CARGO_FUZZ: &str = "0.13.2";

/// What reads bytes from outside, and how much of it there may be.
#[derive(Clone, Copy, Debug)]
struct Target {
    name: &'static str,
    /// Longest input, bytes.
    longest: u32,
    /// Most that may be asked for at once, MB.
    allocation_mb: u32,
}

const TARGETS: [Target; 8] = [
    target("request", 16 << 10, 16),
    target("gguf", 16 << 10, 64),
    // Every trim of a replay is kept to be told.
    target("recording", 4 << 10, 512),
    target("proc_text", 4 << 10, 16),
    target("chat_template", 4 << 10, 256),
    target("weights", 4 << 10, 16),
    target("splits", 16 << 10, 64),
    target("ollama", 4 << 10, 16),
];

const fn target(name: &'static str, longest: u32, allocation_mb: u32) -> Target {
    Target {
        name,
        longest,
        allocation_mb,
    }
}

/// One input takes far less, or it could stop a server.
const SECONDS_AN_INPUT: u32 = 10;
/// Resident at most, with what the address sanitizer takes.
const MEMORY_MB: u32 = 1024;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One of request, gguf, recording, proc_text, chat_template, weights, splits, ollama [default: all, in turn]
    target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

/// # Errors
/// A target does not build, or something was found.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    let known = |name: &str| TARGETS.into_iter().find(|t| t.name == name);
    let targets = match &args.target {
        None => TARGETS.to_vec(),
        Some(name) => vec![known(name).with_context(|| {
            let names = TARGETS.map(|t| t.name);
            format!("no target {name}; there are {}", names.join(", "))
        })?],
    };
    setup::on_the_way(sh)?;
    setup::cpp(sh)?;
    let cargo_fuzz = cargo_fuzz(sh)?;
    let mut found = Vec::new();
    let only = args.target.as_deref();
    build(sh, &cargo_fuzz, only)?;
    for target in targets {
        if let Some(what) = one(&target, args.seconds)? {
            say(format_args!("{}: {what}", target.name));
            found.push(target.name);
        }
    }
    if !found.is_empty() {
        bail!("something was found in {}", found.join(", "));
    }
    Ok(())
}

/// cargo-fuzz in kvpsi's cache folder, built if it is not there.
fn cargo_fuzz(sh: &Shell) -> Result<PathBuf> {
    let root = places::cache().join(format!("tools/cargo-fuzz-{CARGO_FUZZ}"));
    let program = root.join("bin/cargo-fuzz");
    if program.is_file() {
        return Ok(program);
    }
    say(format_args!(
        "$ cargo install cargo-fuzz --version {CARGO_FUZZ} --locked --root {}",
        root.display()
    ));
    cmd!(
        sh,
        "cargo install --quiet cargo-fuzz --version {CARGO_FUZZ} --locked --root {root}"
    )
    .env_remove("CARGO_TARGET_DIR")
    .quiet()
    .run()
    .context("cargo-fuzz did not build")?;
    Ok(program)
}

fn out() -> PathBuf {
    places::target().join("fuzz")
}

fn host() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// One target or all. Without the address sanitizer what `unsafe` reads by
/// mistake would not be found.
fn build(sh: &Shell, cargo_fuzz: &Path, only: Option<&str>) -> Result<()> {
    let (out, host) = (out(), host());
    let mut build = cmd!(
        sh,
        "{cargo_fuzz} build {only...} --sanitizer address --target {host} --target-dir {out}"
    );
    // Nothing here runs it, but where it is missing it is looked for anew, and
    // the library built, each time.
    let object = places::ebpf_object();
    if object.is_file() {
        build = build.env("KVPSI_BPF_OBJECT", object);
    }
    build
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("CARGO_TARGET_DIR")
        .quiet()
        .run()
        .context("the targets do not build")
}

fn program(name: &str) -> Result<PathBuf> {
    let program = out().join(host()).join("release").join(name);
    if !program.is_file() {
        bail!("cargo-fuzz left nothing at {}", program.display());
    }
    Ok(program)
}

/// Runs a target; says what it found, if anything.
fn one(target: &Target, seconds: u32) -> Result<Option<String>> {
    let name = target.name;
    let here = places::root().join("fuzz");
    let [corpus, artifacts] = ["corpus", "artifacts"].map(|d| here.join(d).join(name));
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let log = out().join(format!("{name}.log"));
    let program = program(name)?;
    let mut command = Command::new(&program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.longest))
        .arg(format!("-timeout={SECONDS_AN_INPUT}"))
        .arg(format!("-rss_limit_mb={MEMORY_MB}"))
        .arg(format!("-malloc_limit_mb={}", target.allocation_mb))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        // A leak is no fault in memory, and the check wants ptrace.
        .args(["-detect_leaks=0", "-print_final_stats=1"]);
    let words = here.join(format!("dictionaries/{name}.dict"));
    if words.is_file() {
        command.arg(format!("-dict={}", words.display()));
    }
    command.arg(&corpus);
    let seeds = here.join("seeds").join(name);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).with_context(|| log.display().to_string())?)
        .status()
        .with_context(|| program.display().to_string())?;
    let text = fs::read(&log)?;
    let text = String::from_utf8_lossy(&text);
    println!("{name}: {}", Figures::of(&text));
    Ok(verdict(&text, status, &program, &log))
}

/// What libFuzzer prints last.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    runs: u64,
    a_second: u64,
    edges: u64,
    inputs: u64,
    peak_mb: u64,
}

impl Figures {
    fn of(text: &str) -> Self {
        let mut f = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |w: Option<&&str>| {
                let digits = |w: &&&str| w.split('/').next().and_then(|n| n.parse().ok());
                w.as_ref().and_then(digits)
            };
            let after = |key| {
                let at = words.iter().position(|w| *w == key)?;
                number(words.get(at + 1))
            };
            f.runs = after("stat::number_of_executed_units:").unwrap_or(f.runs);
            f.a_second = after("stat::average_exec_per_sec:").unwrap_or(f.a_second);
            f.peak_mb = after("stat::peak_rss_mb:").unwrap_or(f.peak_mb);
            if words.first().is_some_and(|w| w.starts_with('#')) {
                f.edges = after("cov:").unwrap_or(f.edges);
                f.inputs = after("corp:").unwrap_or(f.inputs);
            }
        }
        f
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} runs, {} a second, {} edges, {} inputs kept, {} MB at most",
            self.runs, self.a_second, self.edges, self.inputs, self.peak_mb
        )
    }
}

/// What was found, where the input lies and how to repeat it.
fn verdict(text: &str, status: ExitStatus, program: &Path, log: &Path) -> Option<String> {
    if status.success() {
        return None;
    }
    // A panic's message is on the line after its place.
    let mut lines = text.lines();
    let panicked = lines
        .find(|l| l.contains("panicked at"))
        .map(|at| format!("{at} {}", lines.next().unwrap_or_default()));
    let error = |l: &&str| l.contains("ERROR: ") || l.starts_with("SUMMARY: ");
    let what = panicked
        .or_else(|| text.lines().find(error).map(str::to_owned))
        .unwrap_or_else(|| format!("ended with {status}"));
    let input = text
        .lines()
        .find_map(|l| l.split_once("Test unit written to ").map(|(_, file)| file));
    Some(match input {
        Some(input) => format!("{what}\n  repeat it: {} {input}", program.display()),
        None => format!("{what}\n  see {}", log.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const LOG: &str = "INFO: Seed: 1\n\
        #2\tINITED cov: 11 ft: 12 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #4096\tpulse  cov: 20 ft: 30 corp: 3/15b lim: 4 exec/s: 2048 rss: 40Mb\n\
        #9001\tDONE   cov: 25 ft: 36 corp: 7/15b lim: 4 exec/s: 150 rss: 41Mb\n\
        stat::number_of_executed_units: 9001\n\
        stat::average_exec_per_sec:     150\n\
        stat::peak_rss_mb:              41\n";

    #[test]
    fn the_last_figures_are_reported() {
        let figures = Figures::of(LOG);
        let want = "9001 runs, 150 a second, 25 edges, 7 inputs kept, 41 MB at most";
        assert_eq!(figures.to_string(), want);
        assert_eq!(Figures::of(""), Figures::default());
    }

    #[test]
    fn a_finding_is_reported_with_the_command_that_repeats_it() {
        let [program, log] = ["t/gguf", "t/gguf.log"].map(Path::new);
        let verdict = |text: &str, code| verdict(text, ExitStatus::from_raw(code), program, log);
        assert_eq!(verdict(LOG, 0), None);
        let panic = "thread '<unnamed>' panicked at a.rs:1:2:\nboom\n==1== ERROR: libFuzzer: deadly signal\nartifact_prefix='x/'; Test unit written to x/crash-1\n";
        let told = verdict(panic, 77 << 8).expect("a crash");
        assert!(
            told.contains("a.rs:1:2: boom") && told.ends_with("t/gguf x/crash-1"),
            "{told}"
        );
        let slow = "==1== ERROR: libFuzzer: timeout after 11 seconds\nartifact_prefix='x/'; Test unit written to x/timeout-1\n";
        let told = verdict(slow, 70 << 8).expect("a hang");
        assert!(
            told.contains("timeout after") && told.contains("x/timeout-1"),
            "{told}"
        );
        let told = verdict("", 9).expect("killed");
        assert!(
            told.contains("signal: 9") && told.contains("gguf.log"),
            "{told}"
        );
    }
}
