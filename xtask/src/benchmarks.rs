//! docs/BENCHMARKS.md: a section for each benchmark, written by the run that
//! measured it.
//!
//! Owns the page's parts and where figures go. Invariants: a run replaces its
//! own section and touches no other; a quick run writes to target/bench alone.

use crate::{
    bench::{build, cpu_name, lines},
    ebpf, model, places, say, setup,
};
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};
use xshell::{Shell, cmd};

const TITLE: &str = "# Benchmarks\n\n\
Every section is written by the command that it names; do not edit. Each compares in one run, in turn, on one machine.\n";

/// How much to measure, and where the figures go.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Fewer rounds, nothing in docs/: about two minutes
    #[arg(long)]
    pub quick: bool,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Use this GGUF instead of the default model
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
}

/// From a report to an SVG.
type Draw = fn(&Value, &mut String) -> Result<(), Box<dyn Error>>;

/// A benchmark of one call to `kvpsi-bench`: JSON in, a section and a plot out.
pub struct Bench {
    /// Of the section, of the files, and of the report.
    pub name: &'static str,
    /// What to say where the call fails.
    pub needs: &'static str,
    /// From what was measured to the rows of the report.
    pub rows: fn(Vec<Value>) -> Vec<Value>,
    /// The report as Markdown.
    pub section: fn(&Value) -> String,
    /// The report as SVG.
    pub draw: Draw,
}

impl Bench {
    /// Builds, measures by `kvpsi-bench COMMAND` (with the model where `model`
    /// says so), and publishes.
    ///
    /// # Errors
    /// Something could not be built, run or written.
    pub fn run(&self, sh: &Shell, args: &Args, model: bool, command: &[&str]) -> Result<()> {
        let program = prepare(sh)?;
        let file = if model {
            let file = model::get(sh, args.model.as_deref())?;
            vec!["--model".into(), file.into_os_string()]
        } else {
            Vec::new()
        };
        let text = cmd!(sh, "{program} {command...} {file...}")
            .quiet()
            .read()
            .context(self.needs)?;
        let report = report(self.name, args.quick, (self.rows)(lines(&text)?));
        self.publish(&report, args)
    }

    /// Prints and writes a report.
    ///
    /// # Errors
    /// There is no plot, or a file cannot be written.
    pub fn publish(&self, report: &Value, args: &Args) -> Result<()> {
        let mut svg = String::new();
        (self.draw)(report, &mut svg).map_err(|e| anyhow!("no plot: {e}"))?;
        publish(report, &(self.section)(report), &svg, args)
    }
}

/// Sets up what is missing, and builds the program that measures.
///
/// # Errors
/// Something could not be installed or built.
pub fn prepare(sh: &Shell) -> Result<PathBuf> {
    setup::on_the_way(sh)?;
    ebpf::build_if_possible(sh)?;
    build(sh, &places::target(), "")
}

/// The rows of a benchmark, and where they were measured.
pub fn report(name: &str, quick: bool, rows: Vec<Value>) -> Value {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "bench": name, "quick": quick, "machine": cpu_name(), "kernel": kernel.trim(),
        "cpus": std::thread::available_parallelism().map_or(1, usize::from), "rows": rows,
    })
}

/// Where it was measured, as a section says it.
pub fn machine(report: &Value) -> String {
    let text = |key: &str| report[key].as_str().unwrap_or("-").to_owned();
    format!(
        "{} cores of {}, Linux {}.",
        report["cpus"],
        text("machine"),
        text("kernel")
    )
}

/// Prints a section, and writes figures, plot and section.
///
/// # Errors
/// A file cannot be written.
fn publish(report: &Value, section: &str, svg: &str, args: &Args) -> Result<()> {
    let name = report["bench"].as_str().unwrap_or_default();
    let bench = places::target().join("bench");
    fs::create_dir_all(&bench).with_context(|| bench.display().to_string())?;
    print!("{section}");
    let json = serde_json::to_vec_pretty(report)?;
    let own = bench.join(format!("{name}.json"));
    for file in args.json.iter().cloned().chain([own]) {
        put(&file, &json)?;
    }
    let folder = if args.quick {
        bench
    } else {
        places::root().join("docs")
    };
    put(&folder.join(format!("{name}.svg")), svg.as_bytes())?;
    let page = folder.join("BENCHMARKS.md");
    let old = fs::read_to_string(&page).unwrap_or_default();
    put(&page, with_section(&old, name, section).as_bytes())?;
    say(format!("wrote {}", page.display()));
    Ok(())
}

fn put(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// The page with the section of `name` replaced, or added at its end.
fn with_section(page: &str, name: &str, section: &str) -> String {
    const MARK: &str = "\n<!-- bench ";
    let mut parts: Vec<(&str, &str)> = page
        .split(MARK)
        .skip(1)
        .filter_map(|part| part.split_once(" -->\n"))
        .collect();
    match parts.iter_mut().find(|part| part.0 == name) {
        Some(part) => part.1 = section,
        None => parts.push((name, section)),
    }
    let mut all = TITLE.to_owned();
    for (name, section) in parts {
        all += &format!("{MARK}{name} -->\n{}\n", section.trim_end());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let one = with_section("", "one", "## One\n\n1\n");
        let two = with_section(&one, "two", "## Two\n\n2\n");
        let again = with_section(&two, "one", "## One\n\nanother\n");
        assert_eq!(again.matches("## One").count(), 1);
        assert!(
            again.contains("another") && again.contains("## Two\n\n2"),
            "{again}"
        );
        assert!(again.find("## One") < again.find("## Two"));
        assert_eq!(with_section(&again, "one", "## One\n\nanother\n"), again);
    }
}
