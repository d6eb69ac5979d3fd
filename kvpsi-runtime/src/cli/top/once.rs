//! `kvpsi top --once`: the same figures as plain text.
//!
//! Owns the text. What came over the network is printed without control
//! characters. Out of scope: input.

use super::{
    client::Answer,
    state::Data,
    tables::level,
    words::{age, count, micros, percent},
};
use crate::{server::view::Status, trace::printable, units::Bytes};
use std::fmt::{self, Write};

/// Trims that are listed.
const TRIMS: usize = 10;
/// Why RSS may be near its limit and nothing is missing.
const MAPPED: &str = "RSS counts mapped weights, too: page cache that the kernel may drop";
/// Stalls of so long a time are summed up, ms.
const MINUTE: u64 = 60_000;

/// The summary of an instance at `url`.
pub fn summary(url: &str, answer: Answer) -> String {
    let mut data = Data::default();
    data.take(answer);
    let mut out = String::new();
    if let Some(status) = &data.status {
        // A string takes all that is written.
        let _ = write(&mut out, url, &data, status);
    }
    out
}

fn write(out: &mut String, url: &str, data: &Data, s: &Status) -> fmt::Result {
    let rates = data.rates();
    let mut line = |name: &str, text: &str| writeln!(out, "{name:<10} {}", printable(text));
    line(
        "kvpsi",
        &format!("{} at {url}, up {}", s.version, age(s.uptime_s)),
    )?;
    line("model", &s.model)?;
    let rung = s.rung.as_ref().map(|r| format!(", rung {r}"));
    line(
        "signal",
        &format!("{}{}", s.signal, rung.unwrap_or_default()),
    )?;
    if let Some(note) = &s.note {
        line("", note)?;
    }
    let trimming = if s.trimming { "on" } else { "off" };
    line(
        "profile",
        &format!("{}, trimming {trimming}", s.profile.name()),
    )?;
    let limit = s.limit.map_or_else(String::new, |l| format!(" of {l}"));
    line("memory", &format!("RSS {}{limit}; {MAPPED}", s.rss))?;
    let kv = &s.kv;
    let swapped = match kv.swapped {
        Bytes::ZERO => String::new(),
        bytes => format!(", in swap {bytes}"),
    };
    line(
        "KV",
        &format!(
            "resident {}{swapped} (in use {}, cached {}, slack {}), floor {}, budget {} of {}, {} tokens",
            kv.resident,
            kv.in_use,
            kv.cached,
            kv.slack,
            kv.floor,
            kv.budget,
            kv.capacity,
            count(kv.tokens)
        ),
    )?;
    let last = data.last(MINUTE);
    let sum = last
        .clone()
        .fold(0_u64, |n, x| n.saturating_add(x.stall_us));
    let worst = last.map(|x| x.stall_us).max().unwrap_or(0);
    let total = s.stalls.some_us.map_or("not measured".into(), micros);
    line(
        "stalled",
        &format!(
            "{total} since the start; last minute {}, worst {} in 250 ms; {} of the last 10 s",
            micros(sum),
            micros(worst),
            percent(rates.stalled)
        ),
    )?;
    let psi = s.psi.map_or("none on this kernel".into(), |psi| {
        let now = percent(rates.some);
        format!(
            "some {} ({now} of the last 10 s), full {}",
            micros(psi.some_us),
            micros(psi.full_us)
        )
    });
    line("PSI", &psi)?;
    line(
        "events",
        &format!(
            "{} seen, {} delivered, {} coalesced, {} dropped",
            count(s.stalls.seen),
            count(s.stalls.delivered),
            count(s.stalls.coalesced),
            count(s.stalls.dropped)
        ),
    )?;
    line("judged", &s.stalls.verdicts.to_string())?;
    let steps = s
        .trims
        .by_step
        .iter()
        .map(|(step, b)| format!("{step} {b}"));
    let steps = steps.collect::<Vec<_>>().join(", ");
    let steps = if steps.is_empty() {
        steps
    } else {
        format!(" ({steps})")
    };
    line(
        "trims",
        &format!(
            "{}, {} returned{steps}, {} tokens lost",
            count(s.trims.count),
            s.trims.bytes,
            count(s.trims.tokens)
        ),
    )?;
    let r = &s.requests;
    line(
        "requests",
        &format!(
            "{} running, {} waiting, {} finished, {} cancelled, {} refused, {} failed",
            count(r.running),
            count(r.waiting),
            count(r.finished),
            count(r.cancelled),
            count(r.refused),
            count(r.failed)
        ),
    )?;
    line(
        "tokens",
        &format!(
            "{:.1}/s, {} generated, {} of prompts",
            rates.tokens,
            count(r.tokens),
            count(r.prompt_tokens)
        ),
    )?;
    tables(out, data, s)
}

