//! The screen of `kvpsi top`.
//!
//! Owns where things stand at a size, and what is left out first where there
//! is no room: tables, then the memory's plot, then the stalls'. Header, keys
//! and figures stay longest. Out of scope: changing what it shows.

use super::{
    plot::{self, Grid},
    state::{Data, Link, View},
    tables,
    words::{age, count, micros, percent},
};
use crate::{
    server::view::{Sample, Status},
    units::Bytes,
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Margin, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Clear, Paragraph},
};

/// Columns left of a plot, for its scale.
const SCALE: u16 = 10;
/// From this width on the tables stand side by side.
const WIDE: u16 = 152;
/// From this width on the header says where the instance is.
const ROOMY: u16 = 110;
/// Rows of a plot beside its title and its marks.
const LEAST_PLOT: u16 = 3;
const MOST_PLOT: u16 = 14;
/// Rows of limits, with their header.
const MOST_WALLS: u16 = 6;
/// A budget of more than so many times what is resident is not drawn.
const FAR: u64 = 4;

const HELP: &str = "\
q Esc Ctrl-C  quit
space         hold the picture, and let go
w             1, 5 or 10 minutes in the plots
p             the next profile: lossless, balanced,
              latency
o             trimming on or off
t             give back some memory by hand
+ -           how much t asks for
?             this; any key closes it

▲ a trim; △ one that lost no token
latency: from a stall's onset to the last page back
→ the limit with least room
↑ the budget is far above the plot
RSS counts mapped weights, too: page cache that the
kernel may drop.
Shares are of the last 10 s; in ( ) totals,
PSI's since boot.";

const ADVICE: &str = "`kvpsi serve -m MODEL` starts one; --url names another.";

/// Draws all of it.
pub fn screen(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    let data = view.data();
    let note = note(view);
    let walls = data.status.as_ref().map_or(0, |s| s.walls.len());
    let rows = Rows::plan(area, note.is_some(), walls);
    header(frame, rows.header, view);
    if let Some((text, style)) = note {
        frame.render_widget(Line::styled(text, style), rows.note);
    }
    if let Some(status) = &data.status {
        figures(frame, rows.figures, data, status);
        stalls(frame, rows.stalls, view);
        memory(frame, rows.memory, view, status);
        tables::walls(frame, rows.walls, &status.walls);
        if area.width >= WIDE {
            let sides = [Constraint::Length(66), Constraint::Fill(1)];
            let [left, right] = Layout::horizontal(sides).spacing(3).areas(rows.tables);
            tables::sequences(frame, left, &status.sequences);
            tables::trims(frame, right, data);
        } else {
            let room = rows.tables.height;
            let wanted = u16::try_from(status.sequences.len()).unwrap_or(u16::MAX);
            // The header, and at most half of the rest.
            let most = 1 + room.saturating_sub(2) / 2;
            let above = wanted.saturating_add(1).min(most.max(1));
            let [top, bottom] = Layout::vertical([Constraint::Length(above), Constraint::Fill(1)])
                .areas(rows.tables);
            tables::sequences(frame, top, &status.sequences);
            tables::trims(frame, bottom, data);
        }
    }
    if let (
        None,
        Link::Down {
            unreachable: true, ..
        },
    ) = (&data.status, &view.link)
    {
        frame.render_widget(Line::from(ADVICE), row(rows.figures, 1));
    }
    keys(frame, rows.keys, view);
    if view.help {
        help(frame, area);
    }
}

/// What stands where; what has no room is empty.
#[derive(Clone, Copy, Debug, Default)]
struct Rows {
    header: Rect,
    note: Rect,
    figures: Rect,
    stalls: Rect,
    memory: Rect,
    walls: Rect,
    tables: Rect,
    keys: Rect,
}

