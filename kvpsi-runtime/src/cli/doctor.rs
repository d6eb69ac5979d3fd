//! `kvpsi doctor`: what this kernel offers and what kvpsi would use.
//!
//! Nothing that is missing is an error here: to say so is the command's job.

use crate::units::Bytes;
use crate::{
    cli::tell::printable,
    control::{
        cgroup::{MemoryCgroup, Version},
        early::EarlyWarning,
        report::{self, WallReport},
    },
    model::{default_model, linear::choose},
    pressure::{self, Choice, SignalError, SourceConfig, ebpf::EbpfSource, privilege, programs},
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
    let opened = pressure::open(Choice::Auto, &config);
    let verdict = verdict(
        opened.as_ref().map(|o| o.source.name()),
        &Lacks {
            privilege: !may_load(),
            object: pressure::ebpf::object().is_none(),
            model: default_model::find().is_err(),
            kernels: choose::active().err().map(|e| e.to_string()),
        },
    );
    let (chosen, notes) = match opened {
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
        "walls": report::walls(Bytes::ZERO),
        "early_warning": EarlyWarning::read()
            .map_or_else(|| "not known: /proc/zoneinfo does not say".into(), |e| e.to_string()),
        "memlock": memlock(),
        "capabilities": privilege::held(),
        "weights_cache": super::cache::summary(),
        "programs": programs,
        "source": chosen,
        "notes": notes,
        "verdict": verdict,
    })
}

/// Whether this process has what loading and attaching takes.
fn may_load() -> bool {
    let held = privilege::held();
    let has = |name| held.iter().any(|h| h == name);
    has("CAP_SYS_ADMIN") || (has("CAP_BPF") && has("CAP_PERFMON"))
}

/// What is missing here, perhaps.
#[derive(Debug, Default)]
struct Lacks {
    privilege: bool,
    object: bool,
    model: bool,
    kernels: Option<String>,
}

/// Whether kvpsi will work here, by which signal, and what to do first.
fn verdict(source: Result<&str, &SignalError>, lacks: &Lacks) -> String {
    if let Some(why) = &lacks.kernels {
        return format!("kvpsi does not work here: {why}");
    }
    let ebpf = match lacks {
        Lacks { object: true, .. } => "build it in by `cargo xtask build-ebpf`",
        Lacks {
            privilege: true, ..
        } => "run it as root, or with CAP_BPF and CAP_PERFMON",
        _ => "the line `bpf` says why it is not used",
    };
    let works = |by: &str| format!("kvpsi works here, by {by}; eBPF is quicker: {ebpf}");
    let mut text = match source {
        Ok("ebpf") => "kvpsi works here, by eBPF: it sees memory stalls as they begin".into(),
        Ok("systemd") => works("what the service manager watches (systemd)"),
        Ok("psi-trigger") => works("a PSI trigger: the kernel tells it of memory stalls"),
        Ok("psi-poll") => works("polling PSI: it looks for memory stalls some times a second"),
        Ok("vmstat") => {
            works("polling /proc/vmstat: it sees the whole system's shortage, and no cgroup's")
        }
        Ok(other) => works(other),
        Err(SignalError::Unwanted) => format!(
            "kvpsi runs models here and gives no memory back: {}",
            SignalError::Unwanted
        ),
        Err(_) => format!(
            "kvpsi sees no memory stalls here, and starts with `--signal none` alone, which gives no \
             memory back; for eBPF {ebpf}, or boot a kernel with PSI (psi=1)"
        ),
    };
    if lacks.model {
        text += ". There is no model yet: `cargo xtask model` fetches a small one, -m FILE names another";
    }
    text
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
        out.push_str(&format!("{name:<26} {}\n", printable(&shown)));
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
    line("verdict", &report["verdict"]);
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
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("verdict ") && last.contains("kvpsi "),
            "{last}"
        );
    }

    #[test]
    fn the_verdict_says_whether_by_what_and_what_to_do_first() {
        let all = Lacks::default();
        let root = Lacks {
            privilege: true,
            ..Lacks::default()
        };
        let says = |source, lacks: &Lacks, words: &[&str]| {
            let text = verdict(source, lacks);
            assert!(words.iter().all(|w| text.contains(w)), "{text}");
        };
        says(Ok("ebpf"), &all, &["works here, by eBPF"]);
        assert!(!verdict(Ok("ebpf"), &all).contains(';'));
        let psi = "by a PSI trigger";
        says(Ok("psi-trigger"), &root, &[psi, "run it as root"]);
        says(Ok("psi-trigger"), &all, &[psi, "the line `bpf`"]);
        let none = SignalError::Nothing("all of it".into());
        says(Err(&none), &root, &["--signal none", "psi=1", "as root"]);
        let unwanted = ["no memory back", "MEMORY_PRESSURE_WATCH"];
        says(Err(&SignalError::Unwanted), &all, &unwanted);
        let model = Lacks {
            model: true,
            ..Lacks::default()
        };
        says(Ok("vmstat"), &model, &["/proc/vmstat", "cargo xtask model"]);
        let kernels = Lacks {
            kernels: Some("KVPSI_ISA=x: no".into()),
            ..Lacks::default()
        };
        says(Ok("ebpf"), &kernels, &["does not work here: KVPSI_ISA=x"]);
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
