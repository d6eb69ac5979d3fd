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
    model::tokenizer::{TokenBytes, Tokenizer},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// A token of an answer.
struct Token {
    id: u32,
    logprobs: Option<TokenLogprobs>,
    /// Characters of text before it.
    at: usize,
}

/// A prompt that is repeated before its answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Echo {
    pub text: String,
    /// Its tokens, where they have logprobs.
    pub tokens: Vec<u32>,
}

/// One of the answers to a request.
#[derive(Default)]
pub(super) struct Choice {
    /// The prompt, where it is repeated and was not shown yet.
    echo: String,
    /// Its tokens, where they have logprobs.
    prompt: Vec<u32>,
    /// Characters of text so far.
    characters: usize,
    /// What is put together where the answer is shown whole.
    text: String,
    tokens: Vec<Token>,
    outcome: Option<Outcome>,
    /// Of a chat: what its answer is made of.
    parts: Parts,
    /// And what it was taken apart into, where it is shown whole.
    told: Vec<Told>,
    /// Tokens of text that is held back.
    held: Vec<Token>,
}

impl Choice {
    /// One that begins with `echo`, and is taken apart by `parts`.
    pub fn new(echo: Echo, parts: Parts) -> Self {
        Self {
            echo: echo.text,
            prompt: echo.tokens,
            parts,
            ..Self::default()
        }
    }

    /// The text of the prompt, and its tokens with their logprobs: the first has
    /// none, as nothing is before it.
    fn repeat(
        &mut self,
        logprobs: Vec<TokenLogprobs>,
        tokenizer: &Arc<Tokenizer>,
    ) -> (String, Vec<Token>) {
        let text = std::mem::take(&mut self.echo);
        let tokens = std::mem::take(&mut self.prompt);
        let logprobs = std::iter::once(None).chain(logprobs.into_iter().map(Some));
        let (mut at, mut stream) = (0, tokenizer.stream());
        let tokens = (tokens.into_iter().zip(logprobs)).map(|(id, logprobs)| {
            let token = Token { id, logprobs, at };
            at += stream.push(id).unwrap_or_default().chars().count();
            token
        });
        let tokens = tokens.collect();
        self.characters = text.chars().count();
        (text, tokens)
    }

