//! Each family against Hugging Face transformers, on the tiny models that
//! tests/data/families.py made: logits after every token of a text, prefilled
//! in one go, in chunks, and decoded.
//!
//! Matrices are f16 on both sides. What may differ is the order of sums and
//! that kvpsi keeps keys and values in f16. That `TIGHT` is tight enough is
//! shown: each number of the metadata that says what a family computes moves
//! the logits by far more.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{families, ours::Ours};

/// Largest difference of a logit.
const TIGHT: f32 = 0.01;

/// Largest mean of a position where activations are rounded to 8 bits before
/// each matrix (0.02 is the most that was seen).
const LOOSE: f32 = 0.04;

/// Largest difference, and the mean; not a number where a logit is none.
fn apart(got: &[f32], want: &[f32]) -> [f32; 2] {
    assert_eq!(got.len(), want.len());
    let each = got.iter().zip(want).map(|(g, w)| (g - w).abs());
    let most = each
        .clone()
        .fold(0f32, |most, d| if d <= most { most } else { d });
    [most, each.sum::<f32>() / got.len() as f32]
}

/// Largest differences: of tokens decoded one by one, of prefills, and the
/// largest mean of a position of both.
fn compare(name: &str) -> [f32; 3] {
    let (path, text) = families::reference(name);
    let mut ours = Ours::load(&path, 96);
    let (tokens, mut decoded, mut filled) = (&text.tokens, 0f32, 0f32);
    let mut means = 0f32;
    let mut most = |got: &[f32], want: &[f32]| {
        let [most, mean] = apart(got, want);
        means = means.max(mean);
        most
    };
    // Some tokens at once, the others one by one.
    for prefix in [1, 3, 40] {
        let seq = ours.open();
        let got = ours.run(seq, &tokens[..prefix]);
        decoded = decoded.max(most(&got, text.after(prefix)));
        for i in prefix..tokens.len() {
            let got = ours.run(seq, &tokens[i..=i]);
            decoded = decoded.max(most(&got, text.after(i + 1)));
        }
        ours.close(seq);
    }
    for n in [2, 20, 21, 22, 23, 32, 33, 64, tokens.len()] {
        for chunk in [n, 7, 50] {
            let got = ours.after(&tokens[..n], chunk);
            filled = filled.max(most(&got, text.after(n)));
        }
    }
    eprintln!("{name}: decode {decoded:.6}, prefill {filled:.6}, mean {means:.6}");
    [decoded, filled, means]
}

macro_rules! family {
    ($($test:ident: $name:literal,)*) => {$(
        #[test]
        fn $test() {
            let [decoded, filled, _] = compare($name);
            assert!(decoded < TIGHT && filled < TIGHT, "{decoded} {filled}");
        }
    )*};
}

family! {
    llama_with_factors_of_rope_is_transformers: "llama",
    qwen2_with_yarn_is_transformers: "qwen2",
    qwen3_is_transformers: "qwen3",
    gemma3_with_linear_rope_is_transformers: "gemma3",
    smollm3_is_transformers: "smollm3",
    ministral3_is_transformers: "ministral3",
    phi3_up_to_its_first_context_is_transformers: "phi3-short",
    phi3_beyond_its_first_context_is_transformers: "phi3-long",
    gemma2_is_transformers: "gemma2",
    granite_is_transformers: "granite",
    olmo2_is_transformers: "olmo2",
    olmo3_is_transformers: "olmo3",
    mixtral_is_transformers: "mixtral",
    qwen3moe_is_transformers: "qwen3moe",
    olmoe_is_transformers: "olmoe",
    granitemoe_is_transformers: "granitemoe",
    granitemoe_with_a_shared_expert_is_transformers: "granitemoeshared",
}
