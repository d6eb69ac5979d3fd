//! Anthropic's answers: a message of blocks, whole or as events.

use crate::{
    engine::{Finish, batch::Outcome},
    server::{
        error::ApiError,
        parts::{Call, Told, gathered},
        wire::{Wire, sse},
    },
};
use serde_json::{Value, json};

/// The shape of one answer.
pub(super) struct Blocks {
    id: String,
    model: String,
    prompt_tokens: usize,
    /// Texts that stop it.
    stops: Vec<String>,
    /// Blocks so far.
    index: usize,
    /// The kind of the one that is open.
    open: Option<&'static str>,
    called: bool,
}

impl Blocks {
    pub fn new(id: String, model: String, prompt_tokens: usize, stops: Vec<String>) -> Self {
        Self {
            id,
            model,
            prompt_tokens,
            stops,
            index: 0,
            open: None,
            called: false,
        }
    }

    fn message(&self, content: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model,
            "content": content, "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": 0},
        })
    }

    /// Closes the open block unless it is of `kind`, and opens one.
    fn block(&mut self, kind: Option<&'static str>, begin: Value, frames: &mut Vec<String>) {
        if self.open == kind && kind.is_some() {
            return;
        }
        self.close(frames);
        if let Some(kind) = kind {
            self.open = Some(kind);
            frames.push(sse(
                "content_block_start",
                &json!({"type": "content_block_start", "index": self.index, "content_block": begin}),
            ));
        }
    }

    fn close(&mut self, frames: &mut Vec<String>) {
        if self.open.take().is_some() {
            let stop = json!({"type": "content_block_stop", "index": self.index});
            frames.push(sse("content_block_stop", &stop));
            self.index += 1;
        }
    }

    fn delta(&self, delta: &Value) -> String {
        sse(
            "content_block_delta",
            &json!({"type": "content_block_delta", "index": self.index, "delta": delta}),
        )
    }

    fn reason(&self, outcome: &Outcome) -> (&'static str, Value) {
        match outcome.stats.finish {
            Finish::MaxTokens | Finish::Length | Finish::Exhausted => ("max_tokens", Value::Null),
            Finish::StopText => {
                let stop = outcome.stats.stop.and_then(|i| self.stops.get(i));
                ("stop_sequence", json!(stop))
            }
            Finish::Eos | Finish::Stopped if self.called => ("tool_use", Value::Null),
            Finish::Eos | Finish::Stopped => ("end_turn", Value::Null),
        }
    }

    fn usage(&self, outcome: &Outcome) -> Value {
        json!({
            "input_tokens": self.prompt_tokens.saturating_sub(outcome.cached_tokens),
            "cache_read_input_tokens": outcome.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": outcome.stats.tokens,
        })
    }
}

/// A call, or what there is of one that was cut off, as text.
fn input(call: &Call) -> Result<Value, String> {
    serde_json::from_str(&call.arguments).map_err(|_| format!("{}({}", call.name, call.arguments))
}

impl Wire for Blocks {
    const STREAM: &'static str = "text/event-stream";
    const ALIVE: &'static str = "event: ping\ndata: {\"type\": \"ping\"}\n\n";

    fn begin(&mut self) -> Vec<String> {
        let message = self.message(json!([]));
        let start = json!({"type": "message_start", "message": message});
        vec![sse("message_start", &start)]
    }

    fn told(&mut self, parts: Vec<Told>) -> Vec<String> {
        let mut frames = Vec::new();
        for part in parts {
            match part {
                Told::Thought(text) => {
                    let begin = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.block(Some("thinking"), begin, &mut frames);
                    frames.push(self.delta(&json!({"type": "thinking_delta", "thinking": text})));
                }
                Told::Text(text) => {
                    self.block(
                        Some("text"),
                        json!({"type": "text", "text": ""}),
                        &mut frames,
                    );
                    frames.push(self.delta(&json!({"type": "text_delta", "text": text})));
                }
                Told::Call(call) => {
                    self.close(&mut frames);
                    self.called = true;
                    let begin = json!({
                        "type": "tool_use", "id": call.id, "name": call.name, "input": {},
                    });
                    self.block(Some("tool_use"), begin, &mut frames);
                    let json = json!({"type": "input_json_delta", "partial_json": call.arguments});
                    frames.push(self.delta(&json));
                    self.close(&mut frames);
                }
            }
        }
        frames
    }

    fn done(&mut self, outcome: &Outcome, _thought: usize) -> Vec<String> {
        let mut frames = Vec::new();
        self.close(&mut frames);
        let (reason, stop) = self.reason(outcome);
        let delta = json!({
            "type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": self.usage(outcome),
        });
        frames.push(sse("message_delta", &delta));
        frames.push(sse("message_stop", &json!({"type": "message_stop"})));
        frames
    }

    fn failed(&mut self, error: &ApiError) -> Vec<String> {
        let error = error.anthropic();
        vec![sse("error", &error)]
    }

    fn whole(&mut self, parts: Vec<Told>, outcome: &Outcome, _thought: usize) -> Value {
        let (thought, mut text, calls) = gathered(parts);
        let mut content = Vec::new();
        if !thought.is_empty() {
            content.push(json!({"type": "thinking", "thinking": thought, "signature": ""}));
        }
        let mut uses = Vec::new();
        for call in calls {
            match input(&call) {
                Ok(input) => uses.push(json!({
                    "type": "tool_use", "id": call.id, "name": call.name, "input": input,
                })),
                Err(cut) => text.push_str(&cut),
            }
        }
        if !text.is_empty() {
            content.push(json!({"type": "text", "text": text}));
        }
        self.called = !uses.is_empty();
        content.extend(uses);
        let mut message = self.message(json!(content));
        let (reason, stop) = self.reason(outcome);
        message["stop_reason"] = json!(reason);
        message["stop_sequence"] = stop;
        message["usage"] = self.usage(outcome);
        message
    }
}
