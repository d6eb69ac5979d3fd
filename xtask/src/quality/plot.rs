//! Perplexity against bytes kept, as a picture.
//!
//! A line for each policy: thick for the whole ladder, thin for dropping
//! tokens alone; a dot for each encoding of a whole cache.

use crate::plot::{Drawn, area};
use crate::report::rows_of;
use plotters::prelude::*;
use serde_json::Value;

const COLOURS: [RGBColor; 5] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];

/// A line: how it is called, and its points, the widest cache first.
#[derive(Debug, PartialEq)]
struct Line {
    kv: String,
    policy: Option<String>,
    points: Vec<(f64, f64)>,
}

/// The lines of a text's rows: bytes kept in percent of f16, perplexity over
/// that of a whole cache in f16.
fn lines(text: &Value) -> Vec<Line> {
    let mut all: Vec<Line> = Vec::new();
    for r in rows_of(&text["rows"]) {
        let kv = r["kv"].as_str().unwrap_or_default().to_owned();
        let policy = r["policy"].as_str().map(str::to_owned);
        let number = |key: &str| r[key].as_f64().filter(|n| n.is_finite());
        let (Some(share), Some(ppl), Some(full)) =
            (number("share"), number("ppl"), number("ppl_full"))
        else {
            continue;
        };
        let point = (share * 100.0, ppl / full);
        match all.iter_mut().find(|l| l.kv == kv && l.policy == policy) {
            Some(line) => line.points.push(point),
            None => {
                // Every line of dropped tokens begins at the whole cache.
                let mut points = vec![point];
                if policy.is_some() {
                    points.insert(0, (100.0, 1.0));
                }
                all.push(Line { kv, policy, points });
            }
        }
    }
    all
}

/// Draws a text's rows.
///
/// # Errors
/// As [`Drawn`].
pub fn draw(text: &Value, svg: &mut String) -> Drawn {
    let lines = lines(text);
    let each = lines.iter().flat_map(|l| &l.points);
    let most = each.clone().fold(1.05, |m: f64, p| m.max(p.1));
    let least = each.fold(1.0, |m: f64, p| m.min(p.1));
    let area = area(svg, (860, 520))?;
    let name = text["text"].as_str().unwrap_or_default();
    let mut chart = ChartBuilder::on(&area)
        .caption(
            format!("{name}: what a smaller cache costs"),
            ("sans-serif", 20),
        )
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..104.0, least - 0.01..most + (most - 1.0) * 0.05)?;
    chart
        .configure_mesh()
        .x_desc("bytes kept, % of f16")
        .y_desc("perplexity / that of the whole cache")
        .light_line_style(WHITE)
        .draw()?;
    let mut policies: Vec<&String> = lines.iter().filter_map(|l| l.policy.as_ref()).collect();
    policies.sort();
    policies.dedup();
    for line in &lines {
        let Some(policy) = &line.policy else {
            let dots = line
                .points
                .iter()
                .map(|p| Circle::new(*p, 5, BLACK.filled()));
            chart.draw_series(dots)?;
            let label = |p: &(f64, f64)| {
                Text::new(
                    line.kv.clone(),
                    (p.0 - 1.5, p.1 + (most - 1.0) * 0.04),
                    ("sans-serif", 13),
                )
            };
            chart.draw_series(line.points.iter().map(label))?;
            continue;
        };
        let place = policies.iter().position(|p| *p == policy).unwrap_or(0);
        let colour = COLOURS[place % COLOURS.len()];
        let width = if line.kv == "ladder" { 3 } else { 1 };
        let style = colour.stroke_width(width);
        let series = LineSeries::new(line.points.iter().copied(), style).point_size(3);
        chart
            .draw_series(series)?
            .label(format!("{policy}, {}", line.kv))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .legend_area_size(30)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::rows::tests::report;

    #[test]
    fn lines_begin_at_the_whole_cache_and_are_drawn_with_their_names() {
        let report = report();
        let all = lines(&report);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].points, [(100.0, 1.0)]);
        assert_eq!(all[1].points, [(100.0, 1.0), (50.0, 1.2), (25.0, 1.4)]);
        let mut svg = String::new();
        draw(&report, &mut svg).unwrap();
        for want in ["<svg", "window, f16", "expected, ladder", "bytes kept"] {
            assert!(svg.contains(want), "{want}");
        }
    }
}
