//! `cargo xtask bench cotenant`: how a neighbour fares that shares a memory
//! limit with the model.
//!
//! Owns the table and the plot; `kvpsi-bench cotenant` measures. A variant's
//! figure is the median of its rounds.

use crate::plot::{self, Drawn};
use crate::report::{Args, Bench, machine, median, number, rows_of, sorted, text};
use anyhow::Result;
use plotters::prelude::*;
use serde_json::{Map, Value};
use std::fmt::Write;
use xshell::Shell;

const FIGURES: [&str; 12] = [
    "neighbour_p50_us",
    "neighbour_p99_us",
    "neighbour_max_us",
    "psi_some_us",
    "psi_full_us",
    "refaults",
    "oom_kills",
    "tok_s",
    "kv_tokens",
    "trims",
    "early",
    "mass_dropped",
];

/// How much to measure, and below which wall.
#[derive(Debug, clap::Args)]
pub struct CotenantArgs {
    #[command(flatten)]
    pub args: Args,
    /// Measure where the whole machine is short of memory instead: a process takes all but some MiB of it, for
    /// minutes, and is the first that the OOM killer would choose
    #[arg(long)]
    pub machine: bool,
}

/// Below a cgroup's limit, and at the end of the machine's memory: the name of
/// the report, the wall, and the variants.
const CGROUP: (&str, &str, &str) = (
    "cotenant",
    "cgroup",
    "fixed,psi-poll,psi-poll-10ms,psi-trigger,ebpf",
);
const MACHINE: (&str, &str, &str) = (
    "cotenant-machine",
    "machine",
    "fixed,psi-poll,psi-trigger,ebpf-late,ebpf",
);

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, run or written; or this is not root.
pub fn run(sh: &Shell, args: &CotenantArgs) -> Result<()> {
    let rounds = if args.args.quick { "2" } else { "7" };
    let (name, wall, variants) = if args.machine { MACHINE } else { CGROUP };
    let bench = Bench {
        name,
        needs: "it takes root, for a memory cgroup",
        rows: |lines| rows(&lines),
        section,
        draw,
    };
    let command = [
        "cotenant",
        "--wall",
        wall,
        "--rounds",
        rounds,
        "--variants",
        variants,
    ];
    bench.run(sh, &args.args, true, &command)
}

/// A row for each variant, in the order of the first round.
fn rows(runs: &[Value]) -> Vec<Value> {
    let mut variants: Vec<&str> = Vec::new();
    for run in runs {
        let variant = run["variant"].as_str().unwrap_or_default();
        if !variants.contains(&variant) {
            variants.push(variant);
        }
    }
    let row = |variant: &&str| {
        let of = |key: &str| sorted(runs.iter().filter(|r| r["variant"] == *variant), key);
        let mut row = Map::new();
        row.insert("variant".into(), (*variant).into());
        row.insert("rounds".into(), of("round").len().into());
        for key in FIGURES {
            row.insert(key.into(), median(&of(key)).into());
        }
        let p99 = of("neighbour_p99_us");
        let ends = [p99.first(), p99.last()].map(|v| v.copied());
        row.insert("neighbour_p99_us_spread".into(), ends.to_vec().into());
        row.insert("perplexity_cost".into(), cost(runs, variant).into());
        // Kills are counted, not halved.
        row.insert(
            "oom_kills".into(),
            of("oom_kills").iter().sum::<f64>().into(),
        );
        Value::Object(row)
    };
    variants.iter().map(row).collect()
}

/// By how much the text was predicted worse than by `fixed`: the ratio of
/// perplexities over the tokens of all rounds, less one.
fn cost(runs: &[Value], variant: &str) -> Option<f64> {
    let mean = |variant: &str| {
        let of = runs.iter().filter(|r| r["variant"] == variant);
        let pairs = of.filter_map(|r| r["nll"].as_f64().zip(r["scored"].as_f64()));
        let (nll, scored) = pairs.fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
        (scored > 0.0).then_some(nll / scored)
    };
    Some((mean(variant)? - mean("fixed")?).exp() - 1.0)
}

