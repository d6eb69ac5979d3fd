//! What the kernels make of the text, beside candle-transformers on the same
//! file. `cargo xtask bench quality` is the long form: 20 000 tokens, and ten
//! prompts of 200 tokens.

use kvpsi_tests::quality::{Both, PROMPTS};

#[test]
fn a_text_is_as_likely_as_by_candles_logits() {
    let Some(path) = kvpsi_tests::model("a_text_is_as_likely_as_by_candles_logits") else {
        return;
    };
    let mut both = Both::load(&path, &path).unwrap();
    let all = both.likelihood(256, 4, &mut |_| ()).unwrap();
    let (ours, candle) = (all.ours.perplexity(), all.candle.perplexity());
    eprintln!(
        "{} tokens: perplexity {ours:.4}, candle {candle:.4}",
        all.ours.tokens
    );
    assert_eq!(all.ours.tokens, all.candle.tokens);
    // A wrong bit in a kernel costs far more; the long form asks for 0.5 %
    // over twenty times as many tokens.
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
