//! The answers of the responses API: items, whole or as events.

use crate::{
    engine::{Finish, batch::Outcome},
    server::{
        error::ApiError,
        parts::{Call, Told},
        wire::{Wire, sse},
    },
};
use serde_json::{Map, Value, json};

/// The shape of one answer.
pub(super) struct Items {
    id: u64,
    model: String,
    created: u64,
    prompt_tokens: usize,
    /// What is repeated of the request: a JSON object.
    echo: String,
    /// Items that are whole.
    output: Vec<Value>,
    open: Option<Open>,
    /// Events so far.
    sequence: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thought,
    Text,
}

/// An item that grows.
struct Open {
    kind: Kind,
    text: String,
}

impl Items {
    pub fn new(id: u64, model: String, created: u64, prompt_tokens: usize, echo: String) -> Self {
        Self {
            id,
            model,
            created,
            prompt_tokens,
            echo,
            output: Vec::new(),
            open: None,
            sequence: 0,
        }
    }

    fn response(&self, status: &str) -> Value {
        let mut response = json!({
            "id": format!("resp_{:016x}", self.id), "object": "response",
            "created_at": self.created, "status": status, "error": null,
            "incomplete_details": null, "model": self.model, "output": self.output,
            "previous_response_id": null, "store": false, "truncation": "disabled",
            "background": false, "usage": null,
        });
        let echo = serde_json::from_str::<Map<String, Value>>(&self.echo);
        if let (Some(response), Ok(echo)) = (response.as_object_mut(), echo) {
            response.extend(echo);
        }
        response
    }

