use super::*;
use crate::model::chat::{Message, Role};
use axum::http::StatusCode;
use proptest::prelude::*;
use serde_json::json;

fn chat(more: &Value) -> Result<Request, ApiError> {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    parse_chat(body.to_string().as_bytes())
}

fn said(role: Role, text: &str) -> Prompt {
    Prompt::Chat(Conversation::new(vec![Message::new(role, text)]))
}

#[test]
fn a_bare_chat_has_openais_defaults() {
    let r = chat(&json!({})).unwrap();
    assert_eq!(r.prompt, said(Role::User, "hi"));
    let s = &r.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k), (1.0, None, None));
    assert_eq!((s.repeat_penalty, s.max_tokens), (1.0, usize::MAX));
    assert!(!r.stream && !r.include_usage && s.stops.is_empty());
}

#[test]
fn every_field_that_is_supported_is_obeyed() {
    let r = chat(&json!({
        "model": "m", "max_tokens": 7, "max_completion_tokens": 9.0, "temperature": 0.5,
        "top_p": 0.25, "top_k": 3, "seed": -2, "stop": ["a", "b"], "presence_penalty": 1,
        "frequency_penalty": -1.5, "repetition_penalty": 1.25, "logprobs": true,
        "top_logprobs": 4, "stream": true, "stream_options": {"include_usage": true},
        "response_format": {"type": "text"}, "n": 1, "tools": [], "tool_choice": "none",
        "user": "u", "metadata": {"x": 1}, "store": true, "logit_bias": {}, "ignore_eos": true,
    }))
    .unwrap();
    let s = r.sampling;
    assert_eq!((s.max_tokens, s.top_k, s.logprobs), (9, Some(3), Some(4)));
    assert_eq!(
        (s.temperature, s.top_p, s.seed),
        (0.5, Some(0.25), u64::MAX - 1)
    );
    assert_eq!(
        (s.presence_penalty, s.frequency_penalty, s.repeat_penalty),
        (1.0, -1.5, 1.25)
    );
    assert_eq!(s.stops, ["a", "b"]);
    assert!(r.stream && r.include_usage && s.ignore_eos);
    assert_eq!(r.model.as_deref(), Some("m"));
}

#[test]
fn what_cannot_be_obeyed_is_refused_by_name() {
    for (field, value) in [
        ("tools", json!([{"type": "web_search"}])),
        ("best_of", json!(3)),
        ("echo", json!(true)),
        ("ebnf", json!("a")),
        ("allowed_token_ids", json!([1])),
        ("n_predict", json!(5)),
        ("dry_multiplier", json!(0.8)),
        ("truncate_prompt_tokens", json!(5)),
        ("xtc_probability", json!(0.5)),
        ("skip_special_tokens", json!(false)),
        ("include_reasoning", json!(false)),
        ("verbosity", json!("low")),
        ("return_tokens", json!(true)),
        ("length_penalty", json!(0.5)),
        ("response_format", json!({"type": "yaml"})),
        ("modalities", json!(["audio"])),
        ("tool_choice", json!({"type": "allowed_tools"})),
    ] {
        let e = chat(&json!({ field: value })).unwrap_err();
        assert_eq!(e.status, StatusCode::BAD_REQUEST, "{field}");
        assert_eq!(e.param.as_deref(), Some(field), "{e:?}");
        assert_eq!(e.code, Some("unsupported_parameter"), "{e:?}");
    }
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    for (field, value) in [
        ("max_tokens", json!(-1)),
        ("seed", json!(null)),
        ("seed", json!(-1)),
        ("top_k", json!(-1)),
        ("min_p", json!(0)),
        ("typical_p", json!(1)),
        ("logit_bias", json!({})),
        ("stop_token_ids", json!([])),
        ("min_tokens", json!(0)),
        ("best_of", json!(1)),
        ("n_predict", json!(-1)),
        ("n_keep", json!(0)),
        ("truncate_prompt_tokens", json!(-1)),
        ("length_penalty", json!(1)),
        ("use_beam_search", json!(false)),
        ("mirostat", json!(0)),
        ("dry_multiplier", json!(0.0)),
        ("dry_base", json!(1.75)),
        ("xtc_probability", json!(0)),
        ("skip_special_tokens", json!(true)),
        ("suffix", json!("")),
        ("bad_words", json!([])),
        ("top_logprobs", json!(0)),
        ("stop", json!("")),
        ("stop", json!([""])),
        ("verbosity", json!("medium")),
        ("include_reasoning", json!(true)),
        ("return_tokens", json!(false)),
        ("repeat_last_n", json!(64)),
        ("function_call", json!("none")),
    ] {
        let r = chat(&json!({ field: value })).unwrap();
        let s = r.sampling;
        let plain = chat(&json!({})).unwrap().sampling;
        let seed = plain.seed;
        assert_eq!(SamplingConfig { seed, ..s }, plain, "{field}");
    }
    let seed = |v: Value| chat(&json!({"seed": v})).unwrap().sampling.seed;
    assert_ne!(seed(json!(-1)), seed(json!(-1)));
}

