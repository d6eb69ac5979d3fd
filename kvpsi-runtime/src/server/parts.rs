//! The parts of a chat's answer in OpenAI's shapes: deltas of a stream, and a
//! whole message.
//!
//! Owns the numbers and ids of calls, and what the answer's end is called.
//! Pure. Out of scope: frames, usage and logprobs.

use crate::model::chat::{AnswerParser, Part};
use serde_json::{Value, json};

/// A call with the id that its result will name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub id: String,
    pub name: String,
    /// A JSON text, unless the answer was cut off.
    pub arguments: String,
}

/// A part as clients get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Thought(String),
    Text(String),
    Call(Call),
}

/// Takes one answer apart.
#[derive(Debug, Default)]
pub(super) struct Parts {
    parser: Option<AnswerParser>,
    short_ids: bool,
    /// At most one call is told.
    one_call: bool,
    /// Calls so far.
    pub calls: usize,
    /// Tokens of thoughts so far, with the marks around them.
    pub thought_tokens: usize,
}

impl Parts {
    pub fn new(parser: Option<AnswerParser>, short_ids: bool, one_call: bool) -> Self {
        Self {
            parser,
            short_ids,
            one_call,
            calls: 0,
            thought_tokens: 0,
        }
    }

    /// Whether text leaves in other pieces than it comes in.
    pub fn parses(&self) -> bool {
        self.parser.is_some()
    }

    pub fn push(&mut self, text: &str) -> Vec<Told> {
        match &mut self.parser {
            None if text.is_empty() => Vec::new(),
            None => vec![Told::Text(text.to_owned())],
            Some(parser) => {
                let parts = parser.push(text);
                self.told(parts)
            }
        }
    }

    /// The same for the text of a token, which is counted where it is thought.
    pub fn piece(&mut self, token: Option<u32>, text: &str) -> Vec<Told> {
        let thinks = |parts: &Self| parts.parser.as_ref().is_some_and(AnswerParser::in_thought);
        let before = thinks(self);
        let told = self.push(text);
        if token.is_some() && (before || thinks(self)) {
            self.thought_tokens += 1;
        }
        told
    }

    /// The rest, once the answer is over.
    pub fn finish(&mut self) -> Vec<Told> {
        let parts = self.parser.as_mut().map(AnswerParser::finish);
        self.told(parts.unwrap_or_default())
    }

    fn told(&mut self, parts: Vec<Part>) -> Vec<Told> {
        let mut all = Vec::with_capacity(parts.len());
        for part in parts {
            all.push(match part {
                Part::Thought(text) => Told::Thought(text),
                Part::Text(text) => Told::Text(text),
                // What the client asked for: one call an answer.
                Part::Call { .. } if self.one_call && self.calls > 0 => continue,
                Part::Call { name, arguments } => {
                    self.calls += 1;
                    let id = self.id();
                    Told::Call(Call {
                        id,
                        name,
                        arguments,
                    })
                }
            });
        }
        all
    }

    fn id(&self) -> String {
        let number = crate::random::number();
        if self.short_ids {
            // Hexadecimal digits are letters and digits.
            format!("{:09x}", number & 0xf_ffff_ffff)
        } else {
            format!("call_{number:016x}")
        }
    }

    /// OpenAI's deltas of parts. Call before the next [`Parts::push`]: calls are
    /// numbered by their order.
    pub fn deltas(&self, parts: Vec<Told>) -> Vec<Value> {
        let calls = parts.iter().filter(|p| matches!(p, Told::Call(_))).count();
        let mut index = self.calls - calls;
        let mut deltas = Vec::new();
        for part in parts {
            match part {
                Told::Thought(text) => deltas.push(json!({"reasoning_content": text})),
                Told::Text(text) => deltas.push(json!({"content": text})),
                Told::Call(call) => {
                    deltas.push(json!({"tool_calls": [{
                        "index": index, "id": call.id, "type": "function",
                        "function": {"name": call.name, "arguments": ""},
                    }]}));
                    deltas.push(json!({"tool_calls": [{
                        "index": index, "function": {"arguments": call.arguments},
                    }]}));
                    index += 1;
                }
            }
        }
        deltas
    }

    /// Why the answer ended, in OpenAI's words: `reason` unless it called.
    pub fn reason(&self, reason: &'static str) -> &'static str {
        if self.calls > 0 && reason == "stop" {
            "tool_calls"
        } else {
            reason
        }
    }
}

/// Neighbours of a kind joined: thought, text, calls.
pub(super) fn gathered(parts: Vec<Told>) -> (String, String, Vec<Call>) {
    let (mut thought, mut text, mut calls) = (String::new(), String::new(), Vec::new());
    for part in parts {
        match part {
            Told::Thought(t) => thought.push_str(&t),
            Told::Text(t) => text.push_str(&t),
            Told::Call(call) => calls.push(call),
        }
    }
    (thought, text, calls)
}

/// OpenAI's message of a whole answer.
pub(super) fn message(parts: Vec<Told>) -> Value {
    let (thought, text, calls) = gathered(parts);
    let mut message = json!({"role": "assistant", "content": text, "refusal": null});
    if !thought.is_empty() {
        message["reasoning_content"] = json!(thought);
    }
    if !calls.is_empty() {
        if text.is_empty() {
            message["content"] = Value::Null;
        }
        let one = |call: Call| {
            json!({
                "id": call.id, "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            })
        };
        message["tool_calls"] = calls.into_iter().map(one).collect();
    }
    message
}
