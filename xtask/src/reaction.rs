//! `cargo xtask bench reaction`: how long a stall lasts before pages are back,
//! by each signal.
//!
//! Owns what is made of the bursts; `kvpsi-bench reaction` measures.

use crate::plot::{self, Drawn};
use crate::report::{Args, Bench, machine, number, rows_of, text};
use anyhow::Result;
use plotters::prelude::*;
use serde_json::{Value, json};
use std::fmt::Write;
use xshell::Shell;

/// All that was measured of a source at a load.
#[derive(Default)]
struct Runs {
    source: String,
    load: String,
    bursts: usize,
    /// From the onset of a burst's first stall, us: to the decision, and to its
    /// pages back.
    decided: Vec<f64>,
    returned: Vec<f64>,
    calm: Vec<f64>,
    storm: Vec<f64>,
    /// Bursts in which no task stalled.
    silent: usize,
}

const BENCH: Bench = Bench {
    name: "reaction",
    needs: "it takes root, for BPF and a memory cgroup",
    rows: |lines| rows(&lines),
    section,
    draw,
};

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, run or written; or this is not root.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    let command: &[&str] = if args.quick {
        // The mean of where in 10 ms a poller looks takes as many.
        &[
            "reaction",
            "--rounds=2",
            "--loads=decoding",
            "--ears=ebpf,psi-poll-10ms",
            "--bursts=15",
            "--ebpf-bursts=15",
            "--calm=4",
        ]
    } else {
        &["reaction", "--rounds=4"]
    };
    BENCH.run(sh, args, true, command)
}

/// A row for each source and load, in the order of the first round.
fn rows(lines: &[Value]) -> Vec<Value> {
    let mut all: Vec<Runs> = Vec::new();
    for line in lines {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let (source, load) = (text("source"), text("load"));
        let found = all
            .iter()
            .position(|r| (&r.source, &r.load) == (&source, &load));
        let at = found.unwrap_or(all.len());
        if found.is_none() {
            all.push(Runs {
                source,
                load,
                ..Runs::default()
            });
        }
        all[at].take(line);
    }
    all.iter_mut().map(Runs::row).collect()
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
    fn take(&mut self, line: &Value) {
        match line["what"].as_str() {
            Some("burst") => {
                self.bursts += 1;
                self.decided.extend(line["decided_us"].as_f64());
                self.returned.extend(line["returned_us"].as_f64());
            }
            Some("cpu") => {
                self.calm.extend(line["calm"].as_f64());
                self.storm.extend(line["storm"].as_f64());
            }
            _ => self.silent += 1,
        }
    }

    fn row(&mut self) -> Value {
        for v in [
            &mut self.decided,
            &mut self.returned,
            &mut self.calm,
            &mut self.storm,
        ] {
            v.sort_by(f64::total_cmp);
        }
        let answered = self.returned.len();
        #[expect(clippy::cast_precision_loss, reason = "a short list")]
        let mean = (answered > 0).then(|| self.returned.iter().sum::<f64>() / answered as f64);
        json!({
            "mean_us": mean,
            "source": self.source, "load": self.load, "bursts": self.bursts, "answered": answered,
            "decided_p50_us": quantile(&self.decided, 0.5),
            "decided_p99_us": quantile(&self.decided, 0.99),
            "p50_us": quantile(&self.returned, 0.5), "p99_us": quantile(&self.returned, 0.99),
            "max_us": quantile(&self.returned, 1.0),
            "missed": self.bursts - answered, "silent": self.silent,
            "cpu_percent": quantile(&self.storm, 0.5),
            "calm_cpu_percent": quantile(&self.calm, 0.5),
        })
    }
}

