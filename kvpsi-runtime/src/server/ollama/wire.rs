//! Ollama's answers: objects, and streams of them one a line.

use crate::{
    engine::{Finish, batch::Outcome},
    server::{
        error::ApiError,
        parts::{Call, Told, gathered},
        wire::Wire,
    },
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The shape of one answer.
pub(super) struct Lines {
    pub model: String,
    /// Of `/api/chat`; else of `/api/generate`.
    pub chat: bool,
    pub prompt_tokens: usize,
    pub arrived: Instant,
}

/// The time of day as Ollama writes it.
pub(super) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

pub(super) fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Lines {
    fn line(&self, thought: &str, text: &str, calls: Vec<Call>) -> Value {
        // A call that was cut off has no object of arguments: what there is of
        // it is text.
        let whole = |c: &Call| serde_json::from_str::<Value>(&c.arguments).is_ok();
        let (calls, cut): (Vec<_>, Vec<_>) = calls.into_iter().partition(whole);
        let cut = cut.iter().map(|c| format!("{}({}", c.name, c.arguments));
        let text: String = std::iter::once(text.to_owned()).chain(cut).collect();
        let mut line = json!({"model": self.model, "created_at": now()});
        if self.chat {
            let mut message = json!({"role": "assistant", "content": text});
            if !thought.is_empty() {
                message["thinking"] = json!(thought);
            }
            if !calls.is_empty() {
                let one = |(i, c): (usize, Call)| {
                    let arguments: Value = serde_json::from_str(&c.arguments).unwrap_or_default();
                    json!({"id": c.id, "function": {
                        "index": i, "name": c.name, "arguments": arguments,
                    }})
                };
                message["tool_calls"] = calls.into_iter().enumerate().map(one).collect();
            }
            line["message"] = message;
        } else {
            line["response"] = json!(text);
            if !thought.is_empty() {
                line["thinking"] = json!(thought);
            }
        }
        line["done"] = json!(false);
        line
    }

    fn end(&self, line: &mut Value, outcome: &Outcome) {
        let stats = &outcome.stats;
        let cut = matches!(
            stats.finish,
            Finish::MaxTokens | Finish::Length | Finish::Exhausted
        );
        let read = self.prompt_tokens.saturating_sub(outcome.cached_tokens);
        let figures = json!({
            "done": true,
            "done_reason": if cut { "length" } else { "stop" },
            "total_duration": ns(self.arrived.elapsed()),
            "load_duration": 0,
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": if read == 0 { 0 } else { ns(stats.ttft) },
            "eval_count": stats.tokens,
            "eval_duration": ns(stats.decode),
        });
        if let (Some(line), Value::Object(figures)) = (line.as_object_mut(), figures) {
            line.extend(figures);
        }
    }
}

impl Wire for Lines {
    const STREAM: &'static str = "application/x-ndjson";
    const ALIVE: &'static str = "";

    fn begin(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn told(&mut self, parts: Vec<Told>) -> Vec<String> {
        if parts.is_empty() {
            return Vec::new();
        }
        let (thought, text, calls) = gathered(parts);
        vec![format!("{}\n", self.line(&thought, &text, calls))]
    }

    fn done(&mut self, outcome: &Outcome, _thought: usize) -> Vec<String> {
        let mut line = self.line("", "", Vec::new());
        self.end(&mut line, outcome);
        vec![format!("{line}\n")]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<String> {
        vec![format!("{}\n", json!({"error": error.message}))]
    }

    fn whole(&mut self, parts: Vec<Told>, outcome: &Outcome, _thought: usize) -> Value {
        let (thought, text, calls) = gathered(parts);
        let mut line = self.line(&thought, &text, calls);
        self.end(&mut line, outcome);
        line
    }
}
