//! `cargo xtask bench enough`: how much goes for how much is missing.
//!
//! Owns the table and the plot; `kvpsi-bench enough` measures.

use crate::plot::{self, Drawn, Line};
use crate::report::{Args, Bench, machine, median, number, rows_of, sorted};
use anyhow::Result;
use plotters::prelude::*;
use serde_json::{Value, json};
use std::fmt::Write;
use xshell::Shell;

const BENCH: Bench = Bench {
    name: "enough",
    needs: "it takes root, for a memory cgroup, and 6 GiB of memory",
    rows: |lines| rows(&lines),
    section,
    draw,
};

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, run or written; or this is not root.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    let command: &[&str] = match args.quick {
        true => &["enough", "--limits=256,1024", "--rates=10,100"],
        false => &["enough", "--rounds=2"],
    };
    BENCH.run(sh, args, true, command)
}

/// Each limit, rate and size once, over its rounds.
fn rows(runs: &[Value]) -> Vec<Value> {
    let key = |r: &Value| ["limit", "rate", "missing"].map(|k| r[k].as_u64());
    let mut keys: Vec<_> = runs.iter().map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    let cell = |k: [Option<u64>; 3]| {
        let of: Vec<&Value> = runs.iter().filter(|r| key(r) == k).collect();
        let all = |name: &str| sorted(of.iter().copied(), name);
        let sum = |name: &str| all(name).iter().sum::<f64>();
        json!({
            "limit": k[0], "rate": k[1], "missing": k[2], "rounds": of.len(),
            "by_missing": all("by_missing"), "trims": median(&all("trims")),
            "hits": sum("hits"), "oom_kills": sum("oom_kills"), "tokens": median(&all("tokens")),
            "kept": median(&all("kept")), "oracle": median(&all("oracle")),
        })
    };
    keys.into_iter().map(cell).collect()
}

/// Ratios of all runs, sorted.
fn ratios(report: &Value) -> Vec<f64> {
    let lists = rows_of(&report["rows"]).map(|r| crate::tail::times(&r["by_missing"]));
    let mut all: Vec<f64> = lists.flatten().collect();
    all.sort_by(f64::total_cmp);
    all
}

fn section(report: &Value) -> String {
    let all = ratios(report);
    let kills = sorted(rows_of(&report["rows"]), "oom_kills");
    let mut t = format!(
        "## Enough and no more\n\n\
         `cargo xtask bench enough`. {}\n\n\
         Below a cgroup's limit with 16 MiB of room a process grows by more than that, at a rate, beside a model that is idle\n\
         with a conversation that ended and one that goes on. What is missing is known beforehand; an oracle would return that\n\
         and no more, of the ended conversation first. Returned by missing, median of all {} runs: **{}** (most {}); OOM kills:\n\
         **{}**. The headroom (2 to 8 MiB, and more by the cache's share of the limit) is in what is returned. Hits of the limit and OOM\n\
         kills of all rounds together, else medians.\n\n\
         ![Enough](enough.svg)\n\n\
         | limit, MiB | MiB/s | missing, MiB | returned by missing | trims | hits | OOM kills | tokens before | kept | by an oracle |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        machine(report),
        all.len(),
        number(median(&all), 2),
        number(all.last().copied(), 2),
        number(kills.iter().sum::<f64>(), 0),
    );
    for r in rows_of(&report["rows"]) {
        let mib = |key: &str| r[key].as_u64().unwrap_or(0) >> 20;
        let whole = |key: &str| number(r[key].clone(), 0);
        let ratio = median(&crate::tail::times(&r["by_missing"]));
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            mib("limit"),
            r["rate"],
            mib("missing"),
            number(ratio, 2),
            whole("trims"),
            whole("hits"),
            whole("oom_kills"),
            whole("tokens"),
            whole("kept"),
            whole("oracle"),
        );
    }
    t
}

fn draw(report: &Value, svg: &mut String) -> Drawn {
    let all = ratios(report);
    let points: Vec<(f64, f64)> = (1..).map(f64::from).zip(all).collect();
    let most = plot::most(points.iter());
    let line = Line {
        name: None,
        points,
        colour: BLUE,
        dot: 3,
    };
    let title = "Returned by missing, all runs sorted";
    let size = (most.0, most.1 * 1.1);
    plot::lines(
        svg,
        (760, 320),
        [title, "run", "ratio"],
        size,
        [line].into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_a_cell_are_one_row_and_kills_are_summed() {
        let run = |limit: u64, ratio: f64, kills: u64| {
            json!({
                "limit": limit << 20, "rate": 10, "missing": 12 << 20, "by_missing": ratio,
                "trims": 4, "hits": 0, "oom_kills": kills, "tokens": 1500, "kept": 1500, "oracle": 1500,
            })
        };
        let runs = [run(512, 1.5, 1), run(256, 1.1, 0), run(256, 1.3, 0)];
        let rows = rows(&runs);
        assert_eq!(rows.len(), 2);
        let report = json!({"cpus": 2, "rows": rows});
        let page = section(&report);
        assert!(
            page.contains("all 3 runs: **1.30** (most 1.50); OOM kills:\n**1**"),
            "{page}"
        );
        assert!(
            page.contains("| 256 | 10 | 12 | 1.30 | 4 | 0 | 0 | 1500 |"),
            "{page}"
        );
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert!(svg.contains("Returned"));
    }
}
