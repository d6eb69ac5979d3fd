//! docs/KERNELS.md: what kvpsi detects on each kernel, and how soon.
//!
//! Owns the file's form. Invariant: every cell comes from a figure that a test
//! handed out; what no test said is a dash.

use super::{Account, Machine, Place, Run, missing, variant::Variant};
use crate::vm::kernel::Kernel;
use crate::{places, say};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use xshell::{Shell, cmd};

/// The tests whose figures it takes.
const TESTS: [&str; 3] = ["kernel_events", "latency", "kernel_trims"];

/// The machines of the table, with what they stand for, and which of the
/// tests have something to say there.
const PLACES: [(Machine, Variant, &str, &[&str]); 7] = [
    (Machine::X86_64, Variant::Plain, "6.1 x86-64", &TESTS),
    (
        Machine::X86_64,
        Variant::NoPsi,
        "6.1 x86-64, psi=0",
        &["kernel_events", "latency"],
    ),
    (
        Machine::X86_64,
        Variant::Zram,
        "6.1 x86-64, swap on zram",
        &["kernel_events", "kernel_trims"],
    ),
    (
        Machine::X86_64,
        Variant::Cgroup,
        "6.1 x86-64, all in a cgroup",
        &["kernel_trims"],
    ),
    (Machine::Aarch64, Variant::Plain, "6.1 arm64", &TESTS),
    (
        Machine::Aarch64,
        Variant::Jetson,
        "6.1 arm64 as a stock Jetson",
        &TESTS,
    ),
    (
        Machine::Aarch64,
        Variant::JetsonNoPsi,
        "6.1 arm64 as a stock Jetson, psi=0",
        &["kernel_events", "latency"],
    ),
];

/// Runs the tests here and on every machine, and writes the file.
///
/// # Errors
/// A machine cannot be had, or a test failed: the file is left as it was.
pub fn write(sh: &Shell, run: &Run) -> Result<()> {
    let mut account = Account::default();
    let mut rows: Vec<(String, Vec<Value>)> = Vec::new();
    rows.push((here(sh)?, figures_here(sh)?));
    let mut place: Option<Place> = None;
    for (machine, variant, name, tests) in PLACES {
        if let Some(why) = missing(sh, machine) {
            bail!("{}: {why}", machine.name());
        }
        if place.as_ref().is_none_or(|p| p.machine != machine) {
            place = Some(Place::new(sh, machine, Kernel::get(sh, machine)?, true)?);
        }
        let before = account.figures.len();
        let run = Run {
            tests: tests.iter().map(ToString::to_string).collect(),
            ..run.clone()
        };
        if let Some(place) = &place {
            place.boot(sh, variant, &run, &mut account)?;
        }
        let figures = account.figures[before..].iter();
        let figures = figures.filter_map(|(_, f)| serde_json::from_str(f).ok());
        rows.push((name.to_owned(), figures.collect()));
    }
    if !account.failed.is_empty() {
        bail!("the table is not written: {}", account.failed.join("; "));
    }
    let file = places::root().join("docs/KERNELS.md");
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&file, page(&rows)).with_context(|| format!("cannot write {}", file.display()))?;
    say(format_args!("{} is written", file.display()));
    Ok(())
}

fn here(sh: &Shell) -> Result<String> {
    let release = cmd!(sh, "uname -r").quiet().read()?;
    let version: Vec<&str> = release.split(['.', '-']).take(2).collect();
    let machine = cmd!(sh, "uname -m").quiet().read()?;
    Ok(format!("{} {machine}, not emulated", version.join(".")))
}

/// The same tests on this kernel.
fn figures_here(sh: &Shell) -> Result<Vec<Value>> {
    let file = places::target().join(format!("figures.{}", std::process::id()));
    fs::write(&file, "")?;
    let tests = TESTS.iter().flat_map(|t| ["--test", t]);
    let done = cmd!(sh, "cargo test --workspace --exclude kvpsi-ebpf {tests...}")
        .env("KVPSI_FIGURES", &file)
        .env("RUST_TEST_THREADS", "1")
        .quiet()
        .run();
    let text = fs::read_to_string(&file)?;
    fs::remove_file(&file).ok();
    done.context("the tests failed on this kernel")?;
    Ok(text
        .lines()
        .filter_map(|l| serde_json::from_str(l).ok())
        .collect())
}

/// Those of one kind.
fn of<'a>(figures: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    figures.iter().filter(move |f| f["figure"] == kind)
}

/// A count, or a dash where none was taken.
fn count(v: &Value) -> String {
    match v.as_u64() {
        None => "-".into(),
        Some(0) => "no".into(),
        Some(n) => format!("yes ({n})"),
    }
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap_or("-")
}

