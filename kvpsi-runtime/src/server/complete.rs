//! `/v1/chat/completions` and `/v1/completions`: from a request to an answer.
//!
//! Owns the way of one request: tokens, admission, the wait. Out of scope: the
//! shapes of answers, and how tokens are computed.

use super::{
    api::{Prompt, Request},
    error::ApiError,
    live::Live,
    metrics::Metrics,
    parts::Parts,
    permits::AdmissionPermits,
    prompt::prepare,
    sender::EventSender,
    shape::{Shape, Whole},
    sse::Events,
    wire::Answering,
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
    /// Answers a request in OpenAI's shapes, whole or in pieces.
    pub async fn answer(self, request: Request) -> Result<Response, ApiError> {
        let chat = matches!(request.prompt, Prompt::Chat(_));
        let tokenizer = self.live.loaded.tokenizer.clone();
        let Begun {
            request,
            id,
            model,
            created,
            prompt_tokens,
            answering: Answering { mut events, parts },
            ..
        } = self.begin(request).await?;
        let begin = if chat { "chatcmpl" } else { "cmpl" };
        let mut shape = Shape {
            id: format!("{begin}-{id:016x}"),
            chat,
            model,
            created,
            include_usage: request.include_usage,
            logprobs: request.sampling.logprobs,
            prompt_tokens,
            text_offset: 0,
            tokenizer,
            parts,
            held: Vec::new(),
        };
        if request.stream {
            let stream = Events::new(events, shape);
            let alive = KeepAlive::new().interval(KEEP_ALIVE);
            return Ok(Sse::new(stream).keep_alive(alive).into_response());
        }
        let mut whole = Whole::default();
        let outcome = loop {
            match events
                .recv()
                .await
                .unwrap_or(StreamEvent::Failed(Failure::Ending))
            {
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

    /// Hands a request to the model, and waits until it has a place there.
    pub async fn begin(self, request: Request) -> Result<Begun, ApiError> {
        if let Some(asked) = request.model.as_deref().filter(|m| *m != self.name) {
            return Err(ApiError::no_model(asked, &self.name));
        }
        let permit = self.permits.take().map_err(|before| {
            // A guess: each of those before takes a second or two.
            let seconds = u32::try_from(before / 4).unwrap_or(30).clamp(1, 30);
            ApiError::busy(seconds)
        })?;
        let live = self.live.clone();
        let prepared = tokio::task::spawn_blocking(move || (prepare(&live, &request), request));
        let (prepared, mut request) = prepared
            .await
            .map_err(|e| ApiError::internal(format!("the prompt could not be read: {e}")))?;
        let prepared = prepared?;
        request.prompt = Prompt::Tokens(Vec::new());
        let prompt_tokens = prepared.tokens.len();
        let context = self.live.loaded.context;
        let most = self.most_prompt.min(context.saturating_sub(1));
        if prompt_tokens > most {
            return Err(ApiError::too_long(prompt_tokens, most));
        }
        let id = RandomState::new().build_hasher().finish();
        let (sender, mut events) = EventSender::new(self.metrics, permit);
        let arrived = Instant::now();
        let sent = self.live.loaded.ask(Ask {
            id: format!("{id:016x}"),
            tokens: prepared.tokens,
            sampling: request.sampling.clone(),
            constraint: prepared.constraint,
            arrived,
            deadline: arrived + self.timeout,
            client: Box::new(sender),
        });
        let ended = || ApiError::unavailable("ending", Failure::Ending.to_string());
        if !sent {
            return Err(ended());
        }
        // The status of the response is known with the first word.
        if let StreamEvent::Failed(failure) = events.recv().await.ok_or_else(ended)? {
            return Err(failure.into());
        }
        let one_call = request.tools.one_call;
        let parts = Parts::new(prepared.parser, prepared.short_ids, one_call);
        Ok(Begun {
            request,
            id,
            model: self.name,
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            prompt_tokens,
            answering: Answering { events, parts },
        })
    }
}

/// A request that has its place, and the answer that begins.
pub(super) struct Begun {
    /// Without its prompt.
    pub request: Request,
    /// Random.
    pub id: u64,
    /// The name of the model.
    pub model: String,
    /// Seconds since 1970.
    pub created: u64,
    pub prompt_tokens: usize,
    pub answering: Answering,
}

impl From<Failure> for ApiError {
    fn from(f: Failure) -> Self {
        let message = f.to_string();
        match f {
            Failure::Deadline => Self::late(message),
            Failure::NoMemory { .. } => Self::unavailable("memory", message),
            Failure::Ending => Self::unavailable("ending", message),
            Failure::Step(_) => Self::internal(message),
            Failure::Grammar(_) => Self::bad(message),
        }
    }
}
