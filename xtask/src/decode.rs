//! `cargo xtask bench decode`: tokens a second, by depth, threads and encoding
//! of the cache, beside candle-transformers and llama-bench.
//!
//! Owns the order of the measurements, the tables and the plot; `kvpsi-bench`
//! measures, a process for each setting.

use crate::{
    bench::{self, build, prepare},
    model, places,
    plot::{self, Drawn, Line},
    report::{self, Bench, machine, median, number, percent, report, rows_of, text},
    say,
};
use anyhow::{Context, Result};
use plotters::style::{BLACK, BLUE, GREEN, MAGENTA, RED};
use serde_json::{Value, json};
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};
use xshell::{Shell, cmd};

/// What to measure, and where the figures go.
#[derive(Debug, clap::Args)]
pub struct DecodeArgs {
    #[command(flatten)]
    common: report::Args,
    /// Kernels of the products: scalar, avx2, avxvnni, avx512, neon, neondot [default: the best there is]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
    /// Leave candle-transformers out
    #[arg(long)]
    no_candle: bool,
}

/// How keys and values are written, apart from f16.
const NARROWER: [&str; 2] = ["q8_0", "q4_0"];

const BENCH: Bench = Bench {
    name: "decode",
    needs: "kvpsi-bench decode",
    rows: |rows| rows,
    section,
    draw,
};

