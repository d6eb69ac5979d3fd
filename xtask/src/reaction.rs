//! `cargo xtask bench reaction`: how long a stall lasts before pages are back,
//! by each signal.
//!
//! Owns the order of the runs and what is made of them; `kvpsi demo` measures:
//! a hog reads a mapped file larger than the room in the model's cgroup, and
//! eBPF says when the stall began, whichever signal is listened to. Invariant:
//! signals are run in turn, each round beginning with another one.

use crate::{
    benchmarks::{Args, machine, publish, report},
    ebpf, model, places, say, setup,
};
use anyhow::{Context, Result, anyhow, ensure};
use plotters::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf};
use xshell::{Shell, cmd};

const SOURCES: [&str; 4] = ["ebpf", "psi-trigger", "psi-poll", "vmstat"];

/// What the model does meanwhile, and the tokens and the pause after each, in
/// ms, that make some five bursts.
const LOADS: [(&str, &str, &str); 2] = [("decoding", "2400", "0"), ("idle", "500", "20")];

/// All runs of a source at a load.
#[derive(Default)]
struct Runs {
    /// Onset of a burst's first stall to its first pages returned, us.
    returned: Vec<f64>,
    bursts: f64,
    missed: f64,
    cpu: Vec<f64>,
    calm_cpu: Vec<f64>,
}

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, run or written; or this is not root.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    setup::on_the_way(sh)?;
    ebpf::build_if_possible(sh)?;
    let model = model::get(sh, args.model.as_deref())?;
    say("building in release");
    cmd!(
        sh,
        "cargo build --release --package kvpsi-runtime --bin kvpsi"
    )
    .quiet()
    .run()?;
    let bench = Bench {
        sh,
        program: places::target().join("release/kvpsi"),
        model,
        report: places::target().join("bench/demo.json"),
    };
    fs::create_dir_all(places::target().join("bench"))?;
    let rounds = if args.quick { 1 } else { 2 };
    let loads = if args.quick { &LOADS[..1] } else { &LOADS[..] };
    let mut all: BTreeMap<(usize, usize), Runs> = BTreeMap::new();
    for round in 0..rounds {
        for (l, load) in loads.iter().enumerate() {
            for turn in 0..SOURCES.len() {
                let s = (round + turn) % SOURCES.len();
                say(format!(
                    "round {} of {rounds}: {}, {}",
                    round + 1,
                    SOURCES[s],
                    load.0
                ));
                bench.pressed(SOURCES[s], *load, all.entry((l, s)).or_default())?;
            }
        }
        for (s, source) in SOURCES.iter().enumerate() {
            let calm = bench.demo(source, &["-n", "150", "--pause", "600000"])?;
            if let Some(cpu) = calm["reactor_cpu_percent"].as_f64() {
                all.entry((0, s)).or_default().calm_cpu.push(cpu);
            }
        }
    }
    let rows: Vec<Value> = all
        .iter_mut()
        .map(|((l, s), runs)| runs.row(SOURCES[*s], LOADS[*l].0))
        .collect();
    let report = report("reaction", args.quick, rows);
    let mut svg = String::new();
    draw(&report, &mut svg).map_err(|e| anyhow!("no plot: {e}"))?;
    publish(&report, &section(&report), &svg, args)
}

struct Bench<'a> {
    sh: &'a Shell,
    program: PathBuf,
    model: PathBuf,
    report: PathBuf,
}

impl Bench<'_> {
    fn demo(&self, source: &str, more: &[&str]) -> Result<Value> {
        let (program, model, report) = (&self.program, &self.model, &self.report);
        let _ = fs::remove_file(report);
        cmd!(
            self.sh,
            "{program} demo --quiet --press file --signal {source} --model {model} --report {report} {more...}"
        )
        .quiet()
        .ignore_stdout()
        .run()
        .context("kvpsi demo failed; it takes root, for a memory cgroup")?;
        Ok(serde_json::from_slice(&fs::read(report)?)?)
    }

    fn pressed(&self, source: &str, load: (&str, &str, &str), runs: &mut Runs) -> Result<()> {
        // Calm for long enough that the cache grows again.
        let more = ["-n", load.1, "--token-pause", load.2, "--pause", "3000"];
        let report = self.demo(source, &more)?;
        ensure!(report["signal"] == source, "{source} is not to be had here");
        let firsts = report["first_returned_us"].as_array().into_iter().flatten();
        runs.returned.extend(firsts.filter_map(Value::as_f64));
        let number = |v: &Value| v.as_f64().unwrap_or(0.0);
        runs.bursts += number(&report["bursts"][0]);
        runs.missed += number(&report["missed"]);
        runs.cpu.extend(report["reactor_cpu_percent"].as_f64());
        Ok(())
    }
}

