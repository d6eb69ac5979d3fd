//! Anthropic's messages API over the same model (docs.anthropic.com, "Messages").
//!
//! Owns `/v1/messages`: its fields, its events, its errors. Out of scope:
//! caching by request, batches, files, and the vendor's own tools.

mod request;
mod wire;

use super::{
    complete::{Begun, Completer},
    error::ApiError,
};
use axum::{
    Json,
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

pub(super) use request::parse;

/// An error as Anthropic's clients read it.
pub(super) fn error(e: ApiError) -> Response {
    let body = json!({"type": "error", "error": error_body(&e)});
    let status = e.status;
    let old = e.into_response();
    let mut new = (status, Json(body)).into_response();
    if let Some(after) = old.headers().get(RETRY_AFTER) {
        new.headers_mut().insert(RETRY_AFTER, after.clone());
    }
    *new.extensions_mut() = old.extensions().clone();
    new
}

fn error_body(e: &ApiError) -> Value {
    let kind = match e.status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        s if s.is_client_error() => "invalid_request_error",
        _ => "api_error",
    };
    json!({"type": kind, "message": e.message})
}

/// Answers `/v1/messages`.
pub(super) async fn answer(
    completer: Completer,
    request: super::api::Request,
) -> Result<Response, ApiError> {
    let Begun {
        request,
        id,
        model,
        prompt_tokens,
        answering,
        ..
    } = completer.begin(request).await?;
    // Which of several it was is not known.
    let stop = match request.sampling.stops.as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    };
    let wire = wire::Blocks::new(format!("msg_{id:016x}"), model, prompt_tokens, stop);
    answering.respond(wire, request.stream).await
}
