//! The plots of reports, as SVG.
//!
//! Owns what plots share: the frame, lines, and places with names.

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, prelude::*};
use serde_json::Value;
use std::error::Error;

/// What drawing comes to.
pub type Drawn = Result<(), Box<dyn Error>>;

/// From a report to an SVG.
pub type Draw = fn(&Value, &mut String) -> Drawn;

/// A report's plot.
///
/// # Errors
/// There is none.
pub fn svg(draw: Draw, report: &Value) -> Result<String> {
    let mut svg = String::new();
    draw(report, &mut svg).map_err(|e| anyhow!("no plot: {e}"))?;
    Ok(svg)
}

/// White, of so many pixels.
///
/// # Errors
/// As [`Drawn`].
pub fn area(
    svg: &mut String,
    size: (u32, u32),
) -> Result<DrawingArea<SVGBackend<'_>, Shift>, Box<dyn Error>> {
    let area = SVGBackend::with_string(svg, size).into_drawing_area();
    area.fill(&WHITE)?;
    Ok(area)
}

/// The names of places along an axis.
pub fn names(names: &[String]) -> impl Fn(&SegmentValue<usize>) -> String {
    |place| match place {
        SegmentValue::CenterOf(i) => names.get(*i).cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

/// A line with dots; it is in the legend where it has a name.
pub struct Line {
    pub name: Option<&'static str>,
    pub points: Vec<(f64, f64)>,
    pub colour: RGBColor,
    pub dot: i32,
}

/// The greatest of both coordinates, at least 1.
pub fn most<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> (f64, f64) {
    points.fold((1.0, 1.0), |m: (f64, f64), p| (m.0.max(p.0), m.1.max(p.1)))
}

/// Lines from 0 to `most` (x, y).
///
/// # Errors
/// As [`Drawn`].
pub fn lines(
    svg: &mut String,
    size: (u32, u32),
    [title, x, y]: [&str; 3],
    most: (f64, f64),
    lines: Vec<Line>,
) -> Drawn {
    let area = area(svg, size)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..most.0, 0.0..most.1)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .light_line_style(WHITE)
        .draw()?;
    let named = lines.iter().any(|l| l.name.is_some());
    for Line {
        name,
        points,
        colour,
        dot,
    } in lines.into_iter().filter(|l| !l.points.is_empty())
    {
        let dots = points.clone().into_iter();
        let series = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        if let Some(name) = name {
            series.label(name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
            });
        }
        chart.draw_series(dots.map(|p| Circle::new(p, dot, colour.filled())))?;
    }
    if named {
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    area.present()?;
    Ok(())
}