    /// The text of an event, behind the prompt, and its token.
    fn take(
        &mut self,
        token: Option<u32>,
        text: &str,
        logprobs: Option<TokenLogprobs>,
    ) -> (String, Option<Token>) {
        let mut whole = std::mem::take(&mut self.echo);
        let at = self.characters + whole.chars().count();
        whole.push_str(text);
        self.characters = at + text.chars().count();
        (whole, token.map(|id| Token { id, logprobs, at }))
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
    /// Of all prompts.
    pub prompt_tokens: usize,
    pub tokenizer: Arc<Tokenizer>,
    pub choices: Vec<Choice>,
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

    /// The first chunks of a chat carry the role.
    pub fn begin(&self) -> Vec<Value> {
        let role = |index| {
            self.chunk(&json!([{
                "index": index, "delta": {"role": "assistant", "content": ""},
                "logprobs": null, "finish_reason": null,
            }]))
        };
        let choices = if self.chat { self.choices.len() } else { 0 };
        (0..choices).map(role).collect()
    }

    /// Every choice has come to its end.
    pub fn is_whole(&self) -> bool {
        self.choices.iter().all(|c| c.outcome.is_some())
    }

    /// The chunks of an event, and whether it is the end: a good one?
    pub fn chunks(&mut self, index: usize, event: StreamEvent) -> (Vec<Value>, Option<bool>) {
        let Some(choice) = self.choices.get_mut(index) else {
            return (Vec::new(), None);
        };
        match event {
            StreamEvent::Started { .. } | StreamEvent::Embedding(_) => (Vec::new(), None),
            StreamEvent::Prompt(logprobs) => {
                let (text, tokens) = choice.repeat(logprobs, &self.tokenizer);
                let logprobs = self.logprobs(&tokens);
                (vec![self.piece(index, &text, &logprobs, None)], None)
            }
            StreamEvent::Piece {
                token,
                text,
                logprobs,
            } => {
                let (text, held) = choice.take(token, &text, logprobs);
                if choice.parts.parses() {
                    choice.held.extend(held);
                    let told = choice.parts.piece(token, &text);
                    return (self.deltas(index, told), None);
                }
                if text.is_empty() && (held.is_none() || self.logprobs.is_none()) {
                    return (Vec::new(), None);
                }
                let logprobs = self.logprobs(held.as_slice());
                (vec![self.piece(index, &text, &logprobs, None)], None)
            }
            StreamEvent::Done(outcome) => {
                let (rest, _) = choice.take(None, "", None);
                let told = choice.parts.finish();
                let reason = Ended::from(outcome.stats.finish).name();
                let reason = choice.parts.reason(reason);
                choice.outcome = Some(outcome);
                let mut chunks = self.deltas(index, told);
                let logprobs = self.held_logprobs(index);
                chunks.push(self.piece(index, &rest, &logprobs, Some(reason)));
                if !self.is_whole() {
                    return (chunks, None);
                }
                if self.include_usage {
                    let mut last = self.chunk(&json!([]));
                    last["usage"] = self.usage();
                    chunks.push(last);
                }
                (chunks, Some(true))
            }
            StreamEvent::Failed(failure) => (vec![ApiError::from(failure).body()], Some(false)),
        }
    }

    /// Chunks of a chat's parts; the first has the logprobs of what was held.
    fn deltas(&mut self, index: usize, told: Vec<Told>) -> Vec<Value> {
        let deltas = match self.choices.get(index) {
            Some(choice) => choice.parts.deltas(told),
            None => Vec::new(),
        };
        let mut chunks = Vec::with_capacity(deltas.len());
        for delta in deltas {
            let logprobs = self.held_logprobs(index);
            chunks.push(self.chunk(&json!([{
                "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null,
            }])));
        }
        chunks
    }

    fn held_logprobs(&mut self, index: usize) -> Value {
        let held = self
            .choices
            .get_mut(index)
            .map(|c| std::mem::take(&mut c.held));
        match held {
            Some(held) if !held.is_empty() => self.logprobs(&held),
            _ => Value::Null,
        }
    }

    fn piece(&self, index: usize, text: &str, logprobs: &Value, reason: Option<&str>) -> Value {
        let choice = match (self.chat, reason) {
            (true, Some(_)) => json!({"index": index, "delta": {}}),
            (true, None) => json!({"index": index, "delta": {"content": text}}),
            (false, _) => json!({"index": index, "text": text}),
        };
        let mut choice = choice;
        choice["logprobs"] = logprobs.clone();
        choice["finish_reason"] = reason.into();
        self.chunk(&json!([choice]))
    }

    /// Takes an event of an answer that is shown whole.
    pub fn push(&mut self, index: usize, event: StreamEvent) {
        let Some(choice) = self.choices.get_mut(index) else {
            return;
        };
        match event {
            StreamEvent::Piece {
                token,
                text,
                logprobs,
            } => {
                let (text, shown) = choice.take(token, &text, logprobs);
                choice.tokens.extend(shown);
                match choice.parts.parses() {
                    true => choice.told.extend(choice.parts.piece(token, &text)),
                    false => choice.text.push_str(&text),
                }
            }
            StreamEvent::Done(outcome) => {
                let (rest, _) = choice.take(None, "", None);
                choice.text.push_str(&rest);
                choice.outcome = Some(outcome);
            }
            StreamEvent::Prompt(logprobs) => {
                let (text, tokens) = choice.repeat(logprobs, &self.tokenizer);
                choice.text.push_str(&text);
                choice.tokens.extend(tokens);
            }
            StreamEvent::Started { .. } | StreamEvent::Embedding(_) | StreamEvent::Failed(_) => {}
        }
    }

    /// The whole answer.
    pub fn whole(&mut self) -> Value {
        let chat = self.chat;
        let parted = |choice: &mut Choice| {
            let mut told = std::mem::take(&mut choice.told);
            told.extend(choice.parts.push(&std::mem::take(&mut choice.text)));
            told.extend(choice.parts.finish());
            told
        };
        let told: Vec<Vec<Told>> = match chat {
            true => self.choices.iter_mut().map(parted).collect(),
            false => Vec::new(),
        };
        let mut told = told.into_iter();
        let choices = self.choices.iter().enumerate().map(|(index, choice)| {
            let mut whole = match told.next() {
                Some(told) => json!({"index": index, "message": message(told)}),
                None => json!({"index": index, "text": choice.text}),
            };
            let reason = choice.outcome.as_ref().map(|o| Ended::from(o.stats.finish));
            let reason = reason.map(|r| choice.parts.reason(r.name()));
            whole["logprobs"] = self.logprobs(&choice.tokens);
            whole["finish_reason"] = reason.into();
            whole
        });
        let choices: Value = choices.collect();
        let object = if self.chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let mut answer = self.frame(object, &choices);
        answer["usage"] = self.usage();
        answer
    }

    /// OpenAI's usage, and what was lost to return memory while the answers grew.
    fn usage(&self) -> Value {
        let outcomes = || self.choices.iter().filter_map(|c| c.outcome.as_ref());
        let (prompt, tokens) = (
            self.prompt_tokens,
            outcomes().map(|o| o.stats.tokens).sum::<usize>(),
        );
        // A prompt is counted once, whatever many answers it gets.
        let cached: usize = outcomes().map(|o| o.cached_tokens).sum();
        let thought: usize = self.choices.iter().map(|c| c.parts.thought_tokens).sum();
        let mass = outcomes().map(|o| o.loss.mass).fold(0.0, f32::max);
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": cached.min(prompt)},
            "completion_tokens_details": {"reasoning_tokens": thought},
            "kvpsi": {
                "trims": outcomes().map(|o| o.loss.trims).sum::<u64>(),
                "tokens_dropped": outcomes().map(|o| o.loss.tokens).sum::<u64>(),
                "attention_mass_dropped": mass,
                "draft_tokens": outcomes().map(|o| o.stats.drafted).sum::<usize>(),
                "accepted_draft_tokens": outcomes().map(|o| o.stats.accepted).sum::<usize>(),
                "preemptions": outcomes().map(|o| o.preemptions).sum::<u64>(),
            },
        })
    }

    /// A token's own bytes: half a character, and a leading space, too.
    fn bytes(&self, token: u32) -> Vec<u8> {
        match self.tokenizer.bytes_of(token) {
            TokenBytes::Text(bytes) => bytes,
            TokenBytes::Control(name) => name.into_bytes(),
        }
    }

    fn text(&self, token: u32) -> String {
        String::from_utf8_lossy(&self.bytes(token)).into_owned()
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        if self.logprobs.is_none() {
            return Value::Null;
        }
        if self.chat {
            let entry = |token: u32, logprob: f32| {
                let bytes = self.bytes(token);
                json!({
                    "token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes,
                })
            };
            let content = tokens.iter().filter_map(|t| {
                let logprobs = t.logprobs.as_ref()?;
                let mut one = entry(t.id, logprobs.logprob);
                let top = logprobs.top.iter().map(|(t, lp)| entry(*t, *lp));
                one["top_logprobs"] = top.collect();
                Some(one)
            });
            return json!({"content": content.collect::<Vec<_>>(), "refusal": null});
        }
        let top = tokens.iter().map(|t| {
            let pairs = t.logprobs.as_ref()?.top.iter();
            let pairs = pairs.map(|(t, lp)| (self.text(*t), json!(lp)));
            Some(Value::Object(pairs.collect()))
        });
        let logprob = |t: &Token| t.logprobs.as_ref().map(|l| l.logprob);
        json!({
            "tokens": tokens.iter().map(|t| self.text(t.id)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(logprob).collect::<Vec<_>>(),
            "top_logprobs": top.collect::<Vec<_>>(),
            "text_offset": tokens.iter().map(|t| t.at).collect::<Vec<_>>(),
        })
    }
}
