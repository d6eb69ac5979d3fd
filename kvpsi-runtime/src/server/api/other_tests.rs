//! The bodies of the other APIs: whatever comes in their fields.

use crate::{
    engine::Grammar,
    server::{
        anthropic,
        api::{Prompt, Request},
        error::ApiError,
        ollama, responses,
    },
};
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
        let mut body = json!({ field: 5 });
        if field == "messages" {
            body["max_tokens"] = json!(5);
        }
        let e = parse(body.to_string().as_bytes()).unwrap_err();
        assert_eq!(
            (e.status, e.param.as_deref()),
            (StatusCode::BAD_REQUEST, Some(field))
        );
    }
}

/// A request of the responses API, and of Anthropic's.
fn both(more: &Value) -> [Result<Request, ApiError>; 2] {
    let with = |mut body: Value| {
        let more = more.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(more);
        body.to_string()
    };
    let chat = json!([{"role": "user", "content": "hi"}]);
    [
        responses::parse(with(json!({"input": chat})).as_bytes()).map(|(r, _)| r),
        anthropic::parse(with(json!({"messages": chat, "max_tokens": 5})).as_bytes()),
    ]
}

#[test]
fn what_chats_refuse_or_obey_other_apis_refuse_or_obey_too() {
    for refused in [
        json!({"dry_multiplier": 1}),
        json!({"functions": [{}]}),
        json!({"skip_special_tokens": false}),
        json!({"verbosity": "low"}),
        json!({"logprobs": true}),
        json!({"n": 2}),
    ] {
        for parsed in both(&refused) {
            let e = parsed.unwrap_err();
            let field = refused.as_object().unwrap().keys().next().cloned();
            assert_eq!((e.status, e.param), (StatusCode::BAD_REQUEST, field));
        }
    }
    let obeyed = json!({
        "seed": 7, "top_k": 3, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": 0.5,
        "repetition_penalty": 1.2, "logit_bias": {"5": 1}, "stop": "x", "stop_token_ids": [4],
        "structured_outputs": {"regex": "a+"}, "n": 1,
    });
    for parsed in both(&obeyed) {
        let r = parsed.unwrap();
        let s = r.sampling;
        assert_eq!((s.seed, s.top_k, s.min_p), (7, Some(3), Some(0.1)));
        assert_eq!((s.presence_penalty, s.frequency_penalty), (1.0, 0.5));
        assert_eq!(
            (s.logit_bias, s.stops),
            (vec![(5, 1.0)], vec!["x".to_owned()])
        );
        assert_eq!((s.stop_tokens, s.repeat_penalty), (vec![4], 1.2));
        assert_eq!(r.grammar.unwrap().1, Grammar::Regex("a+".into()));
    }
}

#[test]
fn the_fields_of_one_api_are_obeyed_or_refused() {
    for (more, field) in [
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (json!({"reasoning": {"effort": 5}}), "reasoning.effort"),
        (json!({"reasoning": {"effort": "very"}}), "reasoning.effort"),
        (json!({"reasoning": "much"}), "reasoning"),
        (
            json!({"include": ["message.output_text.logprobs"]}),
            "include",
        ),
        (json!({"user": ["x"]}), "user"),
        (
            json!({"safety_identifier": "x".repeat(1000)}),
            "safety_identifier",
        ),
        (
            json!({"text": {"format": {"type": "json_schema", "schema": {"x": "y".repeat(200_000)}}}}),
            "text.format",
        ),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (
            json!({"max_output_tokens": 1_180_591_620_717_411_303_424u128 as f64}),
            "max_output_tokens",
        ),
        (json!({"max_tokens": 5}), "max_tokens"),
        (
            json!({"input": [{"type": "item_reference", "id": "rs_1"}]}),
            "input",
        ),
    ] {
        let mut body = json!({"input": "hi"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let e = responses::parse(body.to_string().as_bytes()).unwrap_err();
        assert_eq!(e.param.as_deref(), Some(field), "{e:?}");
        assert!(!e.message.contains("max_completion_tokens"), "{e:?}");
    }
    let parse = |more: Value| both(&more)[1].clone();
    for (more, field) in [
        (
            json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}),
            "context_management",
        ),
        (
            json!({"output_config": {"effort": "very"}}),
            "output_config.effort",
        ),
        (
            json!({"output_config": {"format": {"type": "x"}}}),
            "output_config.format",
        ),
    ] {
        assert_eq!(parse(more).unwrap_err().param.as_deref(), Some(field));
    }
    let kept = json!({"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]});
    let r = parse(json!({"context_management": kept, "output_config": {"effort": "max"}}));
    let Prompt::Chat(c) = r.unwrap().prompt else {
        panic!()
    };
    assert_eq!(c.variables["reasoning_effort"], "xhigh");
}

#[test]
fn a_response_repeats_what_is_known_and_nothing_else() {
    let body = json!({
        "input": "hi", "user": "u", "x": [1, 2], "reasoning": {"effort": "low", "x": 1},
        "text": {"format": {"type": "text", "x": 1}, "x": 1},
        "tools": [{"type": "function", "name": "f", "parameters": {}, "x": 1}],
        "tool_choice": "none",
    });
    let (_, echo) = responses::parse(body.to_string().as_bytes()).unwrap();
    let echo: Value = serde_json::from_str(&echo).unwrap();
    assert!(!echo.to_string().contains("\"x\""), "{echo}");
    assert_eq!(echo["tools"][0]["name"], "f");
    assert_eq!(
        (&echo["user"], &echo["tool_choice"]),
        (&json!("u"), &json!("none"))
    );
    assert_eq!(echo["reasoning"], json!({"effort": "low", "summary": null}));
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
            let mut body = json!({ field: [{"role": "user", "content": "hi"}] });
            if field == "messages" {
                body["max_tokens"] = json!(5);
            }
            if field == "prompt" {
                body[field] = json!("hi");
            }
            body[name] = value.clone();
            let _ = parse(Value::to_string(&body).as_bytes());
        }
    }
}
