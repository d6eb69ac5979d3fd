//! `/v1/chat/completions` and `/v1/completions`: from a request to an answer.
//!
//! Owns the way of one request: tokens, admission, the wait. Out of scope: the
//! shapes of answers, and how tokens are computed.

use super::{
    api::{Prompt, Request, Tools},
    error::ApiError,
    inbound::{Held, Inbound},
    live::Live,
    metrics::Metrics,
    observe::Note,
    parts::Parts,
    permits::{AdmissionPermit, AdmissionPermits},
    prompt::{Prepared, prepare},
    sender::{ChoiceEvent, EventSender},
    shape::{Choice, Echo, Shape},
    sse::Events,
};
use crate::engine::{
    Constraint,
    batch::{Ask, Failure, Look, StreamEvent},
};
use axum::{
    Json,
    response::{
        IntoResponse, Response,
        sse::{KeepAlive, Sse},
    },
};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

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
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

impl Completer {
    /// Answers a request in OpenAI's shapes, whole or in pieces.
    pub async fn answer(
        self,
        body: Held,
        parse: fn(&[u8]) -> Result<Request, ApiError>,
    ) -> Result<Response, ApiError> {
        let tokenizer = self.live.loaded.tokenizer.clone();
        let begun = self.begin(body, move |body| Ok((parse(body)?, ()))).await?;
        let (request, chat) = (begun.request, begun.chat);
        let begin = if chat { "chatcmpl" } else { "cmpl" };
        let choices = begun.choices.into_iter();
        let mut shape = Shape {
            id: format!("{begin}-{:016x}", begun.id),
            chat,
            model: begun.model,
            created: begun.created,
            include_usage: request.include_usage,
            logprobs: request.sampling.logprobs,
            tokenizer,
            prompt_tokens: begun.prompt_tokens,
            choices: choices
                .map(|(echo, parts)| Choice::new(echo, parts))
                .collect(),
        };
        let mut events = begun.events;
        if request.stream {
            let stream = Events::new(events, shape, begun.first.ok_or_else(ended)?);
            let alive = KeepAlive::new().interval(KEEP_ALIVE);
            return Ok(Sse::new(stream).keep_alive(alive).into_response());
        }
        let mut next = begun.first;
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

    /// Reads a request, hands it to the model, and waits until its first answer
    /// has a place there. `parse` may say more than the request.
    pub async fn begin<T: Send + 'static>(
        self,
        body: Held,
        parse: impl FnOnce(&[u8]) -> Result<(Request, T), ApiError> + Send + 'static,
    ) -> Result<Begun<T>, ApiError> {
        self.permits.free().map_err(busy)?;
        let turn = self.inbound.turn().await?;
        let preparing = tokio::task::spawn_blocking(move || {
            // Until it is done, whether or not its client stays.
            let _turn = turn;
            let (request, more) = parse(&body)?;
            drop(body);
            let ready = self.prepare(request)?;
            Ok::<_, ApiError>((self, ready, more))
        });
        let (this, ready, more) = preparing
            .await
            .map_err(|e| ApiError::internal(format!("the prompt could not be read: {e}")))??;
        this.send(ready, more).await
    }

    /// Down to the tokens of its prompts. Nothing else of them is kept.
    fn prepare(&self, mut request: Request) -> Result<Ready, ApiError> {
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
        let most = self.most_tokens();
        let prompts = prompts.into_iter().map(|prompt| {
            let mut echo = Echo {
                text: echoed(&self.live, &prompt, request.echo)?,
                tokens: Vec::new(),
            };
            let prepared = prepare(&self.live, &request, prompt, most)?;
            if request.echo && request.sampling.logprobs.is_some() {
                echo.tokens.clone_from(&prepared.tokens);
            }
            Ok((prepared, echo))
        });
        let prompts = prompts.collect::<Result<_, ApiError>>()?;
        // It may wait for long, and what functions and grammars say takes memory.
        request.grammar = None;
        request.tools = Tools {
            one_call: request.tools.one_call,
            ..Tools::default()
        };
        Ok(Ready {
            prompts,
            request,
            chat,
            permits,
        })
    }

