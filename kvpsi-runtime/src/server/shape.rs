//! The shapes of answers: OpenAI's objects, whole and in chunks.
//!
//! Pure: events in, JSON out. Out of scope: where events come from.

use super::{
    error::ApiError,
    metrics::Ended,
    parts::{Parts, Told, message},
};
use crate::{
    engine::{
        TokenLogprobs,
        batch::{Outcome, StreamEvent},
    },
    model::tokenizer::Tokenizer,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// An answer that is put together.
#[derive(Default)]
pub(super) struct Whole {
    text: String,
    /// Token, its logprobs, and where its text begins.
    tokens: Vec<(u32, Option<TokenLogprobs>, usize)>,
}

impl Whole {
    pub fn push(&mut self, token: Option<u32>, text: &str, logprobs: Option<TokenLogprobs>) {
        if let Some(token) = token {
            self.tokens.push((token, logprobs, self.text.len()));
        }
        self.text.push_str(text);
    }
}

/// How the answer to one request looks.
pub(super) struct Shape {
    pub id: String,
    pub chat: bool,
    pub model: String,
    pub created: u64,
    pub include_usage: bool,
    pub logprobs: Option<usize>,
    pub prompt_tokens: usize,
    /// Bytes of text so far.
    pub text_offset: usize,
    pub tokenizer: Arc<Tokenizer>,
    /// Of a chat: what its answer is made of.
    pub parts: Parts,
    /// Logprobs of text that is held back.
    pub held: Vec<(u32, Option<TokenLogprobs>, usize)>,
}

impl Shape {
    fn frame(&self, object: &str, choices: &Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(&self, choices: &Value) -> Value {
        let object = if self.chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        let mut chunk = self.frame(object, choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The first chunk of a chat carries the role.
    pub fn begin(&self) -> Option<Value> {
        self.chat.then(|| {
            self.chunk(&json!([{
                "index": 0, "delta": {"role": "assistant", "content": ""},
                "logprobs": null, "finish_reason": null,
            }]))
        })
    }

    /// The chunks of an event, and whether it is the end: a good one?
    pub fn chunks(&mut self, event: StreamEvent) -> (Vec<Value>, Option<bool>) {
        match event {
            StreamEvent::Started { .. } => (Vec::new(), None),
            StreamEvent::Piece {
                token,
                text,
                logprobs,
            } => {
                if self.chat && self.parts.parses() {
                    if let Some(token) = token.filter(|_| self.logprobs.is_some()) {
                        self.held.push((token, logprobs, 0));
                    }
                    let told = self.parts.push(&text);
                    return (self.deltas(told), None);
                }
                if text.is_empty() && (token.is_none() || self.logprobs.is_none()) {
                    return (Vec::new(), None);
                }
                let tokens = token.map(|t| (t, logprobs, self.text_offset));
                let logprobs = self.logprobs(tokens.as_slice());
                self.text_offset += text.len();
                let choice = if self.chat {
                    json!([{
                        "index": 0, "delta": {"content": text}, "logprobs": logprobs,
                        "finish_reason": null,
                    }])
                } else {
                    json!([{
                        "index": 0, "text": text, "logprobs": logprobs, "finish_reason": null,
                    }])
                };
                (vec![self.chunk(&choice)], None)
            }
            StreamEvent::Done(outcome) => {
                let told = self.parts.finish();
                let mut chunks = self.deltas(told);
                let reason = self.parts.reason(Ended::from(outcome.stats.finish).name());
                let choice = if self.chat {
                    let logprobs = self.held_logprobs();
                    json!([{
                        "index": 0, "delta": {}, "logprobs": logprobs, "finish_reason": reason,
                    }])
                } else {
                    json!([{
                        "index": 0, "text": "", "logprobs": null, "finish_reason": reason,
                    }])
                };
                chunks.push(self.chunk(&choice));
                if self.include_usage {
                    let mut last = self.chunk(&json!([]));
                    last["usage"] = self.usage(&outcome);
                    chunks.push(last);
                }
                (chunks, Some(true))
            }
            StreamEvent::Failed(failure) => (vec![ApiError::from(failure).body()], Some(false)),
        }
    }

    /// Chunks of a chat's parts; the first has the logprobs of all.
    fn deltas(&mut self, told: Vec<Told>) -> Vec<Value> {
        let deltas = self.parts.deltas(told);
        let mut chunks = Vec::with_capacity(deltas.len());
        for delta in deltas {
            let logprobs = self.held_logprobs();
            chunks.push(self.chunk(&json!([{
                "index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": null,
            }])));
        }
        chunks
    }

    fn held_logprobs(&mut self) -> Value {
        let held = std::mem::take(&mut self.held);
        match held.is_empty() {
            true => Value::Null,
            false => self.logprobs(&held),
        }
    }

    pub fn whole(&mut self, whole: &Whole, outcome: &Outcome) -> Value {
        let logprobs = self.logprobs(&whole.tokens);
        let mut told = self.parts.push(&whole.text);
        told.extend(self.parts.finish());
        let reason = self.parts.reason(Ended::from(outcome.stats.finish).name());
        let (object, choice) = if self.chat {
            let message = message(told);
            (
                "chat.completion",
                json!([{
                    "index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason,
                }]),
            )
        } else {
            (
                "text_completion",
                json!([{
                    "index": 0, "text": whole.text, "logprobs": logprobs, "finish_reason": reason,
                }]),
            )
        };
        let mut answer = self.frame(object, &choice);
        answer["usage"] = self.usage(outcome);
        answer
    }

    /// OpenAI's usage, and what was lost to return memory while the answer grew.
    fn usage(&self, outcome: &Outcome) -> Value {
        let (prompt, tokens) = (self.prompt_tokens, outcome.stats.tokens);
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": outcome.cached_tokens},
            "kvpsi": {
                "trims": outcome.loss.trims,
                "tokens_dropped": outcome.loss.tokens,
                "attention_mass_dropped": outcome.loss.mass,
                "preemptions": outcome.preemptions,
            },
        })
    }

    fn text(&self, token: u32) -> String {
        self.tokenizer.decode(&[token]).unwrap_or_default()
    }

    fn logprobs(&self, tokens: &[(u32, Option<TokenLogprobs>, usize)]) -> Value {
        if self.logprobs.is_none() {
            return Value::Null;
        }
        let with = |(token, logprobs, at): &(u32, Option<TokenLogprobs>, usize)| {
            Some((self.text(*token), logprobs.clone()?, *at))
        };
        let all: Vec<(String, TokenLogprobs, usize)> = tokens.iter().filter_map(with).collect();
        if self.chat {
            let entry = |text: &str, logprob: f32| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
            let content = all.iter().map(|(text, logprobs, _)| {
                let mut one = entry(text, logprobs.logprob);
                let top = logprobs
                    .top
                    .iter()
                    .map(|(t, lp)| entry(&self.text(*t), *lp));
                one["top_logprobs"] = top.collect();
                one
            });
            return json!({"content": content.collect::<Vec<_>>(), "refusal": null});
        }
        let top = all.iter().map(|(_, logprobs, _)| {
            let pairs = logprobs
                .top
                .iter()
                .map(|(t, lp)| (self.text(*t), json!(lp)));
            Value::Object(pairs.collect())
        });
        json!({
            "tokens": all.iter().map(|(text, ..)| text).collect::<Vec<_>>(),
            "token_logprobs": all.iter().map(|(_, c, _)| c.logprob).collect::<Vec<_>>(),
            "top_logprobs": top.collect::<Vec<_>>(),
            "text_offset": all.iter().map(|(_, _, at)| at).collect::<Vec<_>>(),
        })
    }
}
