//! `/v1/chat/completions` and `/v1/completions`: from a request to an answer.
//!
//! Owns the way of one request: tokens, admission, the wait. Out of scope: the
//! shapes of answers, and how tokens are computed.

use super::{
    api::{Prompt, Request},
    error::ApiError,
    live::Live,
    metrics::Metrics,
    permits::AdmissionPermits,
    sender::EventSender,
    shape::{Shape, Whole},
    sse::Events,
};
use crate::engine::batch::{Ask, Failure, StreamEvent};
use axum::{
    Json,
    response::{
        IntoResponse, Response,
        sse::{KeepAlive, Sse},
    },
};
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
