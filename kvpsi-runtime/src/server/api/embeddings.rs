//! The fields of `/v1/embeddings`.

use super::{Prompt, completion::one, fields::Fields};
use crate::server::{embeddings::Encoding, error::ApiError};
use serde_json::Value;

/// Most inputs of a request: OpenAI's.
const MOST_INPUTS: usize = 2048;

/// A request for embeddings.
pub(in crate::server) struct Embeddings {
    pub model: Option<String>,
    /// One or more.
    pub inputs: Vec<Prompt>,
    pub encoding: Encoding,
}

/// The body of `/v1/embeddings`.
pub(in crate::server) fn parse_embeddings(body: &[u8]) -> Result<Embeddings, ApiError> {
    let fields = Fields::parse(body)?;
    fields.refuse(&[
        ("dimensions", "vectors are those of the model"),
        (
            "truncate_prompt_tokens",
            "an input that is too long is refused",
        ),
        ("messages", "use input"),
    ])?;
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
    let inputs = match fields.get("input") {
        Some(Value::Array(all))
            if matches!(all.first(), Some(Value::String(_) | Value::Array(_))) =>
        {
            if all.len() > MOST_INPUTS {
                let many = all.len();
                let why = format!("`input` has {many} inputs, and {MOST_INPUTS} are taken");
                return Err(ApiError::param("input", why));
            }
            all.iter().map(one).collect()
        }
        Some(input) => one(input).map(|input| vec![input]),
        None => None,
    };
    let inputs = inputs.ok_or_else(|| {
        ApiError::param(
            "input",
            format!(
                "`input` must be a string, an array of tokens, or an array of up to {MOST_INPUTS} of either"
            ),
        )
    })?;
    Ok(Embeddings {
        model: fields.text("model")?,
        inputs,
        encoding,
    })
}
