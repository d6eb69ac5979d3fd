//! The reporter of benchmarks: rows in; JSON, Markdown and SVG out.
//!
//! Owns where figures go, docs/BENCHMARKS.md with a section for each benchmark,
//! and how numbers are written. Invariants: a run replaces its
//! own section and touches no other; a quick run writes to target/bench alone.

use crate::{
    bench::{prepare, rows},
    model, places, plot, say,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
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
    pub draw: plot::Draw,
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
        let rows = rows(cmd!(sh, "{program} {command...} {file...}")).context(self.needs)?;
        let report = report(self.name, args.quick, (self.rows)(rows));
        self.publish(&report, args)
    }

    /// Prints and writes a report.
    ///
    /// # Errors
    /// There is no plot, or a file cannot be written.
    pub fn publish(&self, report: &Value, args: &Args) -> Result<()> {
        let section = (self.section)(report);
        print!("{section}");
        let folder = save(report, args.quick, args.json.as_deref())?;
        let svg = folder.join(format!("{}.svg", self.name));
        put(&svg, plot::svg(self.draw, report)?.as_bytes())?;
        let page = folder.join("BENCHMARKS.md");
        let old = fs::read_to_string(&page).unwrap_or_default();
        put(&page, with_section(&old, self.name, &section).as_bytes())?;
        say(format!("wrote {}", page.display()));
        Ok(())
    }
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
    format!(
        "{} cores of {}, Linux {}.",
        report["cpus"],
        text(&report["machine"]),
        text(&report["kernel"])
    )
}

/// The processor's name.
pub fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or_else(
            || std::env::consts::ARCH.to_owned(),
            |l| l.trim_start_matches([' ', '\t', ':']).to_owned(),
        )
}

/// Writes the figures of a run; returns the folder for its pages and plots.
///
/// # Errors
/// A file cannot be written.
pub fn save(report: &Value, quick: bool, json: Option<&Path>) -> Result<PathBuf> {
    let bench = places::target().join("bench");
    fs::create_dir_all(&bench).with_context(|| bench.display().to_string())?;
    let bytes = serde_json::to_vec_pretty(report)?;
    let own = bench.join(format!("{}.json", text(&report["bench"])));
    for file in json.into_iter().chain([own.as_path()]) {
        put(file, &bytes)?;
    }
    Ok(match quick {
        true => bench,
        false => places::root().join("docs"),
    })
}

/// Writes a file.
///
/// # Errors
/// It cannot be written.
pub fn put(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// The rows of a report, or of one of its tables.
pub fn rows_of(rows: &Value) -> impl Iterator<Item = &Value> {
    rows.as_array().into_iter().flatten()
}

/// A text, or a dash.
pub fn text(v: &Value) -> &str {
    v.as_str().unwrap_or("-")
}

/// A number, or a dash.
pub fn number(v: impl Into<Value>, digits: usize) -> String {
    v.into()
        .as_f64()
        .map_or_else(|| "-".into(), |n| format!("{n:.digits$}"))
}

/// A share in percent, or a dash.
pub fn percent(v: impl Into<Value>, digits: usize) -> String {
    let share = v.into().as_f64();
    share.map_or_else(|| "-".into(), |n| format!("{:.digits$} %", n * 100.0))
}

/// The figure that `key` names in rows, sorted.
pub fn sorted<'a>(rows: impl Iterator<Item = &'a Value>, key: &str) -> Vec<f64> {
    let mut all: Vec<f64> = rows.filter_map(|r| r[key].as_f64()).collect();
    all.sort_by(f64::total_cmp);
    all
}

/// The middle of sorted figures.
pub fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
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
