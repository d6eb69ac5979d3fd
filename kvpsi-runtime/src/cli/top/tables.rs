//! The tables of `kvpsi top`: limits, sequences in flight, and the last trims.
//!
//! Owns their columns. A table's first row says what it lists and, where there
//! is no room for all, how many are not shown. Out of scope: sorting; sequences come
//! oldest first, trims are shown newest first.

use super::{
    state::Data,
    words::{age, count, micros, spaced},
};
use crate::{
    control::WallReport,
    server::view::{Doing, Sequence, Trim},
    units::Bytes,
};
use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Text},
    widgets::{Cell, Row, Table},
};

const WIDEST: u16 = 90;

/// A row that is too wide is hard to follow.
fn narrowed(area: Rect) -> Rect {
    area.resize((area.width.min(WIDEST), area.height).into())
}

/// What it lost is shown in red, if anything.
fn lost(tokens: u64) -> Cell<'static> {
    let style = match tokens {
        0 => Style::new(),
        _ => Style::new().fg(Color::Red),
    };
    Cell::new(right(count(tokens))).style(style)
}

fn right(text: String) -> Text<'static> {
    Text::from(Line::from(text).right_aligned())
}

/// `NAME`, or `NAME 3 of 7` where not all have room.
fn title(name: &str, all: usize, area: Rect) -> String {
    let room = usize::from(area.height.saturating_sub(1));
    match all {
        0 => format!("{name}: none"),
        _ if all > room => format!("{name} {room} of {all}"),
        _ => name.to_owned(),
    }
}

fn table<'a>(
    rows: Vec<Row<'a>>,
    head: Vec<Text<'static>>,
    widths: impl IntoIterator<Item = Constraint>,
) -> Table<'a> {
    let style = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
    Table::new(rows, widths)
        .header(Row::new(head).style(style))
        .column_spacing(1)
}

/// A cgroup without its mount point.
pub fn level(w: &WallReport) -> &str {
    let path = w.level.strip_prefix("/sys/fs/cgroup").unwrap_or(&w.level);
    path.strip_prefix("/memory")
        .unwrap_or(path)
        .trim_start_matches('/')
}

/// Limits, ours first.
pub fn walls(frame: &mut Frame<'_>, area: Rect, list: &[WallReport]) {
    let area = narrowed(area);
    let known = |b: Option<Bytes>| right(b.map_or_else(|| "-".into(), |b| b.to_string()));
    let head = vec![
        title("LIMITS", list.len(), area).into(),
        right("used".into()),
        right("anonymous".into()),
        right("high".into()),
        right("max".into()),
        right("hits".into()),
        right("missing".into()),
    ];
    let rows = list.iter().take(usize::from(area.height)).map(|w| {
        let (mark, style) = if w.binds {
            ("→ ", Style::new().add_modifier(Modifier::BOLD))
        } else {
            ("  ", Style::new())
        };
        let missing = match w.missing {
            Bytes::ZERO => Style::new(),
            _ => Style::new().fg(Color::Red),
        };
        Row::new([
            Cell::new(format!("{mark}{}", level(w))),
            Cell::new(right(w.usage.to_string())),
            Cell::new(known(w.anonymous)),
            Cell::new(known(w.high)),
            Cell::new(known(w.max)),
            Cell::new(right(w.hits.map_or_else(|| "-".into(), count))),
            Cell::new(right(w.missing.to_string())).style(missing),
        ])
        .style(style)
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(10),
    ];
    frame.render_widget(table(rows.collect(), head, widths), area);
}

/// Sequences in flight.
pub fn sequences(frame: &mut Frame<'_>, area: Rect, list: &[Sequence]) {
    let area = narrowed(area);
    let head = vec![
        title("SEQUENCES", list.len(), area).into(),
        "doing".into(),
        right("prompt".into()),
        right("tokens".into()),
        right("lost".into()),
        right("age".into()),
    ];
    let rows = list.iter().take(usize::from(area.height)).map(|s| {
        let doing = match s.doing {
            Doing::Decode => Style::new().fg(Color::Green),
            Doing::Prefill => Style::new().fg(Color::Cyan),
            Doing::Waiting => Style::new(),
            Doing::Preempted => Style::new().fg(Color::Yellow),
        };
        Row::new([
            Cell::new(s.id.clone()),
            Cell::new(s.doing.name()).style(doing),
            Cell::new(right(count(s.prompt_tokens))),
            Cell::new(right(count(s.tokens))),
            lost(s.lost_tokens),
            Cell::new(right(age(s.age_s))),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(9),
    ];
    frame.render_widget(table(rows.collect(), head, widths), area);
}

/// The last trims, newest first.
pub fn trims(frame: &mut Frame<'_>, area: Rect, data: &Data) {
    let area = narrowed(area);
    let head = vec![
        right("TRIMS".into()),
        "trigger".into(),
        "kind".into(),
        "step".into(),
        right("returned".into()),
        right("tokens".into()),
        right("att. %".into()),
        right("latency".into()),
    ];
    let rows = |t: &Trim| {
        let ago = std::time::Duration::from_millis(data.now_ms.saturating_sub(t.t_ms));
        Row::new([
            Cell::new(right(age(ago.as_secs_f64()))),
            Cell::new(spaced(&t.trigger)),
            Cell::new(t.kind.clone()),
            Cell::new(t.step.clone()),
            Cell::new(right(t.bytes.to_string())),
            lost(t.tokens),
            Cell::new(right(format!("{:.1}", t.mass_dropped * 100.0))),
            Cell::new(right(micros(t.onset_to_returned_us))),
        ])
    };
    let newest = data.trims.iter().rev().take(usize::from(area.height));
    let widths = [
        Constraint::Length(6),
        Constraint::Length(13),
        Constraint::Length(17),
        Constraint::Length(7),
        Constraint::Length(10),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(8),
    ];
    let mut rows: Vec<Row<'_>> = newest.map(rows).collect();
    if rows.is_empty() {
        rows.push(Row::new(["", "none lately"]));
    }
    frame.render_widget(table(rows, head, widths), area);
}