/// Prefill and decode, beside candle-transformers and llama-bench.
///
/// # Errors
/// Something could not be built, fetched or measured.
pub fn run(sh: &Shell, args: &DecodeArgs) -> Result<()> {
    let program = prepare(sh)?;
    let model = model::get(sh, args.common.model.as_deref())?;
    let run = Run {
        sh,
        args,
        program,
        // Compiled for this processor: candle chooses its kernels there and
        // then, and ours are chosen when they run.
        candle: (!args.no_candle)
            .then(|| build(sh, &places::target().join("native"), "-C target-cpu=native"))
            .transpose()?,
    };

    if places::in_path("llama-bench").is_none() {
        say("no llama-bench on PATH: its column stays empty");
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rows = Vec::new();
    let mut bandwidth = Vec::new();
    for threads in threads(cpus, args.common.quick) {
        say(format!("{threads} thread(s)"));
        bandwidth.push(run.one(threads, &["bandwidth", "--threads", &threads.to_string()])?);
        // candle takes minutes to get to a greater depth, and a thread alone too.
        let mut more = vec!["--candle-until", "2048"];
        if threads < cpus {
            more.extend(["--depths", "0,2048"]);
        }
        let mut measured = run.decode(threads, &model, &more)?;
        llama_bench(sh, &model, &mut measured);
        rows.extend(measured);
    }
    // candle has f32 alone: it stands beside f16.
    let alone = Run {
        candle: None,
        program: run.program.clone(),
        ..run
    };
    for kind in NARROWER {
        say(format!("{cpus} thread(s), keys and values in {kind}"));
        let more = ["--batches", "1", "--kv-type", kind];
        rows.extend(alone.decode(cpus, &model, &more)?);
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

    let mut report = report("decode", args.common.quick, rows);
    report["isa"] = json!(args.isa.as_deref().unwrap_or("best"));
    report["model"] = json!(model.file_name().map(|n| n.to_string_lossy()));
    report["formats"] = json!(formats);
    report["bandwidth"] = json!(bandwidth);
    report["rss_peak"] = memory["rss_peak"].clone();
    report["memory"] = memory;
    BENCH.publish(&report, &args.common)
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
    args: &'a DecodeArgs,
    program: PathBuf,
    candle: Option<PathBuf>,
}

impl Run<'_> {
    fn lines(&self, threads: usize, args: &[&str]) -> Result<Vec<Value>> {
        let (program, threads) = (&self.program, threads.to_string());
        let mut command = cmd!(self.sh, "{program} {args...}")
            .env("RAYON_NUM_THREADS", &threads)
            .env_remove("CANDLE_NUM_THREADS");
        if let Some(isa) = &self.args.isa {
            command = command.env("KVPSI_ISA", isa);
        }
        bench::rows(command)
    }

    fn one(&self, threads: usize, args: &[&str]) -> Result<Value> {
        let mut lines = self.lines(threads, args)?;
        lines.pop().context("kvpsi-bench said nothing")
    }

    fn decode(&self, threads: usize, model: &Path, more: &[&str]) -> Result<Vec<Value>> {
        let (model, count) = (model.to_string_lossy(), threads.to_string());
        let mut args = vec!["decode", "--model", &model, "--threads", &count];
        args.extend(more);
        if self.args.common.quick {
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

/// Fills in llama.cpp's figures, where its bench is there: a process for each
/// row, right after ours.
fn llama_bench(sh: &Shell, model: &Path, rows: &mut [Value]) {
    if places::in_path("llama-bench").is_none() {
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
            "llama-bench -m {model} -t {threads} -d {depth} {counts...} -r 3 -o json"
        )
        .quiet()
        .ignore_stderr()
        .read();
        let told = text
            .ok()
            .and_then(|t| serde_json::from_str::<Value>(&t).ok());
        let samples = told.as_ref().and_then(|t| t[0]["samples_ts"].as_array());
        let mut samples: Vec<f64> = samples
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect();
        samples.sort_by(f64::total_cmp);
        row["llama_tok_s"] = json!(median(&samples));
    }
}

fn section(report: &Value) -> String {
    let mut t = String::from("## Tokens a second\n\n");
    let gb = |v: &Value| v.as_f64().unwrap_or(0.0) / 1e9;
    let mib = |v: &Value| v.as_f64().unwrap_or(0.0) / f64::from(1 << 20);
    let m = &report["memory"];
    let _ = writeln!(
        t,
        "`cargo xtask bench decode`. {} {}, kernels {}.\n\n\
         Prefill of 512 tokens and decode of 128 from a cache of so many, kvpsi as it is shipped and\n\
         candle-transformers' quantized_llama, compiled for this very processor, in turn: medians. candle's cache is f32.\n\
         Shares are of kvpsi's time; GB/s are weights, keys and values that a step reads. llama-bench fills its column\n\
         where it is on PATH: medians of 3, measured after kvpsi's rows of as many threads.\n\n\
         ![Tokens a second](decode.svg)\n",
        machine(report),
        text(&report["model"]),
        text(&report["isa"]),
    );
    table(&mut t, &report["rows"], "KV", "kv");
    t += "\nThe same model with its matrices in other formats, at depth 0:\n\n";
    table(&mut t, &report["formats"], "matrices", "format");
    let _ = writeln!(
        t,
        "\nMemory of `run` with this model: file {:.1} MiB, weights {:.1}, KV in use {:.1}, resident {:.1}, peak {:.1}.",
        mib(&m["file"]),
        mib(&m["weights"]),
        mib(&m["kv_resident"]),
        mib(&m["rss"]),
        mib(&m["rss_peak"]),
    );
    for b in rows_of(&report["bandwidth"]) {
        let _ = writeln!(
            t,
            "A loop that only reads, {} thread(s): {:.1} GB/s.",
            b["threads"],
            gb(&b["bytes_s"])
        );
    }
    t
}

fn table(t: &mut String, rows: &Value, what: &str, key: &str) {
    let _ = writeln!(
        t,
        "| | depth | {what} | threads | sequences | kvpsi | candle | ratio | llama.cpp | matrices | attention | rest | GB/s |\n\
         |---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    );
    for r in rows_of(rows) {
        let rate = |key: &str| number(r[key].clone(), 1);
        let share = |key: &str| percent(r[key].clone(), 0);
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            text(&r["what"]),
            r["depth"],
            text(&r[key]),
            r["threads"],
            r["batch"],
            rate("tok_s"),
            rate("candle_tok_s"),
            rate("ratio"),
            rate("llama_tok_s"),
            share("linear_share"),
            share("attention_share"),
            share("rest_share"),
            number(r["read_bytes_s"].as_f64().map(|b| b / 1e9), 1),
        );
    }
}

/// Decode of one sequence by depth, with all threads.
fn draw(report: &Value, svg: &mut String) -> Drawn {
    let cpus = &report["cpus"];
    let rows = || {
        let all = rows_of(&report["rows"]);
        all.filter(|r| r["what"] == "decode" && r["batch"] == 1 && r["threads"] == *cpus)
    };
    let line = |name, kv: &str, key: &str, colour| {
        let of = rows().filter(|r| r["kv"] == kv);
        let points = of.filter_map(|r| r["depth"].as_f64().zip(r[key].as_f64()));
        Line {
            name: Some(name),
            points: points.collect(),
            colour,
            dot: 3,
        }
    };
    let lines = vec![
        line("kvpsi, f16", "f16", "tok_s", RED),
        line("kvpsi, q8_0", "q8_0", "tok_s", MAGENTA),
        line("kvpsi, q4_0", "q4_0", "tok_s", GREEN),
        line("candle-transformers, f32", "f16", "candle_tok_s", BLUE),
        line("llama.cpp, f16", "f16", "llama_tok_s", BLACK),
    ];
    let most = plot::most(lines.iter().flat_map(|l| &l.points));
    let titles = ["Decode, tokens a second", "tokens in the cache", "tokens/s"];
    let most = (most.0 * 1.05, most.1 * 1.1);
    plot::lines(svg, (700, 380), titles, most, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_written_and_decode_by_depth_is_drawn() {
        let row = |what: &str, depth: u32, kv: &str, candle: Option<f64>| {
            json!({"what": what, "depth": depth, "kv": kv, "threads": 2, "batch": 1, "tok_s": 100.0,
                "candle_tok_s": candle, "ratio": candle.map(|c| 100.0 / c), "linear_share": 0.5})
        };
        let report = json!({"cpus": 2, "rows": [
            row("prefill", 0, "f16", Some(50.0)), row("decode", 0, "f16", Some(40.0)),
            row("decode", 2048, "f16", Some(10.0)), row("decode", 0, "q8_0", None),
        ]});
        let page = section(&report);
        let want = "| decode | 2048 | f16 | 2 | 1 | 100.0 | 10.0 | 10.0 | - | 50 % | - | - | - |";
        assert!(page.contains(want), "{page}");
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert!(
            svg.contains("kvpsi, q8_0") && !svg.contains("llama.cpp"),
            "{svg}"
        );
    }
}
