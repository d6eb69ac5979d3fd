//! `cargo xtask bench check`: whether a ratio fell since the baseline.
//!
//! Owns which ratios count and the committed baseline, docs/ratios.json. Never
//! absolute times: another machine, or this one on another day, is faster or
//! slower as a whole. Every ratio is so formed that more is better.

use crate::{cotenant, giveback, places, reaction, report, say};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::PathBuf};
use xshell::Shell;

/// What to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compare the figures of the last runs instead of measuring (quickly, and again what fell)
    #[arg(long)]
    no_run: bool,
    /// Make the ratios the new baseline
    #[arg(long)]
    write: bool,
    /// Write the comparison to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Use this GGUF instead of the default model
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

/// A ratio below this share of its baseline has fallen.
const FALLEN: f64 = 0.85;

type Ratios = BTreeMap<String, f64>;

/// Measures, compares and says what fell.
///
/// # Errors
/// Something cannot be measured or read; or a ratio fell.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    if !args.no_run {
        for name in BENCHES {
            measure(sh, name, args)?;
        }
    }
    let mut now = Ratios::new();
    for name in BENCHES {
        now.extend(last(name)?);
    }
    let file = places::root().join("docs/ratios.json");
    if args.write {
        let text = serde_json::to_string_pretty(&now)? + "\n";
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        say(format!("wrote {}", file.display()));
        return Ok(());
    }
    let bytes = fs::read(&file)
        .with_context(|| format!("{}: cargo xtask bench check --write", file.display()))?;
    let base: Ratios = serde_json::from_slice(&bytes)?;
    let mut rows = compare(&base, &now);
    if !args.no_run {
        // On a machine that others use too, one fall is chance; two are not.
        for name in BENCHES {
            let of = format!("{name}: ");
            let fell = |r: &Value| {
                r["fell"] == true && r["ratio"].as_str().is_some_and(|n| n.starts_with(&of))
            };
            if rows.iter().any(fell) {
                say(format!("a ratio of {name} fell: once more"));
                measure(sh, name, args)?;
                for (ratio, again) in last(name)? {
                    let best = now.entry(ratio).or_insert(again);
                    *best = best.max(again);
                }
            }
        }
        rows = compare(&base, &now);
    }
    println!(
        "{:<44} {:>10} {:>10} {:>8}",
        "ratio", "baseline", "now", "share"
    );
    for r in &rows {
        let number = |key: &str| r[key].as_f64().map_or("-".into(), |n| format!("{n:.2}"));
        println!(
            "{:<44} {:>10} {:>10} {:>8}{}",
            r["ratio"].as_str().unwrap_or_default(),
            number("baseline"),
            number("now"),
            number("share"),
            if r["fell"] == true { "  FELL" } else { "" }
        );
    }
    if let Some(file) = &args.json {
        fs::write(
            file,
            serde_json::to_vec_pretty(&json!({"bench": "check", "rows": rows}))?,
        )
        .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let fell = rows.iter().filter(|r| r["fell"] == true).count();
    if fell > 0 {
        bail!("{fell} of {} ratios fell by more than 15 %", rows.len());
    }
    Ok(())
}

/// Whose ratios count.
const BENCHES: [&str; 3] = ["reaction", "giveback", "cotenant"];

/// Runs a benchmark, quickly.
fn measure(sh: &Shell, name: &str, args: &Args) -> Result<()> {
    let quick = report::Args {
        quick: true,
        json: None,
        model: args.model.clone(),
    };
    match name {
        "reaction" => reaction::run(sh, &quick),
        "giveback" => giveback::run(sh, &quick),
        _ => cotenant::run(
            sh,
            &cotenant::CotenantArgs {
                args: quick,
                machine: false,
            },
        ),
    }
}

/// The ratios of its last run.
fn last(name: &str) -> Result<Ratios> {
    let file = places::target().join(format!("bench/{name}.json"));
    let bytes =
        fs::read(&file).with_context(|| format!("{}: cargo xtask bench {name}", file.display()))?;
    Ok(ratios(&serde_json::from_slice(&bytes)?))
}

/// The ratios of a report, by name.
fn ratios(report: &Value) -> Ratios {
    let mut all = Ratios::new();
    let rows = || report["rows"].as_array().into_iter().flatten();
    let mut put = |name: String, over: Option<f64>, under: Option<f64>| {
        if let (Some(over), Some(under)) = (over, under)
            && under > 0.0
        {
            all.insert(name, over / under);
        }
    };
    match report["bench"].as_str() {
        Some("reaction") => {
            let of = |source: &str, key: &str| {
                let found = rows().find(|r| r["source"] == source && r["load"] == "decoding");
                found.and_then(|r| r[key].as_f64())
            };
            put(
                "reaction: psi-poll-10ms by ebpf".into(),
                of("psi-poll-10ms", "mean_us"),
                of("ebpf", "p50_us"),
            );
        }
        Some("giveback") => {
            for r in rows().filter(|r| r["holder"] == "kvpsi") {
                let of = |key: &str| r[key].as_f64();
                let name = format!(
                    "{}, {}",
                    r["pattern"].as_str().unwrap_or_default(),
                    r["block"]
                );
                put(
                    format!("giveback: RSS lost, {name}"),
                    of("rss_lost"),
                    Some(1.0),
                );
                // Of the same memory: pages that another core filled take longer.
                let (bare, ours) = (of("in_place_us_per_mib"), of("us_per_mib"));
                put(format!("giveback: madvise by kvpsi, {name}"), bare, ours);
            }
        }
        Some("cotenant") => {
            let of = |variant: &str, key: &str| {
                let found = rows().find(|r| r["variant"] == variant);
                found.and_then(|r| r[key].as_f64())
            };
            for (key, what) in [("p99_us", "p99 within bursts"), ("excess_us", "excess")] {
                let (fixed, ours) = (of("fixed", key), of("ebpf", key));
                put(format!("cotenant: fixed by ebpf, {what}"), fixed, ours);
            }
            let speed = |variant| of(variant, "tok_s");
            put(
                "cotenant: ebpf by fixed, tokens/s".into(),
                speed("ebpf"),
                speed("fixed"),
            );
        }
        _ => {}
    }
    all
}

/// A row for every ratio of the baseline; one that is not there now fell.
fn compare(base: &Ratios, now: &Ratios) -> Vec<Value> {
    let row = |(name, base): (&String, &f64)| {
        let share = now.get(name).map(|n| n / base);
        json!({
            "ratio": name, "baseline": base, "now": now.get(name), "share": share,
            "fell": share.is_none_or(|s| s < FALLEN),
        })
    };
    base.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_and_one_that_fell_is_seen() {
        let report = |ebpf: f64| {
            json!({"bench": "reaction", "rows": [
                {"source": "ebpf", "load": "decoding", "p50_us": ebpf},
                {"source": "ebpf", "load": "idle", "p50_us": 1.0},
                {"source": "psi-poll-10ms", "load": "decoding", "mean_us": 9000.0},
            ]})
        };
        let base = ratios(&report(300.0));
        assert_eq!(
            base,
            Ratios::from([("reaction: psi-poll-10ms by ebpf".into(), 30.0)])
        );
        let fell = |now: f64| compare(&base, &ratios(&report(now)))[0]["fell"].clone();
        assert_eq!(fell(340.0), false);
        assert_eq!(fell(360.0), true);
        assert_eq!(compare(&base, &Ratios::new())[0]["fell"], true);
    }
}