impl Rows {
    fn plan(area: Rect, note: bool, walls: usize) -> Self {
        let mut left = area.height;
        let mut take = |rows: u16| {
            let rows = rows.min(left);
            left -= rows;
            rows
        };
        let header = take(2);
        let note = take(u16::from(note));
        let keys = take(1);
        let figures = take(5);
        let plot = LEAST_PLOT + 2;
        let mut stalls = if left >= plot { plot } else { 0 };
        left -= stalls;
        let mut memory = if left >= plot { plot } else { 0 };
        left -= memory;
        // Of what is more than the tables need at least, the plots get half.
        let more = (left.saturating_sub(8) / 4).min(MOST_PLOT - LEAST_PLOT);
        if memory > 0 {
            stalls += more;
            memory += more;
            left -= 2 * more;
        }
        // Two short tables stay below them.
        let walls = u16::try_from(walls + 1).unwrap_or(u16::MAX).min(MOST_WALLS);
        let walls = if left >= walls + 8 { walls } else { 0 };
        left -= walls;
        let heights = [header, note, figures, stalls, memory, walls, left, keys];
        let [header, note, figures, stalls, memory, walls, tables, keys] =
            Layout::vertical(heights.map(Constraint::Length)).areas(area);
        Self {
            header,
            note,
            figures,
            stalls,
            memory,
            walls,
            tables,
            keys,
        }
    }
}

fn alarm() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

/// Row `n` of an area, empty below its end.
fn row(area: Rect, n: u16) -> Rect {
    let y = area.y.saturating_add(n);
    Rect::new(area.x, y, area.width, 1).intersection(area)
}

/// Draws `left`, and `right` at the end of the row, which goes first.
fn both(frame: &mut Frame<'_>, area: Rect, left: Line<'_>, right: Line<'_>) {
    let width = u16::try_from(right.width()).unwrap_or(u16::MAX);
    let sides = [Constraint::Fill(1), Constraint::Length(width)];
    let [a, b] = Layout::horizontal(sides).spacing(1).areas(area);
    frame.render_widget(left, a);
    frame.render_widget(right, b);
}

/// What does not fit into a header: why no server answers, or what became of the
/// signal.
fn note(view: &View) -> Option<(String, Style)> {
    match (&view.link, &view.data().status) {
        (Link::Down { why, .. }, known) => {
            let old = match known {
                Some(_) => "; below is what was last known",
                None => "",
            };
            Some((format!("{why}; trying again{old}"), alarm()))
        }
        (_, Some(status)) => {
            let note = status.note.clone()?;
            Some((note, Style::new().fg(Color::Yellow)))
        }
        _ => None,
    }
}

fn header(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let state = match &view.link {
        _ if view.is_paused() => " HELD ".black().on_yellow(),
        Link::Connecting => "connecting".yellow(),
        Link::Up => "● connected".green(),
        Link::Down {
            since, unreachable, ..
        } => {
            let what = if *unreachable { "gone" } else { "refused" };
            let text = format!("● {what} {}", age(since.elapsed().as_secs_f64()));
            Span::styled(text, alarm())
        }
    };
    let mut first = vec!["kvpsi ".bold()];
    let mut second = Vec::new();
    match &view.data().status {
        None => first.push(view.url.clone().into()),
        Some(s) => {
            first.push(format!("{}  ", s.version).into());
            first.push(s.model.clone().bold());
            first.push(format!("  up {}", age(s.uptime_s)).into());
            if area.width >= ROOMY {
                first.push(format!("  {}", view.url).dim());
            }
            let rung = s.rung.as_ref().map(|r| format!(" ({r})"));
            second.push(format!("signal {}{}  ", s.signal, rung.unwrap_or_default()).into());
            second.push("profile ".into());
            second.push(s.profile.name().bold());
            second.push("  trimming ".into());
            second.push(if s.trimming {
                "on".bold()
            } else {
                "OFF".bold().yellow()
            });
        }
    }
    both(frame, row(area, 0), first.into(), state.into());
    let process = match &view.data().status {
        Some(s) => {
            let limit = s.limit.map_or_else(String::new, |l| format!(" of {l}"));
            Line::from(format!("RSS {}{limit}", s.rss))
        }
        None => Line::default(),
    };
    both(frame, row(area, 1), second.into(), process);
}