    /// The model that is asked for is the one that is here.
    pub(super) fn is_ours(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked.filter(|asked| !is_model(asked, &self.name)) {
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

    /// Most tokens of a prompt: they leave room for an answer.
    pub(super) fn most_tokens(&self) -> usize {
        let context = self.live.loaded.context;
        self.most_prompt.min(context.saturating_sub(1))
    }

    async fn send<T>(self, ready: Ready, more: T) -> Result<Begun<T>, ApiError> {
        let Ready {
            request,
            chat,
            prompts,
            permits,
        } = ready;
        let arrived = Instant::now();
        let id = crate::random::number();
        let prompt_tokens = prompts.iter().map(|(p, _)| p.tokens.len()).sum();
        self.note.figures().prompt_tokens = prompt_tokens;
        // The logprobs of a prompt that is repeated are its part of the answer's.
        let look = (request.sampling.logprobs.filter(|_| request.echo)).map(Look::Logprobs);
        let (sender, mut events) = unbounded_channel();
        let mut permits = permits.into_iter();
        let mut choices = Vec::new();
        for (prepared, echo) in prompts {
            for nth in 0..request.choices {
                let Some(permit) = permits.next() else {
                    return Err(ApiError::internal("a choice has no place"));
                };
                let choice = choices.len();
                let parts = Parts::new(
                    prepared.parser.clone(),
                    prepared.short_ids,
                    request.tools.one_call,
                );
                choices.push((echo.clone(), parts));
                let mut sampling = request.sampling.clone();
                // As vLLM does: else they would all be the same.
                sampling.seed = sampling.seed.wrapping_add(nth as u64);
                let (metrics, note) = (self.metrics.clone(), self.note.clone());
                let places = Arc::new(vec![permit]);
                let client = EventSender::new(choice, sender.clone(), metrics, places, note);
                let constraint = prepared.constraint.as_ref().map(Constraint::another);
                let sent = self.live.loaded.ask(Ask {
                    id: match choice {
                        0 => format!("{id:016x}"),
                        n => format!("{id:016x}-{n}"),
                    },
                    tokens: prepared.tokens.clone(),
                    look,
                    sampling,
                    constraint,
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
        let first = match choices.is_empty() {
            true => None,
            false => Some(events.recv().await.ok_or_else(ended)?),
        };
        if let Some((_, StreamEvent::Failed(failure))) = first {
            return Err(failure.into());
        }
        Ok(Begun {
            request,
            more,
            chat,
            id,
            model: self.name,
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            prompt_tokens,
            choices,
            events,
            first,
        })
    }
}

/// A request whose answers begin.
pub(super) struct Begun<T> {
    /// Without its prompt.
    pub request: Request,
    /// What else its body said.
    pub more: T,
    pub chat: bool,
    /// Random.
    pub id: u64,
    /// The name of the model.
    pub model: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Of all prompts.
    pub prompt_tokens: usize,
    /// The text before each answer, and what takes it apart.
    pub choices: Vec<(Echo, Parts)>,
    pub events: UnboundedReceiver<ChoiceEvent>,
    /// None where nothing was asked.
    pub first: Option<ChoiceEvent>,
}

/// Whether a model is asked for by its name, with Ollama's tag for the one that is
/// meant without a tag or not.
pub(super) fn is_model(asked: &str, name: &str) -> bool {
    fn plain(name: &str) -> &str {
        name.strip_suffix(":latest").unwrap_or(name)
    }
    plain(asked) == plain(name)
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
struct Ready {
    request: Request,
    chat: bool,
    /// What the model gets, and the text that is repeated before the answer.
    prompts: Vec<(Prepared, Echo)>,
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

impl From<Failure> for ApiError {
    fn from(f: Failure) -> Self {
        let message = f.to_string();
        let error = match f {
            Failure::Deadline => Self::late(message),
            Failure::NoMemory { .. } => Self::unavailable("memory", message),
            Failure::Ending => Self::unavailable("ending", message),
            Failure::Step(_) => Self::internal(message),
            Failure::Grammar(_) | Failure::OverBudget { .. } => Self::bad(message),
        };
        // Where the model's thread told of it.
        Self {
            counted: true,
            ..error
        }
    }
}
