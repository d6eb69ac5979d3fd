//! `cargo xtask bench`: figures in tables and JSON.
//!
//! Owns the order of the measurements and what is printed; the program
//! `kvpsi-bench` of the tests package measures, one process a setting.
//! Invariant: what is compared is measured in one run, in turn.

use crate::{ebpf, model, places, say, setup};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// What to measure, and where the figures go.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Fewer depths, tokens and rounds: about two minutes
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Use this GGUF instead of the default model
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Kernels of the products: scalar, avx2, avxvnni, avx512, neon, neondot [default: the best there is]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
    /// Leave candle-transformers out
    #[arg(long)]
    no_candle: bool,
}

/// Prefill and decode, beside candle-transformers and llama-bench.
///
/// # Errors
/// Something could not be built, fetched or measured.
pub fn decode(sh: &Shell, args: &Args) -> Result<()> {
    setup::on_the_way(sh)?;
    ebpf::build_if_possible(sh)?;
    let model = model::get(sh, args.model.as_deref())?;
    let run = Run {
        sh,
        args,
        program: build(sh, &places::target(), "")?,
        // Compiled for this processor: candle chooses its kernels there and
        // then, and ours are chosen when they run.
        candle: (!args.no_candle)
            .then(|| build(sh, &places::target().join("native"), "-C target-cpu=native"))
            .transpose()?,
    };

    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rows = Vec::new();
    let mut bandwidth = Vec::new();
    for threads in threads(cpus, args.quick) {
        say(format!("{threads} thread(s)"));
        bandwidth.push(run.one(threads, &["bandwidth", "--threads", &threads.to_string()])?);
        let until: &[&str] = if threads == cpus {
            &[]
        } else {
            &["--candle-until", "2048"]
        };
        rows.extend(run.decode(threads, &model, until)?);
    }
    let mut formats = Vec::new();
    for format in ["q4_0", "q8_0"] {
        say(format!("{format}, {cpus} thread(s)"));
        let file = places::target().join(format!("bench-{format}.gguf"));
        let (m, f) = (model.to_string_lossy(), file.to_string_lossy());
        run.lines(
            cpus,
            &["requantize", "--model", &m, "--to", format, "--out", &f],
        )?;
        let measured = run.decode(cpus, &file, &["--depths", "0", "--batches", "1"]);
        fs::remove_file(&file).with_context(|| file.display().to_string())?;
        for mut row in measured? {
            row["format"] = json!(format);
            formats.push(row);
        }
    }
    let m = model.to_string_lossy();
    let memory = run.one(cpus, &["memory", "--model", &m])?;
    llama_bench(sh, &model, &mut rows);

    let report = json!({
        "bench": "decode",
        "machine": cpu_name(),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "cpus": cpus,
        "isa": args.isa.as_deref().unwrap_or("best"),
        "model": model.file_name().map(|n| n.to_string_lossy()),
        "rows": rows,
        "formats": formats,
        "bandwidth": bandwidth,
        "memory": memory,
        "rss_peak": memory["rss_peak"],
    });
    print!("{}", table(&report));
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// What to read, and where the figures go.
#[derive(Debug, clap::Args)]
pub struct CandleArgs {
    /// A tenth of the text, and short answers
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Use this GGUF instead of the default model
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

/// Perplexity and greedy answers of the model as it is, and with its matrices
/// widened, so that activations are not rounded on either side.
///
/// # Errors
/// Something could not be built, fetched or measured.
pub fn candle_quality(sh: &Shell, args: &CandleArgs) -> Result<()> {
    setup::on_the_way(sh)?;
    ebpf::build_if_possible(sh)?;
    let model = model::get(sh, args.model.as_deref())?;
    let program = build(sh, &places::target().join("native"), "-C target-cpu=native")?;
    let wide = places::target().join("bench-f16.gguf");
    let (m, w) = (&model, &wide);
    cmd!(sh, "{program} requantize --model {m} --to f16 --out {w}")
        .quiet()
        .run()?;
    let mut rows = Vec::new();
    // Widened, candle needs 10 s for a chunk.
    for (matrices, file, chunks) in [("as shipped", m, 40), ("f32", w, 8)] {
        say(format!("{matrices} matrices"));
        let (chunks, tokens) = match args.quick {
            true => (chunks / 8, "50"),
            false => (chunks, "200"),
        };
        let chunks = chunks.to_string();
        let text = cmd!(
            sh,
            "{program} quality --model {file} --tokens-of {m} --chunks {chunks} --tokens {tokens}"
        )
        .quiet()
        .read();
        for line in text?.lines() {
            let mut row: Value = serde_json::from_str(line)?;
            row["matrices"] = json!(matrices);
            rows.push(row);
        }
    }
    fs::remove_file(&wide).with_context(|| wide.display().to_string())?;
    for r in &rows {
        let matrices = r["matrices"].as_str().unwrap_or_default();
        match r["what"].as_str() {
            Some("greedy") => println!(
                "{matrices:<10} {} of {} tokens the same, margin {}: {}",
                r["same"], r["tokens"], r["margin"], r["prompt"]
            ),
            _ => println!(
                "{matrices:<10} perplexity {:.4}, candle {:.4}, ratio {:.5}, over {} tokens ({} scored)",
                r["perplexity"].as_f64().unwrap_or(f64::NAN),
                r["candle_perplexity"].as_f64().unwrap_or(f64::NAN),
                r["ratio"].as_f64().unwrap_or(f64::NAN),
                r["text_tokens"],
                r["scored_tokens"],
            ),
        }
    }
    if let Some(file) = &args.json {
        let report = json!({
            "bench": "candle-quality", "machine": cpu_name(), "rows": rows,
            "model": model.file_name().map(|n| n.to_string_lossy()),
        });
        fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// The program that measures.
///
/// # Errors
/// It does not build.
pub fn build(sh: &Shell, target: &Path, flags: &str) -> Result<PathBuf> {
    say(format!("building in release {flags}"));
    cmd!(
        sh,
        "cargo build --release --package kvpsi-tests --bin kvpsi-bench --target-dir {target}"
    )
    .env("RUSTFLAGS", flags)
    .quiet()
    .run()
    .context("kvpsi-bench did not build")?;
    Ok(target.join("release/kvpsi-bench"))
}

/// One, and all.
fn threads(cpus: usize, quick: bool) -> Vec<usize> {
    if quick || cpus == 1 {
        vec![cpus]
    } else {
        vec![1, cpus]
    }
}

struct Run<'a> {
    sh: &'a Shell,
    args: &'a Args,
    program: PathBuf,
    candle: Option<PathBuf>,
}

impl Run<'_> {
    fn lines(&self, threads: usize, args: &[&str]) -> Result<Vec<Value>> {
        let (program, threads) = (&self.program, threads.to_string());
        let mut command = cmd!(self.sh, "{program} {args...}")
            .env("RAYON_NUM_THREADS", &threads)
            .env_remove("CANDLE_NUM_THREADS")
            .quiet();
        if let Some(isa) = &self.args.isa {
            command = command.env("KVPSI_ISA", isa);
        }
        let text = command.read()?;
        text.lines()
            .map(|l| serde_json::from_str(l).with_context(|| format!("kvpsi-bench said `{l}`")))
            .collect()
    }

    fn one(&self, threads: usize, args: &[&str]) -> Result<Value> {
        let mut lines = self.lines(threads, args)?;
        lines.pop().context("kvpsi-bench said nothing")
    }

    fn decode(&self, threads: usize, model: &Path, more: &[&str]) -> Result<Vec<Value>> {
        let (model, count) = (model.to_string_lossy(), threads.to_string());
        let mut args = vec!["decode", "--model", &model, "--threads", &count];
        args.extend(more);
        if self.args.quick {
            args.extend(["--tokens", "48", "--rounds", "3"]);
            if !more.contains(&"--depths") {
                args.extend(["--depths", "0,2048"]);
            }
        }
        let candle = self.candle.as_ref().map(|p| p.to_string_lossy());
        if let Some(candle) = &candle {
            args.extend(["--candle", candle]);
        }
        self.lines(threads, &args)
    }
}

/// Fills in llama.cpp's figures, where its bench is there: one at a depth, a
/// process each, because that is how it is asked.
fn llama_bench(sh: &Shell, model: &Path, rows: &mut [Value]) {
    if places::in_path("llama-bench").is_none() {
        say("no llama-bench on PATH: its column stays empty");
        return;
    }
    for row in rows.iter_mut().filter(|r| r["batch"] == 1) {
        let (depth, threads) = (row["depth"].to_string(), row["threads"].to_string());
        let counts = match row["what"].as_str() {
            Some("prefill") => ["-p", "512", "-n", "0"],
            _ => ["-p", "0", "-n", "128"],
        };
        let text = cmd!(
            sh,
            "llama-bench -m {model} -t {threads} -d {depth} {counts...} -o json"
        )
        .quiet()
        .read();
        let measured = text
            .ok()
            .and_then(|t| serde_json::from_str::<Value>(&t).ok())
            .map_or(Value::Null, |v| v[0]["avg_ts"].clone());
        row["llama_tok_s"] = measured;
    }
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

fn table(report: &Value) -> String {
    let mut t = String::new();
    let number = |v: &Value| v.as_f64().map_or_else(|| "-".into(), |n| format!("{n:.1}"));
    let percent = |v: &Value| {
        v.as_f64()
            .map_or_else(|| "-".into(), |n| format!("{:.0}%", n * 100.0))
    };
    let mut section = |title: &str, rows: &Value| {
        let _ = writeln!(t, "\n{title}");
        let _ = writeln!(
            t,
            "{:<9} {:>6} {:>7} {:>5} {:>8} {:>8} {:>7} {:>9} {:>7} {:>9} {:>5} {:>7}",
            "",
            "depth",
            "threads",
            "batch",
            "kvpsi",
            "candle",
            "ratio",
            "llama.cpp",
            "linear",
            "attention",
            "rest",
            "GB/s"
        );
        for r in rows.as_array().into_iter().flatten() {
            let what = r["what"].as_str().unwrap_or_default();
            let format = r["format"].as_str().unwrap_or_default();
            let _ = writeln!(
                t,
                "{what:<9} {:>6} {:>7} {:>5} {:>8} {:>8} {:>7} {:>9} {:>7} {:>9} {:>5} {:>7} {format}",
                r["depth"],
                r["threads"],
                r["batch"],
                number(&r["tok_s"]),
                number(&r["candle_tok_s"]),
                number(&r["ratio"]),
                number(&r["llama_tok_s"]),
                percent(&r["linear_share"]),
                percent(&r["attention_share"]),
                percent(&r["rest_share"]),
                number(&json!(r["read_bytes_s"].as_f64().map(|b| b / 1e9))),
            );
        }
    };
    section("tokens a second", &report["rows"]);
    section("the same model in other formats", &report["formats"]);
    let mib = |v: &Value| v.as_f64().map_or(0.0, |b| b / f64::from(1 << 20));
    let m = &report["memory"];
    let _ = writeln!(
        t,
        "\nmemory: file {:.1} MiB, weights {:.1}, KV in use {:.1}, resident {:.1}, peak {:.1}",
        mib(&m["file"]),
        mib(&m["weights"]),
        mib(&m["kv_resident"]),
        mib(&m["rss"]),
        mib(&m["rss_peak"]),
    );
    for b in report["bandwidth"].as_array().into_iter().flatten() {
        let gb = b["bytes_s"].as_f64().unwrap_or(0.0) / 1e9;
        let _ = writeln!(t, "read loop, {} thread(s): {gb:.1} GB/s", b["threads"]);
    }
    t
}
