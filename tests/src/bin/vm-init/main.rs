//! The first process of the machine that `cargo xtask vm` boots: it makes a
//! small system, runs the tests that the plan names, and reports.
//!
//! Owns the plan's words and the report's lines. Invariants: every test gets
//! a verdict, also one that hangs; all are named before the first one runs, so
//! so that tests a machine never reached are not forgotten; a line comes every few
//! seconds while the machine lives; the last line is `end`, so that a machine
//! which died is told from one that finished. Out of scope: what is tested.
//!
//! The plan is a file of lines, `WORD REST`, carried out in their order (see
//! [`carry_out`]). The report goes to the console, in lines that begin with
//! [`MARK`]: the kernel writes there too.

mod machine;
mod suite;

use anyhow::{Context, bail};
use kvpsi_tests::swap::Swap;
use std::{path::Path, thread, time::Duration};

/// Begins each line of the report.
const MARK: &str = "@kvpsi ";
const PLAN: &str = "/plan";
/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(5);

fn report(line: impl std::fmt::Display) {
    println!("{MARK}{line}");
}

fn main() {
    if std::process::id() != 1 {
        eprintln!("vm-init is the first process of `cargo xtask vm`'s machine, and of no other");
        std::process::exit(2);
    }
    match work() {
        Ok(()) => report("end"),
        Err(e) => report(format_args!("broken {e:#}")),
    }
    machine::off();
}

fn work() -> anyhow::Result<()> {
    machine::mount_system()?;
    let text = std::fs::read_to_string(PLAN).context("there is no plan")?;
    report(format_args!("boot {}", machine::release()?));
    thread::spawn(|| {
        loop {
            thread::sleep(HEARTBEAT);
            report("alive");
        }
    });
    let mut suite = suite::Suite::default();
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        carry_out(&mut suite, word, rest).with_context(|| format!("`{line}`"))?;
    }
    suite.run()
}

fn carry_out(suite: &mut suite::Suite, word: &str, rest: &str) -> anyhow::Result<()> {
    match word {
        // What the kernel unpacks last: it goes on after an archive that did not fit.
        "last" if Path::new(rest).exists() => Ok(()),
        "last" => bail!("the root was not unpacked whole; give it more by `--memory`"),
        // A kernel module, by its file.
        "module" => machine::load_module(Path::new(rest)),
        // The folder that tests expect on a disk, from the machine's only one.
        "disk" => machine::mount_disk(Path::new(rest)),
        // BTF goes out of sight, as on a kernel that was built without.
        "hide-btf" => machine::hide(&["/sys/kernel/btf"]),
        // So does what kprobes are attached by.
        "hide-kprobes" => machine::hide(&[
            "/sys/bus/event_source/devices",
            "/sys/kernel/tracing",
            "/sys/kernel/debug",
        ]),
        // Swap on compressed memory, in bytes.
        "zram" => {
            // It goes with the machine.
            std::mem::forget(Swap::make(rest.parse().context("bytes")?)?);
            Ok(())
        }
        // Tests run in a cgroup with this limit, in bytes.
        "limit" => suite.limit(rest.parse().context("bytes")?),
        "env" => {
            let (key, value) = rest.split_once('=').context("KEY=VALUE")?;
            suite.env(key, value);
            Ok(())
        }
        // Seconds that a test may take.
        "time" => {
            suite.time(rest.parse().context("seconds")?);
            Ok(())
        }
        // Only tests whose name contains one of these.
        "only" => {
            suite.only(rest);
            Ok(())
        }
        // A test binary, by its file: `NAME PATH`.
        "test" => {
            let (name, path) = rest.split_once(' ').context("NAME PATH")?;
            suite.list(name, Path::new(path))
        }
        _ => bail!("no such word"),
    }
}
