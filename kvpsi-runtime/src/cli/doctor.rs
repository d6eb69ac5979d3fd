//! `kvpsi doctor`: what this kernel offers and what kvpsi would use.
//!
//! Nothing that is missing is an error here: to say so is the command's job.

use crate::pressure::{self, Choice, SourceConfig, ebpf::EbpfSource, privilege, programs};
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
    let own = read("/proc/self/cgroup");
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
        "cgroup": cgroup(own.as_deref().unwrap_or_default()),
        "memlock": memlock(),
        "capabilities": privilege::held(),
        "programs": programs,
        "source": chosen,
        "notes": notes,
    })
}

/// The memory cgroup of this process: version, path, limit, use, PSI.
fn cgroup(own: &str) -> Value {
    let field = |controller: &str| {
        own.lines().find_map(|l| {
            let mut parts = l.splitn(3, ':').skip(1);
            let names = parts.next()?;
            let path = parts.next()?;
            let hit = if controller.is_empty() {
                names.is_empty()
            } else {
                names.split(',').any(|n| n == controller)
            };
            hit.then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let mounts = read("/proc/self/mounts").unwrap_or_default();
    let mount = |kind: &str, option: &str| {
        mounts.lines().find_map(|l| {
            let f: Vec<&str> = l.split(' ').collect();
            let fits = f.len() > 3
                && f[2] == kind
                && (option.is_empty() || f[3].split(',').any(|o| o == option));
            fits.then(|| f[1].to_owned())
        })
    };
    let at = |mount: Option<String>, path: Option<String>| Some(Path::new(&mount?).join(path?));
    let v1 = at(mount("cgroup", "memory"), field("memory"));
    let v2 = at(mount("cgroup2", ""), field(""));
    let pressure = v2.as_ref().map_or_else(
        || "none: no cgroup v2 is mounted".to_owned(),
        |d| psi(&d.join("memory.pressure")),
    );
    let (version, dir, limit, used) = match (v1, v2) {
        (Some(d), _) => ("v1", d, "memory.limit_in_bytes", "memory.usage_in_bytes"),
        (None, Some(d)) => ("v2", d, "memory.max", "memory.current"),
        (None, None) => return json!({ "version": "none with the memory controller" }),
    };
    json!({
        "version": version,
        "own": dir.display().to_string(),
        "limit": read(dir.join(limit)).map_or_else(|| "none (root cgroup, or no controller)".into(), |l| bytes(&l)),
        "used": read(dir.join(used)).map_or_else(|| "not known".into(), |l| bytes(&l)),
        "psi": pressure,
    })
}

fn bytes(text: &str) -> String {
    match text.parse::<u64>() {
        // v1 says "no limit" with the largest multiple of a page.
        Ok(n) if n >= 1 << 62 => "no limit".into(),
        Ok(n) => crate::units::Bytes(n).to_string(),
        Err(_) if text == "max" => "no limit".into(),
        Err(_) => text.to_owned(),
    }
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
        Some(n) => crate::units::Bytes(n).to_string(),
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
    line("memlock", &report["memlock"]);
    line("capabilities", &report["capabilities"]);
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
        assert!(text.contains("kernel") && text.contains("source"));
    }

    #[test]
    fn a_limit_of_nearly_all_bits_is_no_limit() {
        assert_eq!(bytes("9223372036854771712"), "no limit");
        assert_eq!(bytes("max"), "no limit");
        assert_eq!(bytes("1048576"), "1.0 MiB");
        assert_eq!(bytes("what?"), "what?");
    }

    #[test]
    fn a_process_without_a_memory_cgroup_is_told_so() {
        assert!(cgroup("").is_object());
        assert!(cgroup("garbage\n:::\n1:memory").is_object());
    }
}