fn section(report: &Value) -> String {
    let mut t = String::from("## Reaction: from a stall's onset to returned pages\n\n");
    let rows = || rows_of(&report["rows"]);
    let _ = writeln!(
        t,
        "`cargo xtask bench reaction`. {}\n\n\
         A hog reads a mapped file of 128 MiB where 32 MiB are left below the limit of the model's cgroup, until the\n\
         model has given something back, for 6 s at most: a burst that is not answered by then is missed. The onset of\n\
         its first stall is what eBPF saw in another process, whichever signal the model listens to. Pages are returned\n\
         when the first `madvise` is, of one block. Every burst finds the same cache, and begins at another moment of a\n\
         poller's second; signals take turns. Processor time is of the thread that listens, in percent of one core, in\n\
         a storm of 3 s in which nothing is given back, and without pressure; what the programs take in the\n\
         kernel is told below, of `overhead`.\n\n\
         `psi-trigger` is 10 ms of stall in the least window that the kernel grants; `psi-poll` what `--signal psi-poll` does, every 100 ms\n\
         and every 10 while it moves; `psi-poll-10ms` reads PSI's total every 10 ms; `psi-avg10-1s` reads avg10 once a\n\
         second, and takes anything above 0 for pressure: it still tells of the burst before, which flatters it. /proc/vmstat counts no reclaim of cgroups. How soon each\n\
         reports on other kernels, privileged triggers among them: [KERNELS.md](KERNELS.md).\n\n\
         ![Reaction](reaction.svg)\n\n\
         | source | load | bursts | missed | decided p50 us | p99 | returned p50 us | p99 | max | of ebpf's p50 | CPU % storm | CPU % calm |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        machine(report),
    );
    for r in rows() {
        let number = |key: &str, digits: usize| number(r[key].clone(), digits);
        let ours = rows().find(|o| o["source"] == "ebpf" && o["load"] == r["load"]);
        let times = ours
            .and_then(|o| Some(r["p50_us"].as_f64()? / o["p50_us"].as_f64()?))
            .map_or_else(|| "-".to_owned(), |n| format!("{n:.1}"));
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {times} | {} | {} |",
            text(&r["source"]),
            text(&r["load"]),
            r["bursts"],
            r["missed"],
            number("decided_p50_us", 0),
            number("decided_p99_us", 0),
            number("p50_us", 0),
            number("p99_us", 0),
            number("max_us", 0),
            number("cpu_percent", 3),
            number("calm_cpu_percent", 4),
        );
    }
    for r in rows().filter(|r| r["silent"].as_u64() > Some(0)) {
        let (source, load) = (text(&r["source"]), text(&r["load"]));
        let _ = writeln!(
            t,
            "\nLeft out of {source}, {load}: {} burst(s) in which no task stalled before it was answered.",
            r["silent"]
        );
    }
    t
}

fn draw(report: &Value, svg: &mut String) -> Drawn {
    let rows: Vec<&Value> = rows_of(&report["rows"]).collect();
    let height = u32::try_from(rows.len())? * 40 + 110;
    let area = plot::area(svg, (820, height))?;
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
    let name = |r: &&Value| format!("{}, {}", text(&r["source"]), text(&r["load"]));
    let names: Vec<String> = rows.iter().map(name).collect();
    chart
        .configure_mesh()
        .x_desc("us")
        .y_labels(places + 1)
        .y_label_formatter(&plot::names(&names))
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
        let burst = |source: &str, us: Option<f64>| json!({"what": "burst", "source": source, "load": "decoding", "decided_us": us.map(|u| u / 2.0), "returned_us": us});
        let lines = [
            burst("ebpf", Some(300.0)),
            burst("ebpf", Some(100.0)),
            burst("psi-poll", Some(9000.0)),
            burst("ebpf", Some(200.0)),
            burst("vmstat", None),
            json!({"what": "silent", "source": "vmstat", "load": "decoding"}),
            json!({"what": "cpu", "source": "ebpf", "load": "decoding", "calm": 0.0, "storm": 0.25}),
        ];
        let rows = rows(&lines);
        assert_eq!(
            (&rows[0]["p50_us"], &rows[0]["p99_us"]),
            (&json!(200.0), &json!(300.0))
        );
        assert_eq!(rows[2]["missed"], 1);
        let report = json!({"cpus": 2, "rows": rows});
        let page = section(&report);
        for row in [
            "| ebpf | decoding | 3 | 0 | 100 | 150 | 200 | 300 | 300 | 1.0 | 0.250 | 0.0000 |",
            "| psi-poll | decoding | 1 | 0 | 4500 | 4500 | 9000 | 9000 | 9000 | 45.0 | - | - |",
            "| vmstat | decoding | 1 | 1 | - | - | - | - | - | - | - | - |",
        ] {
            assert!(page.contains(row), "{page}");
        }
        assert!(
            page.contains("Left out of vmstat, decoding: 1 burst(s)"),
            "{page}"
        );
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert!(svg.contains("ebpf, decoding"), "{svg}");
    }
}
