//! The programs of the object: which hook each belongs to, and what became of
//! it on this kernel.
//!
//! Tries, and does not compare versions: a hook that a kernel lacks shows as a
//! program that could not be attached. The end of a pair is attached before
//! its begin, and a begin without its end is not attached at all: its tasks
//! would seem to stall forever.

use aya::{
    Ebpf,
    programs::{ProgramError, RawTracePoint},
};
use serde::Serialize;
use std::{error::Error, io, os::fd::OwnedFd, time::Duration};

/// A program and the raw tracepoint it goes to.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Name of the tracepoint.
    pub tracepoint: &'static str,
    /// Program that must be attached first.
    pub after: Option<&'static str>,
}

const fn hook(program: &'static str, tracepoint: &'static str) -> Hook {
    Hook {
        program,
        tracepoint,
        after: None,
    }
}

const fn begin(program: &'static str, tracepoint: &'static str, end: &'static str) -> Hook {
    Hook {
        program,
        tracepoint,
        after: Some(end),
    }
}

/// Every program, ends before begins.
pub const HOOKS: [Hook; 15] = [
    hook("direct_end", "mm_vmscan_direct_reclaim_end"),
    begin(
        "direct_begin",
        "mm_vmscan_direct_reclaim_begin",
        "direct_end",
    ),
    hook("memcg_end", "mm_vmscan_memcg_reclaim_end"),
    begin("memcg_begin", "mm_vmscan_memcg_reclaim_begin", "memcg_end"),
    hook("soft_end", "mm_vmscan_memcg_softlimit_reclaim_end"),
    begin(
        "soft_begin",
        "mm_vmscan_memcg_softlimit_reclaim_begin",
        "soft_end",
    ),
    hook("node_end", "mm_vmscan_node_reclaim_end"),
    begin("node_begin", "mm_vmscan_node_reclaim_begin", "node_end"),
    hook("kswapd_wake", "mm_vmscan_kswapd_wake"),
    hook("kswapd_sleep", "mm_vmscan_kswapd_sleep"),
    hook("kswapd_asked", "mm_vmscan_wakeup_kswapd"),
    hook("throttled", "mm_vmscan_throttled"),
    hook("compact_end", "mm_compaction_end"),
    begin("compact_begin", "mm_compaction_begin", "compact_end"),
    hook("oom_victim", "mark_victim"),
];

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "why", rename_all = "kebab-case")]
pub enum State {
    /// Loaded and attached.
    Attached,
    /// The kernel refused to load it.
    NotLoaded(String),
    /// Loaded, but the hook is not to be had.
    NotAttached(String),
    /// Not tried, because what it depends on is missing.
    NotTried(String),
}

/// One program's report.
#[derive(Clone, Debug, Serialize)]
pub struct ProgramReport {
    /// Name in the object.
    pub name: &'static str,
    /// What it hooks.
    pub hook: &'static str,
    /// What became of it.
    #[serde(flatten)]
    pub state: State,
}

impl ProgramReport {
    /// Loaded and attached.
    #[must_use]
    pub fn attached(&self) -> bool {
        self.state == State::Attached
    }
}

/// Loads and attaches every program it can.
pub(super) fn attach(ebpf: &mut Ebpf) -> Vec<ProgramReport> {
    let mut reports: Vec<ProgramReport> = Vec::with_capacity(HOOKS.len());
    for h in HOOKS {
        let ready = h
            .after
            .is_none_or(|end| reports.iter().any(|r| r.name == end && r.attached()));
        let state = if ready {
            attach_one(ebpf, h)
        } else {
            State::NotTried(format!("{} is missing", h.after.unwrap_or_default()))
        };
        reports.push(ProgramReport {
            name: h.program,
            hook: h.tracepoint,
            state,
        });
    }
    reports
}

fn attach_one(ebpf: &mut Ebpf, h: Hook) -> State {
    let Some(program) = ebpf.program_mut(h.program) else {
        return State::NotLoaded("not in the object".into());
    };
    let program: &mut RawTracePoint = match program.try_into() {
        Ok(p) => p,
        Err(e) => return State::NotLoaded(one_line(&e as &ProgramError)),
    };
    if let Err(e) = program.load() {
        return State::NotLoaded(one_line(&e));
    }
    match program.attach(h.tracepoint) {
        Ok(_) => State::Attached,
        Err(e) => State::NotAttached(match os_error(&e) {
            Some(2) => "this kernel has no such tracepoint".into(),
            Some(22) => "the tracepoint has fewer arguments here".into(),
            _ => one_line(&e),
        }),
    }
}

/// What a program cost since it was loaded, while statistics were on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// Times it ran.
    pub runs: u64,
    /// Time it ran, summed.
    pub time: Duration,
}

impl Cost {
    /// Mean time of a run in ns; `None` if it never ran.
    #[must_use]
    pub fn mean_ns(&self) -> Option<u128> {
        self.time.as_nanos().checked_div(u128::from(self.runs))
    }
}

/// Lets the kernel measure every BPF program until the descriptor is closed.
///
/// # Errors
/// Needs `CAP_SYS_ADMIN` and Linux 5.8.
pub fn enable_statistics() -> io::Result<OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|e| e.io_error)
}

/// One line about the programs that are missing, if any are.
#[must_use]
pub fn missing(reports: &[ProgramReport]) -> Option<String> {
    let names: Vec<&str> = reports
        .iter()
        .filter(|r| !r.attached())
        .map(|r| r.name)
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "eBPF: {} of {} programs are not attached ({}); `kvpsi doctor` says why",
            names.len(),
            reports.len(),
            names.join(", ")
        )
    })
}

/// The errno at the root of an error, if there is one.
pub(super) fn os_error(e: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(e);
    while let Some(e) = next {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return io.raw_os_error();
        }
        next = e.source();
    }
    None
}

/// An error and its causes on one line; of a verifier log the first lines.
pub(super) fn one_line(e: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(e);
    while let Some(e) = next {
        let part = e.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = e.source();
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(400) {
        Some((at, _)) => format!("{} ...", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_comes_before_its_begin() {
        for (i, h) in HOOKS.iter().enumerate() {
            if let Some(end) = h.after {
                assert!(HOOKS[..i].iter().any(|e| e.program == end), "{end}");
            }
        }
    }

    #[test]
    fn a_long_error_becomes_one_bounded_line() {
        let e = std::io::Error::other(format!("a\n  b{}", "é".repeat(900)));
        let line = one_line(&e);
        assert!(line.starts_with("a b") && line.ends_with(" ..."));
        assert_eq!(line.chars().count(), 404);
    }
}