fn tables(out: &mut String, data: &Data, s: &Status) -> fmt::Result {
    if !s.walls.is_empty() {
        writeln!(
            out,
            "\n{:<38} {:>10} {:>10} {:>10} {:>10} {:>8} {:>10} {:>10}",
            "limit", "used", "anonymous", "high", "max", "hits", "missing", "room"
        )?;
    }
    for w in &s.walls {
        let known = |b: Option<Bytes>| b.map_or_else(|| "-".into(), |b| b.to_string());
        let binds = if w.binds { " binds" } else { "" };
        writeln!(
            out,
            "{:<38} {:>10} {:>10} {:>10} {:>10} {:>8} {:>10} {:>10}{binds}",
            printable(level(w)),
            known(Some(w.usage)),
            known(w.anonymous),
            known(w.high),
            known(w.max),
            w.hits.map_or_else(|| "-".into(), count),
            known(Some(w.missing)),
            known(Some(w.room)),
        )?;
    }
    if !s.sequences.is_empty() {
        writeln!(
            out,
            "\n{:<38} {:<9} {:>7} {:>7} {:>6} {:>8}",
            "sequence", "doing", "prompt", "tokens", "lost", "age"
        )?;
    }
    for q in &s.sequences {
        writeln!(
            out,
            "{:<38} {:<9} {:>7} {:>7} {:>6} {:>8}",
            printable(&q.id),
            q.doing.name(),
            q.prompt_tokens,
            q.tokens,
            q.lost_tokens,
            age(q.age_s)
        )?;
    }
    if !data.trims.is_empty() {
        writeln!(
            out,
            "\n{:>8} {:<13} {:<17} {:<7} {:>9} {:>6} {:>9} {:>17}",
            "trim",
            "trigger",
            "kind",
            "step",
            "returned",
            "tokens",
            "attention",
            "onset to returned"
        )?;
    }
    for t in data.trims.iter().rev().take(TRIMS) {
        let ago = std::time::Duration::from_millis(data.now_ms.saturating_sub(t.t_ms));
        writeln!(
            out,
            "{:>8} {:<13} {:<17} {:<7} {:>9} {:>6} {:>9} {:>17}",
            age(ago.as_secs_f64()),
            printable(&t.trigger),
            printable(&t.kind),
            printable(&t.step),
            t.bytes.to_string(),
            t.tokens,
            percent(f64::from(t.mass_dropped)),
            micros(t.onset_to_returned_us)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sample::answer;
    use super::*;

    #[test]
    fn the_summary_has_the_figures_that_came() {
        let text = summary("http://127.0.0.1:8080", answer());
        for line in [
            "kvpsi      0.1.0 at http://127.0.0.1:8080, up 1:02:03\n",
            "signal     ebpf, rung fentry\n",
            "profile    balanced, trimming on\n",
            "memory     RSS 150.1 MiB of 176.0 MiB; RSS counts mapped weights, too: page cache that the kernel may drop\n",
            "KV         resident 38.3 MiB (in use 24.0 MiB, cached 13.0 MiB, slack 1.3 MiB), floor 4.5 MiB, budget 48.0 MiB of 64.0 MiB, 1,745 tokens\n",
            "stalled    4.3 s since the start; last minute 6600 us, worst 3300 us in 250 ms; 0.0 % of the last 10 s\n",
            "PSI        some 5.4 s (0.0 % of the last 10 s), full 987.6 ms\n",
            "events     12,345 seen, 678 delivered, 11,667 coalesced, 0 dropped\n",
            "judged     33 asked for memory (31 at a cgroup's limit, 2 at the system's), 507 harmless, 88 foreign\n",
            "trims      4, 4.9 MiB returned (cached 2.1 MiB, pack 96.0 KiB, slack 512.0 KiB, window 2.2 MiB), 96 tokens lost\n",
            "requests   2 running, 1 waiting, 1,087 finished, 13 cancelled, 7 refused, 0 failed\n",
            "tokens     24.0/s, 98,765 generated, 345,678 of prompts\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let words = |mark| {
            let line = text.lines().find(|l| l.contains(mark)).unwrap_or_default();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            words("b2c9"),
            "chatcmpl-5f1d70a4b2c9 decode 993 412 96 17 s"
        );
        assert_eq!(
            words("robot"),
            "robot/llm 170.0 MiB 161.0 MiB 176.0 MiB 192.0 MiB 1,234 0 B 10.0 MiB binds"
        );
        assert_eq!(
            words("follow_up"),
            "1:39 follow_up softlimit_reclaim window 2.2 MiB 96 15.3 % 33.9 ms"
        );
    }

    #[test]
    fn an_idle_kvpsi_has_no_tables_and_names_cannot_move_the_cursor() {
        let mut idle = answer();
        idle.history.trims.clear();
        idle.status.sequences.clear();
        idle.status.trims.by_step.clear();
        idle.status.model = "a\u{1b}[2Jb".into();
        let text = summary("http://x", idle);
        assert!(text.contains("model      a?[2Jb\n"));
        assert!(!text.contains("sequence ") && !text.contains("trigger"));
        assert!(text.contains("MiB returned, 96 tokens lost"));
    }
}
