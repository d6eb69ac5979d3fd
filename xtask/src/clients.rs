//! `cargo xtask bench clients`: several clients at one server.
//!
//! Owns the table and the plot; `kvpsi-bench clients` measures.

use crate::bench::prepare;
use crate::plot::{self, Drawn, Line};
use crate::report::{Args, Bench, machine, number, rows_of};
use anyhow::Result;
use plotters::style::RED;
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

/// Tokens a second of one client alone.
fn alone(report: &Value) -> Option<f64> {
    rows_of(&report["rows"]).find(|r| r["clients"] == 1)?["tok_s"].as_f64()
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
    for r in rows_of(&report["rows"]) {
        let of = |key: &str| r[key].as_f64();
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

fn draw(report: &Value, svg: &mut String) -> Drawn {
    let of = |r: &Value| Some((r["clients"].as_f64()?, r["tok_s"].as_f64()?));
    let points: Vec<(f64, f64)> = rows_of(&report["rows"]).filter_map(of).collect();
    let most = plot::most(points.iter());
    let titles = [
        "Tokens a second of all clients together",
        "clients",
        "tokens/s",
    ];
    let line = Line {
        name: None,
        points,
        colour: RED,
        dot: 4,
    };
    let most = (most.0 + 0.5, most.1 * 1.1);
    plot::lines(svg, (640, 380), titles, most, vec![line])
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
