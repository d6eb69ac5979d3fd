//! The fields of `/v1/embeddings`.

use super::{
    Prompt,
    completion::{list, one},
    fields::Fields,
};
use crate::server::{embeddings::Encoding, error::ApiError};
use serde_json::Value;

/// A request for embeddings.
pub(in crate::server) struct Embeddings {
    pub model: Option<String>,
    pub input: Prompt,
    pub encoding: Encoding,
}

/// The body of `/v1/embeddings`.
pub(in crate::server) fn parse_embeddings(body: &[u8]) -> Result<Embeddings, ApiError> {
    let fields = Fields::parse(body)?;
    for (name, why) in [
        ("dimensions", "vectors are those of the model"),
        (
            "truncate_prompt_tokens",
            "an input that is too long is refused",
        ),
        ("messages", "use input"),
    ] {
        if fields.asks_for(name) {
            return Err(ApiError::unsupported(name, why));
        }
    }
    let encoding = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(_) => {
            return Err(ApiError::param(
                "encoding_format",
                "`encoding_format` must be float or base64",
            ));
        }
    };
    let input = match fields.get("input") {
        Some(Value::Array(all)) => list(all),
        Some(text) => one(text),
        None => None,
    };
    let input = input.ok_or_else(|| {
        ApiError::param(
            "input",
            "`input` must be a string, an array of tokens, or an array of either",
        )
    })?;
    Ok(Embeddings {
        model: fields.text("model")?,
        input,
        encoding,
    })
}
