//! Errors as clients of OpenAI's API know them.
//!
//! Owns their shape, `{"error": {"message", "type", "param", "code"}}`, and the
//! status codes. Out of scope: what went wrong.

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

/// Seconds after which it is worth to try again, unless the caller gives another time.
const TRY_AGAIN: u32 = 1;

/// An error that a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What is wrong and what to do, for people.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
    /// The challenge of a 401 (RFC 6750).
    pub challenge: Option<&'static str>,
    /// What became of the request was counted where it happened.
    pub counted: bool,
}

impl ApiError {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code,
            retry_after: None,
            challenge: None,
            counted: false,
        }
    }

    /// As Anthropic's clients read it.
    pub fn anthropic(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            s if s.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }

    /// As Ollama's clients read it.
    pub fn ollama(&self) -> Value {
        json!({"error": self.message})
    }

    /// 400: the request is not what it must be.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, None, message)
    }

    /// 400: a field is not what it must be.
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::bad(message)
        }
    }

    /// 400: something that this server cannot do.
    pub fn unsupported(param: &str, why: &str) -> Self {
        Self {
            code: Some("unsupported_parameter"),
            ..Self::param(param, format!("`{param}` is not supported: {why}"))
        }
    }

    /// 400: prompt and answer do not fit.
    pub fn too_long(field: &str, prompt: usize, most: usize) -> Self {
        Self {
            code: Some("context_length_exceeded"),
            ..Self::param(
                field,
                format!(
                    "the prompt has {prompt} tokens or more, and this server takes {most}: shorten it, or start the server with a larger --ctx"
                ),
            )
        }
    }

    /// 400: a text that cannot be made into tokens piece by piece.
    #[must_use]
    pub fn no_cut(field: &str, bytes: usize) -> Self {
        Self {
            code: Some("context_length_exceeded"),
            ..Self::param(
                field,
                format!(
                    "the prompt has {bytes} bytes without a space between letters or the end of a line: split that text, or shorten it"
                ),
            )
        }
    }

    /// The same for a field that has another name elsewhere.
    #[must_use]
    pub fn named(self, from: &str, to: &str) -> Self {
        let message = self
            .message
            .replace(&format!("`{from}`"), &format!("`{to}`"));
        Self {
            param: self
                .param
                .map(|p| if p == from { to.to_owned() } else { p }),
            message,
            ..self
        }
    }

    /// 401: no key was sent.
    #[must_use]
    pub fn no_key(flag: &str) -> Self {
        Self {
            challenge: Some("Bearer realm=\"kvpsi\""),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                Some("missing_api_key"),
                format!("this server wants a key ({flag}): Authorization: Bearer KEY"),
            )
        }
    }

    /// 401: another key was sent.
    #[must_use]
    pub fn wrong_key(flag: &str) -> Self {
        Self {
            challenge: Some("Bearer realm=\"kvpsi\", error=\"invalid_token\""),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                Some("invalid_api_key"),
                format!("the key that was sent is not this server's ({flag})"),
            )
        }
    }

    /// 403: not from there.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, None, message)
    }

    /// 404: no such path.
    #[must_use]
    pub fn no_path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            None,
            format!("there is no {path} here"),
        )
    }

    /// 404: no such model.
    #[must_use]
    pub fn no_model(asked: &str, have: &str) -> Self {
        Self {
            param: Some("model".into()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                Some("model_not_found"),
                format!("the model `{asked}` is not here; this server has `{have}`"),
            )
        }
    }

    /// 405.
    #[must_use]
    pub fn method(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            None,
            format!("{path} does not take {method}"),
        )
    }

    /// 408: the body did not come.
    #[must_use]
    pub fn slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            None,
            "the body of the request took too long to arrive",
        )
    }

    /// 413.
    #[must_use]
    pub fn too_large(most: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            None,
            format!("the body is larger than {most} bytes (--max-body)"),
        )
    }

    /// 429: too many are waiting.
    #[must_use]
    pub fn busy(retry_after: u32) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                Some("rate_limit_exceeded"),
                "too many requests are waiting already (--queue); try again later",
            )
        }
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, None, message)
    }

    /// 503: not now.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(TRY_AGAIN),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, Some(code), message)
        }
    }

    /// 504: it took too long.
    pub fn late(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, Some("timeout"), message)
    }

    /// Its JSON.
    #[must_use]
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            s if s.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            let value = HeaderValue::from(seconds);
            response.headers_mut().insert(RETRY_AFTER, value);
        }
        if let Some(challenge) = self.challenge {
            let value = HeaderValue::from_static(challenge);
            response.headers_mut().insert(WWW_AUTHENTICATE, value);
        }
        // For who counts it, and gives it its API's shape.
        response.extensions_mut().insert(self);
        response
    }
}
