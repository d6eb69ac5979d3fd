//! Every API in turn: tools, schemas, grammars, embeddings.
//!
//! Each request has a word of its own that its answer must have, by a schema or
//! a grammar: a text of another request is seen. Out of scope: what a client may
//! do to the server.

use super::{Account, put_off, text};
use crate::served::Served;
use serde_json::{Value, json};
use std::sync::atomic::Ordering::Relaxed;

/// What an answer has, and whether it came to its end: not cut off.
struct Answer {
    said: Value,
    whole: bool,
}

/// Path and body for a text and a word, and what is to be read of the answer.
struct Api {
    path: &'static str,
    body: fn(&str, &str) -> Value,
    read: fn(&Value) -> Option<Answer>,
}

fn schema(word: &str) -> Value {
    json!({
        "type": "object", "properties": {"word": {"type": "string", "enum": [word]}},
        "required": ["word"], "additionalProperties": false,
    })
}

/// The word of a JSON text.
fn word_of(text: &Value) -> Value {
    let parsed = text.as_str().map(serde_json::from_str::<Value>);
    parsed.and_then(Result::ok).unwrap_or_default()["word"].clone()
}

fn asked(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

const APIS: [Api; 7] = [
    Api {
        path: "/v1/chat/completions",
        body: |text, word| {
            json!({
                "messages": asked(text), "max_tokens": 60,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema(word)}},
            })
        },
        read: |a| {
            let choice = &a["choices"][0];
            Some(Answer {
                said: word_of(&choice["message"]["content"]),
                whole: choice["finish_reason"].as_str()? == "stop",
            })
        },
    },
    Api {
        path: "/v1/chat/completions",
        body: |text, word| {
            json!({
                "messages": asked(text), "max_tokens": 120, "tool_choice": "required",
                "parallel_tool_calls": false,
                "tools": [{"type": "function", "function": {"name": "say", "parameters": schema(word)}}],
            })
        },
        read: |a| {
            let choice = &a["choices"][0];
            let call = &choice["message"]["tool_calls"][0]["function"];
            Some(Answer {
                said: word_of(&call["arguments"]),
                whole: choice["finish_reason"].as_str()? == "tool_calls",
            })
        },
    },
    Api {
        path: "/v1/completions",
        body: |text, word| json!({"prompt": text, "max_tokens": 60, "grammar": format!("root ::= \"{word}\"")}),
        read: |a| {
            let choice = &a["choices"][0];
            Some(Answer {
                said: choice["text"].clone(),
                whole: choice["finish_reason"].as_str()? == "stop",
            })
        },
    },
    Api {
        path: "/v1/responses",
        body: |text, word| {
            json!({
                "input": text, "max_output_tokens": 60,
                "text": {"format": {"type": "json_schema", "name": "x", "schema": schema(word)}},
            })
        },
        read: |a| {
            Some(Answer {
                said: word_of(&a["output"][0]["content"][0]["text"]),
                whole: a["status"].as_str()? == "completed",
            })
        },
    },
    Api {
        path: "/v1/messages",
        body: |text, word| {
            json!({
                "messages": asked(text), "max_tokens": 120,
                "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
                "tools": [{"name": "say", "input_schema": schema(word)}],
            })
        },
        read: |a| {
            Some(Answer {
                said: a["content"][0]["input"]["word"].clone(),
                whole: a["stop_reason"].as_str()? == "tool_use",
            })
        },
    },
    Api {
        path: "/api/chat",
        body: |text, word| {
            json!({
                "messages": asked(text), "stream": false, "format": schema(word),
                "options": {"num_predict": 60},
            })
        },
        read: |a| {
            Some(Answer {
                said: word_of(&a["message"]["content"]),
                whole: a["done_reason"].as_str()? == "stop",
            })
        },
    },
    Api {
        path: "/v1/embeddings",
        body: |text, _| json!({"input": text}),
        // It has no words: an empty one is not what it must be.
        read: |a| {
            Some(Answer {
                said: Value::Null,
                whole: a["data"][0]["embedding"].as_array()?.is_empty(),
            })
        },
    },
];

/// A request of one of them.
pub(super) fn one(served: &Served, rng: &mut fastrand::Rng, account: &Account) {
    let api = &APIS[rng.usize(0..APIS.len())];
    let word = format!("w{:08x}", rng.u32(..));
    let body = (api.body)(&text(rng, 3..60), &word);
    let (status, answer) = match served.try_post(api.path, &body) {
        Ok(got) => got,
        Err(e) => return account.note(format!("a good request broke: {}: {e}", api.path)),
    };
    if status != 200 {
        return put_off(status, &answer.to_string(), account);
    }
    match (api.read)(&answer) {
        Some(read) if !read.whole || read.said == word.as_str() => {
            account.answered.fetch_add(1, Relaxed);
        }
        _ => account.note(format!("{}: {word} got {answer}", api.path)),
    }
}
