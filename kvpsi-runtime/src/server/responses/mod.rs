//! OpenAI's responses API over the same model: `/v1/responses`.
//!
//! Owns its fields, its items and its events. Nothing is stored: `store` has no
//! effect, and a `previous_response_id` is refused by name. Out of scope:
//! OpenAI's own tools.

mod request;
mod wire;

use super::{complete::Completer, error::ApiError, inbound::Held, wire::Answering};
use axum::response::Response;

/// Answers `/v1/responses`.
pub(super) async fn answer(completer: Completer, body: Held) -> Result<Response, ApiError> {
    let mut begun = completer.begin(body, request::parse).await?;
    let echo = std::mem::take(&mut begun.more);
    let model = begun.model.clone();
    let wire = wire::Items::new(begun.id, model, begun.created, begun.prompt_tokens, echo);
    let stream = begun.request.stream;
    Answering::of(begun).respond(wire, stream).await
}
