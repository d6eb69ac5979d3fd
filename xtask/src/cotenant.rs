//! `cargo xtask bench cotenant`: how a neighbour fares that shares a memory
//! limit with the model.
//!
//! Owns the tables and the plot; `kvpsi-bench cotenant` measures, `tail` has the
//! arithmetic. Invariant: a run in which nothing pressed is told and does not
//! count, but for `none`, which may need nothing.

use crate::plot::{self, Drawn};
use crate::report::{Args, Bench, machine, median, number, percent, rows_of, sorted, text};
use crate::tail::{self, Burst, Turns};
use anyhow::Result;
use plotters::prelude::*;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use xshell::Shell;

/// Of a run: the median of rounds counts.
const OF_RUN: [&str; 8] = [
    "psi_some_us",
    "psi_full_us",
    "tok_s",
    "kv_tokens",
    "trimmed_tokens",
    "trims",
    "early",
    "mass_dropped",
];
/// Of a burst: the median of bursts counts.
const OF_BURST: [&str; 7] = [
    "hits",
    "refaults",
    "kswapd_pages",
    "direct_pages",
    "low",
    "queued_us",
    "blocked_us",
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
/// the report, the wall, the variants, and rounds of a full run.
const CGROUP: (&str, &str, &str, &str) = (
    "cotenant",
    "cgroup",
    "fixed,none,psi-poll,psi-poll-10ms,psi-trigger,ebpf",
    "6",
);
const MACHINE: (&str, &str, &str, &str) = (
    "cotenant-machine",
    "machine",
    "fixed,none,psi-poll,psi-trigger,ebpf-late,ebpf",
    "5",
);

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, run or written; or this is not root.
pub fn run(sh: &Shell, args: &CotenantArgs) -> Result<()> {
    let (name, wall, variants, rounds) = if args.machine { MACHINE } else { CGROUP };
    let bench = Bench {
        name,
        needs: "it takes root, for a memory cgroup",
        rows: |lines| rows(&lines),
        section,
        draw,
    };
    let (rounds, bursts, tokens) = if args.args.quick {
        ("2", "3", "600")
    } else {
        (rounds, "8", "1600")
    };
    let command = [
        "cotenant",
        "--wall",
        wall,
        "--rounds",
        rounds,
        "--bursts",
        bursts,
        "--tokens",
        tokens,
        "--variants",
        variants,
    ];
    bench.run(sh, &args.args, true, &command)
}

/// The runs of a variant that count, and their bursts.
struct Variant<'a> {
    name: &'a str,
    runs: Vec<&'a Value>,
    /// Runs in which no burst pressed.
    without: usize,
    bursts: Vec<Burst>,
    turns: Turns,
}

impl<'a> Variant<'a> {
    fn new(name: &'a str, all: &'a [Value], calm: f64) -> Self {
        let of = all.iter().filter(|r| r["variant"] == name);
        let (runs, without): (Vec<_>, Vec<_>) =
            of.partition(|r| name == "none" || rows_of(&r["bursts"]).any(|b| b["pressed"] == true));
        let burst = |r: &&'a Value| {
            let run = *r;
            rows_of(&run["bursts"]).map(move |b| Burst::new(run, b, calm))
        };
        let bursts: Vec<Burst> = runs.iter().flat_map(burst).collect();
        Self {
            name,
            without: without.len(),
            turns: Turns::new(&bursts),
            runs,
            bursts,
        }
    }

    fn p99(&self) -> Option<f64> {
        self.turns.quantile(0.99)
    }

    /// It listens to PSI, by looking or by a trigger.
    fn polls(&self) -> bool {
        self.name.starts_with("psi")
    }
}

