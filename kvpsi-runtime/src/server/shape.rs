//! The shapes of answers: OpenAI's objects, whole and in chunks.
//!
//! Pure: events in, JSON out. Out of scope: where events come from.

use super::{error::ApiError, metrics::Ended};
use crate::{
    engine::{
        TokenLogprobs,
        batch::{Outcome, StreamEvent},
    },
    model::tokenizer::Tokenizer,
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
}

impl Choice {
    /// One that begins with `echo`, whose tokens are `prompt`.
    pub fn new(echo: String, prompt: Vec<u32>) -> Self {
        Self {
            echo,
            prompt,
            ..Self::default()
        }
    }

    /// The text of the prompt, and its tokens with their logprobs: the first has
    /// none, as nothing is before it.
    fn repeat(
        &mut self,
        logprobs: Vec<TokenLogprobs>,
        tokenizer: &Tokenizer,
    ) -> (String, Vec<Token>) {
        let text = std::mem::take(&mut self.echo);
        let tokens = std::mem::take(&mut self.prompt);
        let logprobs = std::iter::once(None).chain(logprobs.into_iter().map(Some));
        let mut at = 0;
        let tokens = (tokens.into_iter().zip(logprobs)).map(|(id, logprobs)| {
            let token = Token { id, logprobs, at };
            let text = tokenizer.decode(&[id]).unwrap_or_default();
            at += text.chars().count();
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
                let (text, token) = choice.take(token, &text, logprobs);
                if text.is_empty() && (token.is_none() || self.logprobs.is_none()) {
                    return (Vec::new(), None);
                }
                let logprobs = self.logprobs(token.as_slice());
                (vec![self.piece(index, &text, &logprobs, None)], None)
            }
            StreamEvent::Done(outcome) => {
                let (rest, _) = choice.take(None, "", None);
                let reason = Ended::from(outcome.stats.finish).name();
                choice.outcome = Some(outcome);
                let mut chunks = vec![self.piece(index, &rest, &Value::Null, Some(reason))];
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
                let (text, token) = choice.take(token, &text, logprobs);
                choice.text.push_str(&text);
                choice.tokens.extend(token);
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
    pub fn whole(&self) -> Value {
        let choices = self.choices.iter().enumerate().map(|(index, choice)| {
            let mut whole = if self.chat {
                let content = &choice.text;
                let message = json!({"role": "assistant", "content": content, "refusal": null});
                json!({"index": index, "message": message})
            } else {
                json!({"index": index, "text": choice.text})
            };
            let reason = choice.outcome.as_ref().map(|o| Ended::from(o.stats.finish));
            whole["logprobs"] = self.logprobs(&choice.tokens);
            whole["finish_reason"] = reason.map(Ended::name).into();
            whole
        });
        let object = if self.chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let mut answer = self.frame(object, &choices.collect());
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
        let mass = outcomes().map(|o| o.loss.mass).fold(0.0, f32::max);
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": cached.min(prompt)},
            "kvpsi": {
                "trims": outcomes().map(|o| o.loss.trims).sum::<u64>(),
                "tokens_dropped": outcomes().map(|o| o.loss.tokens).sum::<u64>(),
                "attention_mass_dropped": mass,
                "preemptions": outcomes().map(|o| o.preemptions).sum::<u64>(),
            },
        })
    }

    fn text(&self, token: u32) -> String {
        self.tokenizer.decode(&[token]).unwrap_or_default()
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        if self.logprobs.is_none() {
            return Value::Null;
        }
        if self.chat {
            let entry = |text: &str, logprob: f32| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
            let content = tokens.iter().filter_map(|t| {
                let logprobs = t.logprobs.as_ref()?;
                let mut one = entry(&self.text(t.id), logprobs.logprob);
                let top = logprobs
                    .top
                    .iter()
                    .map(|(t, lp)| entry(&self.text(*t), *lp));
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
