//! The figures of a run: JSON for programs, a table for people.

use super::messages::{Done, Events, Kv, Trim};
use crate::units::Bytes;
use serde::Serialize;
use std::fmt::Write;

/// The report file of `kvpsi demo --report`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Source that detected the pressure; `none` if the worker died before.
    pub signal: String,
    pub trimming: bool,
    pub tokens: u64,
    pub tokens_per_s: f64,
    pub oom_kills: u64,
    /// Bursts of the hog: (reading a file, growing memory).
    pub bursts: (u32, u32),
    pub limit: Bytes,
    pub events: Events,
    pub wakeups: u64,
    pub ignored: u64,
    pub trim_records_lost: u64,
    pub trims: Vec<Trim>,
    pub kv: Kv,
    /// `SCHED_FIFO` was granted to the reactor.
    pub realtime: bool,
}

impl Report {
    pub fn finish(&mut self, done: Done) {
        self.tokens = done.tokens;
        self.tokens_per_s = done.tokens_per_s;
        self.events = done.events;
        self.wakeups = done.wakeups;
        self.ignored = done.ignored;
        self.trim_records_lost = done.trim_records_lost;
        self.kv = done.kv;
        self.realtime = done.realtime;
    }

    /// The table at the end of a run.
    pub fn table(&self) -> String {
        let mut t = String::new();
        let row = |t: &mut String, k: &str, v: String| {
            let _ = writeln!(t, "  {k:<22} {v}");
        };
        let returned: u64 = self.trims.iter().map(|t| t.bytes.0).sum();
        let slow: Vec<&Trim> = self.trims.iter().filter(|t| t.in_background()).collect();
        let later: u64 = slow.iter().map(|t| t.bytes.0).sum();
        row(
            &mut t,
            "signal",
            format!(
                "{}{}",
                self.signal,
                if self.realtime {
                    ", real-time reactor"
                } else {
                    ""
                }
            ),
        );
        row(
            &mut t,
            "text",
            match self.tokens_per_s {
                // What the kernel killed has told no rate.
                0.0 => format!("{} tokens", self.tokens),
                rate => format!("{} tokens, {rate:.1} tokens/s", self.tokens),
            },
        );
        row(&mut t, "OOM kills", self.oom_kills.to_string());
        row(
            &mut t,
            "bursts of the hog",
            format!(
                "{} reading a file, {} growing memory",
                self.bursts.0, self.bursts.1
            ),
        );
        row(
            &mut t,
            "trims",
            format!(
                "{}, {} returned",
                self.trims.len() - slow.len(),
                Bytes(returned - later)
            ),
        );
        if !slow.is_empty() {
            row(
                &mut t,
                "in the background",
                format!("{} steps, {} returned", slow.len(), Bytes(later)),
            );
        }
        let us = |f: fn(&Trim) -> f64| {
            let mut v: Vec<f64> = self
                .trims
                .iter()
                .filter(|t| t.trigger != "follow_up" && !t.in_background())
                .map(f)
                .collect();
            v.sort_by(f64::total_cmp);
            (quantile(&v, 0.5), quantile(&v, 0.99), v.len())
        };
        if self.trims.len() > slow.len() {
            let (p50, p99, n) = us(|t| t.onset_to_start_us);
            row(
                &mut t,
                "onset to start",
                format!("p50 {p50:.0} us, p99 {p99:.0} us ({n} stalls)"),
            );
            let (p50, p99, _) = us(|t| t.onset_to_returned_us);
            row(
                &mut t,
                "onset to returned",
                format!("p50 {p50:.0} us, p99 {p99:.0} us"),
            );
            row(
                &mut t,
                "RSS lost / returned",
                format!("{:.1} %", self.rss_share() * 100.0),
            );
        }
        let e = &self.events;
        row(
            &mut t,
            "events",
            format!(
                "{} seen = {} delivered + {} coalesced + {} dropped, {} wake-ups",
                e.seen, e.delivered, e.coalesced, e.dropped, self.wakeups
            ),
        );
        row(
            &mut t,
            "KV",
            format!(
                "{} reserved = {} resident + {} returned, {} tokens",
                self.kv.reserved, self.kv.resident, self.kv.returned, self.kv.tokens
            ),
        );
        t
    }

    /// Bytes that left the resident set over bytes reported as returned.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    fn rss_share(&self) -> f64 {
        let quick = self.trims.iter().filter(|t| !t.in_background());
        let (lost, said) = quick.fold((0u64, 0u64), |(l, s), t| {
            (
                l + t.rss_before.saturating_sub(t.rss_after).0,
                s + t.bytes.0,
            )
        });
        if said == 0 {
            0.0
        } else {
            lost as f64 / said as f64
        }
    }
}

/// Quantile of sorted values by the nearest-rank method; 0 for none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rank in a short list"
)]
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (sorted.len() as f64 * q).ceil().max(1.0) as usize;
    sorted
        .get(rank.min(sorted.len()).wrapping_sub(1))
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::{Report, quantile};

    #[test]
    fn of_a_killed_model_no_rate_is_told() {
        let mut report = Report {
            tokens: 310,
            ..Report::default()
        };
        let text = |report: &Report| {
            let table = report.table();
            let line = table.lines().find(|l| l.starts_with("  text")).unwrap();
            line.split_once("text").unwrap().1.trim().to_owned()
        };
        assert_eq!(text(&report), "310 tokens");
        report.tokens_per_s = 99.5;
        assert_eq!(text(&report), "310 tokens, 99.5 tokens/s");
    }

    #[test]
    fn quantiles_are_nearest_rank() {
        let v = [1.0, 2.0, 3.0, 4.0];
        assert!((quantile(&v, 0.5) - 2.0).abs() < 1e-9);
        assert!((quantile(&v, 0.99) - 4.0).abs() < 1e-9);
        assert!((quantile(&[], 0.5)).abs() < 1e-9);
    }
}
