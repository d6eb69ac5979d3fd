//! `kvpsi bench` and `kvpsi perplexity` as a user meets them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::quantized::GgmlDType;
use kvpsi_tests::{
    kvpsi_binary, quiet,
    tiny::{Shape, Tiny},
};
use std::{
    path::Path,
    process::{Command, Output},
};

fn bench(model: &Path, args: &[&str]) -> Output {
    quiet(Command::new(kvpsi_binary()))
        .arg("bench")
        .arg("-m")
        .arg(model)
        .args(args)
        .env_remove("KVPSI_ISA")
        .output()
        .unwrap()
}

/// A model of two layers whose matrices are of all kinds.
fn tiny(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("tiny.gguf");
    let shape = Shape {
        arch: "llama",
        layers: 2,
        hidden: 256,
        feed_forward: 512,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        vocab: 300,
        tied: true,
        types: &[
            GgmlDType::Q5_0,
            GgmlDType::Q3K,
            GgmlDType::F16,
            GgmlDType::BF16,
            GgmlDType::Q2K,
        ],
        seed: 5,
    };
    Tiny::new(&shape).unwrap().write(&path).unwrap();
    path
}

#[test]
fn figures_are_printed_for_people_and_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny(dir.path());
    let args = [
        "--pp", "40", "--tg", "6", "--depth", "9", "--batch", "2", "-r", "2",
    ];
    let out = bench(&model, &args);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    for says in [
        "kernels", "prefill", "decode", "GB/s", "Q5_0", "BF16", "resident",
    ] {
        assert!(text.contains(says), "`{says}` is not in: {text}");
    }
    let out = bench(&model, &[&args[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    for key in ["prefill_tok_s", "decode_tok_s"] {
        let rate = |of: &str| json[key][of].as_f64().unwrap();
        assert!(
            rate("least") > 0.0 && rate("least") <= rate("median"),
            "{json}"
        );
        assert!(rate("median") <= rate("most"), "{json}");
    }
    assert_eq!(json["depth"], 9);
    assert_eq!(json["batch"], 2);
    assert!(json["read_gb_s"].as_f64().unwrap() > 0.0);
    assert!(json["decode_step_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn a_context_beyond_the_models_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny(dir.path());
    let out = bench(&model, &["--depth", "600"]);
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert!(err.contains("512"), "{err}");
}

#[test]
fn kernels_that_this_processor_lacks_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny(dir.path());
    let other = if cfg!(target_arch = "x86_64") {
        "neondot"
    } else {
        "avx512"
    };
    for (isa, says) in [
        (other, "unset the variable, or take one of scalar"),
        ("mmx", "this processor has auto, scalar"),
    ] {
        let out = quiet(Command::new(kvpsi_binary()))
            .args(["bench", "-m"])
            .arg(&model)
            .env("KVPSI_ISA", isa)
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{err}");
        let name = format!("KVPSI_ISA={isa}: ");
        assert!(err.contains(&name) && err.contains(says), "{err}");
    }
}

#[test]
fn a_share_of_a_short_chunks_cache_is_measured() {
    let Some(model) = kvpsi_tests::model("a_share_of_a_short_chunks_cache_is_measured") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "The lamp was lit again. ".repeat(60)).unwrap();
    let out = quiet(Command::new(kvpsi_binary()))
        .args([
            "perplexity",
            "--ctx",
            "256",
            "--chunks",
            "1",
            "--kv-budget",
            "50%",
        ])
        .args(["--json", "-", "-m"])
        .arg(&model)
        .arg("-f")
        .arg(&text)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    let all: serde_json::Value = serde_json::from_slice(&out.stdout).expect(&err);
    let share = all["rows"][0]["bytes"].as_f64().unwrap();
    assert!((0.1..=0.6).contains(&share), "{all}");
}
