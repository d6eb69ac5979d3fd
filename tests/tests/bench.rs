//! The benchmarks that need this kernel, each for a moment: that they measure
//! at all, and what must hold however short they are.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{control::cgroup::OwnedCgroup, pressure::SourceConfig, pressure::ebpf::EbpfSource};
use kvpsi_tests::{model, skip};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Whether there is a cgroup and BPF for `test`, which else says so.
fn can_run(test: &str) -> bool {
    let cgroup = OwnedCgroup::create(&format!("kvpsi-test-bench-{}", std::process::id()));
    if let Err(why) = cgroup {
        skip(test, why);
        return false;
    }
    if let Err(why) = EbpfSource::open(&SourceConfig::default()) {
        skip(test, why);
        return false;
    }
    true
}

fn program() -> PathBuf {
    // Cargo names a program to tests only where its name has no hyphen.
    Path::new(env!("CARGO_BIN_EXE_pressure")).with_file_name("kvpsi-bench")
}

/// The lines that it told.
fn bench(args: &[&str]) -> Vec<Value> {
    let out = Command::new(program()).args(args).output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{err}");
    let text = String::from_utf8(out.stdout).unwrap();
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

fn number(line: &Value, key: &str) -> f64 {
    let found = line[key].as_f64();
    found.unwrap_or_else(|| panic!("no {key} in {line}"))
}

#[test]
fn ebpf_answers_every_burst_before_psi_is_read_once() {
    let test = "ebpf_answers_every_burst_before_psi_is_read_once";
    let Some(model) = model(test).filter(|_| can_run(test)) else {
        return;
    };
    let model = model.to_str().unwrap();
    let lines = bench(&[
        "reaction",
        "--model",
        model,
        "--ears",
        "ebpf",
        "--loads",
        "decoding",
        "--calm",
        "0.5",
        "--ebpf-bursts",
        "4",
    ]);
    let bursts: Vec<&Value> = lines.iter().filter(|l| l["what"] == "burst").collect();
    // Given before anybody stalled: no time to measure.
    let early = lines.iter().filter(|l| l["what"] == "early").count();
    assert!(bursts.len() + early == 4 && early < 3, "{lines:#?}");
    let late = bursts.iter().filter_map(|b| b["returned_us"].as_f64());
    let mut late: Vec<f64> = late.collect();
    assert_eq!(late.len(), bursts.len(), "{lines:#?}");
    late.sort_by(f64::total_cmp);
    // On a shared machine, and not optimized as it is shipped.
    assert!(late[late.len() / 4] < 10_000.0, "{late:?}");
    let cpu = lines.iter().find(|l| l["what"] == "cpu").unwrap();
    assert!(number(cpu, "calm") < 1.0, "{cpu}");
}

#[test]
fn what_is_missing_is_returned_and_no_conversation_loses_more_than_it_must() {
    let test = "what_is_missing_is_returned_and_no_conversation_loses_more_than_it_must";
    let Some(model) = model(test).filter(|_| can_run(test)) else {
        return;
    };
    let model = model.to_str().unwrap();
    if std::fs::read_to_string("/proc/swaps").is_ok_and(|s| s.lines().count() > 1) {
        return skip(test, "swap is on, which takes what is missing");
    }
    // With the headroom less than the ended conversation has.
    let cell = ["--limits", "512", "--rates", "10", "--shorts", "4"];
    let lines = bench(&[&["enough", "--model", model], &cell[..]].concat());
    let [row] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert!(row["lived"] == true && row["grown"] == true, "{row}");
    assert_eq!(number(row, "oom_kills"), 0.0, "{row}");
    // The headroom is in it: 8 MiB and the cache's share.
    let ratio = number(row, "by_missing");
    assert!((1.0..5.0).contains(&ratio), "{row}");
    assert_eq!(row["kept"], row["oracle"], "{row}");
}

#[test]
fn a_neighbour_is_measured_beside_a_model_that_trims_and_one_that_does_not() {
    let test = "a_neighbour_is_measured_beside_a_model_that_trims_and_one_that_does_not";
    let Some(model) = model(test).filter(|_| can_run(test)) else {
        return;
    };
    let model = model.to_str().unwrap();
    let lines = bench(&[
        "cotenant",
        "--model",
        model,
        "--rounds",
        "1",
        "--variants",
        "fixed,none,ebpf",
        "--bursts",
        "2",
        "--tokens",
        "400",
    ]);
    let [fixed, none, ebpf] = &lines[..] else {
        panic!("{lines:?}");
    };
    for line in [fixed, none, ebpf] {
        // The kernel's clock has put turns into every burst, and some before them.
        let bursts = line["bursts"].as_array().unwrap();
        let all = |key: &str| {
            bursts
                .iter()
                .all(|b| !b[key].as_array().unwrap().is_empty())
        };
        assert!(bursts.len() == 2 && all("turns_us"), "{line}");
        assert!(!line["calm_us"].as_array().unwrap().is_empty(), "{line}");
        assert!(number(line, "neighbour_turns") > 100.0, "{line}");
        assert_eq!(number(line, "scored"), 400.0, "{line}");
        assert!(number(line, "nll").is_finite());
    }
    assert_eq!(number(fixed, "trims"), 0.0);
    assert!(number(ebpf, "trims") > 0.0, "{ebpf}");
    assert_eq!(number(none, "trims"), 0.0);
    assert!(number(none, "kv_tokens") < number(fixed, "kv_tokens"));
    for line in [fixed, ebpf] {
        let pressed = |b: &Value| b["pressed"] == true && number(b, "hits") > 0.0;
        assert!(
            line["bursts"].as_array().unwrap().iter().any(pressed),
            "{line}"
        );
    }
    // What packing and free blocks cover costs no token.
    assert!(number(ebpf, "kv_tokens") <= number(fixed, "kv_tokens"));
}

#[test]
fn a_file_that_is_read_from_end_to_end_costs_no_token() {
    let test = "a_file_that_is_read_from_end_to_end_costs_no_token";
    let Some(model) = model(test).filter(|_| can_run(test)) else {
        return;
    };
    let model = model.to_str().unwrap();
    let variants = ["--variants", "off,ebpf", "--tokens", "50", "--rounds", "1"];
    let lines = bench(&[&["cotenant", "--stream", "--model", model], &variants[..]].concat());
    let [off, ebpf] = &lines[..] else {
        panic!("{lines:?}");
    };
    for line in [off, ebpf] {
        // The file does not fit: without a hit limit nothing was tried.
        assert!(number(line, "hits") > 0.0, "{line}");
        assert!(number(line, "mib_s") > 0.0, "{line}");
        assert_eq!(number(line, "trimmed_tokens"), 0.0, "{line}");
        assert_eq!(number(line, "lost_tokens"), 0.0, "{line}");
    }
}

#[test]
fn the_cost_of_listening_is_measured_with_every_program_that_ran() {
    let test = "the_cost_of_listening_is_measured_with_every_program_that_ran";
    if !can_run(test) {
        return;
    }
    let lines = bench(&["overhead", "--rounds", "2"]);
    let rounds: Vec<&Value> = lines.iter().filter(|l| l["what"] == "overhead").collect();
    assert_eq!(rounds.len(), 2);
    for round in rounds {
        assert!(number(round, "page_ns") > 0.0 && number(round, "seen_s") > 0.0);
        assert_eq!(number(round, "dropped_s"), 0.0, "{round}");
    }
    let ran = |name: &str| lines.iter().any(|l| l["program"] == name);
    assert!(ran("memcg_begin") && ran("memcg_end"), "{lines:?}");
}

#[test]
fn one_that_is_interrupted_leaves_no_cgroup_behind() {
    let test = "one_that_is_interrupted_leaves_no_cgroup_behind";
    if !can_run(test) {
        return;
    }
    let near = OwnedCgroup::create(&format!("kvpsi-test-near-{}", std::process::id())).unwrap();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut command = Command::new(program());
        let command = command.args(["overhead", "--rounds", "1000"]);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = quiet.spawn().unwrap();
        let name = format!("kvpsi-overhead-{}", child.id());
        let theirs = |procs: PathBuf| procs.parent().unwrap().with_file_name(&name);
        let dirs: Vec<PathBuf> = near.procs().map(theirs).collect();
        let busy = |d: &PathBuf| {
            let members = std::fs::read_to_string(d.join("cgroup.procs"));
            members.is_ok_and(|m| !m.is_empty())
        };
        let end = Instant::now() + Duration::from_secs(20);
        while !dirs.iter().all(busy) {
            assert!(Instant::now() < end, "no process is in {dirs:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).unwrap();
        let status = child.wait().unwrap();
        let left: Vec<_> = dirs.iter().filter(|d| d.exists()).collect();
        assert!(left.is_empty(), "{left:?} after {signal:?}, {status}");
        assert_eq!(status.code(), Some(code));
    }
}
