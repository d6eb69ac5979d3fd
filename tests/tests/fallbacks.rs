//! What kvpsi does where the kernel refuses something: the next best is taken
//! and named, and nothing panics. Each refusal is a real one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::pressure::{
    Choice, PressureSource, SignalError, SourceConfig, SourceStats,
    ebpf::{self, EbpfSource},
    programs::{HOOKS, Hook, Rung, State},
    psi_poll::PsiPoll,
    watchdog::Watched,
};
use kvpsi_common::{Event, Kind, event::ORDER_UNKNOWN};
use kvpsi_tests::{
    skip,
    storm::{LIMIT_BYTES, Storm, limited},
};
use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const PRESSURE: &str = env!("CARGO_BIN_EXE_pressure");
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// The hooks, some of them elsewhere.
fn hooks(elsewhere: &[(&str, &'static str)]) -> Vec<Hook> {
    let mut hooks = HOOKS.to_vec();
    for (program, target) in elsewhere {
        let hook = hooks.iter_mut().find(|h| h.program == *program).unwrap();
        hook.target = target;
    }
    hooks
}

/// The embedded object at `hooks`, without the memstall rung.
fn open(test: &str, hooks: &[Hook]) -> Option<Result<EbpfSource, SignalError>> {
    let Some(object) = ebpf::object() else {
        skip(test, "built without the eBPF object");
        return None;
    };
    let config = SourceConfig {
        rung: Rung::RawTp,
        ..SourceConfig::default()
    };
    match EbpfSource::open_object(object, hooks, &config) {
        Err(SignalError::Refused(why)) if why.contains("the kernel refuses BPF") => {
            skip(test, why);
            None
        }
        other => Some(other),
    }
}

#[test]
fn a_tracepoint_that_is_missing_or_has_fewer_arguments_costs_its_programs_alone() {
    let test = "a_tracepoint_that_is_missing";
    let hooks = hooks(&[
        ("throttled", "kvpsi_no_such_tracepoint"),
        // One argument, where three are read.
        ("node_begin", "mm_vmscan_kswapd_sleep"),
    ]);
    let Some(source) = open(test, &hooks) else {
        return;
    };
    let source = source.unwrap();
    for p in source.programs() {
        let why = match &p.state {
            State::NotAttached(why) | State::NotLoaded(why) => why.as_str(),
            _ => "",
        };
        match p.name {
            "throttled" => assert!(why.contains("no such tracepoint"), "{p:?}"),
            "node_begin" => assert!(why.contains("fewer arguments"), "{p:?}"),
            "node_end" => assert!(why.contains("node_begin is missing"), "{p:?}"),
            _ if p.attached() => {}
            _ => assert!(
                matches!(p.state, State::NotNeeded(_) | State::NotTried(_)),
                "{p:?}"
            ),
        }
    }
    let note = kvpsi::pressure::programs::missing(source.programs()).unwrap();
    assert!(
        note.contains("throttled") && note.contains("node_begin"),
        "{note}"
    );
}

#[test]
fn a_hook_that_has_its_older_name_here_is_found_by_it() {
    let mut hooks = HOOKS.to_vec();
    let newer = "kvpsi_no_such_tracepoint";
    for h in hooks.iter_mut().filter(|h| h.program.starts_with("memcg_")) {
        (h.target, h.before) = (newer, Some(h.target));
    }
    let Some(source) = open("a_hook_that_has_its_older_name", &hooks) else {
        return;
    };
    let source = source.unwrap();
    let found = |name| source.programs().iter().find(|p| p.name == name).unwrap();
    for (name, hook) in [
        ("memcg_end", "mm_vmscan_memcg_reclaim_end"),
        ("memcg_begin", "mm_vmscan_memcg_reclaim_begin"),
    ] {
        let p = found(name);
        assert!(p.attached() && p.hook == hook, "{p:?}");
    }
}

#[test]
fn without_any_tracepoint_ebpf_is_refused_with_the_reason() {
    let test = "without_any_tracepoint";
    let mut hooks = HOOKS.to_vec();
    for h in &mut hooks {
        h.target = "kvpsi_no_such_tracepoint";
    }
    let Some(source) = open(test, &hooks) else {
        return;
    };
    let why = source.expect_err("nothing is attached").to_string();
    assert!(why.contains("this kernel has no such tracepoint"), "{why}");
}

#[test]
fn arguments_of_another_layout_are_counted_and_not_believed() {
    let test = "arguments_of_another_layout";
    // Pointers, where a NUMA node, a zone and an order are expected.
    let hooks = hooks(&[("kswapd_wake", "sched_switch")]);
    let Some(source) = open(test, &hooks) else {
        return;
    };
    let mut source = source.unwrap();
    let stats = source.counters();
    let mut marks: Vec<Event> = Vec::new();
    let begun = Instant::now();
    while marks.len() < 3 && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
        source
            .drain(&mut |e| marks.extend((e.kind() == Some(Kind::KswapdWake)).then_some(*e)))
            .unwrap();
    }
    assert!(marks.len() >= 3, "{} switches of tasks", marks.len());
    let implausible = stats.counters().implausible;
    assert!(implausible >= 3, "{implausible}");
    for e in &marks {
        assert!(
            e.order == ORDER_UNKNOWN || (0..32).contains(&e.order),
            "{e:?}"
        );
        assert!(e.node < 1024, "{e:?}");
    }
    assert!(marks.iter().any(|e| e.order == ORDER_UNKNOWN));
    let note = stats.note().unwrap();
    assert!(note.contains("not believed"), "{note}");
}

#[test]
fn programs_that_see_no_event_are_detected_and_psi_takes_over() {
    let test = "programs_that_see_no_event";
    let Some(cgroup) = limited("silent", LIMIT_BYTES) else {
        return;
    };
    let mut hooks = HOOKS.to_vec();
    for h in &mut hooks {
        h.target = match h.program {
            // No process has a soft limit here.
            "memcg_end" => "mm_vmscan_memcg_softlimit_reclaim_end",
            "memcg_begin" => "mm_vmscan_memcg_softlimit_reclaim_begin",
            _ => "kvpsi_no_such_tracepoint",
        };
    }
    let Some(first) = open(test, &hooks) else {
        return;
    };
    let other = match PsiPoll::open(&SourceConfig::default()) {
        Ok(other) => other,
        Err(e) => return skip(test, e),
    };
    let mut source = Watched::new(Box::new(first.unwrap()), Box::new(other));
    assert_eq!(source.name(), "ebpf");
    let stats = source.stats();
    let length = Duration::from_secs(20);
    let storm = Storm::start(PRESSURE, Path::new(TMP), &cgroup, length, Duration::ZERO);
    let mut storm = storm.unwrap();
    let (mut events, mut stalled) = (0, 0u64);
    while !storm.over().unwrap() && events < 5 {
        let wait = source.readiness().interval.unwrap();
        std::thread::sleep(wait.min(Duration::from_millis(100)));
        source
            .drain(&mut |e| {
                assert_eq!(e.kind(), Some(Kind::Memstall));
                events += 1;
                stalled += e.stall_ns;
            })
            .unwrap();
    }
    assert!(events >= 5 && stalled > 0, "{events} events");
    let note = stats.note().unwrap();
    assert!(
        note.contains("silent while psi-poll counted stalls"),
        "{note}"
    );
    assert!(note.contains("falling back to"), "{note}");
    assert!(stats.totals().delivered >= 5);
    eprintln!("{note}");
}

/// What `pressure` is opened as by a process that `wrapper` starts, and what was
/// refused on the way; `None` if there is no such wrapper.
fn opened(wrapper: &[&str], signal: &str, env: &[(&str, &str)]) -> Option<(bool, String)> {
    let mut words = wrapper.iter().copied().chain([PRESSURE, "open", signal]);
    let out = Command::new(words.next()?)
        .args(words)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let all = text(&out.stdout) + &text(&out.stderr);
    eprintln!("{wrapper:?} {signal}: {}", all.trim_end());
    Some((out.status.success(), all))
}

/// As [`opened`], where eBPF works without a wrapper.
fn opened_as_root(test: &str, wrapper: &[&str]) -> Option<String> {
    let (_, plain) = opened(&[], "ebpf", &[])?;
    if !plain.starts_with("ebpf") {
        skip(test, plain.trim_end());
        return None;
    }
    match opened(wrapper, "auto", &[]) {
        Some((true, text)) => Some(text),
        Some((false, text)) => {
            skip(test, format!("{}: {}", wrapper[0], text.trim_end()));
            None
        }
        None => {
            skip(test, format!("no {} here", wrapper[0]));
            None
        }
    }
}

#[test]
fn two_capabilities_are_enough_and_root_is_not_needed() {
    let test = "two_capabilities_are_enough";
    let wrapper = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all,+cap_38,+cap_39",
        "--ambient-caps=-all,+cap_38,+cap_39",
        "--bounding-set=-all,+cap_38,+cap_39",
    ];
    // The numbers of CAP_PERFMON and CAP_BPF: setpriv may not know the names.
    if let Some(text) = opened_as_root(test, &wrapper) {
        assert_eq!(text.lines().next(), Some("ebpf"), "{text}");
    }
}