/// A row for each variant, in the order of the first round.
fn rows(runs: &[Value]) -> Vec<Value> {
    let mut names: Vec<&str> = Vec::new();
    for run in runs {
        let name = run["variant"].as_str().unwrap_or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    // One for all: else a variant that is slow from the start would look good.
    let mut calm: Vec<f64> = runs
        .iter()
        .flat_map(|r| tail::times(&r["calm_us"]))
        .collect();
    calm.sort_by(f64::total_cmp);
    let calm = median(&calm);
    let all: Vec<Variant> = names
        .iter()
        .map(|name| Variant::new(name, runs, calm.unwrap_or(0.0)))
        .collect();
    let p99_of = |name: &str| all.iter().find(|v| v.name == name)?.p99();
    let polling = all.iter().filter(|v| v.polls()).filter_map(Variant::p99);
    let polling = polling.min_by(f64::total_cmp);
    let ours = all.iter().find(|v| v.name == "ebpf");
    all.iter()
        .map(|v| {
            let mut row = Map::new();
            let mut put = |key: &str, value: Value| row.insert(key.into(), value);
            put("variant", v.name.into());
            put("rounds", v.runs.len().into());
            put("rounds_without_pressure", v.without.into());
            put("bursts", v.bursts.len().into());
            let pressed = v.runs.iter().flat_map(|r| rows_of(&r["bursts"]));
            put(
                "pressed",
                pressed.filter(|b| b["pressed"] == true).count().into(),
            );
            put("turns", v.turns.len().into());
            put("calm_us", calm.into());
            put("p50_us", v.turns.quantile(0.5).into());
            put("p99_us", v.p99().into());
            put("p99_us_interval", json!(v.turns.interval(0.99)));
            put("max_us", v.turns.quantile(1.0).into());
            let excess = tail::excess(&v.bursts);
            put("excess_us", excess.map(|e| e.0).into());
            put("excess_us_interval", json!(excess.map(|e| e.1)));
            let (pairs, less) = ours.map_or((0, 0), |o| tail::pairs(&o.bursts, &v.bursts));
            put("pairs", pairs.into());
            put("ebpf_less", less.into());
            let by = |other: Option<f64>| Some(v.p99()? / other.filter(|o| *o > 0.0)?);
            put("p99_by_none", by(p99_of("none")).into());
            put("p99_by_polling", by(polling).into());
            for key in OF_RUN {
                put(key, median(&sorted(v.runs.iter().copied(), key)).into());
            }
            for key in OF_BURST {
                let bursts = v.runs.iter().flat_map(|r| rows_of(&r["bursts"]));
                put(key, median(&sorted(bursts, key)).into());
            }
            put("perplexity_cost", cost(runs, v.name).into());
            // Kills are counted, in every run.
            let of = runs.iter().filter(|r| r["variant"] == v.name);
            put(
                "oom_kills",
                sorted(of, "oom_kills").iter().sum::<f64>().into(),
            );
            Value::Object(row)
        })
        .collect()
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

/// The variants from the least p99 to the most; `~` where the intervals of two
/// that follow each other overlap.
fn order(report: &Value) -> String {
    let mut rows: Vec<&Value> = rows_of(&report["rows"])
        .filter(|r| r["p99_us"].is_number())
        .collect();
    let p99 = |r: &Value| r["p99_us"].as_f64().unwrap_or(f64::INFINITY);
    rows.sort_by(|a, b| p99(a).total_cmp(&p99(b)));
    let mut all = String::new();
    for (i, r) in rows.iter().enumerate() {
        if let Some(before) = i.checked_sub(1).map(|i| rows[i]) {
            let high = before["p99_us_interval"][1].as_f64();
            let low = r["p99_us_interval"][0].as_f64();
            all += if high < low { " < " } else { " ~ " };
        }
        all += text(&r["variant"]);
    }
    all
}

/// What is said before the tables.
fn told(report: &Value) -> String {
    let (title, option, wall) = if report["bench"] == MACHINE.0 {
        (
            "A neighbour on a machine that is short of memory",
            " --machine",
            "No cgroup: a balloon leaves what all zones keep and 4 MiB more than the run takes. Beside its conversation the model\n\
             has one of 350 tokens that ended and is cached. A burst takes all room and 180 MiB beyond. The neighbour's file\n\
             has 96 MiB. `ebpf-late` is eBPF to which kswapd's wake does not count. It is pressure where kswapd or an allocation\n\
             looked for pages to reclaim; a hit is an allocation that had to reclaim (`allocstall`).",
        )
    } else {
        (
            "A neighbour below the same limit",
            "",
            "All are in a cgroup. A burst takes 14 MiB more than there is room for. The neighbour's file has 32 MiB. It is pressure\n\
             where the limit was hit; a hit is a charge that had to reclaim. A cgroup's limit wakes no kswapd: early warning\n\
             has no part here.",
        )
    };
    format!(
        "## {title}\n\n\
         `cargo xtask bench cotenant{option}`. {}\n\n\
         The neighbour touches 8 MiB and reads 16 pages of a file, some 200 times a second, and times each turn. The model\n\
         has a new conversation of 700 tokens before each burst and reads on in it, token after token; 0.4 s later a third\n\
         program takes memory, and holds it for 0.2 s. {wall}\n\n\
         `fixed` never trims. `none` has no signal and keeps no cache beyond its floor from the start, in the same room: the\n\
         limit of what giving back can do. p50, p99 and max are of all turns of all bursts that began or ended from a\n\
         burst's first touch to 50 ms after its end; in brackets where 95 % of the p99 lie when bursts are drawn anew. Excess\n\
         is the time of turns above the calm median ({} us, of all turns before the first bursts), summed from a burst's\n\
         beginning to the next one's; `ebpf less` counts the bursts, paired by round and number, in which ebpf had less of it.\n\
         A round in which nothing pressed does not count (but for `none`).\n\n\
         By p99 (`~`: the intervals overlap): {}.\n\n\
         ![Neighbour]({}.svg)\n\n",
        machine(report),
        number(report["rows"][0]["calm_us"].clone(), 0),
        order(report),
        text(&report["bench"]),
    )
}

/// A figure and its interval, in another unit.
fn within(r: &Value, key: &str, by: f64, digits: usize) -> String {
    let n = |v: &Value| number(v.as_f64().map(|n| n / by), digits);
    let ends = &r[format!("{key}_interval")];
    format!("{} ({} to {})", n(&r[key]), n(&ends[0]), n(&ends[1]))
}

fn section(report: &Value) -> String {
    let mut t = told(report);
    t += "| variant | bursts | turns | p50 us | p99 us | max us | p99 by none | p99 by best PSI | excess ms a burst | ebpf less | perplexity |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for r in rows_of(&report["rows"]) {
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} of {} | {} |",
            text(&r["variant"]),
            r["bursts"],
            r["turns"],
            number(r["p50_us"].clone(), 0),
            within(r, "p99_us", 1.0, 0),
            number(r["max_us"].clone(), 0),
            number(r["p99_by_none"].clone(), 2),
            number(r["p99_by_polling"].clone(), 2),
            within(r, "excess_us", 1e3, 1),
            r["ebpf_less"],
            r["pairs"],
            r["perplexity_cost"]
                .as_f64()
                .map_or_else(|| "-".to_owned(), |c| format!("{:+.2} %", c * 100.0)),
        );
    }
    t += "\nThe pressure of a burst (medians; refaults and pages are the whole machine's; blocked and queued: what the\n\
         neighbour's turns in a burst waited for, asleep and for a processor), and of a run (medians; stall time is the whole\n\
         system's; OOM kills of all rounds). Mass is the sum over trims of the share of recent attention that was dropped.\n\n\
         | variant | rounds | without pressure | pressed | hits | refaults | kswapd pages | direct pages | free at least, MiB | blocked ms | queued ms | some ms | full ms | OOM kills | tokens/s | KV tokens | dropped | trims | early | mass |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for r in rows_of(&report["rows"]) {
        let whole = |key: &str| number(r[key].clone(), 0);
        let by = |key: &str, by: f64| number(r[key].as_f64().map(|n| n / by), 1);
        let pressed = r["pressed"].as_f64().zip(r["bursts"].as_f64());
        let _ = write!(
            t,
            "| {} | {} | {} | {} ",
            text(&r["variant"]),
            r["rounds"],
            r["rounds_without_pressure"],
            percent(pressed.map(|(p, n)| p / n.max(1.0)), 0),
        );
        for figure in [
            whole("hits"),
            whole("refaults"),
            whole("kswapd_pages"),
            whole("direct_pages"),
            by("low", f64::from(1 << 20)),
            by("blocked_us", 1e3),
            by("queued_us", 1e3),
            by("psi_some_us", 1e3),
            by("psi_full_us", 1e3),
            whole("oom_kills"),
            by("tok_s", 1.0),
            whole("kv_tokens"),
            whole("trimmed_tokens"),
            whole("trims"),
            whole("early"),
            number(r["mass_dropped"].clone(), 2),
        ] {
            let _ = write!(t, "| {figure} ");
        }
        t += "|\n";
    }
    t
}

