//! What is refused: in the shape of the API that was asked, by the name of the field.

use kvpsi_tests::{model, served::Served};
use serde_json::{Value, json};

#[test]
fn an_error_has_the_shape_of_its_api_and_names_its_field() {
    let test = "an_error_has_the_shape_of_its_api_and_names_its_field";
    let Some(file) = model(test) else { return };
    let s = Served::start(&file, &["--ctx", "256"], None);
    // In the shape of the API that was asked.
    for (path, status) in [("/api/nothing", 404), ("/api/chat", 405)] {
        let (got, text) = s.get(path);
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert!(got == status && answer["error"].is_string(), "{text}");
    }
    for (path, status, kind) in [
        ("/v1/messages/nothing", 404, "not_found_error"),
        ("/v1/messages", 405, "invalid_request_error"),
    ] {
        let (got, text) = s.get(path);
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (got, &answer["error"]["type"]),
            (status, &json!(kind)),
            "{text}"
        );
        assert_eq!(answer["type"], "error");
    }
    // The field that is too long is named as its API names it.
    let words = "word ".repeat(400);
    for (path, body, field) in [
        ("/v1/completions", json!({"prompt": words}), "prompt"),
        ("/v1/responses", json!({"input": words}), "input"),
        ("/v1/embeddings", json!({"input": words}), "input"),
        ("/tokenize", json!({"content": words}), "content"),
    ] {
        let (_, answer) = s.post(path, &body);
        assert_eq!(answer["error"]["param"], field, "{answer}");
    }
}

#[test]
fn of_a_grammar_and_tools_the_one_that_is_wrong_is_named() {
    let test = "of_a_grammar_and_tools_the_one_that_is_wrong_is_named";
    let Some(file) = model(test) else { return };
    let s = Served::start(&file, &[], None);
    let tool = |parameters: Value| {
        json!([{"type": "function", "function": {
            "name": "f", "strict": true, "parameters": parameters,
        }}])
    };
    let (good, bad) = (
        json!({"type": "object"}),
        json!({"type": "object", "uniqueItems": 5, "not": {}}),
    );
    let ask = |format: &Value, parameters: &Value, choice: &str| {
        let body = json!({
            "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": format}},
            "tools": tool(parameters.clone()), "tool_choice": choice,
        });
        s.post("/v1/chat/completions", &body)
    };
    for (format, parameters, choice, field) in [
        (&good, &bad, "auto", "tools"),
        (&bad, &good, "auto", "response_format"),
        (&bad, &good, "required", "response_format"),
    ] {
        let (status, e) = ask(format, parameters, choice);
        assert_eq!((status, &e["error"]["param"]), (400, &json!(field)), "{e}");
    }
}
