//! The command line: one file per subcommand, parsing and printing only.
//!
//! Out of scope: logic that another front end (the server) would need.

mod admin;
mod arrivals;
mod attach;
pub mod bench;
pub mod cache;
pub mod config;
pub mod doctor;
pub mod governor;
pub mod manual;
mod otlp;
pub(crate) mod output;
pub mod perplexity;
mod reading;
pub mod record;
pub mod replay;
pub mod run;
pub mod serve;
pub(crate) mod signals;
pub mod tell;
pub mod top;
pub mod trace_dump;
pub mod watermarks;
mod weights;

use crate::demo;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::{ffi::OsString, path::Path};

/// LLM runtime that gives KV-cache pages back to the kernel the moment it stalls on memory.
#[derive(Debug, Parser)]
#[command(name = "kvpsi", version, about, max_term_width = 100)]
pub struct Cli {
    /// How logs and errors are written, on stderr; KVPSI_LOG says what is logged
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        env = "KVPSI_LOG_FORMAT",
        hide_env = true,
        default_value_t,
        display_order = 1000
    )]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
    /// What the configured subcommands run with, and the file behind it.
    #[arg(skip)]
    settings: Vec<config::Setting>,
    #[arg(skip)]
    file: Option<std::path::PathBuf>,
    #[arg(skip)]
    unknown: Vec<String>,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Human,
    /// A JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate text from a prompt, or hold a conversation on stdin
    Run(run::Args),
    /// Serve the model over HTTP, as OpenAI's API does
    Serve(serve::Args),
    /// Print what `kvpsi serve` would run with, and where each value comes from
    Config(config::Args),
    /// Watch a running kvpsi: stalls, KV memory, trims, sequences
    Top(top::Args),
    /// Show the loop at work: a model and a memory hog in one small cgroup
    Demo(demo::Args),
    /// Measure how well the model predicts a text
    Perplexity(perplexity::Args),
    /// Measure prefill and decode speed on a model
    Bench(bench::Args),
    /// Print the kernel's memory stalls as they happen
    TraceDump(trace_dump::Args),
    /// Record the kernel's memory stalls, to be replayed
    Record(record::Args),
    /// Say what kvpsi would have trimmed under recorded pressure
    Replay(replay::Args),
    /// Say what this kernel offers and what kvpsi would use
    Doctor(doctor::Args),
    /// List or remove the files that repacked weights are kept in
    Cache(cache::Args),
    /// Of `serve --tune-watermarks`: sets the factor, and puts it back when its input ends
    #[command(hide = true)]
    WatermarkKeeper(watermarks::Args),
    /// Print completions for a shell
    Completions(manual::CompletionsArgs),
    /// Print the manual page, or write all of them
    Man(manual::ManArgs),
}

impl Cli {
    /// The whole command line, with what configures it.
    #[must_use]
    pub fn prepared() -> clap::Command {
        config::prepare(Self::command())
    }

    /// Parses a command line, with environment and file where it is for a
    /// subcommand that these configure.
    ///
    /// # Errors
    /// One of them is wrong; asking for help counts.
    pub fn load(argv: impl IntoIterator<Item = OsString>) -> Result<Self, config::Refused> {
        let argv = argv.into_iter().collect();
        let loaded = config::load(Self::prepared(), argv, Path::new(config::DEFAULT_FILE))?;
        let mut cli = Self::from_arg_matches(&loaded.matches).map_err(config::Refused::Usage)?;
        cli.settings = loaded.settings;
        cli.file = loaded.file;
        cli.unknown = loaded.unknown;
        Ok(cli)
    }

    /// How logs are to be written.
    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        self.log_format
    }

    /// Runs the chosen subcommand.
    ///
    /// # Errors
    /// Whatever the subcommand could not do, as one line for the user.
    pub fn run(self) -> anyhow::Result<()> {
        run::restart_with_threads(match &self.command {
            Command::Run(a) => a.threads,
            Command::Serve(a) => a.threads,
            _ => None,
        })?;
        // Said once: not by a process that another command of ours starts.
        let part = match &self.command {
            Command::Demo(a) => a.is_part(),
            Command::WatermarkKeeper(_) => true,
            _ => false,
        };
        if !self.unknown.is_empty() && !part {
            let names = self.unknown.join(", ");
            tell::line(format_args!(
                "no option has this variable, it has no effect: {names}"
            ));
        }
        match self.command {
            Command::Run(a) => run::run(a),
            Command::Serve(a) => serve::run(a),
            Command::Config(a) => {
                config::run(&a, &self.settings, self.file.as_deref(), &Self::prepared())
            }
            Command::Top(a) => top::run(a),
            Command::Demo(a) => demo::run(a),
            Command::Perplexity(a) => perplexity::run(&a),
            Command::Bench(a) => bench::run(&a),
            Command::TraceDump(a) => trace_dump::run(a),
            Command::Record(a) => record::run(&a),
            Command::Replay(a) => replay::run(&a),
            Command::Doctor(a) => doctor::run(a),
            Command::Cache(a) => cache::run(&a),
            Command::WatermarkKeeper(a) => watermarks::keep(&a),
            Command::Completions(a) => manual::completions(&a, Self::prepared()),
            Command::Man(a) => manual::man(&a, Self::prepared()),
        }
    }
}
