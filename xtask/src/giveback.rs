//! `cargo xtask bench giveback`: what the kernel has of what is given back.
//!
//! Owns the table and the plot; `kvpsi-bench giveback` measures.

use crate::plot::{self, Drawn};
use crate::report::{Args, Bench, machine, number, percent, rows_of, text};
use anyhow::Result;
use plotters::prelude::*;
use serde_json::Value;
use std::fmt::Write;
use xshell::Shell;

const BENCH: Bench = Bench {
    name: "giveback",
    needs: "kvpsi-bench giveback",
    rows: |rows| rows,
    section,
    draw,
};

/// Measures, prints and writes everything.
///
/// # Errors
/// Something could not be built, run or written.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    let rounds = if args.quick { "3" } else { "9" };
    BENCH.run(sh, args, true, &["giveback", "--rounds", rounds])
}

fn name(r: &Value) -> String {
    let (holder, pattern) = (text(&r["holder"]), text(&r["pattern"]));
    match r["block"].as_u64() {
        Some(block) => format!("{holder}, {pattern}, {block}"),
        None => format!("{holder}, {pattern}"),
    }
}

fn section(report: &Value) -> String {
    let mut t = String::from("## Memory given back for real\n\n");
    let _ = writeln!(
        t,
        "`cargo xtask bench giveback`. {}\n\n\
         Half of the keys and values of 1024 tokens is given back: by kvpsi the oldest of one sequence, or all of one of\n\
         two that grew by turns; by candle the older half of its tensors, by a copy of the newer one; by malloc every\n\
         second block, or every second piece that one layer has of a block. Lost is what RSS and PSS fell by, of what was\n\
         said to be given back. The ratios are to a loop of `madvise`\n\
         in runs of a block: over as many bytes of a mapping that was filled at once, and in place, over the very blocks\n\
         that kvpsi gives back.\n\n\
         ![Given back](giveback.svg)\n\n\
         | holder | which | tokens a block | MiB | RSS lost | PSS lost | us for a MiB | of fresh | of in place |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|",
        machine(report),
    );
    for r in rows_of(&report["rows"]) {
        let of = |key: &str| r[key].as_f64();
        let beside = |key: &str| number(of("us_per_mib").zip(of(key)).map(|(a, b)| a / b), 2);
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            text(&r["holder"]),
            text(&r["pattern"]),
            number(of("block"), 0),
            number(of("bytes").map(|b| b / f64::from(1 << 20)), 1),
            percent(of("rss_lost"), 1),
            percent(of("pss_lost"), 1),
            number(of("us_per_mib"), 1),
            beside("madvise_us_per_mib"),
            beside("in_place_us_per_mib"),
        );
    }
    t
}

fn draw(report: &Value, svg: &mut String) -> Drawn {
    let rows: Vec<&Value> = rows_of(&report["rows"]).collect();
    let places = rows.len().max(1);
    let height = u32::try_from(places)? * 32 + 110;
    let area = plot::area(svg, (780, height))?;
    let lost = |r: &Value| r["rss_lost"].as_f64().unwrap_or(0.0) * 100.0;
    let least = rows.iter().map(|r| lost(r)).fold(0.0, f64::min);
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "RSS lost, of the bytes said to be given back",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(170)
        .build_cartesian_2d(least..110.0, (0..places - 1).into_segmented())?;
    let names: Vec<String> = rows.iter().map(|r| name(r)).collect();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc("%")
        .y_labels(places + 1)
        .y_label_formatter(&plot::names(&names))
        .light_line_style(WHITE)
        .draw()?;
    for (i, r) in rows.iter().enumerate() {
        let colour = if r["holder"] == "kvpsi" { RED } else { BLUE };
        let corners = [
            (0.0, SegmentValue::Exact(i)),
            (lost(r), SegmentValue::Exact(i + 1)),
        ];
        let mut bar = Rectangle::new(corners, colour.mix(0.7).filled());
        bar.set_margin(5, 5, 0, 0);
        chart.draw_series([bar])?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_has_its_shares_and_its_ratio() {
        let report = json!({"cpus": 2, "rows": [{
            "holder": "kvpsi", "pattern": "oldest", "block": 32, "bytes": 11 << 20, "rss_lost": 0.999,
            "pss_lost": 1.0, "us_per_mib": 130.0, "madvise_us_per_mib": 100.0,
            "in_place_us_per_mib": 125.0,
        }, {"holder": "candle", "pattern": "oldest", "block": null, "bytes": 1 << 20, "rss_lost": -0.5}]});
        let page = section(&report);
        let want = "| kvpsi | oldest | 32 | 11.0 | 99.9 % | 100.0 % | 130.0 | 1.30 | 1.04 |";
        assert!(page.contains(want), "{page}");
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        assert!(svg.contains("kvpsi, oldest, 32") && svg.contains("candle, oldest"));
    }
}
