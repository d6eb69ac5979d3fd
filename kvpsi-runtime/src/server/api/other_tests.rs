//! The bodies of the other APIs: whatever comes in their fields.

use crate::server::{anthropic, api::Prompt, error::ApiError, ollama, responses};
use axum::http::StatusCode;
use proptest::prelude::*;
use serde_json::{Value, json};

type Parse = fn(&[u8]) -> Result<Prompt, ApiError>;

fn all() -> [(&'static str, Parse); 4] {
    [
        ("messages", |body| anthropic::parse(body).map(|r| r.prompt)),
        ("input", |body| {
            responses::parse(body).map(|(r, _)| r.prompt)
        }),
        ("messages", |body| {
            ollama::parse_chat(body).map(|r| r.prompt)
        }),
        ("prompt", |body| {
            ollama::parse_generate(body).map(|r| r.prompt)
        }),
    ]
}

#[test]
fn what_is_no_json_object_is_a_bad_request_everywhere() {
    let deep = format!("{{\"messages\": {}", "[".repeat(100_000));
    for (_, parse) in all() {
        for body in [
            &b""[..],
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe{}",
            deep.as_bytes(),
        ] {
            assert_eq!(parse(body).unwrap_err().status, StatusCode::BAD_REQUEST);
        }
    }
}

#[test]
fn a_wrong_type_names_its_field_everywhere() {
    for (field, parse) in all() {
        let body = json!({"max_tokens": 5, field: 5});
        let e = parse(body.to_string().as_bytes()).unwrap_err();
        assert_eq!(
            (e.status, e.param.as_deref()),
            (StatusCode::BAD_REQUEST, Some(field))
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_them_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, parse) in all() {
            let _ = parse(&body);
        }
    }

    #[test]
    fn no_values_make_them_panic(
        name in prop::sample::select(vec![
            "messages", "input", "prompt", "system", "tools", "tool_choice", "format", "options",
            "think", "thinking", "text", "reasoning", "stop_sequences", "output_config", "metadata",
        ]),
        value in prop::sample::select(vec![
            json!(null), json!(-1), json!(1e300), json!(u64::MAX), json!("x"), json!([null]),
            json!({"type": []}), json!([{}]), json!([[]]), json!({"format": {"type": 5}}),
            json!([{"role": "user", "content": [{"type": "tool_result"}]}]),
            json!([{"role": "assistant", "tool_calls": [{"function": {}}]}]),
            json!([{"type": "function", "function": {"name": "f", "parameters": 5}}]),
            json!({"seed": 1.5, "top_k": -7, "num_predict": 1e12, "stop": [5]}),
            json!({"effort": "very"}), json!({"type": "tool"}),
        ]),
    ) {
        for (field, parse) in all() {
            let mut body = json!({"max_tokens": 5, field: [{"role": "user", "content": "hi"}]});
            if field == "prompt" {
                body[field] = json!("hi");
            }
            body[name] = value.clone();
            let _ = parse(Value::to_string(&body).as_bytes());
        }
    }
}
