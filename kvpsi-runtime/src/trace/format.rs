//! Events as text for people and as JSON Lines for programs.
//!
//! Owns the columns and the names. Times are relative to the start of the
//! dump. Refuses to know where the events come from.

use kvpsi_common::{Event, Kind, Phase, event::ORDER_UNKNOWN};
use serde_json::json;
use std::io::{self, Write};

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line of columns
    Text,
    /// One JSON object per line
    Jsonl,
}

/// Which events are printed.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only these kinds; all if empty.
    pub kinds: Vec<Kind>,
    /// Only this process.
    pub pid: Option<u32>,
}

impl Filter {
    fn takes(&self, e: &Event) -> bool {
        let wanted = |kind: Option<Kind>| kind.is_some_and(|k| self.kinds.contains(&k));
        (self.kinds.is_empty() || wanted(e.kind()) || wanted(e.settled()))
            && self.pid.is_none_or(|p| p == e.tgid)
    }
}

/// Prints events.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    format: Format,
    filter: Filter,
    start_ns: u64,
    shown: u64,
}

impl<W: Write> Writer<W> {
    /// `start_ns` is the moment, in `CLOCK_MONOTONIC` ns, that times are
    /// relative to.
    pub const fn new(out: W, format: Format, filter: Filter, start_ns: u64) -> Self {
        Self {
            out,
            format,
            filter,
            start_ns,
            shown: 0,
        }
    }

    /// Events printed so far.
    #[must_use]
    pub const fn shown(&self) -> u64 {
        self.shown
    }

    /// Prints one event, if the filter takes it.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn event(&mut self, e: &Event) -> io::Result<()> {
        if !self.filter.takes(e) {
            return Ok(());
        }
        if self.shown == 0 && self.format == Format::Text {
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
        self.shown += 1;
        match self.format {
            Format::Text => self.text(e),
            Format::Jsonl => self.json(e),
        }
    }

    /// Hands on what is buffered.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn text(&mut self, e: &Event) -> io::Result<()> {
        let us = e.ts_ns.saturating_sub(self.start_ns) / 1000;
        let stall = match e.phase() {
            Some(Phase::Begin | Phase::Mark) => "-".to_owned(),
            _ => format!("{}.{}", e.stall_ns / 1000, e.stall_ns / 100 % 10),
        };
        let order = match e.order {
            ORDER_UNKNOWN => "-".to_owned(),
            o => o.to_string(),
        };
        // A task may call itself anything, control characters included.
        let comm: String = e
            .comm_str()
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        let settled = match e.settled() {
            Some(kind) => format!("  was {}", kind.name()),
            None => String::new(),
        };
        writeln!(
            self.out,
            "{:>8}.{:03} {:<17} {:<7} {comm:<15} {:>8} {:>3} {stall:>11} {order:>5} {:>6} {:>6} {:>7}{settled}",
            us / 1000,
            us % 1000,
            e.kind().map_or("?", Kind::name),
            e.phase().map_or("?", Phase::name),
            e.tgid,
            e.cpu,
            e.pages,
            e.count,
            e.stalled_now,
        )
    }

    fn json(&mut self, e: &Event) -> io::Result<()> {
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

    fn printed(format: Format, filter: Filter, e: &Event) -> String {
        let mut w = Writer::new(Vec::new(), format, filter, 5_000_000_000);
        w.event(e).unwrap();
        String::from_utf8(w.out).unwrap()
    }

    #[test]
    fn text_has_relative_times_and_no_control_characters() {
        let text = printed(Format::Text, Filter::default(), &event());
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
    fn json_lines_are_json_and_say_null_for_an_unknown_order() {
        let text = printed(Format::Jsonl, Filter::default(), &event());
        let v: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(v["t_ns"], 1_250_000);
        assert_eq!(v["kind"], "memcg_reclaim");
        assert!(v["order"].is_null());
    }

    #[test]
    fn filters_hide_other_kinds_and_processes() {
        let other_kind = Filter {
            kinds: vec![Kind::DirectReclaim],
            pid: None,
        };
        let other_pid = Filter {
            kinds: Vec::new(),
            pid: Some(78),
        };
        let same = Filter {
            kinds: vec![Kind::MemcgReclaim],
            pid: Some(77),
        };
        assert_eq!(printed(Format::Jsonl, other_kind, &event()), "");
        assert_eq!(printed(Format::Jsonl, other_pid, &event()), "");
        assert_ne!(printed(Format::Jsonl, same, &event()), "");
    }
}
