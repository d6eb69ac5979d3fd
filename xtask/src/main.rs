//! kvpsi's build tasks: everything between a fresh clone and a running kvpsi.
//!
//! Owns: installing what is missing, building the eBPF object, fetching the
//! default model, and the two commands of README.md that put these in order.
//! Invariants: every task may be run again at any time and does only what is
//! left to do; whatever it installs it names first, with the command; nothing
//! asks a question when there is no terminal. Out of scope: what kvpsi does:
//! it calls cargo and the binary, never the library.

mod bench;
mod candle;
mod check;
mod clients;
mod cotenant;
mod cross;
mod deb;
mod decode;
mod ebpf;
mod enough;
mod fuzz;
mod giveback;
mod lint;
mod loom;
mod model;
mod npm;
mod overhead;
mod pip;
mod places;
mod plot;
mod quality;
mod reaction;
mod report;
mod run;
mod setup;
mod stream;
mod tail;
mod test;
mod text;
mod toolchain;
mod vm;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use xshell::Shell;

/// kvpsi's build tasks. On a fresh machine `cargo xtask run` and `cargo xtask test` do everything.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Set up, build, fetch the model, then run kvpsi (the demo unless told otherwise)
    #[command(after_help = "Examples:
  cargo xtask run                                   the demo on the default model
  cargo xtask run --model qwen.gguf                 the demo on another model
  cargo xtask run -- demo --no-trim                 the demo, with flags
  cargo xtask run -- run -p 'What is a page fault?' any kvpsi command
  cargo xtask run -- doctor

kvpsi finds the model in the environment variable KVPSI_MODEL. The exit code is kvpsi's.")]
    Run {
        /// Use this GGUF instead of the default model
        #[arg(long, value_name = "FILE")]
        model: Option<PathBuf>,
        /// Arguments for kvpsi [default: demo]
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// Set up, build, fetch the model, then run every test
    #[command(after_help = "Examples:
  cargo xtask test                      all tests, by cargo-nextest where it is installed
  cargo xtask test kv::                 those whose name contains kv::
  cargo xtask test --test kernel        one binary of the end-to-end tests
  cargo xtask test --no-vm              all, but not on other kernels: minutes less

The tests find the model in KVPSI_TEST_MODEL (kept if it is set already) and the binary in KVPSI_BIN.
Emulation that has no time left is skipped by name: it takes 7 minutes at most, and nothing of it is begun
after KVPSI_TEST_UNTIL, a moment in seconds since 1970, if that is set.
A test that cannot run here says why; the list is printed last.")]
    Test {
        /// Leave out the emulated machines (which ARGS leave out too)
        #[arg(long)]
        no_vm: bool,
        /// Arguments for the test runner
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<String>,
    },
    /// Check the models of threads in every interleaving up to some preemptions (a minute or two)
    Loom,
    /// Install what is missing to build, test and fetch the model
    #[command(after_help = "Examples:
  cargo xtask setup            installs; says what and by which command
  cargo xtask setup --check    only says what is missing; exit code 1 if anything is
  cargo xtask setup --cross    also what it takes to build for arm64 and to test on emulated machines

As an ordinary user it calls sudo where there is one, else it prints the commands to run as root.")]
    Setup {
        /// Report only, install nothing
        #[arg(long, conflicts_with = "cross")]
        check: bool,
        /// Also what arm64 and `vm` take: a C compiler, Rust's library, emulators
        #[arg(long)]
        cross: bool,
    },
    /// Build the runtime for another kind of machine
    #[command(after_help = "Example:
  cargo xtask build --target aarch64-unknown-linux-gnu    prints where the binary is; wants `setup --cross`")]
    Build {
        /// Rust's name of the machine
        #[arg(long)]
        target: String,
    },
    /// Build a Debian package (target/debian); the last line on stdout is its path
    #[command(after_help = "Examples:
  cargo xtask deb                                       for this machine
  cargo xtask deb --target aarch64-unknown-linux-gnu    for arm64; wants `setup --cross`

The package brings the binary, its manual pages and completions, a systemd unit that is neither enabled nor
started, and /etc/kvpsi/kvpsi.toml. cargo-deb is built into kvpsi's cache folder where it is not there.")]
    Deb {
        /// Rust's name of the machine, if it is another one
        #[arg(long)]
        target: Option<String>,
    },
    /// Build the eBPF object that the runtime embeds (target/bpf/kvpsi.bpf.o)
    #[command(
        after_help = "Two toolchains will do, and it says which it took: Debian's (rustc-web, which has core for BPF
prebuilt), or rustup's nightly with rust-src, both with bpf-linker."
    )]
    BuildEbpf,
    /// Fetch the default model; the last line on stdout is the path of the GGUF
    #[command(after_help = "Examples:
  cargo xtask model                     fetches SmolLM2-135M-Instruct once, then only verifies it
  cargo xtask model --model other.gguf  checks that file and prints its path")]
    Model {
        /// Check this GGUF instead, and print its path
        #[arg(long, value_name = "FILE")]
        model: Option<PathBuf>,
    },
    /// Measure and compare; tables on stdout
    #[command(after_help = "Examples:
  cargo xtask bench decode --quick              two minutes
  cargo xtask bench decode --json decode.json   every depth, beside candle-transformers
  cargo xtask bench decode --isa avx2           by other kernels
  cargo xtask bench quality --quick             ten minutes
  cargo xtask bench quality --json quality.json an hour; writes docs/QUALITY.md and its plots
  cargo xtask bench candle-quality              20 000 tokens: a quarter of an hour