#[test]
fn biases_and_tokens_are_named_by_their_ids() {
    let get = |v: Value| chat(&v).unwrap().sampling;
    let s = get(json!({"logit_bias": {"5": -100, "7": 1.5}, "stop_token_ids": [1, 2]}));
    assert_eq!(s.logit_bias, [(5, -100.0), (7, 1.5)]);
    assert_eq!(s.stop_tokens, [1, 2]);
    let s = get(json!({"logit_bias": [[5, 1], [6, false]]}));
    assert_eq!(s.logit_bias, [(5, 1.0), (6, f32::NEG_INFINITY)]);
    let s = get(json!({"min_p": 0.05, "typical_p": 0.9, "min_tokens": 3}));
    assert_eq!(
        (s.min_p, s.typical_p, s.min_tokens),
        (Some(0.05), Some(0.9), 3)
    );
    let last = |n: i64| get(json!({"repeat_last_n": n})).repeat_last;
    assert_eq!([last(0), last(5), last(-1)], [0, 5, usize::MAX]);
    let e = chat(&json!({"min_tokens": 3, "max_tokens": 2})).unwrap_err();
    assert_eq!(e.param.as_deref(), Some("min_tokens"));
    let many: serde_json::Map<String, Value> =
        (0..2000).map(|i| (i.to_string(), json!(1))).collect();
    assert!(chat(&json!({"logit_bias": many})).is_err());
}

#[test]
fn a_wrong_type_or_range_names_the_field() {
    for (field, value) in [
        ("temperature", json!("hot")),
        ("temperature", json!(2.5)),
        ("top_p", json!(-0.1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!(-3)),
        ("min_tokens", json!(-1)),
        ("min_p", json!(1.1)),
        ("typical_p", json!("x")),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"5": 101})),
        ("logit_bias", json!([[5]])),
        ("stop_token_ids", json!([-1])),
        ("top_k", json!(-2)),
        ("stop", json!(5)),
        ("stop", json!(vec!["x"; 17])),
        ("stream", json!("yes")),
        ("seed", json!(1.5)),
        ("presence_penalty", json!(3)),
        ("top_logprobs", json!(2)),
        ("logprobs", json!(3)),
        ("model", json!(["m"])),
        ("stream_options", json!(true)),
        ("messages", json!("hi")),
        ("messages", json!([])),
        ("messages[0].role", json!(null)),
        ("tools", json!({})),
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("required")),
        ("response_format", json!("json")),
        ("guided_choice", json!("a")),
        ("guided_json", json!(5)),
        ("structured_outputs", json!([])),
        ("chat_template_kwargs", json!("x")),
        ("reasoning_effort", json!("very")),
    ] {
        let more = if field.contains('[') {
            json!({"messages": [{"role": "robot", "content": "x"}]})
        } else {
            json!({ field: value })
        };
        let e = chat(&more).unwrap_err();
        assert_eq!(e.param.as_deref(), Some(field), "{e:?}");
    }
}

#[test]
fn contents_may_come_in_text_parts_and_pictures_are_refused() {
    let parts =
        |parts: Value| chat(&json!({"messages": [{"role": "developer", "content": parts}]}));
    let two = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let want = said(Role::System, "ab");
    assert_eq!(parts(two).unwrap().prompt, want);
    let picture = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    let e = parts(picture).unwrap_err();
    assert_eq!(e.param.as_deref(), Some("messages[0].content"));
}

