//! What `cargo xtask bench` runs: one measurement a process, JSON on stdout,
//! progress on stderr.
//!
//! A process of its own for each thread count and kernel: both are fixed once
//! the first product has run. Out of scope: judging, tables.

mod balloon;
mod candle;
mod clients;
mod cotenant;
mod decode;
mod enough;
mod giveback;
mod hits;
mod ladder;
mod memory;
mod models;
mod others;
mod overhead;
mod piped;
mod quality;
mod reaction;
mod recall;
mod settings;
mod steps;
mod worker;

use anyhow::{Result, bail};
use candle_core::quantized::GgmlDType;
use clap::{Parser, Subcommand};
use kvpsi_tests::requantize;
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(about = "Measurements for `cargo xtask bench`")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Prefill and decode at several depths beside candle-transformers
    Decode(decode::Args),
    /// candle-transformers, ordered about by `decode`
    Candle {
        /// GGUF file
        #[arg(long)]
        model: PathBuf,
    },
    /// Perplexity and greedy answers beside candle-transformers
    Quality(quality::Args),
    /// Perplexity of a text by budget, policy and encoding of the cache
    Ladder(ladder::Args),
    /// Facts that are still known at the end of a text, and of a conversation
    Recall(recall::Args),
    /// Time that each step of the ladder takes, and a second turn's first token
    Steps(steps::Args),
    /// What the kernel has of what is given back, beside candle and malloc
    Giveback(giveback::Args),
    /// From a stall's onset to returned pages, by each signal
    Reaction(reaction::Args),
    /// The hog, ordered about by `reaction`
    ReactionHog(reaction::Hog),
    /// Takes memory until so many bytes are free, ordered about by `cotenant`
    Balloon { left: u64 },
    /// The model, ordered about by `reaction`, `cotenant` and `enough`
    Worker(worker::Args),
    /// How much is returned for how much is missing
    Enough(enough::Args),
    /// The process that grows, ordered about by `enough`
    Grower(enough::Grower),
    /// What listening costs a job that does nothing but reclaim
    Overhead(overhead::Args),
    /// That job, ordered about by `overhead`
    OverheadJob(overhead::Job),
    /// How a neighbour fares beside the model when memory is short
    Cotenant(cotenant::Args),
    /// The neighbour, a burst, or one that streams, ordered about by `cotenant`
    CotenantOther(others::Args),
    /// How several clients fare at one server
    Clients(clients::Args),
    /// Resident memory of kvpsi alone
    Memory {
        /// GGUF file
        #[arg(long)]
        model: PathBuf,
    },
    /// How fast memory can be read
    Bandwidth {
        /// Threads that read
        #[arg(long)]
        threads: usize,
    },
    /// Writes the model with its matrices in another format
    Requantize {
        /// GGUF file
        #[arg(long)]
        model: PathBuf,
        /// q4_0, q8_0 or f16
        #[arg(long)]
        to: String,
        /// File to write
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> Result<()> {
    let done = run(Cli::parse().what);
    if let Some(code) = piped::interrupted() {
        std::process::exit(code);
    }
    done
}

fn run(what: What) -> Result<()> {
    match what {
        What::Decode(args) => decode::run(&args),
        What::Candle { model } => candle::serve(&model),
        What::Quality(args) => quality::run(&args),
        What::Ladder(args) => ladder::run(&args),
        What::Recall(args) => recall::run(&args),
        What::Steps(args) => steps::run(&args),
        What::Giveback(args) => giveback::run(&args),
        What::Reaction(args) => reaction::run(&args),
        What::ReactionHog(args) => reaction::hog(&args),
        What::Balloon { left } => balloon::run(left),
        What::Worker(args) => worker::run(&args),
        What::Enough(args) => enough::run(&args),
        What::Grower(args) => enough::grower(&args),
        What::Overhead(args) => overhead::run(&args),
        What::OverheadJob(args) => overhead::job(&args),
        What::Cotenant(args) => cotenant::run(&args),
        What::CotenantOther(args) => others::run(&args),
        What::Clients(args) => clients::run(&args),
        What::Memory { model } => memory::resident(&model),
        What::Bandwidth { threads } => {
            memory::bandwidth(threads);
            Ok(())
        }
        What::Requantize { model, to, out } => {
            let kind = match to.as_str() {
                "q4_0" => GgmlDType::Q4_0,
                "q8_0" => GgmlDType::Q8_0,
                "f16" => GgmlDType::F16,
                _ => bail!("{to}: only q4_0, q8_0 and f16"),
            };
            requantize(&model, kind, &out)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_command_and_its_flags_are_well_formed() {
        super::Cli::command().debug_assert();
    }
}
