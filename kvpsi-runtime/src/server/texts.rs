//! `/tokenize` and `/detokenize`: text to tokens and back.
//!
//! Owns their shapes. A request may be vLLM's (`prompt` or `messages`,
//! `add_special_tokens`, true by default for a prompt) or llama.cpp's
//! (`content`, `add_special`, false by default); an answer has the fields of
//! both, which agree on `tokens`. Out of scope: how tokens are made.

use super::{
    api,
    error::ApiError,
    inbound::{Held, Inbound},
    live::Live,
    prompt,
    state::Server,
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Most tokens that are counted: no context of a model is longer.
pub(super) const MOST: usize = 1 << 17;

/// A text, by either server's names.
#[derive(Deserialize)]
struct Text {
    prompt: Option<String>,
    content: Option<String>,
    messages: Option<serde::de::IgnoredAny>,
    add_special_tokens: Option<bool>,
    add_special: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Serialize)]
struct Tokens {
    tokens: Vec<u32>,
    /// vLLM's.
    count: usize,
    max_model_len: usize,
}

#[derive(Deserialize)]
struct TokensOf {
    tokens: Vec<u32>,
}

#[derive(Serialize)]
struct TextOf<'a> {
    /// vLLM's.
    prompt: &'a str,
    /// llama.cpp's.
    content: &'a str,
}

fn bad(e: &serde_json::Error) -> ApiError {
    ApiError::bad(format!("the body is not what it must be: {e}"))
}

fn tokens(live: &Live, body: &[u8]) -> Result<Vec<u32>, ApiError> {
    let asked: Text = serde_json::from_slice(body).map_err(|e| bad(&e))?;
    for (name, given, neutral, why) in [
        ("with_pieces", asked.with_pieces, false, "ask /detokenize"),
        (
            "return_token_strs",
            asked.return_token_strs,
            false,
            "ask /detokenize",
        ),
        (
            "parse_special",
            asked.parse_special,
            true,
            "control tokens in a prompt are recognised; those in `messages` are text",
        ),
    ] {
        if given.is_some_and(|given| given != neutral) {
            return Err(ApiError::unsupported(name, why));
        }
    }
    let most = live.loaded.context;
    if asked.messages.is_some() {
        let chat = api::parse_chat(body)?;
        return prompt::tokens(live, chat.prompt, chat.field, most);
    }
    let field = match asked.prompt {
        Some(_) => "prompt",
        None => "content",
    };
    let (text, special) = match (asked.prompt, asked.content) {
        (Some(text), _) => (text, asked.add_special_tokens.unwrap_or(true)),
        (None, Some(text)) => (text, asked.add_special.unwrap_or(false)),
        (None, None) => {
            return Err(ApiError::param(
                "prompt",
                "`prompt`, `messages` or `content` must say what is to be made into tokens",
            ));
        }
    };
    if text.is_empty() && !special {
        return Ok(Vec::new());
    }
    prompt::encode(live, &text, special, field, most)
}

/// Runs what takes a while in its turn.
pub(super) async fn in_turn<T: Send + 'static>(
    server: &Arc<Server>,
    body: Held,
    work: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let turn = server.inbound.turn().await?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(&body)
    });
    done.await.map_err(|e| ApiError::internal(e.to_string()))?
}

/// A JSON answer, and its share of what answers may take, until it is sent.
struct Kept {
    json: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

impl Kept {
    fn new(all: &Inbound, answer: &impl Serialize, field: &str) -> Result<Self, ApiError> {
        let room = all.keep(api::values::bytes(answer), field)?;
        let json = serde_json::to_vec(answer);
        Ok(Self {
            json: json.map_err(|e| ApiError::internal(e.to_string()))?,
            _room: room,
        })
    }
}

impl IntoResponse for Kept {
    fn into_response(self) -> Response {
        let kind = HeaderValue::from_static("application/json");
        ([(CONTENT_TYPE, kind)], Body::from(Bytes::from_owner(self))).into_response()
    }
}

/// `POST /tokenize`.
pub(super) async fn tokenize(
    server: &Arc<Server>,
    live: Arc<Live>,
    body: Held,
) -> Result<Response, ApiError> {
    let all = server.inbound.clone();
    let answer = move |body: &[u8]| {
        let tokens = tokens(&live, body)?;
        let answer = Tokens {
            count: tokens.len(),
            tokens,
            max_model_len: live.loaded.context,
        };
        Kept::new(&all, &answer, "prompt")
    };
    Ok(in_turn(server, body, answer).await?.into_response())
}

/// `POST /detokenize`.
pub(super) async fn detokenize(
    server: &Arc<Server>,
    live: Arc<Live>,
    body: Held,
) -> Result<Response, ApiError> {
    let all = server.inbound.clone();
    let answer = move |body: &[u8]| {
        let text = text(&live, body)?;
        let answer = TextOf {
            prompt: &text,
            content: &text,
        };
        Kept::new(&all, &answer, "tokens")
    };
    Ok(in_turn(server, body, answer).await?.into_response())
}

fn text(live: &Live, body: &[u8]) -> Result<String, ApiError> {
    let asked: TokensOf = serde_json::from_slice(body).map_err(|e| bad(&e))?;
    let vocab = live.loaded.vocab;
    if let Some(unknown) = asked.tokens.iter().find(|t| **t as usize >= vocab) {
        return Err(ApiError::param(
            "tokens",
            format!("`tokens` has the token {unknown}; this model has {vocab}"),
        ));
    }
    let most = live.loaded.context;
    if asked.tokens.len() > most {
        return Err(ApiError::param(
            "tokens",
            format!(
                "`tokens` has {} tokens, and the context {most}",
                asked.tokens.len()
            ),
        ));
    }
    let decoded = live.loaded.tokenizer.decode(&asked.tokens);
    decoded.map_err(|e| ApiError::param("tokens", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_the_names_of_either_server() {
        let get = |v: serde_json::Value| serde_json::from_value::<Text>(v).unwrap();
        let vllm =
            get(serde_json::json!({"model": "m", "prompt": "a", "add_special_tokens": false}));
        assert_eq!(
            (vllm.prompt.as_deref(), vllm.add_special_tokens),
            (Some("a"), Some(false))
        );
        let llama = get(serde_json::json!({"content": "a", "add_special": true}));
        assert_eq!(
            (llama.content.as_deref(), llama.add_special),
            (Some("a"), Some(true))
        );
        assert!(
            get(serde_json::json!({"messages": [{"role": "user"}]}))
                .messages
                .is_some()
        );
    }
}
