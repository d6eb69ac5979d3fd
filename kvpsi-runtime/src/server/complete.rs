//! `/v1/chat/completions` and `/v1/completions`: from a request to an answer.
//!
//! Owns the way of one request: tokens, admission, the wait. Out of scope: the
//! shapes of answers, and how tokens are computed.

use super::{
    api::{Prompt, Request},
    error::ApiError,
    inbound::{Held, Inbound},
    live::Live,
    metrics::Metrics,
    observe::Note,
    permits::{AdmissionPermit, AdmissionPermits},
    sender::EventSender,
    shape::{Choice, Shape},
    sse::Events,
};
use crate::{
    engine::batch::{Ask, Failure, Look, StreamEvent},
    model::tokenizer::TooLong,
};
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

use tokio::sync::mpsc::unbounded_channel;

/// What a request needs of the server.
pub(super) struct Completer {
    pub live: Arc<Live>,
    pub metrics: Arc<Metrics>,
    pub permits: Arc<AdmissionPermits>,
    pub inbound: Arc<Inbound>,
    pub note: Arc<Note>,
    pub name: String,
    pub timeout: Duration,
    /// Tokens that a prompt may have.
    pub most_prompt: usize,
}

/// Seconds between comments that keep a silent stream open.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

impl Completer {
    /// Answers a request, whole or in pieces.
    pub async fn answer(
        self,
        body: Held,
        parse: fn(&[u8]) -> Result<Request, ApiError>,
    ) -> Result<Response, ApiError> {
        self.permits.free().map_err(busy)?;
        let turn = self.inbound.turn().await?;
        let preparing = tokio::task::spawn_blocking(move || {
            // Until it is done, whether or not its client stays.
            let _turn = turn;
            let prepared = self.prepare(body, parse);
            prepared.map(|prepared| (self, prepared))
        });
        let (this, prepared) = preparing
            .await
            .map_err(|e| ApiError::internal(format!("the prompt could not be read: {e}")))??;
        this.send(prepared).await
    }

    /// Reads a body down to the tokens of its prompt. Nothing else of it is kept.
    fn prepare(
        &self,
        body: Held,
        parse: fn(&[u8]) -> Result<Request, ApiError>,
    ) -> Result<Prepared, ApiError> {
        let mut request = parse(&body)?;
        drop(body);
        self.is_ours(request.model.as_deref())?;
        known(&request, self.live.loaded.vocab)?;
        let chat = matches!(request.prompt, Prompt::Chat(_));
        let prompt = std::mem::replace(&mut request.prompt, Prompt::Tokens(Vec::new()));
        let prompts = match prompt {
            Prompt::List(prompts) => prompts,
            one => vec![one],
        };
        let choices = prompts.len().saturating_mul(request.choices);
        let param = if request.choices > 1 { "n" } else { "prompt" };
        let permits = self.places(choices, param)?;
        let echo = |prompt: &Prompt| echoed(&self.live, prompt, request.echo);
        let prompts = prompts.into_iter().map(|prompt| {
            let echo = echo(&prompt)?;
            let tokens = self.tokens(prompt, "prompt")?;
            Ok((tokens, echo))
        });
        Ok(Prepared {
            prompts: prompts.collect::<Result<_, ApiError>>()?,
            request,
            chat,
            permits,
        })
    }

    /// The model that is asked for is the one that is here.
    pub(super) fn is_ours(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked.filter(|m| *m != self.name) {
            Some(asked) => Err(ApiError::no_model(asked, &self.name)),
            None => Ok(()),
        }
    }

    /// Places for so many sequences, or the field that asks for too many.
    pub(super) fn places(
        &self,
        many: usize,
        param: &str,
    ) -> Result<Vec<AdmissionPermit>, ApiError> {
        let all = self.permits.all();
        if many > all {
            return Err(ApiError::param(
                param,
                format!(
                    "`{param}` asks for {many} at once, and this server has {all} places (--parallel and --queue)"
                ),
            ));
        }
        self.permits.take(many).map_err(busy)
    }