#[test]
fn calls_and_their_results_are_messages() {
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}},
            {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
        ]},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "x"}]},
    ]);
    let r = chat(&json!({ "messages": messages })).unwrap();
    let Prompt::Chat(c) = r.prompt else { panic!() };
    let calls = &c.messages[1].calls;
    // The order of the arguments is kept.
    assert_eq!(calls[0].arguments.to_string(), r#"{"b":1,"a":2}"#);
    assert_eq!(calls[1].arguments, json!({}));
    assert_eq!(c.messages[2].call_id.as_deref(), Some("c2"));
    assert_eq!(c.messages[2].name.as_deref(), Some("g"));
    for (message, part) in [
        (
            json!({"role": "assistant", "content": null}),
            "messages[0].content",
        ),
        (
            json!({"role": "tool", "content": "x"}),
            "messages[0].tool_call_id",
        ),
        (
            json!({"role": "user", "content": "x", "tool_calls": [{}]}),
            "messages[0].tool_calls",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"id": "x"}]}),
            "messages[0].tool_calls",
        ),
    ] {
        let e = chat(&json!({"messages": [message]})).unwrap_err();
        assert_eq!(e.param.as_deref(), Some(part), "{e:?}");
    }
}

#[test]
fn a_thought_alone_is_a_message_and_calls_are_not_gone_on_with() {
    let thought = json!({"role": "assistant", "content": null, "reasoning_content": "Hm."});
    let r = chat(&json!({"messages": [thought]})).unwrap();
    let Prompt::Chat(c) = r.prompt else { panic!() };
    assert_eq!(c.messages[0].reasoning.as_deref(), Some("Hm."));
    let called = json!({"role": "assistant", "content": "So:", "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]});
    let e = chat(&json!({"messages": [called], "continue_final_message": true})).unwrap_err();
    assert_eq!(e.param.as_deref(), Some("continue_final_message"));
    assert!(chat(&json!({"messages": [called]})).is_ok());
}

#[test]
fn what_a_request_becomes_has_a_bound() {
    let zeros = |n: usize| Value::Array(vec![json!(0); n]);
    let e = chat(&json!({"x": zeros(1 << 18)})).unwrap_err();
    assert!(e.message.contains("values"), "{e:?}");
    // JSON within texts counts too.
    let arguments = json!({"a": zeros(20_000)}).to_string();
    let called = |arguments: &str| {
        json!({"messages": [{"role": "assistant", "tool_calls": [
            {"id": "c", "function": {"name": "f", "arguments": arguments}},
            {"id": "d", "function": {"name": "f", "arguments": arguments}},
        ]}]})
    };
    let Prompt::Chat(c) = chat(&called(&arguments)).unwrap().prompt else {
        panic!()
    };
    let is_object: Vec<bool> = (c.messages[0].calls.iter())
        .map(|c| c.arguments.is_object())
        .collect();
    assert_eq!(is_object, [true, false]);
    let e = chat(&json!({"chat_template_kwargs": {"x": zeros(1 << 12)}})).unwrap_err();
    assert_eq!(e.param.as_deref(), Some("chat_template_kwargs"));
    let tool = json!({"type": "function", "function": {"name": "f", "x": "y".repeat(257 << 10)}});
    let e = chat(&json!({"tools": [tool], "tool_choice": "none"})).unwrap_err();
    assert_eq!(e.param.as_deref(), Some("tools"));
}

#[test]
fn tools_are_told_unless_none_may_be_called() {
    let tool =
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let told = |choice: Value| {
        let r = chat(&json!({"tools": [tool], "tool_choice": choice})).unwrap();
        (r.tools.told().len(), r.tools.forced().map(|t| t.len()))
    };
    assert_eq!(told(json!(null)), (1, None));
    assert_eq!(told(json!("auto")), (1, None));
    assert_eq!(told(json!("none")), (0, None));
    assert_eq!(told(json!("required")), (1, Some(1)));
    let named = json!({"type": "function", "function": {"name": "f"}});
    assert_eq!(told(named), (1, Some(1)));
}

#[test]
fn one_grammar_is_obeyed_and_two_are_refused() {
    let grammar = |more: Value| chat(&more).unwrap().grammar.map(|(_, g)| g);
    let schema = json!({"type": "object"});
    for more in [
        json!({"response_format": {"type": "json_object"}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
        json!({"guided_json": schema}),
        json!({"guided_json": schema.to_string()}),
        json!({"structured_outputs": {"json": schema}}),
    ] {
        assert_eq!(grammar(more), Some(Grammar::Schema(schema.clone())));
    }
    assert_eq!(grammar(json!({"response_format": {"type": "text"}})), None);
    assert_eq!(
        grammar(json!({"guided_regex": "a+"})),
        Some(Grammar::Regex("a+".into()))
    );
    for more in [
        json!({"json_schema": {}}),
        json!({"structured_outputs": {"json": {}}}),
    ] {
        assert_eq!(grammar(more), Some(Grammar::Schema(json!({}))));
    }
    assert_eq!(
        grammar(json!({"guided_regex": "none"})),
        Some(Grammar::Regex("none".into()))
    );
    for nothing in [
        json!({"guided_regex": ""}),
        json!({"structured_outputs": {"json": null}}),
    ] {
        assert_eq!(grammar(nothing), None);
    }
    let both = json!({"guided_regex": "a", "guided_choice": ["a"]});
    assert_eq!(
        chat(&both).unwrap_err().param.as_deref(),
        Some("guided_choice")
    );
}

#[test]
fn a_completion_takes_text_or_tokens_and_has_16_tokens_by_default() {
    let get = |prompt: Value| parse_completion(json!({"prompt": prompt}).to_string().as_bytes());
    assert_eq!(get(json!("a")).unwrap().prompt, Prompt::Text("a".into()));
    assert_eq!(get(json!(["a"])).unwrap().prompt, Prompt::Text("a".into()));
    assert_eq!(
        get(json!([1, 2])).unwrap().prompt,
        Prompt::Tokens(vec![1, 2])
    );
    assert_eq!(
        get(json!([[1, 2]])).unwrap().prompt,
        Prompt::Tokens(vec![1, 2])
    );
    assert_eq!(get(json!("a")).unwrap().sampling.max_tokens, 16);
    let two = Prompt::List(vec![Prompt::Text("a".into()), Prompt::Tokens(vec![1])]);
    assert_eq!(get(json!(["a", [1]])).unwrap().prompt, two);
    for bad in [
        json!(["a", 1]),
        json!([1, "a"]),
        json!(vec!["a"; 129]),
        json!([[["a"]]]),
        json!(5),
        json!([1.5]),
        json!([-1]),
        json!(null),
    ] {
        assert_eq!(get(bad).unwrap_err().param.as_deref(), Some("prompt"));
    }
}

#[test]
fn what_is_no_json_object_is_a_bad_request() {
    for body in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe{}", b"{\"a\":1}x"] {
        let e = parse_chat(body).unwrap_err();
        assert_eq!(e.status, StatusCode::BAD_REQUEST);
    }
    // Any depth is an error, not a stack that is used up.
    let deep = "[".repeat(100_000);
    assert!(parse_chat(format!("{{\"messages\": {deep}").as_bytes()).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_chat(&body);
        let _ = parse_completion(&body);
    }

    #[test]
    fn no_values_make_it_panic(
        name in prop::sample::select(vec![
            "messages", "prompt", "stop", "seed", "top_k", "stream_options", "response_format",
            "max_tokens", "n", "logprobs", "temperature", "tool_choice", "logit_bias", "tools",
            "guided_json", "guided_choice", "structured_outputs", "chat_template_kwargs",
        ]),
        value in prop::sample::select(vec![
            json!(null), json!(-1), json!(1e300), json!(u64::MAX), json!("x"), json!([null]),
            json!({"type": []}), json!([{}]), json!([[]]), json!({"include_usage": 3}),
        ]),
    ) {
        let _ = chat(&json!({ name: value.clone() }));
        let _ = parse_completion(json!({ name: value }).to_string().as_bytes());
    }
}

#[test]
fn several_answers_and_the_prompt_itself_can_be_asked_for() {
    let get = |v: Value| parse_completion(v.to_string().as_bytes());
    let r = get(json!({"prompt": "a", "n": 3, "best_of": 3, "echo": true, "max_tokens": 0}));
    let r = r.unwrap();
    assert_eq!((r.choices, r.echo, r.sampling.max_tokens), (3, true, 0));
    let r = get(json!({"prompt": "a", "max_tokens": -1})).unwrap();
    assert_eq!(
        (r.choices, r.echo, r.sampling.max_tokens),
        (1, false, usize::MAX)
    );
    for (bad, field) in [
        (json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "a", "n": 0}), "n"),
        (json!({"prompt": "a", "n": 1000}), "n"),
    ] {
        assert_eq!(get(bad).unwrap_err().param.as_deref(), Some(field));
    }
}

#[test]
fn the_document_names_every_field_that_is_refused() {
    let document = include_str!("../../../../docs/CLIENTS.md");
    let (_, table) = document.split_once("## Fields that are refused").unwrap();
    let told: Vec<&str> = table.lines().filter(|l| l.starts_with("| `")).collect();
    let all = sampling::REFUSED.iter().chain(&REFUSED);
    let want: Vec<String> = all.map(|(n, why)| format!("| `{n}` | {why} |")).collect();
    assert_eq!(told, want);
}