/// A line of figures: its name, then pairs, closer together where room is
/// short.
fn figure_line(name: &str, figures: Vec<Span<'static>>, width: u16) -> Line<'static> {
    let text: usize = figures.iter().map(|f| f.width() + 2).sum();
    let tight = usize::from(SCALE) + text > usize::from(width) + 2;
    let gap = if tight { " " } else { "  " };
    let mut spans = vec![format!("{name:<0$}", usize::from(SCALE)).dim()];
    for (i, figure) in figures.into_iter().enumerate() {
        if i > 0 {
            spans.push(gap.into());
        }
        spans.push(figure);
    }
    spans.into()
}

fn figures(frame: &mut Frame<'_>, area: Rect, data: &Data, s: &Status) {
    let rates = data.rates();
    let total = |share: String, us: Option<u64>| match us {
        Some(us) => format!("{share} ({})", micros(us)),
        None => share,
    };
    let stalled = match s.stalls.some_us {
        None => "not measured".to_owned(),
        us => total(percent(rates.stalled), us),
    };
    let psi = match s.psi {
        None => "PSI: none on this kernel".to_owned(),
        Some(psi) => {
            let full = rates.full.map_or_else(|| "-".into(), percent);
            format!(
                "PSI some {}  full {}",
                total(percent(rates.some), Some(psi.some_us)),
                total(full, Some(psi.full_us))
            )
        }
    };
    let dropped = Span::from(format!("{} dropped", count(s.stalls.dropped)));
    let failed = Span::from(format!("{} failed", count(s.requests.failed)));
    let lost = Span::from(format!(
        "{} lost in {} {}",
        count(s.trims.tokens),
        count(s.trims.count),
        if s.trims.count == 1 { "trim" } else { "trims" }
    ));
    let red_if = |span: Span<'static>, n: u64| if n > 0 { span.style(alarm()) } else { span };
    let said = |n: u64, what: &str| Span::from(format!("{} {what}", count(n)));
    let figure_line = |name, figures| figure_line(name, figures, area.width);
    let lines = [
        figure_line("stalled", vec![stalled.into(), psi.into()]),
        figure_line(
            "events",
            vec![
                said(s.stalls.seen, "seen"),
                said(s.stalls.delivered, "delivered"),
                said(s.stalls.coalesced, "coalesced"),
                red_if(dropped, s.stalls.dropped),
            ],
        ),
        figure_line(
            "requests",
            vec![
                said(s.requests.running, "running"),
                said(s.requests.waiting, "waiting"),
                said(s.requests.finished, "finished"),
                said(s.requests.refused, "refused"),
                red_if(failed, s.requests.failed),
                said(s.requests.cancelled, "cancelled"),
            ],
        ),
        figure_line(
            "tokens",
            vec![
                format!("{:.1}/s", rates.tokens).bold(),
                said(s.requests.tokens, "generated"),
                said(s.requests.prompt_tokens, "of prompts"),
                lost,
            ],
        ),
        figure_line(
            "KV",
            vec![
                format!("in use {}", s.kv.in_use).into(),
                format!("cached {}", s.kv.cached).into(),
                format!("slack {}", s.kv.slack).into(),
                format!("floor {}", s.kv.floor).into(),
            ],
        ),
    ];
    for (n, line) in (0..).zip(lines) {
        frame.render_widget(line, row(area, n));
    }
}

/// The parts of a plot: title, scale, drawing, marks.
fn parts(area: Rect) -> [Rect; 4] {
    let [title, middle, marks] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    let sides = [Constraint::Length(SCALE), Constraint::Fill(1)];
    let [scale, drawing] = Layout::horizontal(sides).areas(middle);
    [title, scale, drawing, marks]
}

fn grid(view: &View, drawing: Rect) -> Grid {
    let window_ms = view.minutes.saturating_mul(60_000);
    Grid::new(view.data().now_ms, window_ms, drawing.width)
}

fn scale(frame: &mut Frame<'_>, area: Rect, top: &str) {
    let write = |text: &str| Line::from(format!("{text}┤").dim()).right_aligned();
    frame.render_widget(write(top), row(area, 0));
    if area.height > 1 {
        frame.render_widget(write("0"), row(area, area.height - 1));
    }
}

/// The trims below a plot, in the columns of their times.
fn marks(frame: &mut Frame<'_>, area: Rect, view: &View, grid: Grid) {
    let sides = [Constraint::Length(SCALE), Constraint::Fill(1)];
    let [name, area] = Layout::horizontal(sides).areas(area);
    frame.render_widget(Line::from("trims ".dim()).right_aligned(), name);
    let buffer = frame.buffer_mut();
    for trim in &view.data().trims {
        let column = grid.column(trim.t_ms).and_then(|c| u16::try_from(c).ok());
        let Some(x) = column.map(|c| area.x.saturating_add(c)) else {
            continue;
        };
        if !area.contains((x, area.y).into()) {
            continue;
        }
        let cell = &mut buffer[(x, area.y)];
        // One that lost something is not hidden by one that did not.
        if trim.tokens > 0 {
            cell.set_symbol("▲").set_fg(Color::Red);
        } else if cell.symbol() != "▲" {
            cell.set_symbol("△").set_fg(Color::Magenta);
        }
    }
}

fn stalls(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let [title, left, drawing, below] = parts(area);
    let data = view.data();
    let grid = grid(view, drawing);
    let shown = data.last(view.minutes.saturating_mul(60_000));
    let worst = shown.clone().map(|s| s.stall_us).max().unwrap_or(0);
    let sum = shown
        .clone()
        .fold(0_u64, |n, s| n.saturating_add(s.stall_us));
    let now = data.samples.back().map_or(0, |s| s.stall_us);
    let text = vec![
        "STALL TIME".bold(),
        " per 250 ms: now ".into(),
        micros(now).bold(),
        ", worst ".into(),
        micros(worst).bold(),
        ", sum ".into(),
        micros(sum).bold(),
    ];
    both(
        frame,
        title,
        text.into(),
        Line::from(format!("last {} min", view.minutes).dim()),
    );
    let top = plot::decimal_top(worst.max(1000));
    scale(frame, left, &format!("{} ms", count(top / 1000)));
    let columns = grid.largest(shown.map(|s| (s.t_ms, s.stall_us)));
    plot::bars(frame.buffer_mut(), drawing, &columns, top, Color::LightRed);
    marks(frame, below, view, grid);
}

fn memory(frame: &mut Frame<'_>, area: Rect, view: &View, status: &Status) {
    let [title, left, drawing, below] = parts(area);
    let grid = grid(view, drawing);
    let shown = view.data().last(view.minutes.saturating_mul(60_000));
    let most = |of: fn(&Sample) -> Bytes| shown.clone().map(of).max().unwrap_or_default().0;
    let resident = most(|s| s.resident).max(1 << 20);
    let budget = most(|s| s.budget);
    // A budget far above would leave nothing to see of what is resident.
    let aside = budget > resident.saturating_mul(FAR);
    let swapped = match status.kv.swapped {
        Bytes::ZERO => String::new(),
        bytes => format!(", {bytes} in swap"),
    };
    let text = vec![
        "KV ".bold(),
        status.kv.resident.to_string().bold(),
        format!(" resident{swapped}, budget ").into(),
        status.kv.budget.to_string().bold().yellow(),
        if aside { "↑ of " } else { " of " }.into(),
        status.kv.capacity.to_string().into(),
        ", returned ".into(),
        status.trims.bytes.to_string().bold(),
    ];
    frame.render_widget(Line::from(text), title);
    let top = plot::binary_top(if aside {
        resident
    } else {
        resident.max(budget)
    });
    scale(frame, left, &Bytes(top).to_string());
    let resident = grid.latest(shown.clone().map(|s| (s.t_ms, s.resident.0)));
    let mut budget = grid.latest(shown.map(|s| (s.t_ms, s.budget.0)));
    for value in &mut budget {
        *value = value.filter(|v| *v <= top);
    }
    let buffer = frame.buffer_mut();
    plot::bars(buffer, drawing, &resident, top, Color::Blue);
    plot::line(buffer, drawing, &budget, top, Color::Yellow);
    marks(frame, below, view, grid);
}

fn keys(frame: &mut Frame<'_>, area: Rect, view: &View) {
    if let Some((text, failed)) = view.said() {
        let style = if failed { alarm() } else { Style::new().bold() };
        frame.render_widget(Line::styled(text.to_owned(), style), area);
        return;
    }
    let amount = format!("{} MiB", view.amount_mib);
    let hold = if view.is_paused() { "go on" } else { "hold" };
    let names = [
        ("q", "quit"),
        ("space", hold),
        ("w", "window"),
        ("p", "profile"),
        ("o", "trimming"),
        ("t", "trim"),
        ("+-", &amount),
        ("?", "help"),
    ];
    let spans = names.into_iter().flat_map(|(key, what)| {
        [
            key.to_owned().reversed(),
            Span::from(format!(" {what}  ")).dim(),
        ]
    });
    frame.render_widget(Line::from_iter(spans), area);
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let lines = u16::try_from(HELP.lines().count()).unwrap_or(u16::MAX);
    let inside = area.centered(
        Constraint::Length(56.min(area.width)),
        Constraint::Length(lines.saturating_add(2).min(area.height)),
    );
    frame.render_widget(Clear, inside);
    frame.render_widget(Block::bordered().title(" Keys "), inside);
    frame.render_widget(Paragraph::new(HELP), inside.inner(Margin::new(2, 1)));
}

#[cfg(test)]
mod tests;
