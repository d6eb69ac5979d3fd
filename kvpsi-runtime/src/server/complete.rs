//! `/v1/chat/completions` and `/v1/completions`: from a request to an answer.
//!
//! Owns the shapes of answers, whole and in pieces. Out of scope: how tokens
//! are made.

use super::{
    api::{Prompt, Request},
    error::ApiError,
    live::Live,
    metrics::{Ended, Metrics},
    permits::AdmissionPermits,
    sender::EventSender,
    sse::Events,
};
use crate::{
    engine::{
        TokenLogprobs,
        batch::{Ask, Failure, Outcome, StreamEvent},
    },
    model::tokenizer::Tokenizer,
};
use axum::{
    Json,
    response::{
        IntoResponse, Response,
        sse::{KeepAlive, Sse},
    },
};
use serde_json::{Value, json};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// What a request needs of the server.
pub(super) struct Completer {
    pub live: Arc<Live>,
    pub metrics: Arc<Metrics>,
    pub permits: Arc<AdmissionPermits>,
    pub name: String,
    pub timeout: Duration,
    /// Tokens that a prompt may have.
    pub most_prompt: usize,
}

/// Seconds between comments that keep a silent stream open.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

impl Completer {
    /// Answers a request, whole or in pieces.
    pub async fn answer(self, request: Request) -> Result<Response, ApiError> {
        if let Some(asked) = request.model.as_deref().filter(|m| *m != self.name) {
            return Err(ApiError::no_model(asked, &self.name));
        }
        let permit = self.permits.take().map_err(|before| {
            // A guess: each of those before takes a second or two.
            let seconds = u32::try_from(before / 4).unwrap_or(30).clamp(1, 30);
            ApiError::busy(seconds)
        })?;
        let chat = matches!(request.prompt, Prompt::Chat(_));
        let (live, prompt) = (self.live.clone(), request.prompt);
        let tokens = tokio::task::spawn_blocking(move || tokens(&live, prompt));
        let tokens = tokens
            .await
            .map_err(|e| ApiError::internal(format!("the prompt could not be read: {e}")))??;
        let context = self.live.loaded.context;
        let most = self.most_prompt.min(context.saturating_sub(1));
        if tokens.len() > most {
            return Err(ApiError::too_long(tokens.len(), most));
        }
        let mut shape = Shape {
            id: id(chat),
            chat,
            model: self.name,
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            include_usage: request.include_usage,
            logprobs: request.sampling.logprobs,
            prompt_tokens: tokens.len(),
            text_offset: 0,
            tokenizer: self.live.loaded.tokenizer.clone(),
        };
        let (sender, mut events) = EventSender::new(self.metrics, permit);
        let arrived = Instant::now();
        let sent = self.live.loaded.ask(Ask {
            id: shape.id.clone(),
            tokens,
            sampling: request.sampling,
            arrived,
            deadline: arrived + self.timeout,
            client: Box::new(sender),
        });
        let ended = || ApiError::unavailable("ending", Failure::Ending.to_string());
        if !sent {
            return Err(ended());
        }
        // The status of the response is known with the first word.
        let first = events.recv().await.ok_or_else(ended)?;
        if let StreamEvent::Failed(failure) = first {
            return Err(failure.into());
        }
        if request.stream {
            let stream = Events::new(events, shape, first);
            let alive = KeepAlive::new().interval(KEEP_ALIVE);
            return Ok(Sse::new(stream).keep_alive(alive).into_response());
        }
        let mut whole = Whole::default();
        let outcome = loop {
            match events.recv().await.ok_or_else(ended)? {
                StreamEvent::Started { .. } => {}
                StreamEvent::Piece {
                    token,
                    text,
                    logprobs,
                } => whole.push(token, &text, logprobs),
                StreamEvent::Done(outcome) => break outcome,
                StreamEvent::Failed(failure) => return Err(failure.into()),
            }
        };
        Ok(Json(shape.whole(&whole, &outcome)).into_response())
    }
}

/// The prompt's tokens.
fn tokens(live: &Live, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    let loaded = &live.loaded;
    let bad = |e: crate::model::gguf::ModelError| ApiError::param("messages", e.to_string());
    match prompt {
        Prompt::Chat(messages) => {
            let template = loaded.chat.as_ref().ok_or_else(|| {
                ApiError::bad("this model has no chat template: use /v1/completions, or start with --chat-template")
            })?;
            let text = template.render(&messages, true).map_err(bad)?;
            loaded.tokenizer.encode(&text, false).map_err(bad)
        }
        Prompt::Text(text) => {
            let tokens = loaded.tokenizer.encode(&text, true).map_err(bad)?;
            if tokens.is_empty() {
                return Err(ApiError::param("prompt", "`prompt` is empty"));
            }
            Ok(tokens)
        }
        Prompt::Tokens(tokens) => {
            let vocab = loaded.vocab;
            match tokens.iter().find(|t| **t as usize >= vocab) {
                Some(t) => Err(ApiError::param(
                    "prompt",
                    format!("`prompt` has the token {t}; this model has {vocab}"),
                )),
                None if tokens.is_empty() => Err(ApiError::param("prompt", "`prompt` is empty")),
                None => Ok(tokens),
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(f: Failure) -> Self {
        let message = f.to_string();
        match f {
            Failure::Deadline => Self::late(message),
            Failure::NoMemory { .. } => Self::unavailable("memory", message),
            Failure::Ending => Self::unavailable("ending", message),
            Failure::Step(_) => Self::internal(message),
        }
    }
}

fn id(chat: bool) -> String {
    let number = RandomState::new().build_hasher().finish();
    let begin = if chat { "chatcmpl" } else { "cmpl" };
    format!("{begin}-{number:016x}")
}

/// An answer that is put together.
#[derive(Default)]
struct Whole {
    text: String,
    /// Token, its logprobs, and where its text begins.
    tokens: Vec<(u32, Option<TokenLogprobs>, usize)>,
}

impl Whole {
    fn push(&mut self, token: Option<u32>, text: &str, logprobs: Option<TokenLogprobs>) {
        if let Some(token) = token {
            self.tokens.push((token, logprobs, self.text.len()));
        }
        self.text.push_str(text);
    }
}

/// How the answer to one request looks.
pub(super) struct Shape {
    id: String,
    chat: bool,
    model: String,
    created: u64,
    include_usage: bool,
    logprobs: Option<usize>,
    prompt_tokens: usize,
    /// Bytes of text so far.
    text_offset: usize,
    tokenizer: Arc<Tokenizer>,
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
                let reason = Ended::from(outcome.stats.finish).name();
                let choice = if self.chat {
                    json!([{
                        "index": 0, "delta": {}, "logprobs": null, "finish_reason": reason,
                    }])
                } else {
                    json!([{
                        "index": 0, "text": "", "logprobs": null, "finish_reason": reason,
                    }])
                };
                let mut chunks = vec![self.chunk(&choice)];
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

    fn whole(&mut self, whole: &Whole, outcome: &Outcome) -> Value {
        let reason = Ended::from(outcome.stats.finish).name();
        let logprobs = self.logprobs(&whole.tokens);
        let (object, choice) = if self.chat {
            let message = json!({"role": "assistant", "content": whole.text, "refusal": null});
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
