//! `/v1/embeddings`: texts as vectors, for Ollama's `/api/embed` too.
//!
//! Owns its fields and its shape, which are OpenAI's. A vector is the mean of
//! the model's last hidden states over the text's tokens, of length 1: a model
//! that was trained to write is a fair one to compare texts by, and no more.
//! Out of scope: how hidden states are computed.

use super::{
    api::{self, Prompt},
    complete::{Completer, busy, ended},
    error::ApiError,
    inbound::Held,
    prompt,
    sender::EventSender,
};
use crate::engine::{
    SamplingConfig,
    batch::{Ask, Look, StreamEvent},
};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use serde_json::{Value, json};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Instant,
};
use tokio::sync::mpsc::unbounded_channel;

/// Vectors as clients get them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Float,
    /// Little-endian `f32`s.
    Base64,
}

impl Encoding {
    fn of(self, vector: &[f32]) -> Value {
        match self {
            Self::Float => json!(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
        }
    }
}

impl Completer {
    /// Answers a request for embeddings in OpenAI's shape.
    pub async fn embed(self, body: Held) -> Result<Response, ApiError> {
        let embedded = self.embedded(body, api::parse_embeddings).await?;
        let data = embedded.vectors.into_iter().enumerate();
        let data: Vec<Value> = data
            .map(|(i, v)| json!({"object": "embedding", "index": i, "embedding": v}))
            .collect();
        let prompt_tokens = embedded.prompt_tokens;
        let usage = json!({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens});
        let model = embedded.model;
        let answer = json!({"object": "list", "data": data, "model": model, "usage": usage});
        Ok(Json(answer).into_response())
    }

    /// The vectors that a body asks for.
    pub async fn embedded(
        self,
        body: Held,
        parse: fn(&[u8]) -> Result<api::Embeddings, ApiError>,
    ) -> Result<Embedded, ApiError> {
        self.permits.free().map_err(busy)?;
        let turn = self.inbound.turn().await?;
        let preparing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let request = parse(&body)?;
            drop(body);
            self.is_ours(request.model.as_deref())?;
            let inputs = match request.input {
                Prompt::List(inputs) => inputs,
                one => vec![one],
            };
            let permits = self.places(inputs.len(), "input")?;
            // There is no answer that wants a position of its own.
            let most = self.most_tokens();
            let tokens = inputs.into_iter().map(|input| tokens(&self, input, most));
            let tokens = tokens.collect::<Result<Vec<_>, ApiError>>()?;
            Ok::<_, ApiError>((self, tokens, permits, request.encoding))
        });
        let (this, inputs, permits, encoding) = preparing
            .await
            .map_err(|e| ApiError::internal(format!("the input could not be read: {e}")))??;
        let arrived = Instant::now();
        let (count, prompt_tokens) = (inputs.len(), inputs.iter().map(Vec::len).sum::<usize>());
        this.note.figures().prompt_tokens = prompt_tokens;
        let (sender, mut events) = unbounded_channel();
        let id = RandomState::new().build_hasher().finish();
        for (i, (tokens, permit)) in inputs.into_iter().zip(permits).enumerate() {
            let (metrics, note) = (this.metrics.clone(), this.note.clone());
            let sent = this.live.loaded.ask(Ask {
                id: format!("{id:016x}-{i}"),
                tokens,
                look: Some(Look::Embedding),
                constraint: None,
                sampling: SamplingConfig::default(),
                arrived,
                deadline: arrived + this.timeout,
                client: Box::new(EventSender::new(i, sender.clone(), metrics, permit, note)),
            });
            if !sent {
                return Err(ended());
            }
        }
        drop(sender);
        let mut vectors = vec![Value::Null; count];
        let mut missing = count;
        while missing > 0 {
            match events.recv().await.ok_or_else(ended)? {
                (i, StreamEvent::Embedding(vector)) => {
                    vectors[i] = encoding.of(&vector);
                    missing -= 1;
                }
                (_, StreamEvent::Failed(failure)) => return Err(failure.into()),
                _ => {}
            }
        }
        Ok(Embedded {
            model: this.name,
            vectors,
            prompt_tokens,
        })
    }
}

/// Vectors, one an input.
pub(super) struct Embedded {
    /// The name of the model.
    pub model: String,
    pub vectors: Vec<Value>,
    /// Of all inputs.
    pub prompt_tokens: usize,
}

/// Tokens of an input; an error names the field that it came in.
fn tokens(completer: &Completer, input: Prompt, most: usize) -> Result<Vec<u32>, ApiError> {
    prompt::tokens(&completer.live, input, most).map_err(|e| match e.param.as_deref() {
        Some("prompt") => ApiError {
            param: Some("input".into()),
            message: e.message.replace("`prompt`", "`input`"),
            ..e
        },
        _ => e,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_numbers_or_little_endian_floats() {
        assert_eq!(Encoding::Float.of(&[1.0, -0.5]), json!([1.0, -0.5]));
        assert_eq!(Encoding::Base64.of(&[1.0, -0.5]), json!("AACAPwAAAL8="));
    }
}
