//! What the kernels make of the text, beside candle-transformers on the same
//! file. `cargo xtask bench candle-quality` is the long form: 20 000 tokens, and ten
//! prompts of 200 tokens.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::quality::{Both, PROMPTS};

#[test]
fn a_text_is_as_likely_as_by_candles_logits() {
    let Some(path) = kvpsi_tests::model("a_text_is_as_likely_as_by_candles_logits") else {
        return;
    };
    let mut both = Both::load(&path, &path).unwrap();
    let all = both.likelihood(256, 2, &mut |_| ()).unwrap();
    let (ours, candle) = (all.ours.perplexity(), all.candle.perplexity());
    eprintln!(
        "{} tokens: perplexity {ours:.4}, candle {candle:.4}",
        all.ours.tokens
    );
    assert_eq!(all.ours.tokens, all.candle.tokens);
    // A wrong bit in a kernel costs far more; the long form asks for 0.5 %
    // over forty times as many tokens.
    assert!((ours / candle - 1.0).abs() < 0.01, "{ours} {candle}");
    assert!(candle < 60.0, "{candle}: this is no language model");
}

#[test]
fn greedy_answers_part_only_where_two_tokens_are_as_good() {
    let name = "greedy_answers_part_only_where_two_tokens_are_as_good";
    let Some(path) = kvpsi_tests::model(name) else {
        return;
    };
    let mut both = Both::load(&path, &path).unwrap();
    for prompt in &PROMPTS[..4] {
        let parting = both.greedy(prompt, 60).unwrap();
        eprintln!("{prompt:?}: {parting:?}");
        // Activations are rounded to 8 bits by both: a last bit becomes a step.
        assert!(parting.is_none_or(|p| p.margin < 0.5), "{parting:?}");
    }
}

/// One measurement of `cargo xtask bench quality`, as it is called there.
fn rows(model: &std::path::Path, args: &[&str]) -> Vec<serde_json::Value> {
    // Beside another one: a shell in between (`xtask/rustc-wrapper`) hands on no
    // variable with a hyphen in its name.
    let program =
        std::path::Path::new(env!("CARGO_BIN_EXE_pressure")).with_file_name("kvpsi-bench");
    let bench = std::process::Command::new(program)
        .arg(args[0])
        .arg("--model")
        .arg(model)
        .args(&args[1..])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&bench.stderr);
    assert!(bench.status.success(), "{args:?}: {said}");
    let lines = String::from_utf8(bench.stdout).unwrap();
    lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn the_bench_of_smaller_caches_says_all_that_its_report_is_made_of() {
    let name = "the_bench_of_smaller_caches_says_all_that_its_report_is_made_of";
    let Some(model) = kvpsi_tests::model(name) else {
        return;
    };
    let few = ["--budgets", "0.5", "--policies", "heavy", "--whole", "f16"];
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/data/holmes.txt");
    let ppl = rows(
        &model,
        &[&["ladder", "--text", text, "--context", "1280"], &few[..]].concat(),
    );
    assert_eq!(ppl.len(), 3);
    for row in &ppl {
        for key in ["bytes", "budget", "ppl", "ppl_full", "share", "tokens"] {
            assert!(row[key].as_f64().is_some_and(|n| n > 0.0), "{key} in {row}");
        }
        let ratio = row["ppl"].as_f64().unwrap() / row["ppl_full"].as_f64().unwrap();
        assert!((0.9..2.0).contains(&ratio), "{row}");
    }
    assert_eq!(ppl[0]["policy"], serde_json::Value::Null);
    assert_eq!(ppl[1]["kv"], "f16");
    assert_eq!(ppl[2]["kv"], "ladder");
    // A block more than the budget at most, and what is never dropped.
    let share = ppl[2]["share"].as_f64().unwrap();
    assert!((0.4..0.6).contains(&share), "{share}");

    let recall = [
        "recall",
        "--contexts",
        "512",
        "--samples",
        "2",
        "--conversations",
        "1",
        "--prose",
        "500",
        "--no-pure",
    ];
    let recall = rows(&model, &[&recall[..], &few[..]].concat());
    assert_eq!(recall.len(), 4);
    for row in &recall {
        let asked = if row["what"] == "needle" { 2 } else { 4 };
        assert_eq!(row["asked"], asked, "{row}");
        assert!(row["known"].as_u64() <= Some(asked), "{row}");
        assert!(row["answered_full"].as_f64().is_some(), "{row}");
    }

    let steps = ["steps", "--tokens", "512", "--rounds", "1", "--turn", "600"];
    let steps = rows(&model, &steps);
    for step in ["slack", "cached", "pack", "thin", "window"] {
        let row = steps.iter().find(|r| r["step"] == step).unwrap();
        assert!(
            row["us_per_mib"]
                .as_f64()
                .is_some_and(|us| us > 0.0 && us < 1e7),
            "{row}"
        );
    }
    // All but the last block of the first turn is found in the cache.
    let turn = steps.iter().find(|r| r["what"] == "second_turn").unwrap();
    assert!(turn["ratio"].as_f64().is_some_and(|r| r < 0.8), "{turn}");
}
