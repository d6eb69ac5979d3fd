//! `kvpsi run` as a user meets it: the real binary, and the real model where
//! there is one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{kvpsi_binary, model, quiet};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{Read, Write},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

fn kvpsi(args: &[&str]) -> Command {
    let mut c = quiet(Command::new(kvpsi_binary()));
    c.args(args)
        .env_remove("KVPSI_MODEL")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    c
}

fn run(args: &[&str]) -> Output {
    kvpsi(args).output().unwrap()
}

fn with_model<'a>(model: &'a Path, args: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["run", "--signal", "none", "-m", model.to_str().unwrap()];
    all.extend(args);
    all
}

/// Exit code 1 and one line on stderr that holds all of `says`.
fn refused(out: &Output, says: &[&str]) {
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert!(err.starts_with("kvpsi: "), "{err}");
    for s in says {
        assert!(err.contains(s), "`{s}` is not in: {err}");
    }
}

#[test]
fn a_missing_model_file_is_named_with_what_to_do() {
    let out = run(&["run", "-m", "/nonexistent.gguf", "-p", "hi"]);
    refused(&out, &["/nonexistent.gguf", "cargo xtask model"]);
}

#[test]
fn without_any_model_the_error_says_how_to_get_one() {
    let empty = tempfile::tempdir().unwrap();
    let out = kvpsi(&["run", "-p", "hi"])
        .env("XDG_CACHE_HOME", empty.path())
        .output()
        .unwrap();
    refused(&out, &["cargo xtask model", "KVPSI_MODEL"]);
}

#[test]
fn a_file_that_is_no_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    std::fs::write(&path, "these are notes, not a model").unwrap();
    let out = run(&["run", "-m", path.to_str().unwrap(), "-p", "hi"]);
    refused(&out, &["notes.txt", "not a GGUF file"]);
}

#[test]
fn a_truncated_model_is_refused() {
    let Some(model) = model("a_truncated_model_is_refused") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    let mut start = Vec::new();
    let whole = std::fs::File::open(model).unwrap();
    whole.take(4 << 20).read_to_end(&mut start).unwrap();
    std::fs::write(&path, start).unwrap();
    let out = run(&["run", "-m", path.to_str().unwrap(), "-p", "hi"]);
    refused(&out, &["cut.gguf", "incomplete"]);
}

#[test]
fn wrong_usage_exits_with_2() {
    assert_eq!(run(&["run"]).status.code(), Some(2));
    assert_eq!(run(&["run", "--chat", "-p", "x"]).status.code(), Some(2));
    // A prompt, or a model, as other programs take them.
    for word in ["Why is the sky blue?", "llama3.2"] {
        let out = run(&["run", word]);
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{err}");
        for says in ["a prompt goes behind -p", "-m ollama:NAME"] {
            assert!(err.contains(says), "{err}");
        }
    }
}

#[test]
fn a_number_that_cannot_be_is_named_with_what_can() {
    for (flag, says) in [
        ("--temperature", "temperature must be between 0 and 100"),
        ("--top-p", "top-p must be above 0"),
        ("--top-k", "'--top-k <TOP_K>': -1 is not in 0.."),
        ("--repeat-penalty", "repeat-penalty must be above 0"),
        ("--seed", "'--seed <SEED>': -2 is not in -1.."),
    ] {
        let value = if flag == "--seed" { "-2" } else { "-1" };
        let out = run(&["run", "-p", "x", flag, value, "-m", "none.gguf"]);
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && err.contains(says), "{flag}: {err}");
        assert!(!err.contains("unexpected argument"), "{err}");
    }
}

#[test]
fn a_prompt_longer_than_the_context_names_both_numbers() {
    let Some(model) = model("a_prompt_longer_than_the_context_names_both_numbers") else {
        return;
    };
    let long = "one two three four five ".repeat(10);
    let args = ["--raw", "--ctx", "16", "-p", &long];
    let out = run(&with_model(&model, &args));
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert!(err.contains("the context 16"), "{err}");
    assert!(
        err.contains("51 tokens") || err.contains("50 tokens"),
        "{err}"
    );
}

