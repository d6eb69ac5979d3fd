//! `/v1/embeddings`: texts as vectors, for Ollama's `/api/embed` too.
//!
//! Owns its fields and its shape, which are OpenAI's. A vector is the mean of
//! the model's last hidden states over the text's tokens, of length 1: a model
//! that was trained to write is a fair one to compare texts by, and no more.
//! Out of scope: how hidden states are computed.

use super::{
    api::{self, parse_embeddings},
    complete::{Completer, busy, ended},
    error::ApiError,
    inbound::Held,
    permits::AdmissionPermit,
    prompt,
    sender::{ChoiceEvent, EventSender},
};
use crate::{
    engine::{
        SamplingConfig,
        batch::{Ask, Look, StreamEvent},
    },
    random,
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use serde_json::{Value, json};
use std::{convert::Infallible, sync::Arc, time::Instant};
use tokio::sync::{
    OwnedSemaphorePermit,
    mpsc::{UnboundedSender, unbounded_channel},
};

/// Inputs of a request that are computed at once, where there are places.
const AT_ONCE: usize = 4;

/// Vectors as clients get them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Float,
    /// Little-endian `f32`s.
    Base64,
}

impl Encoding {
    /// A vector as JSON.
    fn of(self, vector: &[f32]) -> String {
        match self {
            Self::Float => {
                let number = |x: &f32| match x.is_finite() {
                    true => x.to_string(),
                    false => "null".into(),
                };
                let numbers: Vec<String> = vector.iter().map(number).collect();
                format!("[{}]", numbers.join(","))
            }
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                format!("\"{text}\"")
            }
        }
    }
}

/// Inputs as tokens, and what they may hold.
struct Inputs {
    tokens: Vec<Vec<u32>>,
    encoding: Encoding,
    room: OwnedSemaphorePermit,
    places: Vec<AdmissionPermit>,
}

