//! The command line: one file per subcommand, parsing and printing only.
//!
//! Refuses to hold logic that another front end (the server) would need.

mod arrivals;
pub mod demo;
pub mod doctor;
pub mod perplexity;
pub mod pressure;
mod reading;
pub mod record;
pub mod replay;
pub mod run;
pub mod serve;
pub mod trace_dump;

use clap::{Parser, Subcommand};

/// LLM runtime that gives KV-cache pages back to the kernel the moment it stalls on memory.
#[derive(Debug, Parser)]
#[command(name = "kvpsi", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate text from a prompt, or hold a conversation on stdin
    Run(run::Args),
    /// Serve an OpenAI-compatible API
    Serve(serve::Args),
    /// Show the loop at work: a model and a memory hog in one small cgroup
    Demo(demo::Args),
    /// Measure how well the model predicts a text
    Perplexity(perplexity::Args),
    /// Print the kernel's memory stalls as they happen
    TraceDump(trace_dump::Args),
    /// Record the kernel's memory stalls, to be replayed
    Record(record::Args),
    /// Say what kvpsi would have trimmed under recorded pressure
    Replay(replay::Args),
    /// Say what this kernel offers and what kvpsi would use
    Doctor(doctor::Args),
}

impl Cli {
    /// Runs the chosen subcommand.
    ///
    /// # Errors
    /// Whatever the subcommand could not do, as one line for the user.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(a) => run::run(a),
            Command::Serve(a) => serve::run(a),
            Command::Demo(a) => demo::run(a),
            Command::Perplexity(a) => perplexity::run(&a),
            Command::TraceDump(a) => trace_dump::run(a),
            Command::Record(a) => record::run(&a),
            Command::Replay(a) => replay::run(&a),
            Command::Doctor(a) => doctor::run(a),
        }
    }
}