#[test]
fn a_cache_too_small_for_anything_is_refused_with_what_is_needed() {
    let Some(model) = model("a_cache_too_small_for_anything_is_refused_with_what_is_needed") else {
        return;
    };
    let long = "one two three four five ".repeat(10);
    for (args, says) in [
        (
            &["-p", &long, "--kv-budget", "1"][..],
            ["--kv-budget allows 1.0 MiB", "give --kv-budget "],
        ),
        (
            &["-p", "hi", "--kv-budget", "4", "--kv-floor", "400"],
            ["--kv-floor 400", "give --kv-budget 10 or more"],
        ),
        (
            &["-p", "hi", "--ctx", "8"],
            ["--ctx 8: a question of one word takes ", "--raw"],
        ),
        (&["--chat", "--ctx", "8"], ["--ctx 8", "a larger --ctx"]),
    ] {
        let out = run(&with_model(&model, args));
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {err}");
        let last = err.lines().last().unwrap_or_default();
        assert!(says.iter().all(|s| last.contains(s)), "{args:?}: {err}");
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn wrong_kernels_are_no_fault_of_the_model_or_the_cache() {
    let Some(model) = model("wrong_kernels_are_no_fault_of_the_model_or_the_cache") else {
        return;
    };
    let cache = tempfile::tempdir().unwrap();
    for weights in ["off", "on"] {
        let args = ["-p", "hi", "--weights-cache", weights];
        let out = kvpsi(&with_model(&model, &args))
            .env("XDG_CACHE_HOME", cache.path())
            .env("KVPSI_ISA", "mmx")
            .output()
            .unwrap();
        refused(
            &out,
            &["kvpsi: KVPSI_ISA=mmx: ", "this processor has auto, scalar"],
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_one_another() {
    let Some(model) = model("the_same_seed_gives_the_same_text_and_another_one_another") else {
        return;
    };
    let text = |seed: &str| {
        let args = ["-p", "Tell me about rivers.", "-n", "24", "--seed", seed];
        let out = run(&with_model(&model, &args));
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    };
    let first = text("1");
    assert!(first.split_whitespace().count() > 5, "{first}");
    assert_eq!(first, text("1"));
    assert_ne!(first, text("2"));
    assert_ne!(text("-1"), text("-1"));
}

#[test]
fn a_signal_ends_a_generation_cleanly_with_its_exit_code() {
    let Some(model) = model("a_signal_ends_a_generation_cleanly_with_its_exit_code") else {
        return;
    };
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let args = ["--raw", "-p", "Once upon a time", "-n", "8000"];
        let mut child = kvpsi(&with_model(&model, &args)).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut some = [0; 40];
        out.read_exact(&mut some).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let sent = Instant::now();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(sent.elapsed() < Duration::from_secs(20));
        let err = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{err}");
        assert!(
            err.contains("tokens/s") && err.contains("; stopped"),
            "{err}"
        );
    }
}

#[test]
fn a_closed_stdout_is_a_clean_exit() {
    let Some(model) = model("a_closed_stdout_is_a_clean_exit") else {
        return;
    };
    let args = ["--raw", "-p", "Once upon a time", "-n", "8000"];
    let mut child = kvpsi(&with_model(&model, &args)).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 20]).unwrap();
    drop(out);
    let done = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{err}");
    assert!(!err.contains("panicked"), "{err}");
}

#[test]
fn a_conversation_prefills_only_what_is_new() {
    let Some(model) = model("a_conversation_prefills_only_what_is_new") else {
        return;
    };
    let args = ["--chat", "-n", "16", "--temperature", "0"];
    let mut child = kvpsi(&with_model(&model, &args))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut turns = child.stdin.take().unwrap();
    turns
        .write_all(b"My name is Ada.\nWhat is my name?\n")
        .unwrap();
    drop(turns);
    let done = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{err}");
    let prompts: Vec<u32> = err
        .lines()
        .filter_map(|l| {
            l.strip_prefix("kvpsi: prompt ")?
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    // The first turn brings the template's system message; the second its own
    // line and the marks around it, and what filled no block: between turns
    // the cache keeps whole ones.
    assert_eq!(prompts.len(), 2, "{err}");
    assert!(prompts[0] > 25 && prompts[1] < 20 + 32, "{prompts:?}");
}