/// What is said before the table.
fn told(report: &Value) -> String {
    let common = "The neighbour touches 8 MiB and reads 16 pages of a file of 32 MiB, some 200 times a second, and times each\n\
         turn. The model reads on in a text, token after token; perplexity is how much worse it predicts the next ones\n\
         than `fixed` does, whose cache is never trimmed. Medians of rounds whose order changes; in brackets the least\n\
         and the most of p99; OOM kills of all rounds together; stall time is the whole system's. Mass is the sum over\n\
         trims of the share of recent attention that fell on what was dropped.";
    if report["bench"] == MACHINE.0 {
        return format!(
            "## A neighbour on a machine that is short of memory\n\n\
             `cargo xtask bench cotenant --machine`. {}\n\n\
             No cgroup: a balloon leaves what all zones keep and 4 MiB more than the run takes. The model has a conversation\n\
             of 700 tokens, and one that ended and is cached. A third program takes, every 1.5 s, all of that and 180 MiB beyond. The\n\
             neighbour's file has 96 MiB here.\n\
             `ebpf-late` is eBPF to which kswapd's wake does not count.\n\n{common}\n\n\
             ![Neighbour](cotenant-machine.svg)\n\n",
            machine(report)
        );
    }
    format!(
        "## A neighbour below the same limit\n\n\
         `cargo xtask bench cotenant`. {}\n\n\
         All are in a cgroup. A third program takes, every 1.5 s, 14 MiB more than there is room for. A cgroup's limit\n\
         wakes no kswapd: early warning has no part here.\n\n{common}\n\n\
         ![Neighbour](cotenant.svg)\n\n",
        machine(report)
    )
}

fn section(report: &Value) -> String {
    let mut t = told(report);
    t += "| variant | rounds | p50 us | p99 us | max us | some ms | full ms | refaults | OOM kills | tokens/s | KV tokens | trims | early | mass | perplexity |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for r in rows_of(&report["rows"]) {
        let whole = |key: &str| number(r[key].clone(), 0);
        let by = |key: &str, by: f64| number(r[key].as_f64().map(|n| n / by), 1);
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} ({} to {}) | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            text(&r["variant"]),
            r["rounds"],
            whole("neighbour_p50_us"),
            whole("neighbour_p99_us"),
            number(r["neighbour_p99_us_spread"][0].clone(), 0),
            number(r["neighbour_p99_us_spread"][1].clone(), 0),
            whole("neighbour_max_us"),
            by("psi_some_us", 1e3),
            by("psi_full_us", 1e3),
            whole("refaults"),
            whole("oom_kills"),
            by("tok_s", 1.0),
            whole("kv_tokens"),
            whole("trims"),
            whole("early"),
            number(r["mass_dropped"].clone(), 2),
            r["perplexity_cost"]
                .as_f64()
                .map_or_else(|| "-".to_owned(), |c| format!("{:+.2} %", c * 100.0)),
        );
    }
    t
}

fn draw(report: &Value, svg: &mut String) -> Drawn {
    let rows: Vec<&Value> = rows_of(&report["rows"]).collect();
    let area = plot::area(svg, (760, 320))?;
    let of = |r: &Value, key: &str| r[key].as_f64().unwrap_or(0.0);
    let most = rows
        .iter()
        .map(|r| of(r, "neighbour_p99_us"))
        .fold(1.0, f64::max);
    let places = rows.len().max(1);
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "The neighbour's turn: median (dark) and p99",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d((0..places - 1).into_segmented(), 0.0..most * 1.1)?;
    let variant = |r: &&Value| r["variant"].as_str().unwrap_or_default().to_owned();
    let variants: Vec<String> = rows.iter().map(variant).collect();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_desc("us")
        .x_labels(places + 1)
        .x_label_formatter(&plot::names(&variants))
        .light_line_style(WHITE)
        .draw()?;
    for (i, r) in rows.iter().enumerate() {
        let colour = if r["variant"] == "ebpf" { RED } else { BLUE };
        for (key, style) in [
            ("neighbour_p99_us", colour.mix(0.4).filled()),
            ("neighbour_p50_us", colour.filled()),
        ] {
            let corners = [
                (SegmentValue::Exact(i), 0.0),
                (SegmentValue::Exact(i + 1), of(r, key)),
            ];
            let mut bar = Rectangle::new(corners, style);
            bar.set_margin(0, 0, 24, 24);
            chart.draw_series([bar])?;
        }
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_variant_has_the_median_of_its_rounds_and_the_sum_of_its_kills() {
        let run = |round: u32, variant: &str, p99: f64| {
            json!({
                "round": round, "variant": variant, "neighbour_p99_us": p99, "oom_kills": 1,
                "psi_some_us": 2000, "scored": 100, "nll": if variant == "ebpf" { 201.0 } else { 200.0 },
            })
        };
        let runs = [
            run(0, "fixed", 30.0),
            run(0, "ebpf", 3.0),
            run(1, "ebpf", 5.0),
            run(1, "fixed", 10.0),
            run(2, "fixed", 20.0),
        ];
        let rows = rows(&runs);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["neighbour_p99_us"], 20.0);
        assert_eq!(rows[0]["neighbour_p99_us_spread"], json!([10.0, 30.0]));
        assert_eq!(rows[0]["oom_kills"], 3.0);
        let report = json!({"cpus": 2, "rows": rows});
        let page = section(&report);
        assert!(
            page.contains("| fixed | 3 | - | 20 (10 to 30) | - | 2.0 | - |"),
            "{page}"
        );
        assert!(page.contains("+1.01 % |\n"), "{page}");
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert!(svg.contains("ebpf") && svg.contains("fixed"));
    }
}
