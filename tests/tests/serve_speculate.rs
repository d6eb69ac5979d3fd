//! Speculation as a client of the server sees it: the same text, and figures of
//! what was guessed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{model, served::Served};
use serde_json::{Value, json};

const HOLMES: &str = include_str!("../data/holmes.txt");

/// A text and half of it again: the answer is likely to be the other half.
fn repeating() -> String {
    let text: String = HOLMES.chars().take(700).collect();
    let half: String = text.chars().take(250).collect();
    format!("{text}\n\n{text}\n\n{half}")
}

fn answer(s: &Served, more: &Value) -> Value {
    let mut body = json!({"prompt": repeating(), "max_tokens": 80, "temperature": 0});
    let fields = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    let (status, answer) = s.post("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn a_text_that_repeats_is_guessed_and_the_same_and_told_in_usage_and_metrics() {
    let test = "a_text_that_repeats_is_guessed_and_the_same_and_told_in_usage_and_metrics";
    let Some(path) = model(test) else { return };
    let ways = [
        json!({}),
        json!({"temperature": 0.8, "seed": 3}),
        json!({"n": 2, "temperature": 0.5, "seed": 4, "logprobs": 2}),
    ];
    let said = ["off", "lookup"].map(|how| {
        let mut s = Served::start(&path, &["--speculate", how], None);
        let (mut drafted, mut accepted) = (0.0, 0.0);
        let mut said = vec![];
        for way in &ways {
            let answer = answer(&s, way);
            let kvpsi = &answer["usage"]["kvpsi"];
            drafted += kvpsi["draft_tokens"].as_f64().unwrap();
            accepted += kvpsi["accepted_draft_tokens"].as_f64().unwrap();
            said.push(answer["choices"].clone());
        }
        let metric = |name: &str| s.metric(&format!("vllm:spec_decode_num_{name}_total"));
        assert_eq!(metric("draft_tokens"), Some(drafted));
        assert_eq!(metric("accepted_tokens"), Some(accepted));
        assert_eq!(metric("drafts").unwrap() > 0.0, how == "lookup");
        assert_eq!(accepted > 20.0, how == "lookup", "{accepted} of {drafted}");
        let (status, told) = s.stop();
        assert!(status.success(), "{told}");
        said
    });
    assert_eq!(said[0], said[1]);
}