#[test]
fn without_memory_that_may_be_locked_ebpf_works_or_the_next_is_named() {
    let test = "without_memory_that_may_be_locked";
    if let Some(text) = opened_as_root(test, &["prlimit", "--memlock=0:0"]) {
        // Since 5.11 BPF's memory is a cgroup's and not of this limit.
        let first = text.lines().next().unwrap_or_default();
        assert!(first == "ebpf" || text.contains("eBPF: "), "{text}");
    }
}

#[test]
fn tracefs_is_not_needed() {
    let test = "tracefs_is_not_needed";
    let hide = "for d in /sys/kernel/tracing /sys/kernel/debug; do mount -t tmpfs none $d || exit 9; done; exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    if let Some(text) = opened_as_root(test, &wrapper) {
        assert_eq!(text.lines().next(), Some("ebpf"), "{text}");
    }
}

/// `some 200000 2000000` and a zero byte: what systemd writes by default.
const TRIGGER: &str = "c29tZSAyMDAwMDAgMjAwMDAwMAA=";

#[test]
fn what_a_service_manager_names_is_watched_and_its_no_is_a_no() {
    let test = "what_a_service_manager_names";
    let psi = "/proc/pressure/memory";
    let off = [("MEMORY_PRESSURE_WATCH", "/dev/null")];
    let (ok, text) = opened(&[], "auto", &off).unwrap();
    assert!(
        !ok && text.contains("says not to watch memory pressure"),
        "{text}"
    );
    let nowhere = [("MEMORY_PRESSURE_WATCH", "/nowhere/memory.pressure")];
    let (ok, text) = opened(&[], "systemd", &nowhere).unwrap();
    assert!(!ok && text.contains("/nowhere/memory.pressure"), "{text}");
    if !Path::new(psi).exists() {
        return skip(test, "no PSI to name");
    }
    let watch = [
        ("MEMORY_PRESSURE_WATCH", psi),
        ("MEMORY_PRESSURE_WRITE", TRIGGER),
    ];
    let (ok, text) = opened(&[], "systemd", &watch).unwrap();
    if !ok && text.contains("Permission denied") {
        return skip(test, text.trim_end());
    }
    assert!(ok && text.starts_with("systemd\n"), "{text}");
    // What a trigger is not, the kernel says.
    let nonsense = [watch[0], ("MEMORY_PRESSURE_WRITE", "bmV2ZXI=")];
    let (ok, text) = opened(&[], "systemd", &nonsense).unwrap();
    assert!(!ok && text.contains("Invalid argument"), "{text}");
    // Without eBPF it comes before a trigger of our own.
    let unprivileged = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let (_, plain) = opened(&unprivileged, "ebpf", &[]).unwrap_or_default();
    if !plain.contains("refuses BPF") {
        return skip(test, "eBPF cannot be taken away here (no setpriv?)");
    }
    let (ok, text) = opened(&unprivileged, "auto", &watch).unwrap();
    assert!(ok, "{text}");
    let first = text.lines().next();
    assert!(
        first == Some("systemd") || text.contains("systemd: "),
        "{text}"
    );
}

#[test]
fn every_choice_has_a_name_that_opens_it_or_says_why_not() {
    use clap::ValueEnum;
    for choice in Choice::value_variants() {
        let name = choice.to_possible_value().unwrap();
        let name = name.get_name();
        let (ok, text) = opened(&[], name, &[]).unwrap();
        if *choice == Choice::Auto {
            assert!(ok, "{text}");
        } else if ok {
            assert_eq!(text.lines().next(), Some(name), "{text}");
        } else {
            assert!(text.contains(name) || text.contains("eBPF: "), "{text}");
        }
    }
}
