//! `kvpsi doctor`: what this kernel offers and what kvpsi would use.
//!
//! Nothing that is missing is an error here: to say so is the command's job.

use crate::units::Bytes;
use crate::{
    control::{
        cgroup::{MemoryCgroup, Version},
        early::EarlyWarning,
        report::{self, WallReport},
    },
    pressure::{self, Choice, SourceConfig, ebpf::EbpfSource, privilege, programs},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{fs, io::Write, path::Path};

/// Arguments of `kvpsi doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Only when the report cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    let report = report();
    let text = if args.json {
        format!("{report:#}\n")
    } else {
        as_text(&report)
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn report() -> Value {
    let config = SourceConfig::default();
    let (bpf, rung, programs, undetected, log_level) = match EbpfSource::open(&config) {
        Ok(source) => (
            "usable".to_owned(),
            source.rung().name(),
            json!(source.programs()),
            programs::undetected(source.programs()),
            "on request",
        ),
        Err(e) => (e.to_string(), "none", json!([]), None, "none"),
    };
    let (chosen, notes) = match pressure::open(Choice::Auto, &config) {
        Ok(o) => (o.source.name().to_owned(), o.notes),
        Err(e) => (e.to_string(), Vec::new()),
    };
    let uname = rustix::system::uname();
    json!({
        "kernel": format!(
            "{} {}",
            uname.release().to_string_lossy(),
            uname.machine().to_string_lossy()
        ),
        "lockdown": read_or("/sys/kernel/security/lockdown", "not known (securityfs is not mounted)"),
        "object": match pressure::ebpf::object() {
            Some(o) => format!("embedded, {} bytes, ABI version {}", o.len(), kvpsi_common::ABI_VERSION),
            None => "none: built without it (cargo xtask build-ebpf)".into(),
        },
        "bpf": bpf,
        "rung": rung,
        "undetected": undetected,
        "bpf_log": log_level,
        "unprivileged_bpf_disabled": read_or("/proc/sys/kernel/unprivileged_bpf_disabled", "not known"),
        "btf": present("/sys/kernel/btf/vmlinux"),
        "tracefs": if Path::new("/sys/kernel/tracing/events").is_dir() {
            "mounted"
        } else {
            "not mounted (not needed)"
        },
        "psi": psi(Path::new("/proc/pressure/memory")),
        "cgroup": cgroup(),
        "walls": report::walls(),
        "early_warning": EarlyWarning::read()
            .map_or_else(|| "not known: /proc/zoneinfo does not say".into(), |e| e.to_string()),
        "memlock": memlock(),
        "capabilities": privilege::held(),
        "weights_cache": super::cache::summary(),
        "programs": programs,
        "source": chosen,
        "notes": notes,
    })
}

/// The memory cgroup of this process.
fn cgroup() -> Value {
    let pressure = MemoryCgroup::unified_of_self().map_or_else(
        || "none: no cgroup v2 is mounted".to_owned(),
        |d| psi(&d.join("memory.pressure")),
    );
    let Ok(own) = MemoryCgroup::of_self() else {
        return json!({ "version": "none with the memory controller", "psi": pressure });
    };
    let or_unknown =
        |b: Option<Bytes>, none: &str| b.map_or_else(|| none.to_owned(), |b| b.to_string());
    json!({
        "version": match own.version { Version::V1 => "v1", Version::V2 => "v2" },
        "own": own.path.display().to_string(),
        "limit": or_unknown(own.limit(), "no limit"),
        "used": or_unknown(own.usage(), "not known"),
        "psi": pressure,
    })
}

/// One limit, as a line.
fn wall_text(w: &WallReport) -> String {
    let known = |b: Option<Bytes>| b.map_or_else(|| "?".into(), |b| b.to_string());
    let mut text = format!("{}: {} used", w.level, w.usage);
    for (name, limit) in [("high", w.high), ("max", w.max)] {
        if let Some(limit) = limit {
            text += &format!(", {name} {limit}");
        }
    }
    text += &format!(
        ", anonymous {}, clean page cache {}",
        known(w.anonymous),
        known(w.page_cache)
    );
    if let Some(hits) = w.hits {
        text += &format!(", hit {hits} times");
    }
    text += &format!(", {} missing, room for {}", w.missing, w.room);
    if w.binds {
        text += "; binds";
    }
    text
}

fn psi(file: &Path) -> String {
    match fs::read_to_string(file) {
        Ok(text) => text.lines().next().unwrap_or("empty").to_owned(),
        Err(e) => format!("none: {}: {}", file.display(), pressure::plain(&e)),
    }
}

fn memlock() -> String {
    match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
        None => "no limit".into(),
        Some(n) => Bytes(n).to_string(),
    }
}

fn present(path: &str) -> &'static str {
    if Path::new(path).exists() {
        "present"
    } else {
        "absent (not needed)"
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_owned())
}

fn read_or(path: &str, missing: &str) -> String {
    read(path).unwrap_or_else(|| missing.to_owned())
}

fn as_text(report: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &Value| {
        let shown = match value {
            Value::String(s) => s.clone(),
            Value::Array(a) if a.is_empty() => "none".into(),
            Value::Array(a) => a
                .iter()
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join(" "),
            other => other.to_string(),
        };
        out.push_str(&format!("{name:<26} {shown}\n"));
    };
    for name in [
        "kernel",
        "lockdown",
        "object",
        "bpf",
        "rung",
        "unprivileged_bpf_disabled",
        "btf",
        "tracefs",
        "psi",
    ] {
        line(name, &report[name]);
    }
    for (name, value) in report["cgroup"].as_object().into_iter().flatten() {
        line(&format!("cgroup {name}"), value);
    }
    let walls = Vec::<WallReport>::deserialize(&report["walls"]);
    for w in walls.iter().flatten() {
        line("wall", &json!(wall_text(w)));
    }
    line("early warning", &report["early_warning"]);
    line("memlock", &report["memlock"]);
    line("capabilities", &report["capabilities"]);
    line("weights cache", &report["weights_cache"]);
    for p in report["programs"].as_array().into_iter().flatten() {
        let state = match (p["state"].as_str(), p["why"].as_str()) {
            (Some(state), Some(why)) => format!("{state}: {why}"),
            (state, _) => state.unwrap_or_default().to_owned(),
        };
        let name = format!("  {}", p["name"].as_str().unwrap_or_default());
        let hook = p["hook"].as_str().unwrap_or_default();
        let by = p["by"].as_str().unwrap_or_default();
        line(&name, &json!(format!("{by:<9} {hook:<39} {state}")));
    }
    if report["undetected"].is_string() {
        line("undetected", &report["undetected"]);
    }
    for note in report["notes"].as_array().into_iter().flatten() {
        line("refused", note);
    }
    line("source", &report["source"]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_made_whatever_is_missing() {
        let report = report();
        assert!(report["source"].is_string());
        let text = as_text(&report);
        assert!(
            text.contains("kernel") && text.contains("source") && text.contains("weights cache")
        );
    }

    #[test]
    fn a_wall_is_one_line_that_says_which_limits_it_has() {
        let wall = WallReport {
            level: "/a/b".into(),
            usage: Bytes::mib(1),
            high: Some(Bytes::mib(2)),
            hits: Some(7),
            room: Bytes::mib(1),
            binds: true,
            ..WallReport::default()
        };
        assert_eq!(
            wall_text(&wall),
            "/a/b: 1.0 MiB used, high 2.0 MiB, anonymous ?, clean page cache ?, hit 7 times, \
             0 B missing, room for 1.0 MiB; binds"
        );
    }
}