    /// Tokens of a prompt that leaves room for an answer.
    pub(super) fn tokens(&self, prompt: Prompt, param: &str) -> Result<Vec<u32>, ApiError> {
        let most = self.live.loaded.context.saturating_sub(1);
        let tokens = tokens(&self.live, prompt, self.most_prompt.min(most));
        tokens.map_err(|e| match e.param.as_deref() {
            Some("prompt") => ApiError {
                param: Some(param.into()),
                message: e.message.replace("`prompt`", &format!("`{param}`")),
                ..e
            },
            _ => e,
        })
    }

    async fn send(self, prepared: Prepared) -> Result<Response, ApiError> {
        let Prepared {
            request,
            chat,
            prompts,
            permits,
        } = prepared;
        let arrived = Instant::now();
        let id = id(if chat { "chatcmpl" } else { "cmpl" });
        let mut shape = Shape {
            id: id.clone(),
            chat,
            model: self.name,
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            include_usage: request.include_usage,
            logprobs: request.sampling.logprobs,
            tokenizer: self.live.loaded.tokenizer.clone(),
            prompt_tokens: prompts.iter().map(|(tokens, _)| tokens.len()).sum(),
            choices: Vec::new(),
        };
        self.note.figures().prompt_tokens = shape.prompt_tokens;
        // The logprobs of a prompt that is repeated are its part of the answer's.
        let look = (request.sampling.logprobs.filter(|_| request.echo)).map(Look::Logprobs);
        let (sender, mut events) = unbounded_channel();
        let mut permits = permits.into_iter();
        for (tokens, echo) in prompts {
            for nth in 0..request.choices {
                let Some(permit) = permits.next() else {
                    return Err(ApiError::internal("a choice has no place"));
                };
                let choice = shape.choices.len();
                let prompt = if look.is_some() {
                    tokens.clone()
                } else {
                    Vec::new()
                };
                shape.choices.push(Choice::new(echo.clone(), prompt));
                let mut sampling = request.sampling.clone();
                // As vLLM does: else they would all be the same.
                sampling.seed = sampling.seed.wrapping_add(nth as u64);
                let (metrics, note) = (self.metrics.clone(), self.note.clone());
                let client = EventSender::new(choice, sender.clone(), metrics, permit, note);
                let sent = self.live.loaded.ask(Ask {
                    id: match choice {
                        0 => id.clone(),
                        n => format!("{id}-{n}"),
                    },
                    tokens: tokens.clone(),
                    look,
                    sampling,
                    arrived,
                    deadline: arrived + self.timeout,
                    client: Box::new(client),
                });
                if !sent {
                    return Err(ended());
                }
            }
        }
        drop(sender);
        // The status of the response is known with the first word.
        let first = events.recv().await.ok_or_else(ended)?;
        if let (_, StreamEvent::Failed(failure)) = first {
            return Err(failure.into());
        }
        if request.stream {
            let stream = Events::new(events, shape, first);
            let alive = KeepAlive::new().interval(KEEP_ALIVE);
            return Ok(Sse::new(stream).keep_alive(alive).into_response());
        }
        let mut next = Some(first);
        while !shape.is_whole() {
            let (choice, event) = match next.take() {
                Some(first) => first,
                None => events.recv().await.ok_or_else(ended)?,
            };
            if let StreamEvent::Failed(failure) = event {
                return Err(failure.into());
            }
            shape.push(choice, event);
        }
        Ok(Json(shape.whole()).into_response())
    }
}

pub(super) fn ended() -> ApiError {
    ApiError::unavailable("ending", Failure::Ending.to_string())
}

/// The text that is repeated before an answer.
fn echoed(live: &Live, prompt: &Prompt, echo: bool) -> Result<String, ApiError> {
    match prompt {
        Prompt::Text(text) if echo => Ok(text.clone()),
        Prompt::Tokens(tokens) if echo => {
            let vocab = live.loaded.vocab;
            let known: Vec<u32> = (tokens.iter().copied())
                .filter(|t| (*t as usize) < vocab)
                .collect();
            let text = live.loaded.tokenizer.decode(&known);
            text.map_err(|e| ApiError::param("prompt", e.to_string()))
        }
        _ => Ok(String::new()),
    }
}

