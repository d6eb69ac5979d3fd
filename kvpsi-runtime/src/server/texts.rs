//! `/tokenize` and `/detokenize`: text to tokens and back.
//!
//! Owns their shapes. A request may be vLLM's (`prompt` or `messages`,
//! `add_special_tokens`, true by default for a prompt) or llama.cpp's
//! (`content`, `add_special`, false by default); an answer has the fields of
//! both, which agree on `tokens`. Out of scope: how tokens are made.

use super::{api, error::ApiError, live::Live, prompt, state::Server};
use crate::server::inbound::Held;
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most tokens of an answer or a request: no context of a model is longer.
const MOST: usize = 1 << 17;

/// A text, by either server's names.
#[derive(Deserialize)]
struct Text {
    prompt: Option<String>,
    content: Option<String>,
    messages: Option<serde::de::IgnoredAny>,
    add_special_tokens: Option<bool>,
    add_special: Option<bool>,
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
    if asked.messages.is_some() {
        let chat = api::parse_chat(body)?;
        return prompt::tokens(live, chat.prompt, MOST);
    }
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
    prompt::encode(live, &text, special, MOST)
}

/// Runs what takes a while in its turn.
async fn in_turn<T: Send + 'static>(
    server: &Arc<Server>,
    live: Arc<Live>,
    body: Held,
    work: fn(&Live, &[u8]) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let turn = server.inbound.turn().await?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(&live, &body)
    });
    done.await.map_err(|e| ApiError::internal(e.to_string()))?
}

/// `POST /tokenize`.
pub(super) async fn tokenize(
    server: &Arc<Server>,
    live: Arc<Live>,
    body: Held,
) -> Result<Response, ApiError> {
    let max_model_len = live.loaded.context;
    let tokens = in_turn(server, live, body, tokens).await?;
    let answer = Tokens {
        count: tokens.len(),
        tokens,
        max_model_len,
    };
    Ok(Json(answer).into_response())
}

/// `POST /detokenize`.
pub(super) async fn detokenize(
    server: &Arc<Server>,
    live: Arc<Live>,
    body: Held,
) -> Result<Response, ApiError> {
    let text = in_turn(server, live, body, text).await?;
    let answer = TextOf {
        prompt: &text,
        content: &text,
    };
    Ok(Json(answer).into_response())
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
    if asked.tokens.len() > MOST {
        return Err(ApiError::param(
            "tokens",
            format!("`tokens` has more than {MOST} tokens"),
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