fn draw(report: &Value, svg: &mut String) -> Drawn {
    let rows: Vec<&Value> = rows_of(&report["rows"]).collect();
    let area = plot::area(svg, (760, 320))?;
    let of = |v: &Value| v.as_f64().unwrap_or(0.0);
    let high = |r: &&Value| of(&r["p99_us_interval"][1]).max(of(&r["p99_us"]));
    let most = rows.iter().map(high).fold(1.0, f64::max);
    let places = rows.len().max(1);
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "The neighbour's turn within bursts: median (dark), p99 and its interval",
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
            ("p99_us", colour.mix(0.4).filled()),
            ("p50_us", colour.filled()),
        ] {
            let corners = [
                (SegmentValue::Exact(i), 0.0),
                (SegmentValue::Exact(i + 1), of(&r[key])),
            ];
            let mut bar = Rectangle::new(corners, style);
            bar.set_margin(0, 0, 24, 24);
            chart.draw_series([bar])?;
        }
        let ends = [0, 1].map(|end| {
            let at = of(&r["p99_us_interval"][end]);
            (SegmentValue::CenterOf(i), at)
        });
        chart.draw_series([PathElement::new(ends, BLACK.stroke_width(2))])?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(round: u32, variant: &str, turn: u32, pressed: bool) -> Value {
        let bursts: Vec<Value> = (0..2)
            .map(|n| {
                json!({
                    "number": n, "pressed": pressed, "hits": 7, "low": 1 << 20,
                    "turns_us": vec![turn; 50], "later_us": [51, 40],
                })
            })
            .collect();
        json!({
            "round": round, "variant": variant, "bursts": bursts, "calm_us": [50, 50, 50],
            "oom_kills": 1, "psi_some_us": 2000, "scored": 100,
            "nll": if variant == "ebpf" { 201.0 } else { 200.0 },
        })
    }

    #[test]
    fn a_variant_has_the_turns_of_all_bursts_beside_none_and_polling() {
        let runs = [
            run(0, "fixed", 3000, true),
            run(0, "none", 60, false),
            run(0, "psi-poll", 1000, true),
            run(0, "ebpf", 90, true),
            run(1, "ebpf", 90, true),
            run(1, "psi-poll", 2000, true),
            run(1, "fixed", 3000, true),
            run(1, "none", 60, false),
        ];
        let rows = rows(&runs);
        let of = |name: &str| rows.iter().find(|r| r["variant"] == name).unwrap();
        assert_eq!(of("psi-poll")["p50_us"], 2000.0);
        assert_eq!(of("fixed")["p99_us"], 3000.0);
        assert_eq!(of("ebpf")["turns"], 200);
        assert_eq!(of("ebpf")["p99_by_none"], 1.5);
        assert_eq!(of("ebpf")["p99_by_polling"], 0.045);
        // 50 turns of 40 us too much, and one of 1.
        assert_eq!(of("ebpf")["excess_us"], 2001.0);
        assert_eq!(
            (&of("fixed")["pairs"], &of("fixed")["ebpf_less"]),
            (&json!(4), &json!(4))
        );
        assert_eq!(of("none")["ebpf_less"], 0);
        assert_eq!(of("fixed")["oom_kills"], 2.0);
        let report = json!({"bench": "cotenant", "cpus": 2, "rows": rows});
        let page = section(&report);
        assert!(page.contains("none < ebpf < psi-poll < fixed."), "{page}");
        assert!(
            page.contains("| ebpf | 4 | 200 | 90 | 90 (90 to 90) | 90 | 1.50 | 0.04 | 2.0 (2.0 to 2.0) | 0 of 4 | +1.01 % |\n"),
            "{page}"
        );
        assert!(page.contains("| fixed | 2 | 0 | 100 % | 7 |"), "{page}");
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert!(svg.contains("ebpf") && svg.contains("fixed"));
    }

    #[test]
    fn a_round_without_pressure_is_told_and_is_no_good_result() {
        let runs = [
            run(0, "fixed", 3000, true),
            run(1, "fixed", 10, false),
            run(0, "ebpf", 10, false),
        ];
        let rows = rows(&runs);
        assert_eq!(rows[0]["rounds_without_pressure"], 1);
        assert_eq!(rows[0]["p50_us"], 3000.0);
        assert_eq!(rows[1]["p99_us"], Value::Null);
        let page = section(&json!({"bench": "cotenant", "cpus": 2, "rows": rows}));
        assert!(page.contains("| fixed | 1 | 1 | 100 % |"), "{page}");
        assert!(page.contains("overlap): fixed."), "{page}");
    }
}