impl Completer {
    /// Answers a request for embeddings in OpenAI's shape.
    pub async fn embed(self, body: Held) -> Result<Response, ApiError> {
        let embedded = self.embedded(body).await?;
        let prompt_tokens = embedded.prompt_tokens;
        let usage = json!({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens});
        let rest = json!({"object": "list", "model": embedded.model, "usage": usage});
        let one = |i: usize, vector: &str| {
            format!(r#"{{"object":"embedding","index":{i},"embedding":{vector}}}"#)
        };
        Ok(embedded.response("data", &rest, one))
    }

    /// The vectors that a body asks for.
    pub async fn embedded(self, body: Held) -> Result<Embedded, ApiError> {
        self.permits.free().map_err(busy)?;
        let turn = self.inbound.turn().await?;
        let preparing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let request = parse_embeddings(&body)?;
            drop(body);
            let inputs = self.inputs(request)?;
            Ok::<_, ApiError>((self, inputs))
        });
        let (this, inputs) = preparing
            .await
            .map_err(|e| ApiError::internal(format!("the input could not be read: {e}")))??;
        this.compute(inputs).await
    }

    fn inputs(&self, request: api::Embeddings) -> Result<Inputs, ApiError> {
        self.is_ours(request.model.as_deref())?;
        let many = request.inputs.len().min(AT_ONCE);
        // As many as are free, and one at least: the others wait for their turn.
        let places = (2..=many).rev().find_map(|n| self.permits.take(n).ok());
        let places = places.map_or_else(|| self.permits.take(many.min(1)).map_err(busy), Ok)?;
        // There is no answer that wants a position of its own.
        let most = self.most_tokens();
        let numbers = request.inputs.len().saturating_mul(self.live.loaded.hidden);
        let tokens = request.inputs.into_iter().map(|input| {
            prompt::tokens(&self.live, input, "input", most).map(|mut tokens| {
                tokens.shrink_to_fit();
                tokens
            })
        });
        let tokens = tokens.collect::<Result<Vec<_>, ApiError>>()?;
        let numbers = numbers.saturating_add(tokens.iter().map(Vec::len).sum());
        Ok(Inputs {
            tokens,
            encoding: request.encoding,
            room: self
                .inbound
                .keep(numbers.saturating_mul(size_of::<f32>()), "input")?,
            places,
        })
    }

    /// Hands inputs to the model, as many at once as there are places.
    async fn compute(self, inputs: Inputs) -> Result<Embedded, ApiError> {
        let deadline = Instant::now() + self.timeout;
        let count = inputs.tokens.len();
        let prompt_tokens = inputs.tokens.iter().map(Vec::len).sum::<usize>();
        self.note.figures().prompt_tokens = prompt_tokens;
        let (sender, mut events) = unbounded_channel();
        let id = random::number();
        let at_once = inputs.places.len();
        let places = Arc::new(inputs.places);
        let mut waiting = inputs.tokens.into_iter().enumerate();
        let mut vectors = vec![Vec::new(); count];
        let mut asked = 0;
        let mut missing = count;
        while missing > 0 {
            while asked < at_once
                && let Some((i, tokens)) = waiting.next()
            {
                self.ask(
                    format!("{id:016x}-{i}"),
                    i,
                    tokens,
                    deadline,
                    &sender,
                    &places,
                )?;
                asked += 1;
            }
            match events.recv().await.ok_or_else(ended)? {
                (i, StreamEvent::Embedding(vector)) => vectors[i] = vector,
                // It is over, and its place another one's.
                (_, StreamEvent::Done(_)) => {
                    asked -= 1;
                    missing -= 1;
                }
                (_, StreamEvent::Failed(failure)) => return Err(failure.into()),
                _ => {}
            }
        }
        Ok(Embedded {
            model: self.name,
            vectors,
            encoding: inputs.encoding,
            prompt_tokens,
            room: inputs.room,
        })
    }

    fn ask(
        &self,
        id: String,
        nth: usize,
        tokens: Vec<u32>,
        deadline: Instant,
        sender: &UnboundedSender<ChoiceEvent>,
        places: &Arc<Vec<AdmissionPermit>>,
    ) -> Result<(), ApiError> {
        let (metrics, note) = (self.metrics.clone(), self.note.clone());
        let client = EventSender::new(nth, sender.clone(), metrics, places.clone(), note);
        let sent = self.live.loaded.ask(Ask {
            id,
            tokens,
            look: Some(Look::Embedding),
            constraint: None,
            sampling: SamplingConfig::default(),
            // It waited for a place of its own request's until now.
            arrived: Instant::now(),
            deadline,
            client: Box::new(client),
        });
        match sent {
            true => Ok(()),
            false => Err(ended()),
        }
    }
}

/// Vectors, one an input.
pub(super) struct Embedded {
    /// The name of the model.
    pub model: String,
    vectors: Vec<Vec<f32>>,
    encoding: Encoding,
    /// Of all inputs.
    pub prompt_tokens: usize,
    /// What they may take, until the last is sent.
    room: OwnedSemaphorePermit,
}

impl Embedded {
    /// A response of `rest`, and a list `name` that has `one` for each vector. They
    /// are written one by one as the client reads: as text they take three times as much.
    pub fn response(
        self,
        name: &str,
        rest: &Value,
        one: impl Fn(usize, &str) -> String + Send + 'static,
    ) -> Response {
        let mut begin = rest.to_string();
        begin.pop();
        let begin = format!("{begin},\"{name}\":[");
        let (encoding, room) = (self.encoding, self.room);
        let last = self.vectors.len() - 1;
        let vectors = self
            .vectors
            .into_iter()
            .enumerate()
            .map(move |(i, vector)| {
                let _until_sent = &room;
                let comma = if i == last { "" } else { "," };
                format!("{}{comma}", one(i, &encoding.of(&vector)))
            });
        let parts = std::iter::once(begin)
            .chain(vectors)
            .chain(["]}".to_owned()]);
        let parts = parts.map(|part| Ok::<_, Infallible>(Bytes::from(part)));
        let kind = HeaderValue::from_static("application/json");
        let body = Body::from_stream(tokio_stream::iter(parts));
        ([(CONTENT_TYPE, kind)], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_numbers_or_little_endian_floats() {
        assert_eq!(
            Encoding::Float.of(&[1.0, -0.5, 1e-9]),
            "[1,-0.5,0.000000001]"
        );
        assert_eq!(Encoding::Base64.of(&[1.0, -0.5]), "\"AACAPwAAAL8=\"");
    }
}