    fn event(&mut self, name: &str, mut data: Value) -> String {
        data["type"] = json!(name);
        data["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        sse(name, &data)
    }

    /// The id of the item that comes next.
    fn item_id(&self, prefix: &str) -> String {
        format!("{prefix}_{:016x}{:02x}", self.id, self.output.len())
    }

    fn item(&self, kind: Kind, text: &str, status: &str) -> Value {
        match kind {
            Kind::Text => {
                let part = json!({
                    "type": "output_text", "text": text, "annotations": [], "logprobs": [],
                });
                let content = if status == "in_progress" {
                    json!([])
                } else {
                    json!([part])
                };
                json!({
                    "type": "message", "id": self.item_id("msg"), "status": status,
                    "role": "assistant", "content": content,
                })
            }
            Kind::Thought => {
                let part = json!({"type": "reasoning_text", "text": text});
                let content = if status == "in_progress" {
                    json!([])
                } else {
                    json!([part])
                };
                json!({
                    "type": "reasoning", "id": self.item_id("rs"), "status": status,
                    "summary": [], "content": content,
                })
            }
        }
    }

    fn call(&self, call: &Call, arguments: &str, status: &str) -> Value {
        json!({
            "type": "function_call", "id": self.item_id("fc"), "call_id": call.id,
            "name": call.name, "arguments": arguments, "status": status,
        })
    }

    fn grow(&mut self, kind: Kind, text: &str, frames: &mut Vec<String>) {
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.close(frames, "completed");
            let index = self.output.len();
            let item = self.item(kind, "", "in_progress");
            let id = item["id"].clone();
            frames.push(self.event(
                "response.output_item.added",
                json!({"output_index": index, "item": item}),
            ));
            let part = match kind {
                Kind::Text => {
                    json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
                }
                Kind::Thought => json!({"type": "reasoning_text", "text": ""}),
            };
            frames.push(self.event(
                "response.content_part.added",
                json!({"item_id": id, "output_index": index, "content_index": 0, "part": part}),
            ));
            self.open = Some(Open {
                kind,
                text: String::new(),
            });
        }
        let index = self.output.len();
        let id = self.item(kind, "", "in_progress")["id"].clone();
        let mut data = json!({
            "item_id": id, "output_index": index, "content_index": 0, "delta": text,
        });
        let name = match kind {
            Kind::Text => {
                data["logprobs"] = json!([]);
                "response.output_text.delta"
            }
            Kind::Thought => "response.reasoning_text.delta",
        };
        frames.push(self.event(name, data));
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
        }
    }

    /// The open item is whole.
    fn close(&mut self, frames: &mut Vec<String>, status: &str) {
        let Some(open) = self.open.take() else {
            return;
        };
        let index = self.output.len();
        let item = self.item(open.kind, &open.text, status);
        let place = json!({"item_id": item["id"], "output_index": index, "content_index": 0});
        let with = |more: Value| {
            let mut data = place.clone();
            if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
                data.extend(more);
            }
            data
        };
        let done = match open.kind {
            Kind::Text => "response.output_text.done",
            Kind::Thought => "response.reasoning_text.done",
        };
        let mut text = with(json!({"text": open.text}));
        if open.kind == Kind::Text {
            text["logprobs"] = json!([]);
        }
        frames.push(self.event(done, text));
        let part = with(json!({"part": item["content"][0]}));
        frames.push(self.event("response.content_part.done", part));
        let data = json!({"output_index": index, "item": item});
        frames.push(self.event("response.output_item.done", data));
        self.output.push(item);
    }

    fn called(&mut self, call: &Call, frames: &mut Vec<String>) {
        self.close(frames, "completed");
        let index = self.output.len();
        let begun = self.call(call, "", "in_progress");
        let id = begun["id"].clone();
        let data = json!({"output_index": index, "item": begun});
        frames.push(self.event("response.output_item.added", data));
        let data = json!({"item_id": id, "output_index": index, "delta": call.arguments});
        frames.push(self.event("response.function_call_arguments.delta", data));
        let data = json!({
            "item_id": id, "output_index": index, "name": call.name, "arguments": call.arguments,
        });
        frames.push(self.event("response.function_call_arguments.done", data));
        // One that was cut off is no JSON.
        let whole = serde_json::from_str::<Value>(&call.arguments).is_ok();
        let status = if whole { "completed" } else { "incomplete" };
        let item = self.call(call, &call.arguments, status);
        let data = json!({"output_index": index, "item": item});
        frames.push(self.event("response.output_item.done", data));
        self.output.push(item);
    }

    fn end(
        &mut self,
        outcome: &Outcome,
        thought: usize,
        frames: &mut Vec<String>,
    ) -> (Value, &'static str) {
        let cut = matches!(
            outcome.stats.finish,
            Finish::MaxTokens | Finish::Length | Finish::Exhausted
        );
        let status = if cut { "incomplete" } else { "completed" };
        self.close(frames, status);
        let mut response = self.response(status);
        if cut {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let tokens = outcome.stats.tokens;
        response["usage"] = json!({
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": outcome.cached_tokens},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": self.prompt_tokens + tokens,
        });
        (response, status)
    }
}

impl Wire for Items {
    const STREAM: &'static str = "text/event-stream";
    const ALIVE: &'static str = ": keep-alive\n\n";

    fn begin(&mut self) -> Vec<String> {
        let response = self.response("in_progress");
        ["response.created", "response.in_progress"]
            .map(|name| self.event(name, json!({"response": response})))
            .into()
    }

    fn told(&mut self, parts: Vec<Told>) -> Vec<String> {
        let mut frames = Vec::new();
        for part in parts {
            match part {
                Told::Thought(text) => self.grow(Kind::Thought, &text, &mut frames),
                Told::Text(text) => self.grow(Kind::Text, &text, &mut frames),
                Told::Call(call) => self.called(&call, &mut frames),
            }
        }
        frames
    }

    fn done(&mut self, outcome: &Outcome, thought: usize) -> Vec<String> {
        let mut frames = Vec::new();
        let (response, status) = self.end(outcome, thought, &mut frames);
        let name = format!("response.{status}");
        frames.push(self.event(&name, json!({"response": response})));
        frames
    }

    fn failed(&mut self, error: &ApiError) -> Vec<String> {
        let mut response = self.response("failed");
        response["error"] = json!({"code": "server_error", "message": error.message});
        vec![self.event("response.failed", json!({"response": response}))]
    }

    fn whole(&mut self, parts: Vec<Told>, outcome: &Outcome, thought: usize) -> Value {
        self.told(parts);
        self.end(outcome, thought, &mut Vec::new()).0
    }
}
