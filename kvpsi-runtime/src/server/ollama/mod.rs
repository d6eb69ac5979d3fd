//! Ollama's API over the same model (ollama/ollama, `docs/api.md`), for the
//! programs that speak nothing else: Open WebUI, Home Assistant and more.
//!
//! Owns its paths, its errors, and what a model looks like there. There is one
//! model, and it is always loaded: `keep_alive` has no effect, and pulling,
//! copying and deleting are not here. Out of scope: how an answer is made.

mod request;
mod wire;

use super::{
    complete::{Completer, is_model},
    error::ApiError,
    inbound::Held,
    state::Server,
    wire::Answering,
};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Instant;

pub(super) use request::{parse_chat, parse_generate};

/// The version of Ollama's API that this is: programs ask whether it is new
/// enough for tools (0.3), schemas (0.5) and thoughts (0.9).
const API_VERSION: &str = "0.12.0";

/// Answers `/api/chat` or `/api/generate`.
pub(super) async fn answer(
    completer: Completer,
    body: Held,
    chat: bool,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let parse = if chat { parse_chat } else { parse_generate };
    let begun = completer
        .begin(body, move |body| Ok((parse(body)?, ())))
        .await?;
    if begun.choices.is_empty() {
        // It is loaded already.
        let mut body = json!({
            "model": begun.model, "created_at": wire::now(), "done": true, "done_reason": "load",
        });
        match chat {
            true => body["message"] = json!({"role": "assistant", "content": ""}),
            false => body["response"] = json!(""),
        }
        return Ok(Json(body).into_response());
    }
    let lines = wire::Lines {
        model: begun.model.clone(),
        chat,
        prompt_tokens: begun.prompt_tokens,
        arrived,
    };
    let stream = begun.request.stream;
    Answering::of(begun).respond(lines, stream).await
}

/// Answers `/api/embed`. An input that is too long is refused, whatever
/// `truncate` says.
pub(super) async fn embed(completer: Completer, body: Held) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let embedded = completer.embedded(body).await?;
    let rest = json!({
        "model": embedded.model, "total_duration": wire::ns(arrived.elapsed()),
        "load_duration": 0, "prompt_eval_count": embedded.prompt_tokens,
    });
    Ok(embedded.response("embeddings", &rest, |_, vector| vector.to_owned()))
}

/// The model as the lists have it.
fn entry(server: &Server) -> Value {
    let name = &server.config.name;
    let at = i64::try_from(server.started_unix).unwrap_or(0);
    let at = jiff::Timestamp::from_second(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    // Programs tell models apart by it; weights have none here.
    let digest = Sha256::digest(name.as_bytes());
    let digest: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    let size = server.live().map_or(0, |live| live.loaded.model_bytes);
    json!({
        "name": name, "model": name, "modified_at": at.to_string(), "size": size,
        "digest": digest, "details": details(server),
    })
}

/// What the file says; empty until it is read.
fn details(server: &Server) -> Value {
    let live = server.live();
    let family = live.as_ref().map_or("", |live| live.loaded.family.as_str());
    let about = live.as_ref().map(|live| &live.loaded.about);
    json!({
        "parent_model": "", "format": "gguf", "family": family, "families": [family],
        "parameter_size": about.map(|a| a.size()).unwrap_or_default(),
        "quantization_level": about.map(|a| a.quantization.as_str()).unwrap_or_default(),
    })
}

/// `/api/tags`.
pub(super) fn tags(server: &Server) -> Value {
    json!({"models": [entry(server)]})
}

/// `/api/ps`: it stays until the server ends.
pub(super) fn ps(server: &Server) -> Value {
    let mut model = entry(server);
    model["expires_at"] = json!("2318-01-01T00:00:00Z");
    model["size_vram"] = json!(0);
    model["context_length"] = json!(server.live().map_or(0, |live| live.loaded.context));
    json!({"models": [model]})
}

/// `/api/show`.
///
/// # Errors
/// The body is no JSON, or names another model.
pub(super) fn show(server: &Server, body: &[u8]) -> Result<Value, ApiError> {
    let fields = super::api::fields::Fields::parse(body)?;
    let asked = match fields.text("model")? {
        None => fields.text("name")?,
        some => some,
    };
    let have = &server.config.name;
    if let Some(asked) = asked.filter(|asked| !is_model(asked, have)) {
        return Err(ApiError::no_model(&asked, have));
    }
    let live = server.live();
    let chat = live.as_ref().and_then(|l| l.loaded.chat.clone());
    let mut capabilities = vec!["completion"];
    if let Some(style) = chat.as_ref().map(|c| c.style()) {
        capabilities.extend(style.format.map(|_| "tools"));
        capabilities.extend(style.thinks.then_some("thinking"));
    }
    let family = live.as_ref().map_or("", |live| live.loaded.family.as_str());
    let context = live.as_ref().map_or(0, |live| live.loaded.context);
    let about = live.as_ref().map(|live| live.loaded.about.clone());
    let about = about.unwrap_or_default();
    let mut info = about.metadata.clone();
    info.insert("general.architecture".into(), json!(family));
    // What may be asked for here, which may be less than the model's.
    info.insert(format!("{family}.context_length"), json!(context));
    Ok(json!({
        "modelfile": "", "parameters": "", "template": about.template, "details": details(server),
        "model_info": info, "capabilities": capabilities,
    }))
}

/// `/api/version`.
pub(super) fn version() -> Value {
    json!({"version": API_VERSION})
}
