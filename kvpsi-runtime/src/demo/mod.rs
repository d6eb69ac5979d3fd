//! `kvpsi demo`: the loop at work, on the real kernel and the real model.
//!
//! Three processes: a supervisor that owns a memory cgroup and survives
//! everything in it, a worker (the model and its reactor) and a hog, both in
//! the cgroup. Owns who does what and when. Out of scope: how a trim works.

mod hog;
mod messages;
mod report;
mod supervisor;
mod worker;

use crate::{pressure::Choice, units::Bytes};
use clap::{Args as ClapArgs, ValueEnum};
use std::path::PathBuf;

/// The part a process plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    Worker,
    Hog,
}

/// How the hog presses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Press {
    /// Growing memory while a trim can make room for it, else reading
    Both,
    /// Reading a mapped file larger than the room left: stalls, but no OOM kill
    File,
}

/// Arguments of `kvpsi demo`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  kvpsi demo                              the default model, eBPF where the kernel lets it
  kvpsi demo --report run.json            the same, with every figure as JSON
  kvpsi demo --signal psi-poll            with PSI polled every 10 ms: an OOM kill
  kvpsi demo --signal psi-poll --press file
                                          the same without growth: how late polling is
  kvpsi demo --no-trim                    what happens without kvpsi: an OOM kill

It makes a memory cgroup of its own and removes it again; that takes root.")]
pub struct Args {
    /// GGUF file, or ollama:NAME [default: $KVPSI_MODEL, else what `cargo xtask model` fetched]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Write the figures of the run to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The source of memory pressure events
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    signal: Choice,
    /// Detect the pressure but return nothing
    #[arg(long)]
    no_trim: bool,
    /// How the hog presses
    #[arg(long, value_enum, default_value_t = Press::Both)]
    press: Press,
    /// How fast the hog grows, in MiB a second
    #[arg(long, default_value_t = 100, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Tokens to generate at most
    #[arg(short = 'n', long, default_value_t = 700, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Pause between bursts of the hog, in ms
    #[arg(long, default_value_t = 2200, value_name = "MS")]
    pause: u64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Record the model's pressure, cache and trims to this file, for `kvpsi replay`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Do not print the model's text
    #[arg(long)]
    quiet: bool,
    #[arg(long, hide = true, value_enum)]
    role: Option<Role>,
    #[arg(long, hide = true)]
    join: Vec<PathBuf>,
}

impl Args {
    /// A process of a demo, which the demo itself started.
    pub(crate) fn is_part(&self) -> bool {
        self.role.is_some()
    }
}

/// What the model is asked: a text to read, so that there is a cache worth
/// trimming, and a question about it.
const PROMPT: &str = include_str!("prompt.txt");

/// Room left above what the run needs without pressure.
const SLACK_UNDER_LIMIT: Bytes = Bytes::mib(24);

/// Runs the command.
///
/// # Errors
/// No memory cgroup can be made, the model cannot be loaded, or a process of
/// the demo failed.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.role {
        Some(Role::Hog) => hog::run(&args.join),
        Some(Role::Worker) => worker::run(&args),
        None => supervisor::run(&args),
    }
}

/// Moves this process into the cgroups whose `cgroup.procs` these are.
fn join(procs: &[PathBuf]) -> anyhow::Result<()> {
    use anyhow::Context;
    for p in procs {
        std::fs::write(p, "0").with_context(|| format!("{}: cannot join", p.display()))?;
    }
    // The supervisor cleans up; without it nothing would.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}