/// A quantile of sorted values, null of none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a place in a short list"
)]
fn quantile(sorted: &[f64], q: f64) -> Value {
    let place = (q * sorted.len() as f64).ceil() as usize;
    json!(sorted.get(place.saturating_sub(1)))
}

impl Runs {
    fn row(&mut self, source: &str, load: &str) -> Value {
        for v in [&mut self.returned, &mut self.cpu, &mut self.calm_cpu] {
            v.sort_by(f64::total_cmp);
        }
        json!({
            "source": source, "load": load, "answered": self.returned.len(),
            "p50_us": quantile(&self.returned, 0.5), "p99_us": quantile(&self.returned, 0.99),
            "max_us": quantile(&self.returned, 1.0),
            "bursts": self.bursts, "missed": self.missed,
            "cpu_percent": quantile(&self.cpu, 0.5),
            "calm_cpu_percent": quantile(&self.calm_cpu, 0.5),
        })
    }
}

fn section(report: &Value) -> String {
    let mut t = String::from("## Reaction: from a stall's onset to returned pages\n\n");
    let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    let _ = writeln!(
        t,
        "`cargo xtask bench reaction`. {}\n\n\
         A hog reads a mapped file larger than the room that is left in the model's cgroup. The onset is what eBPF\n\
         saw, whichever signal was listened to; pages are returned when the first `madvise` of the burst is. A burst is\n\
         missed that found 2 MiB or more to take and ended before any had gone. Processor time is of the\n\
         reactor's thread, in percent of one core, while pressed and while nobody presses. `psi-poll` reads PSI's\n\
         total every 10 ms while it moves and every 100 ms before; `psi-trigger` is the least window that the kernel\n\
         grants.\n\n![Reaction](reaction.svg)\n\n\
         | source | load | bursts | answered | p50 us | p99 us | max us | missed | CPU % | CPU % calm |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        machine(report),
    );
    for r in report["rows"].as_array().into_iter().flatten() {
        let number = |key: &str, digits: usize| {
            r[key]
                .as_f64()
                .map_or_else(|| "-".to_owned(), |n| format!("{n:.digits$}"))
        };
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            text(&r["source"]),
            text(&r["load"]),
            number("bursts", 0),
            r["answered"],
            number("p50_us", 0),
            number("p99_us", 0),
            number("max_us", 0),
            number("missed", 0),
            number("cpu_percent", 3),
            number("calm_cpu_percent", 4),
        );
    }
    t
}

fn draw(report: &Value, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let rows: Vec<&Value> = report["rows"].as_array().into_iter().flatten().collect();
    let height = u32::try_from(rows.len())? * 40 + 110;
    let area = SVGBackend::with_string(svg, (820, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let places = rows.len().max(1);
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "Onset to returned pages: median, p99 and maximum",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(150)
        .build_cartesian_2d(
            (10f64..10_000_000.0).log_scale(),
            (0..places - 1).into_segmented(),
        )?;
    let name = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(i) => rows.get(*i).map_or_else(String::new, |r| {
            let text = |key: &str| r[key].as_str().unwrap_or_default();
            format!("{}, {}", text("source"), text("load"))
        }),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .x_desc("us")
        .y_labels(places + 1)
        .y_label_formatter(&name)
        .light_line_style(WHITE)
        .draw()?;
    for (i, r) in rows.iter().enumerate() {
        let at = |key: &str| {
            r[key]
                .as_f64()
                .map(|x| (x.max(10.0), SegmentValue::CenterOf(i)))
        };
        let (Some(p50), Some(p99), Some(max)) = (at("p50_us"), at("p99_us"), at("max_us")) else {
            continue;
        };
        let colour = if r["source"] == "ebpf" { RED } else { BLUE };
        let line = PathElement::new([p50.clone(), max.clone()], colour.stroke_width(2));
        chart.draw_series([line])?;
        chart.draw_series([Circle::new(p50, 6, colour.filled())])?;
        chart.draw_series([Circle::new(p99, 4, colour.stroke_width(2))])?;
        chart.draw_series([Circle::new(max, 2, colour.filled())])?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_quantiles_and_the_page_and_the_plot_name_every_one() {
        let mut runs = Runs {
            returned: vec![300.0, 100.0, 200.0],
            bursts: 3.0,
            ..Runs::default()
        };
        let row = runs.row("ebpf", "decoding");
        assert_eq!(
            (&row["p50_us"], &row["p99_us"]),
            (&json!(200.0), &json!(300.0))
        );
        assert!(row["cpu_percent"].is_null());
        let other = Runs::default().row("vmstat", "idle");
        let report = json!({"cpus": 2, "rows": [row, other]});
        let page = section(&report);
        assert!(
            page.contains("| ebpf | decoding | 3 | 3 | 200 | 300 | 300 | 0 | - | - |"),
            "{page}"
        );
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert!(svg.contains("ebpf, decoding"), "{svg}");
    }
}
