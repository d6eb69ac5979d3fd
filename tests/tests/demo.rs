//! `kvpsi demo` as a user meets it: the real kernel, the real model, a real
//! memory cgroup. What the project promises is asserted here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::quantized::gguf_file;
use kvpsi_tests::{kvpsi_binary, model, quiet, skip, tiny::Tiny};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The demo's command, or `None` (skipped by name) where it cannot run.
fn demo(test: &str, args: &[&str]) -> Option<Command> {
    demo_of(test, &model(test)?, args)
}

fn demo_of(test: &str, model: &Path, args: &[&str]) -> Option<Command> {
    if !geteuid().is_root() {
        skip(test, "needs root for a memory cgroup and BPF");
        return None;
    }
    if let Err(e) = kvpsi::control::cgroup::MemoryCgroup::of_self() {
        skip(test, e.to_string());
        return None;
    }
    let mut c = Command::new(kvpsi_binary());
    c.args(["demo", "--quiet", "--pause", "200", "-m"])
        .arg(model)
        .args(args);
    c.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Some(c)
}

fn cgroups_left(pid: u32) -> Vec<PathBuf> {
    let name = format!("kvpsi-demo-{pid}");
    [
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup/unified",
    ]
    .iter()
    .map(|m| PathBuf::from(m).join(&name))
    .filter(|p| p.exists())
    .collect()
}

fn run(mut c: Command, report: &std::path::Path) -> (std::process::Output, Value) {
    c.arg("--report").arg(report);
    let child = c.spawn().unwrap();
    let pid = child.id();
    let out = child.wait_with_output().unwrap();
    assert_eq!(cgroups_left(pid), Vec::<PathBuf>::new());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let err = String::from_utf8_lossy(&out.stderr);
    let json = std::fs::read(report).unwrap_or_else(|e| panic!("{e}: {text}\n{err}"));
    println!("{text}\n{err}");
    (out, serde_json::from_slice(&json).unwrap())
}

fn n(v: &Value, path: &str) -> f64 {
    v.pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} in {v}"))
}

