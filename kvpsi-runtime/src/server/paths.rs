//! The paths by their names: what a request is counted as, and which API's shape
//! an error has there.

use super::error::ApiError;
use serde_json::Value;

/// All paths below `/v1/models/`.
const ONE_MODEL: &str = "/v1/models/{id}";

/// Paths that are counted by name.
pub(super) const PATHS: [&str; 25] = [
    "/",
    "/health",
    "/metrics",
    "/v1/models",
    ONE_MODEL,
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/tags",
    "/api/show",
    "/api/ps",
    "/api/version",
    "/api/embed",
    "/tokenize",
    "/detokenize",
    "/kvpsi/status",
    "/kvpsi/history",
    "/kvpsi/trim",
    "/kvpsi/control",
    "/kvpsi/trace",
];

/// The name by which a path is counted.
pub(super) fn known(path: &str) -> Option<&'static str> {
    match path.strip_prefix("/v1/models/") {
        Some(_) => Some(ONE_MODEL),
        None => PATHS.into_iter().find(|p| *p == path),
    }
}

/// An error in the shape that clients of a path's API read.
pub(super) fn shaped_for(path: &str, e: &ApiError) -> Value {
    match path {
        _ if path.starts_with("/v1/messages") => e.anthropic(),
        _ if path.starts_with("/api/") => e.ollama(),
        _ => e.body(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_shape_of_its_path() {
        for (e, kind) in [
            (ApiError::busy(1), "rate_limit_error"),
            (
                ApiError::unavailable("memory", "no room"),
                "overloaded_error",
            ),
            (ApiError::no_path("/x"), "not_found_error"),
            (ApiError::internal("a fault"), "api_error"),
        ] {
            let openai = shaped_for("/v1/chat/completions", &e);
            assert_eq!(openai["error"]["message"], e.message);
            let anthropic = shaped_for("/v1/messages/count_tokens", &e);
            assert_eq!(anthropic["error"]["type"], kind);
            assert_eq!(
                shaped_for("/api/nothing", &e),
                serde_json::json!({"error": e.message})
            );
        }
        assert_eq!(known("/v1/models/a/b"), Some("/v1/models/{id}"));
        assert_eq!((known("/health"), known("/x")), (Some("/health"), None));
    }
}
