//! Events as text for people and as JSON Lines for programs.
//!
//! Owns the columns, the names and the colours. Times are relative to the
//! start of the dump. Out of scope: where the events come from.

use super::{KvLevel, Output, recording::Trim};
use anstyle::{AnsiColor, Style};
use kvpsi_common::{Event, Kind, Phase, event::ORDER_UNKNOWN};
use serde_json::json;
use std::io::{self, Write};

/// A stall from this long on is shown as a long one: a frame at 100 Hz.
const LONG_NS: u64 = 10_000_000;
/// And from this long on as one that is felt by a control loop.
const FELT_NS: u64 = 1_000_000;

/// Lines of columns.
#[derive(Debug)]
pub struct Text<W> {
    out: W,
    start_ns: u64,
    colour: bool,
    begun: bool,
}

impl<W: Write> Text<W> {
    /// `start_ns` is the moment, in `CLOCK_MONOTONIC` ns, that times are
    /// relative to.
    pub const fn new(out: W, start_ns: u64, colour: bool) -> Self {
        Self {
            out,
            start_ns,
            colour,
            begun: false,
        }
    }
}

/// How a line looks: what kills first, then how long it took.
fn style(e: &Event) -> Style {
    let colour = match (e.kind(), e.stall_ns) {
        (Some(Kind::OomVictim), _) => {
            return Style::new().fg_color(Some(AnsiColor::Red.into())).bold();
        }
        (_, LONG_NS..) => AnsiColor::Red,
        (_, FELT_NS..) => AnsiColor::Yellow,
        (Some(k), _) if !k.is_stall() => AnsiColor::Cyan,
        _ if e.phase() == Some(Phase::Begin) => return Style::new().dimmed(),
        _ => return Style::new(),
    };
    Style::new().fg_color(Some(colour.into()))
}

impl<W: Write> Output for Text<W> {
    fn event(&mut self, e: &Event) -> io::Result<()> {
        if !self.begun {
            self.begun = true;
            writeln!(
                self.out,
                "{:>12} {:<17} {:<7} {:<15} {:>8} {:>3} {:>11} {:>5} {:>6} {:>6} {:>7}",
                "ms",
                "kind",
                "phase",
                "comm",
                "pid",
                "cpu",
                "stall us",
                "order",
                "pages",
                "count",
                "stalled"
            )?;
        }
        let us = e.ts_ns.saturating_sub(self.start_ns) / 1000;
        let stall = match e.phase() {
            Some(Phase::Begin | Phase::Mark) => "-".to_owned(),
            _ => format!("{}.{}", e.stall_ns / 1000, e.stall_ns / 100 % 10),
        };
        let order = match e.order {
            ORDER_UNKNOWN => "-".to_owned(),
            o => o.to_string(),
        };
        let settled = match e.settled() {
            Some(kind) => format!("  was {}", kind.name()),
            None => String::new(),
        };
        let style = if self.colour { style(e) } else { Style::new() };
        writeln!(
            self.out,
            "{style}{:>8}.{:03} {:<17} {:<7} {:<15} {:>8} {:>3} {stall:>11} {order:>5} {:>6} {:>6} {:>7}{settled}{style:#}",
            us / 1000,
            us % 1000,
            e.kind().map_or("?", Kind::name),
            e.phase().map_or("?", Phase::name),
            super::printable(e.comm_str()),
            e.tgid,
            e.cpu,
            e.pages,
            e.count,
            e.stalled_now,
        )
    }

