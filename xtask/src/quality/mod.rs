//! `cargo xtask bench quality`: what a smaller cache costs.
//!
//! Owns the plan: which texts, how long, in what order. `kvpsi-bench` measures;
//! [`rows`] puts its rows together. Invariant: a quick run never overwrites
//! the figures in docs/.

mod plot;
mod rows;

use crate::bench::{self, build};
use crate::report::{put, report, save};
use crate::{model, places, say};
use anyhow::{Context, Result};
use rows::Lines;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use xshell::{Shell, cmd};

/// How much to measure, and where the figures go.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Less text, fewer questions, nothing in docs/: ten minutes on two cores
    #[arg(long)]
    quick: bool,
    /// Measure the steps' time anew, and keep the rest of the last run
    #[arg(long, conflicts_with = "quick")]
    only_steps: bool,
    /// Write the figures to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Use this GGUF instead of the default model
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

/// How much.
struct Plan {
    chunks: [usize; 2],
    contexts: &'static str,
    samples: usize,
    conversations: usize,
    prose: usize,
    /// Budgets of questions, by the whole ladder.
    budgets: &'static str,
    /// And by dropping tokens alone; empty: none.
    pure: &'static str,
    rounds: usize,
}

const QUICK: Plan = Plan {
    chunks: [1, 1],
    contexts: "2048",
    samples: 8,
    conversations: 2,
    prose: 600,
    budgets: "0.5,0.25",
    pure: "",
    rounds: 1,
};

const FULL: Plan = Plan {
    chunks: [3, 3],
    contexts: "4096",
    samples: 16,
    conversations: 6,
    prose: 600,
    budgets: "0.5,0.25,0.125",
    pure: "0.25",
    rounds: 5,
};

/// Tokens of a chunk.
const CONTEXT: usize = 2048;

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, fetched, measured or written.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    let began = Instant::now();
    bench::setup(sh)?;
    let model = model::get(sh, args.model.as_deref())?;
    let program = build(sh, &places::target(), "")?;
    let bench = Bench { sh, program, model };
    let plan = if args.quick { QUICK } else { FULL };
    if args.only_steps {
        let file = places::target().join("bench/quality.json");
        let old = fs::read(&file)
            .with_context(|| format!("{}: cargo xtask bench quality", file.display()))?;
        let mut report: Value = serde_json::from_slice(&old)?;
        rows::put_steps(&mut report, &bench.steps(&plan)?);
        return write(&report, args);
    }
    let prose = places::root().join("tests/data/holmes.txt");
    let texts = match crate::text::get(sh) {
        Ok(kjv) => vec![("kjv", kjv), ("holmes", prose)],
        Err(e) => {
            say(format_args!(
                "{e:#}: going on with tests/data/holmes.txt alone"
            ));
            vec![("holmes", prose)]
        }
    };
    let mut lines = Lines::default();
    for ((name, file), chunks) in texts.iter().zip(plan.chunks) {
        say(format_args!(
            "perplexity of {name}, {chunks} x {CONTEXT} tokens"
        ));
        // What every policy does one text will tell a quick run.
        let first = lines.texts.is_empty();
        let policies = (args.quick && !first).then(|| lines.policies());
        let rows = bench.ladder(file, chunks, policies.as_deref())?;
        lines.texts.push(((*name).into(), rows));
    }
    say("facts from early on");
    lines.recall = bench.recall(&plan, &lines.policies())?;
    say("the steps' time");
    lines.steps = bench.steps(&plan)?;
    let name = bench.model.file_name().unwrap_or_default();
    let mut report = report("quality", args.quick, Vec::new());
    report["model"] = name.to_string_lossy().into();
    lines.put(&mut report);
    write(&report, args)?;
    say(format_args!("took {} s", began.elapsed().as_secs()));
    Ok(())
}

/// The tables on stdout, the figures and the plots into their files.
fn write(report: &Value, args: &Args) -> Result<()> {
    let page = rows::page(report);
    print!("{page}");
    let folder = save(report, args.quick, args.json.as_deref())?;
    for text in rows::texts(report) {
        let file = folder.join(format!(
            "quality-{}.svg",
            crate::report::text(&text["text"])
        ));
        put(&file, crate::plot::svg(plot::draw, text)?.as_bytes())?;
    }
    let file = folder.join("QUALITY.md");
    put(&file, page.as_bytes())?;
    say(format_args!(
        "wrote {} and the plots beside it",
        file.display()
    ));
    Ok(())
}

struct Bench<'a> {
    sh: &'a Shell,
    program: PathBuf,
    model: PathBuf,
}

impl Bench<'_> {
    /// One measurement: its rows; what it says on the way goes to stderr.
    fn lines(&self, what: &str, more: &[&str]) -> Result<Vec<Value>> {
        let (program, model) = (&self.program, &self.model);
        bench::rows(cmd!(self.sh, "{program} {what} --model {model} {more...}"))
    }

    fn steps(&self, plan: &Plan) -> Result<Vec<Value>> {
        let rounds = plan.rounds.to_string();
        self.lines("steps", &["--rounds", &rounds])
    }

    fn ladder(&self, text: &Path, chunks: usize, policies: Option<&str>) -> Result<Vec<Value>> {
        let (text, context) = (text.to_string_lossy(), CONTEXT.to_string());
        let chunks = chunks.to_string();
        let mut more = vec!["--text", &text, "--context", &context, "--chunks", &chunks];
        if let Some(policies) = policies {
            more.extend(["--policies", policies]);
        }
        self.lines("ladder", &more)
    }

    fn recall(&self, plan: &Plan, policies: &str) -> Result<Vec<Value>> {
        let (samples, prose) = (plan.samples.to_string(), plan.prose.to_string());
        let conversations = plan.conversations.to_string();
        let mut more = vec!["--contexts", plan.contexts, "--samples", &samples];
        more.extend(["--conversations", &conversations, "--prose", &prose]);
        more.extend(["--budgets", plan.budgets, "--policies", policies]);
        if plan.pure.is_empty() {
            more.push("--no-pure");
        } else {
            more.extend(["--pure-budgets", plan.pure]);
        }
        self.lines("recall", &more)
    }
}