llama-bench is measured beside it where it is on PATH.")]
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Run the kernel tests on other kernels, in emulated machines
    #[command(after_help = "Examples:
  cargo xtask vm                                        every kernel, every kernel test
  cargo xtask vm --kernel x86_64-6.1 onset_is_read      one test on one kernel
  cargo xtask vm --kernel x86_64-6.1 --show-output rungs::   a whole binary, with what its tests print
  cargo xtask vm --kernel aarch64-6.1 --variant jetson  without BTF and kprobes, as on a Jetson
  cargo xtask vm --append psi=0                         more for the kernel's command line
  cargo xtask vm --table                                write docs/KERNELS.md: here, and every machine

TEST is a part of BINARY::NAME. The test binaries are those of tests/tests that are about the kernel
(kernel, rungs, latency), as cargo builds them for the host. A boot takes seconds; no root, no KVM is needed.
`cargo xtask setup --cross` installs the emulators.")]
    Vm(vm::Args),
    /// Feed random bytes to what reads from outside, a minute for each target
    #[command(after_help = "Examples:
  cargo xtask fuzz                          every target
  cargo xtask fuzz gguf --seconds 600       one, for longer

Needs a C++ compiler and cargo-fuzz, and installs them where they are missing. Inputs worth keeping lie in
fuzz/corpus, those that something was found by in fuzz/artifacts.")]
    Fuzz(fuzz::Args),
    /// Check formatting and run clippy with warnings as errors, user space and eBPF
    Lint,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Prefill and decode at several depths
    Decode(decode::DecodeArgs),
    /// What a smaller cache costs: perplexity, facts forgotten, time of each step
    Quality(quality::Args),
    /// From a stall's onset to returned pages, by each signal
    Reaction(report::Args),
    /// Memory given back: what RSS lost, beside candle, malloc and bare madvise
    Giveback(report::Args),
    /// Tokens a second of several clients at one server, and how long one waits
    Clients(report::Args),
    /// What listening costs a job that does nothing but reclaim
    Overhead(report::Args),
    /// A neighbour below the same memory limit: its latency, by each signal
    Cotenant(cotenant::CotenantArgs),
    /// A file that is read from end to end beside the model: its speed, and tokens dropped
    Stream(report::Args),
    /// How much goes for how much is missing, over limits and rates of growth
    Enough(report::Args),
    /// Whether a ratio of reaction, giveback or cotenant fell since the baseline
    Check(check::Args),
    /// Perplexity of a text and greedy answers, beside candle-transformers
    CandleQuality(report::Args),
}

fn main() -> ExitCode {
    let done = Shell::new()
        .map_err(anyhow::Error::from)
        .and_then(|sh| start(&sh, Cli::parse().task));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(sh: &Shell, task: Task) -> anyhow::Result<()> {
    sh.change_dir(places::root());
    match task {
        Task::Run { model, args } => run::run(sh, model.as_deref(), &args),
        Task::Test { no_vm, args } => test::run(sh, &args, !no_vm),
        Task::Loom => loom::run(sh),
        Task::Setup { check: true, .. } => setup::check(sh),
        Task::Setup { cross: true, .. } => setup::cross(sh),
        Task::Setup { .. } => setup::all(sh),
        Task::Build { target } => cross::build(sh, &target),
        Task::Deb { target } => deb::run(sh, target.as_deref()),
        Task::BuildEbpf => ebpf::build(sh),
        Task::Model { model } => {
            println!("{}", model::get(sh, model.as_deref())?.display());
            Ok(())
        }
        Task::Bench { what } => match what {
            Bench::Decode(args) => decode::run(sh, &args),
            Bench::Quality(args) => quality::run(sh, &args),
            Bench::Check(args) => check::run(sh, &args),
            Bench::Overhead(args) => overhead::run(sh, &args),
            Bench::Giveback(args) => giveback::run(sh, &args),
            Bench::Clients(args) => clients::run(sh, &args),
            Bench::Cotenant(args) => cotenant::run(sh, &args),
            Bench::Stream(args) => stream::run(sh, &args),
            Bench::Enough(args) => enough::run(sh, &args),
            Bench::Reaction(args) => reaction::run(sh, &args),
            Bench::CandleQuality(args) => candle::run(sh, &args),
        },
        Task::Vm(args) => vm::run(sh, &args),
        Task::Fuzz(args) => fuzz::run(sh, &args),
        Task::Lint => lint::run(sh),
    }
}

/// Says what xtask itself does, apart from what the commands it calls print.
fn say(what: impl std::fmt::Display) {
    eprintln!("xtask: {what}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_command_and_its_flags_are_well_formed() {
        super::Cli::command().debug_assert();
    }
}
