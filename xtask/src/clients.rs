//! `cargo xtask bench clients`: several clients at one server.
//!
//! Owns the table and the plot; `kvpsi-bench clients` measures.

use crate::benchmarks::{Args, Bench, machine, prepare};
use anyhow::Result;
use plotters::prelude::*;
use serde_json::Value;
use std::fmt::Write;
use xshell::{Shell, cmd};

const BENCH: Bench = Bench {
    name: "clients",
    needs: "kvpsi-bench clients",
    rows: |rows| rows,
    section,
    draw,
};

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, run or written.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    prepare(sh)?;
    // The server, which it starts, lies beside it.
    cmd!(
        sh,
        "cargo build --release --package kvpsi-runtime --bin kvpsi"
    )
    .quiet()
    .run()?;
    let rounds = if args.quick { "3" } else { "9" };
    BENCH.run(sh, args, true, &["clients", "--rounds", rounds])
}

fn rows(report: &Value) -> impl Iterator<Item = &Value> {
    report["rows"].as_array().into_iter().flatten()
}

/// Tokens a second of one client alone.
fn alone(report: &Value) -> Option<f64> {
    rows(report).find(|r| r["clients"] == 1)?["tok_s"].as_f64()
}

fn section(report: &Value) -> String {
    let mut t = String::from("## Several clients at one server\n\n");
    let _ = writeln!(
        t,
        "`cargo xtask bench clients`. {}\n\n\
         Clients stream answers of 200 tokens from `kvpsi serve` over HTTP, all at once; each setting comes first as often as any\n\
         other. Tokens a second are those of all clients together while all are at it, medians of the rounds; the wait is\n\
         from one token of a client to its next. The last row: three clients, beside a fourth that sends one prompt of 600 words after\n\
         the other.\n\n\
         ![Several clients](clients.svg)\n\n\
         | clients | tokens/s | least, most | of one client's | wait: median | p99 | p99 of median |\n\
         |---|--:|--:|--:|--:|--:|--:|",
        machine(report),
    );
    for r in rows(report) {
        let of = |key: &str| r[key].as_f64();
        let number = |v: Option<f64>, digits: usize| {
            v.map_or_else(|| "-".to_owned(), |n| format!("{n:.digits$}"))
        };
        let beside = if r["beside_prompts"] == true {
            " beside prompts"
        } else {
            ""
        };
        let gain = of("tok_s").zip(alone(report)).map(|(all, one)| all / one);
        let tail = of("gap_p99_ms").zip(of("gap_p50_ms")).map(|(a, b)| a / b);
        let range = of("tok_s_min")
            .zip(of("tok_s_max"))
            .map_or_else(|| "-".to_owned(), |(a, b)| format!("{a:.0}, {b:.0}"));
        let _ = writeln!(
            t,
            "| {}{beside} | {} | {range} | {} | {} ms | {} ms | {} |",
            r["clients"],
            number(of("tok_s"), 1),
            number(gain, 2),
            number(of("gap_p50_ms"), 1),
            number(of("gap_p99_ms"), 1),
            number(tail, 2),
        );
    }
    t
}

fn draw(report: &Value, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let of = |r: &Value| Some((r["clients"].as_f64()?, r["tok_s"].as_f64()?));
    let points: Vec<(f64, f64)> = rows(report).filter_map(of).collect();
    let most = points
        .iter()
        .fold((1.0, 1.0), |m: (f64, f64), p| (m.0.max(p.0), m.1.max(p.1)));
    let area = SVGBackend::with_string(svg, (640, 380)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "Tokens a second of all clients together",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..most.0 + 0.5, 0.0..most.1 * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("clients")
        .y_desc("tokens/s")
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(LineSeries::new(points.clone(), RED.stroke_width(2)))?;
    chart.draw_series(points.iter().map(|p| Circle::new(*p, 4, RED.filled())))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_has_its_gain_over_one_client_and_its_tail() {
        let report = json!({"cpus": 2, "rows": [
            {"clients": 1, "beside_prompts": false, "tok_s": 100.0, "tok_s_min": 90.0,
             "tok_s_max": 110.0, "gap_p50_ms": 10.0, "gap_p99_ms": 12.0},
            {"clients": 4, "beside_prompts": false, "tok_s": 270.0, "tok_s_min": 260.0,
             "tok_s_max": 280.0, "gap_p50_ms": 15.0, "gap_p99_ms": 45.0},
            {"clients": 3, "beside_prompts": true, "gap_p50_ms": 20.0, "gap_p99_ms": 80.0},
        ]});
        let page = section(&report);
        let want = "| 4 | 270.0 | 260, 280 | 2.70 | 15.0 ms | 45.0 ms | 3.00 |";
        assert!(page.contains(want), "{page}");
        assert!(page.contains("| 3 beside prompts | - | - | - | 20.0 ms | 80.0 ms | 4.00 |"));
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert!(svg.matches("<circle").count() == 2, "{svg}");
    }
}