    fn trim(&mut self, t: &Trim) -> io::Result<()> {
        let us = t.returned_ns.saturating_sub(self.start_ns) / 1000;
        let style = if self.colour {
            Style::new().fg_color(Some(AnsiColor::Green.into()))
        } else {
            Style::new()
        };
        let behind = match t.kind_name() {
            "" => String::new(),
            kind => format!(" of {kind}"),
        };
        writeln!(
            self.out,
            "{style}{:>8}.{:03} {:<17} {}{behind}: {} returned {} us after the onset, {} tokens dropped ({:.1} % of attention){style:#}",
            us / 1000,
            us % 1000,
            format!("trim {}", t.deepest()),
            t.trigger,
            t.bytes(),
            t.returned_ns.saturating_sub(t.onset_ns) / 1000,
            t.tokens,
            t.mass_dropped * 100.0,
        )
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// One JSON object a line.
#[derive(Debug)]
pub struct Jsonl<W> {
    out: W,
    start_ns: u64,
}

impl<W: Write> Jsonl<W> {
    /// As [`Text::new`].
    pub const fn new(out: W, start_ns: u64) -> Self {
        Self { out, start_ns }
    }
}

impl<W: Write> Output for Jsonl<W> {
    fn event(&mut self, e: &Event) -> io::Result<()> {
        let line = json!({
            "t_ns": e.ts_ns.saturating_sub(self.start_ns),
            "ts_ns": e.ts_ns,
            "kind": e.kind().map_or("?", Kind::name),
            "settled": e.settled().map(Kind::name),
            "phase": e.phase().map_or("?", Phase::name),
            "comm": e.comm_str(),
            "pid": e.tgid,
            "tid": e.tid,
            "cpu": e.cpu,
            "stall_ns": e.stall_ns,
            "order": (e.order != ORDER_UNKNOWN).then_some(e.order),
            "pages": e.pages,
            "count": e.count,
            "stalled_now": e.stalled_now,
            "node": e.node,
            "cgroup_id": e.cgroup_id,
            "detail": e.detail,
        });
        writeln!(self.out, "{line}")
    }

    fn trim(&mut self, t: &Trim) -> io::Result<()> {
        let line = json!({
            "t_ns": t.returned_ns.saturating_sub(self.start_ns),
            "ts_ns": t.returned_ns,
            "kind": "trim",
            "trigger": t.trigger,
            "behind": t.kind_name(),
            "step": t.deepest(),
            "onset_ns": t.onset_ns,
            "noticed_ns": t.noticed_ns,
            "wanted": t.wanted,
            "bytes": t.bytes(),
            "tokens": t.tokens,
            "mass_dropped": t.mass_dropped,
        });
        writeln!(self.out, "{line}")
    }

    fn kv(&mut self, kv: &KvLevel) -> io::Result<()> {
        let line = json!({
            "t_ns": kv.ts_ns.saturating_sub(self.start_ns),
            "ts_ns": kv.ts_ns,
            "kind": "kv",
            "resident": kv.resident,
            "in_use": kv.in_use,
            "budget": kv.budget,
        });
        writeln!(self.out, "{line}")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    fn event() -> Event {
        let mut e = Event::zeroed();
        e.ts_ns = 5_001_250_000;
        e.stall_ns = 1_234_500;
        e.kind = Kind::MemcgReclaim as u16;
        e.phase = Phase::End as u16;
        e.tgid = 77;
        e.pages = 32;
        e.order = ORDER_UNKNOWN;
        e.comm[..4].copy_from_slice(b"a\x1b[m");
        e
    }

    fn text(colour: bool) -> String {
        let mut out = Vec::new();
        let mut text = Text::new(&mut out, 5_000_000_000, colour);
        text.event(&event()).unwrap();
        text.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_has_relative_times_and_no_control_characters() {
        let text = text(false);
        assert!(!text.contains('\x1b'), "{text}");
        let line = text.lines().nth(1).unwrap();
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            fields,
            [
                "1.250",
                "memcg_reclaim",
                "end",
                "a?[m",
                "77",
                "0",
                "1234.5",
                "-",
                "32",
                "0",
                "0"
            ]
        );
    }

    #[test]
    fn a_long_stall_is_coloured_where_colours_are_wanted() {
        let text = text(true);
        let line = text.lines().nth(1).unwrap();
        assert!(
            line.starts_with("\x1b[33m") && line.ends_with("\x1b[0m"),
            "{line:?}"
        );
    }

    #[test]
    fn json_lines_are_json_and_say_null_for_an_unknown_order() {
        let mut out = Vec::new();
        Jsonl::new(&mut out, 5_000_000_000).event(&event()).unwrap();
        let v: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(v["t_ns"], 1_250_000);
        assert_eq!(v["kind"], "memcg_reclaim");
        assert!(v["order"].is_null());
    }
}
