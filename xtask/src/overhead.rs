//! `cargo xtask bench overhead`: what listening costs.
//!
//! Owns the tables and the plot; `kvpsi-bench overhead` measures.

use crate::plot::{self, Drawn};
use crate::report::{self, Args, Bench, machine, rows_of, sorted, text};
use anyhow::Result;
use plotters::prelude::*;
use serde_json::Value;
use std::fmt::Write;
use xshell::Shell;

const BENCH: Bench = Bench {
    name: "overhead",
    needs: "it takes root, for BPF and a memory cgroup",
    rows: |rows| rows,
    section,
    draw,
};

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, run or written; or this is not root.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    // Even: who is first is slower or faster, and takes turns.
    let rounds = if args.quick { "20" } else { "240" };
    BENCH.run(sh, args, false, &["overhead", "--rounds", rounds])
}

fn rows<'a>(report: &'a Value, what: &'a str) -> impl Iterator<Item = &'a Value> {
    rows_of(&report["rows"]).filter(move |r| r["what"] == what)
}

/// What listening made of the job's time, from two rounds at a time, of which
/// each began with another one; sorted.
fn ratios(report: &Value) -> Vec<f64> {
    let all: Vec<f64> = rows(report, "overhead")
        .filter_map(|r| r["ratio"].as_f64())
        .collect();
    let pairs = all.as_chunks::<2>().0.iter();
    let mut means: Vec<f64> = pairs.map(|[a, b]| (a * b).sqrt()).collect();
    means.sort_by(f64::total_cmp);
    means
}

/// Between which of the sorted values the median of all that might have been
/// measured lies, 19 times of 20: each of them is above it or below by chance,
/// so that as many are below as heads fall of as many coins (the normal
/// distribution's 1.96 standard deviations, half a root of their number each).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "places in a list of hundreds"
)]
fn median_between(sorted: &[f64]) -> [f64; 2] {
    let n = sorted.len() as f64;
    let off = 0.98 * n.sqrt();
    let low = (n / 2.0 - off).floor().max(0.0) as usize;
    let high = ((n / 2.0 + off).ceil() as usize).min(sorted.len().saturating_sub(1));
    [low, high].map(|i| sorted.get(i).copied().unwrap_or(f64::NAN))
}

fn section(report: &Value) -> String {
    let mut t = String::from("## What listening costs\n\n");
    let median = |key: &str| {
        let all = sorted(rows(report, "overhead"), key);
        report::median(&all).unwrap_or(f64::NAN)
    };
    let ratios = ratios(report);
    let share: f64 = rows(report, "program")
        .filter_map(|r| r["share"].as_f64())
        .sum();
    let [low, high] = median_between(&ratios);
    let percent = |ratio: f64| format!("{:+.2} %", (ratio - 1.0) * 100.0);
    let _ = writeln!(
        t,
        "`cargo xtask bench overhead`. {}\n\n\
         A job reads a mapped file three times as large as its cgroup's limit, page after page, and runs on while the\n\
         programs are attached and listened to for half a second, and not for the next ({} times two pairs, of which\n\
         each begins with another one). Compared is its processor time for a page, in which its reclaim is; pages a\n\
         second are the disk's. In brackets: where the median lies, 19 times of 20, by the order of the ratios. The\n\
         programs' own time was {:.2} % of one core.\n\n\
         | ns a page alone | listened to | more, median | pages/s alone | listened to | stalls/s | events/s | dropped |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|\n\
         | {:.0} | {:.0} | {} ({} to {}) | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |\n\n\
         ![Overhead](overhead.svg)\n\n\
         Each program by the kernel's clock, which has a cost of its own and was on in a stretch apart:\n\n\
         | program | ns | runs |\n|---|--:|--:|",
        machine(report),
        ratios.len(),
        share * 100.0,
        median("page_ns"),
        median("attached_page_ns"),
        percent(report::median(&ratios).unwrap_or(f64::NAN)),
        percent(low),
        percent(high),
        median("pages_s"),
        median("attached_pages_s"),
        median("seen_s"),
        median("delivered_s"),
        median("dropped_s"),
    );
    for r in rows(report, "program") {
        let name = text(&r["program"]);
        let _ = writeln!(t, "| {name} | {} | {} |", r["ns"], r["runs"]);
    }
    t
}

fn draw(report: &Value, svg: &mut String) -> Drawn {
    let ratios: Vec<f64> = rows(report, "overhead")
        .filter_map(|r| r["ratio"].as_f64())
        .map(|r| (r - 1.0) * 100.0)
        .collect();
    let most = ratios.iter().fold(2.0, |m: f64, r| m.max(r.abs())) * 1.1;
    let area = plot::area(svg, (680, 260))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "More processor time a page with the programs attached, by pair",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(50)
        .build_cartesian_2d(0..ratios.len() + 1, -most..most)?;
    chart
        .configure_mesh()
        .x_desc("pair")
        .y_desc("%")
        .light_line_style(WHITE)
        .draw()?;
    let dots = ratios.iter().enumerate();
    chart.draw_series(dots.map(|(i, r)| Circle::new((i + 1, *r), 2, BLUE.filled())))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_median_of_the_ratios_and_every_program_are_reported() {
        let round = |ratio: f64| {
            json!({
                "what": "overhead", "ratio": ratio, "pages_s": 1000.0, "attached_pages_s": 990.0,
                "page_ns": 3000.0, "attached_page_ns": 3030.0, "seen_s": 50.0, "delivered_s": 5.0, "dropped_s": 0.0,
            })
        };
        let program = json!({"what": "program", "program": "memcg_begin", "ns": 300, "runs": 7, "share": 0.003});
        let mut rows = [0.81, 1.0, 1.21, 1.0, 1.0, 1.0].map(round).to_vec();
        rows.push(program);
        let report = json!({"cpus": 2, "rows": rows});
        let page = section(&report);
        assert!(
            page.contains("| 3000 | 3030 | +0.00 % (-10.00 % to +10.00 %) | 1000 | 990 |"),
            "{page}"
        );
        assert!(page.contains("0.30 % of one core"), "{page}");
        assert!(page.contains("| memcg_begin | 300 | 7 |"), "{page}");
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert_eq!(svg.matches("<circle").count(), 6);
    }
}