fn micros(v: &Value) -> String {
    match v.as_u64() {
        None => "-".into(),
        Some(us) if us < 10_000 => format!("{us} us"),
        Some(us) => format!("{} ms", us / 1000),
    }
}

fn page(places: &[(String, Vec<Value>)]) -> String {
    let mut out = String::from(
        "# What kvpsi detects on each kernel\n\n\
         Written by `cargo xtask vm --table` from what the tests `kernel_events`, `latency` and `kernel_trims` counted; \
         do not edit. Emulated machines (QEMU without KVM, two CPUs, 384 MiB) are slow: their times compare sources \
         with each other, on the same machine in the same storms, and say nothing about hardware. A dash: not \
         tried, or the source cannot tell. A stock Jetson is stood for by Debian's kernel with BTF, kprobes and \
         tracefs out of sight.\n\n\
         ## Detected\n\n\
         A number is how often the hook fired while the test made that shortage.\n\n\
         | kernel | source | loads | attaches | direct reclaim | memcg reclaim | kswapd wakes | OOM | memstall |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (place, figures) in places {
        for f in of(figures, "events") {
            let source = text(&f["source"]);
            if f.get("refused").is_some() {
                let _ = writeln!(out, "| {place} | {source} | no [^1] | | | | | | |");
                continue;
            }
            let programs = |key: &str| {
                f[key]
                    .as_u64()
                    .map_or_else(|| "no programs".into(), |n| format!("{n} programs"))
            };
            let _ = writeln!(
                out,
                "| {place} | {source} | {} | {} | {} | {} | {} | {} | {} |",
                programs("loaded"),
                programs("attached"),
                count(&f["direct"]),
                count(&f["memcg"]),
                count(&f["kswapd"]),
                count(&f["oom"]),
                count(&f["memstall"]),
            );
        }
    }
    out.push_str("\n[^1]: What was refused, as the kernel said it:\n\n");
    for (place, figures) in places {
        for f in of(figures, "events") {
            if let Some(why) = f["refused"].as_str() {
                let _ = writeln!(out, "- {place}, {}: {why}", text(&f["source"]));
            }
            for why in f["not"].as_array().into_iter().flatten() {
                let _ = writeln!(out, "- {place}, {}: {}", text(&f["source"]), text(why));
            }
        }
    }
    out.push_str(
        "\n## From onset to user space\n\n\
         Every source at once, in the same storms; from the moment the first task stalled to the moment a thread that \
         waits for the source runs. A storm that a source did not tell of before the next one is missed. Where nothing is \
         emulated, threads that give way to everybody keep the cores awake, as a model that decodes does.\n\n\
         | kernel | source | p50 | p99 | storms | missed |\n|---|---|---|---|---|---|\n",
    );
    for (place, figures) in places {
        for f in of(figures, "latency") {
            let _ = writeln!(
                out,
                "| {place} | {} | {} | {} | {} | {} |",
                text(&f["source"]),
                micros(&f["p50_us"]),
                micros(&f["p99_us"]),
                f["onsets"],
                f["missed"],
            );
        }
    }
    out.push_str("\nAgainst the best PSI trigger, by p50:\n\n");
    for (place, figures) in places {
        for f in of(figures, "factor") {
            let _ = writeln!(
                out,
                "- {place}: {} is {} times as early as {}",
                text(&f["source"]),
                f["factor"],
                text(&f["peer"]),
            );
        }
    }
    out.push_str(
        "\n## Given back\n\n\
         A tiny model with random weights talks while a neighbour grows three times: in a cgroup made for both, or \
         until the whole machine is short (emulated machines only), or the cgroup that everything runs in.\n\n\
         | kernel | short of memory | trims | gave back |\n|---|---|---|---|\n",
    );
    for (place, figures) in places {
        for f in of(figures, "trims") {
            let _ = writeln!(
                out,
                "| {place} | {} | {} | {} |",
                text(&f["scope"]),
                text(&f["trims"]),
                text(&f["gave_back"]),
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_and_a_count_each_have_their_row() {
        let figures = [
            r#"{"figure":"events","source":"ebpf fentry","refused":"no BTF"}"#,
            r#"{"figure":"events","source":"ebpf raw-tp","loaded":15,"attached":15,"memcg":7,"oom":0,"direct":null}"#,
        ];
        let figures = figures.map(|f| serde_json::from_str(f).expect("JSON"));
        let page = page(&[("6.1".into(), figures.to_vec())]);
        assert!(page.contains("| 6.1 | ebpf fentry | no [^1] |"), "{page}");
        assert!(page.contains("- 6.1, ebpf fentry: no BTF"));
        assert!(page.contains("| 15 programs | 15 programs | - | yes (7) | - | no | - |"));
    }
}
