//! `cargo xtask bench stream`: one that reads a file from end to end beside the
//! model, which is to cost neither of them anything.
//!
//! Owns the table and the plot; `kvpsi-bench cotenant --stream` measures.

use crate::plot::{self, Drawn, Line};
use crate::report::{Args, Bench, machine, median, number, percent, rows_of, sorted, text};
use anyhow::Result;
use plotters::prelude::*;
use serde_json::{Value, json};
use std::fmt::Write;
use xshell::Shell;

const BENCH: Bench = Bench {
    name: "stream",
    needs: "it takes root, for a memory cgroup",
    rows: |lines| rows(&lines),
    section,
    draw,
};

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, run or written; or this is not root.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    let rounds = if args.quick { "3" } else { "12" };
    let command = [
        "cotenant",
        "--stream",
        "--wall=cgroup,machine",
        "--variants=off,ebpf",
        "--tokens=400",
        "--rounds",
        rounds,
    ];
    BENCH.run(sh, args, true, &command)
}

/// A row for each wall and variant.
fn rows(runs: &[Value]) -> Vec<Value> {
    let mut rows = Vec::new();
    for wall in ["cgroup", "machine"] {
        let of = |variant: &str| {
            let of: Vec<&Value> = runs
                .iter()
                .filter(|r| r["wall"] == wall && r["variant"] == variant)
                .collect();
            of
        };
        let off = of("off");
        for variant in ["off", "ebpf"] {
            let runs = of(variant);
            // Those of a round follow each other: a disk is faster by the hour.
            let mut ratios: Vec<f64> = runs
                .iter()
                .filter_map(|r| {
                    let pair = off.iter().find(|o| o["round"] == r["round"])?;
                    Some(r["mib_s"].as_f64()? / pair["mib_s"].as_f64()?)
                })
                .collect();
            ratios.sort_by(f64::total_cmp);
            let figure = |key: &str| median(&sorted(runs.iter().copied(), key));
            let sum = |key: &str| sorted(runs.iter().copied(), key).iter().sum::<f64>();
            rows.push(json!({
                "wall": wall, "variant": variant, "rounds": runs.len(),
                "without_pressure": runs.iter().filter(|r| r["pressed"] != true).count(),
                "mib_s": figure("mib_s"), "by_off": median(&ratios),
                "by_off_ends": [ratios.first(), ratios.last()], "by_off_rounds": ratios,
                "dropped": sum("trimmed_tokens"), "lost": sum("lost_tokens"),
                "trims": sum("trims"), "hits": figure("hits"), "tok_s": figure("tok_s"),
                "kswapd_pages": figure("kswapd_pages"), "direct_pages": figure("direct_pages"),
            }));
        }
    }
    rows
}

fn section(report: &Value) -> String {
    let mut t = format!(
        "## A file that is read from end to end\n\n\
         `cargo xtask bench stream`. {}\n\n\
         A program reads a file of 256 MiB three times, none of it cached at first, while the model reads on in a text:\n\
         below a cgroup's limit with 4 MiB of room, and on a machine of which a balloon leaves 4 MiB. No page of it is needed\n\
         twice, so that nothing is to be dropped for it. `off` is the model without kvpsi: no signal, no programs, no reactor.\n\
         Medians of rounds; the ratio is of the two of a round, in brackets the least and the most; tokens dropped and\n\
         trims of all rounds together. Pages are what was looked at for reclaim.\n\n\
         ![Stream](stream.svg)\n\n\
         | wall | variant | rounds | without pressure | MiB/s | by off | tokens dropped | lost | trims | hits | kswapd pages | direct pages | model's tokens/s |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        machine(report)
    );
    for r in rows_of(&report["rows"]) {
        let whole = |key: &str| number(r[key].clone(), 0);
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {} | {} ({} to {}) | {} | {} | {} | {} | {} | {} | {} |",
            text(&r["wall"]),
            text(&r["variant"]),
            r["rounds"],
            r["without_pressure"],
            whole("mib_s"),
            percent(r["by_off"].clone(), 1),
            percent(r["by_off_ends"][0].clone(), 0),
            percent(r["by_off_ends"][1].clone(), 0),
            whole("dropped"),
            whole("lost"),
            whole("trims"),
            whole("hits"),
            whole("kswapd_pages"),
            whole("direct_pages"),
            number(r["tok_s"].clone(), 1),
        );
    }
    t
}

fn draw(report: &Value, svg: &mut String) -> Drawn {
    let mut lines = Vec::new();
    for (wall, colour) in [("cgroup", RED), ("machine", BLUE)] {
        let row = rows_of(&report["rows"]).find(|r| r["wall"] == wall && r["variant"] == "ebpf");
        let ratios = row.map(|r| crate::tail::times(&r["by_off_rounds"]));
        let points = (1..).zip(ratios.unwrap_or_default());
        lines.push(Line {
            name: Some(wall),
            points: points.map(|(n, r)| (f64::from(n), r)).collect(),
            colour,
            dot: 4,
        });
    }
    let most = plot::most(lines.iter().flat_map(|l| &l.points));
    let title = "Throughput with kvpsi by that without, rounds in order";
    plot::lines(
        svg,
        (760, 320),
        [title, "round", "ratio"],
        (most.0, most.1 * 1.1),
        lines,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_one_round_and_dropped_tokens_are_summed() {
        let run = |round: u32, variant: &str, rate: u32, dropped: u32| {
            json!({
                "round": round, "variant": variant, "wall": "cgroup", "mib_s": rate,
                "trimmed_tokens": dropped, "pressed": true,
            })
        };
        let runs = [
            run(0, "off", 100, 0),
            run(0, "ebpf", 99, 0),
            run(1, "ebpf", 190, 32),
            run(1, "off", 200, 0),
            run(2, "off", 400, 0),
            run(2, "ebpf", 388, 32),
        ];
        let rows = rows(&runs);
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[1]["by_off"], 0.97);
        assert_eq!(rows[1]["dropped"], 64.0);
        let report = json!({"cpus": 2, "rows": rows});
        let page = section(&report);
        assert!(
            page.contains("| cgroup | ebpf | 3 | 0 | 190 | 97.0 % (95 % to 99 %) | 64 |"),
            "{page}"
        );
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert!(svg.contains("cgroup"));
    }
}
