//! Anthropic's messages API over the same model (docs.anthropic.com, "Messages").
//!
//! Owns `/v1/messages` and `/v1/messages/count_tokens`: fields, events, errors. Out of scope:
//! caching by request, batches, files, and the vendor's own tools.

mod request;
mod wire;

use super::{
    complete::Completer, error::ApiError, inbound::Held, live::Live, prompt, wire::Answering,
};
use axum::response::Response;
use serde_json::{Value, json};

pub(super) use request::parse;
use request::parse_count;

/// Answers `/v1/messages`.
pub(super) async fn answer(completer: Completer, body: Held) -> Result<Response, ApiError> {
    let begun = completer.begin(body, |body| Ok((parse(body)?, ()))).await?;
    let stops = begun.request.sampling.stops.clone();
    let (id, model) = (format!("msg_{:016x}", begun.id), begun.model.clone());
    let wire = wire::Blocks::new(id, model, begun.prompt_tokens, stops);
    let stream = begun.request.stream;
    Answering::of(begun).respond(wire, stream).await
}

/// The answer to `/v1/messages/count_tokens`. Takes a while for a long prompt.
pub(super) fn count(live: &Live, body: &[u8]) -> Result<Value, ApiError> {
    let request = parse_count(body)?;
    let tokens = prompt::tokens(live, request.prompt, request.field, super::texts::MOST)?;
    Ok(json!({"input_tokens": tokens.len()}))
}