#[test]
fn a_stall_returns_pages_while_the_model_generates_and_no_process_is_killed() {
    let name = "a_stall_returns_pages_while_the_model_generates_and_no_process_is_killed";
    // One growth of the hog, and a file or two. A second growth that finds no clean
    // page in the cgroup is lost to the OOM killer in about one of 30 runs.
    let Some(mut c) = demo(name, &["-n", "160"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let recorded = dir.path().join("r.rec");
    c.arg("--record").arg(&recorded);
    let (out, r) = run(c, &dir.path().join("r.json"));
    assert!(out.status.success(), "{out:?}");
    assert_eq!(n(&r, "/oom_kills"), 0.0);
    assert!(n(&r, "/bursts/1") >= 1.0, "the hog never grew: {r}");
    let e = |k: &str| n(&r, &format!("/events/{k}"));
    if r["signal"] == "ebpf" {
        assert_eq!(e("seen"), e("delivered") + e("coalesced") + e("dropped"));
    }
    assert_eq!(
        n(&r, "/kv/reserved"),
        n(&r, "/kv/resident") + n(&r, "/kv/returned")
    );
    assert_eq!(n(&r, "/tokens"), 160.0);
    let trims = r["trims"].as_array().unwrap();
    assert!(!trims.is_empty());
    let (mut said, mut lost) = (0.0, 0.0);
    for t in trims {
        assert!(n(t, "/onset_to_returned_us") >= n(t, "/onset_to_start_us"));
        // The conversation's next token may be appended meanwhile.
        assert!(n(t, "/kv_tokens_after") <= n(t, "/kv_tokens_before") + 1.0);
        // Slow steps go on beside trims: what leaves then is not theirs alone.
        if t["trigger"] == "background" {
            continue;
        }
        said += n(t, "/bytes");
        lost += n(t, "/rss_before") - n(t, "/rss_after");
    }
    // The engine and the slow steps touch blocks meanwhile, of 720 KiB each.
    // `bench giveback` measures what is lost with nothing beside.
    assert!(lost >= 0.9 * said, "RSS fell by {lost} of {said} bytes");
    replayed(&recorded, trims);
}

/// The recording has every trim that the demo told of, and the rule finds work
/// in it again.
fn replayed(recorded: &std::path::Path, trims: &[Value]) {
    use kvpsi::trace::{
        recording::{Entry, Recording},
        replay::{Setup, simulate},
    };
    let r = Recording::open(recorded).unwrap();
    assert_eq!(r.damage, None);
    assert!(r.entries.iter().any(|e| matches!(e, Entry::Kv { .. })));
    assert!(!r.entries.iter().any(|e| matches!(e, Entry::Lost(_))));
    let bytes = |e: &Entry| match e {
        Entry::Trim(t) => Some(t.by_step.iter().map(|b| b.0).sum::<u64>()),
        _ => None,
    };
    let recorded: Vec<u64> = r.entries.iter().filter_map(bytes).collect();
    assert_eq!(recorded.len(), trims.len());
    #[expect(clippy::cast_precision_loss, reason = "less than 2^52 bytes")]
    let sum = recorded.iter().sum::<u64>() as f64;
    assert_eq!(sum, trims.iter().map(|t| n(t, "/bytes")).sum::<f64>());
    let play = || simulate(&r, &Setup::default(), &mut |_, _| ()).unwrap();
    let first = play();
    assert!(
        !first.trims.is_empty() && first.events.delivered > 0,
        "{first:?}"
    );
    assert_eq!(first, play());
}

#[test]
fn without_a_trim_the_same_run_ends_in_an_oom_kill() {
    let name = "without_a_trim_the_same_run_ends_in_an_oom_kill";
    let Some(c) = demo(name, &["--no-trim", "-n", "400"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (out, r) = run(c, &dir.path().join("r.json"));
    assert!(out.status.success(), "{out:?}");
    assert!(n(&r, "/oom_kills") >= 1.0, "{r}");
    assert_eq!(r["trims"].as_array().unwrap().len(), 0);
}

#[test]
fn an_interrupt_ends_the_demo_and_removes_its_cgroup() {
    let name = "an_interrupt_ends_the_demo_and_removes_its_cgroup";
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let Some(mut c) = demo(name, &["-n", "2000"]) else {
            return;
        };
        let mut child = c.spawn().unwrap();
        let pid = Pid::from_child(&child);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.find(|l| l.as_ref().unwrap().contains("reading a prompt"));
        assert!(ready.is_some());
        assert!(!cgroups_left(child.id()).is_empty());
        kill_process(pid, signal).unwrap();
        let rest: Vec<_> = lines.map_while(Result::ok).collect();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{rest:?}");
        assert_eq!(cgroups_left(child.id()), Vec::<PathBuf>::new());
    }
}

#[test]
fn without_a_chat_template_the_demo_continues_a_text() {
    let test = "without_a_chat_template_the_demo_continues_a_text";
    let Some(real) = model(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut plain = Tiny::open(&real).unwrap();
    plain.metadata.remove("tokenizer.chat_template").unwrap();
    let mut prompts = Vec::new();
    for start in [false, true] {
        let key = "tokenizer.ggml.add_bos_token".to_owned();
        plain.metadata.insert(key, gguf_file::Value::Bool(start));
        plain.write(&path).unwrap();
        let Some(c) = demo_of(test, &path, &["--press", "file", "-n", "60"]) else {
            return;
        };
        let (out, report) = run(c, &dir.path().join("r.json"));
        let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{text}");
        assert!(text.contains("it continues a text"), "{text}");
        assert!(n(&report, "/tokens") > 0.0, "{report}");
        let told = text.split_once("reading a prompt of ").unwrap().1;
        prompts.push(told.split_once(' ').unwrap().0.parse::<u32>().unwrap());
    }
    // No template writes the start token.
    assert_eq!(prompts[0] + 1, prompts[1]);
}

#[test]
fn without_root_the_demo_says_why_it_cannot_run_and_what_to_do() {
    let name = "without_root_the_demo_says_why_it_cannot_run_and_what_to_do";
    if demo(name, &[]).is_none() {
        return;
    }
    // The test's own folders may be closed to others.
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("kvpsi");
    std::fs::copy(kvpsi_binary(), &bin).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(dir.path(), open(0o755)).unwrap();
    let out = quiet(Command::new(bin))
        .arg("demo")
        .uid(65534)
        .gid(65534)
        .current_dir("/")
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert!(
        err.contains("memory cgroup") && err.contains("run as root"),
        "{err}"
    );
}