/// A request that has its permits, and its prompts in tokens.
struct Prepared {
    request: Request,
    chat: bool,
    /// Tokens, and what is repeated of them.
    prompts: Vec<(Vec<u32>, String)>,
    permits: Vec<AdmissionPermit>,
}

/// Tokens that fields name are the model's.
fn known(request: &Request, vocab: usize) -> Result<(), ApiError> {
    let s = &request.sampling;
    let biased = s.logit_bias.iter().map(|(id, _)| ("logit_bias", *id));
    let stops = s.stop_tokens.iter().map(|id| ("stop_token_ids", *id));
    match biased.chain(stops).find(|(_, id)| *id as usize >= vocab) {
        None => Ok(()),
        Some((field, id)) => Err(ApiError::param(
            field,
            format!("`{field}` names the token {id}; this model has {vocab}"),
        )),
    }
}

pub(super) fn busy(before: usize) -> ApiError {
    // A guess: each of those before takes a second or two.
    let seconds = u32::try_from(before / 4).unwrap_or(30).clamp(1, 30);
    ApiError::busy(seconds)
}

/// Tokens of a text, if they are `most` or less.
pub(super) fn encode(
    live: &Live,
    text: &str,
    start: bool,
    most: usize,
) -> Result<Vec<u32>, ApiError> {
    let tokens = live.loaded.tokenizer.encode_up_to(text, start, most);
    let tokens = tokens.map_err(|e| ApiError::param("messages", e.to_string()))?;
    tokens.map_err(|e| match e {
        TooLong::Tokens(least) => ApiError::too_long(least, most),
        TooLong::Run(bytes) => ApiError::no_cut(bytes),
    })
}

/// The prompt's tokens, if they are `most` or less.
pub(super) fn tokens(live: &Live, prompt: Prompt, most: usize) -> Result<Vec<u32>, ApiError> {
    let loaded = &live.loaded;
    let bad = |e: crate::model::gguf::ModelError| ApiError::param("messages", e.to_string());
    match prompt {
        Prompt::Chat(messages) => {
            let template = loaded.chat.as_ref().ok_or_else(|| {
                ApiError::bad("this model has no chat template: use /v1/completions, or start with --chat-template")
            })?;
            let text = template.render(&messages, true).map_err(bad)?;
            drop(messages);
            encode(live, &text, false, most)
        }
        Prompt::Text(text) => {
            let tokens = encode(live, &text, true, most)?;
            if tokens.is_empty() {
                return Err(ApiError::param("prompt", "`prompt` is empty"));
            }
            Ok(tokens)
        }
        Prompt::List(_) => Err(ApiError::internal("a list within a list of prompts")),
        Prompt::Tokens(tokens) => {
            let vocab = loaded.vocab;
            match tokens.iter().find(|t| **t as usize >= vocab) {
                Some(t) => Err(ApiError::param(
                    "prompt",
                    format!("`prompt` has the token {t}; this model has {vocab}"),
                )),
                None if tokens.is_empty() => Err(ApiError::param("prompt", "`prompt` is empty")),
                None if tokens.len() > most => Err(ApiError::too_long(tokens.len(), most)),
                None => Ok(tokens),
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(f: Failure) -> Self {
        let message = f.to_string();
        let error = match f {
            Failure::Deadline => Self::late(message),
            Failure::NoMemory { .. } => Self::unavailable("memory", message),
            Failure::Ending => Self::unavailable("ending", message),
            Failure::Step(_) => Self::internal(message),
        };
        // Where the model's thread told of it.
        Self {
            counted: true,
            ..error
        }
    }
}

pub(super) fn id(begin: &str) -> String {
    let number = RandomState::new().build_hasher().finish();
    format!("{begin}-{number:016x}")
}
