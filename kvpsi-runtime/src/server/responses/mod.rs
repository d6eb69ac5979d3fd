//! OpenAI's responses API over the same model: `/v1/responses`.
//!
//! Owns its fields, its items and its events. Nothing is stored: `store` has no
//! effect, and a `previous_response_id` is refused by name. Out of scope:
//! OpenAI's own tools.

mod request;
mod wire;

use super::{
    complete::{Begun, Completer},
    error::ApiError,
};
use axum::response::Response;

/// Answers `/v1/responses`.
pub(super) async fn answer(completer: Completer, body: &[u8]) -> Result<Response, ApiError> {
    let (request, echo) = request::parse(body)?;
    let Begun {
        request,
        id,
        model,
        created,
        prompt_tokens,
        answering,
        ..
    } = completer.begin(request).await?;
    let wire = wire::Items::new(id, model, created, prompt_tokens, echo);
    answering.respond(wire, request.stream).await
}
