//! The fields of `/v1/completions` that are its own: prompts, `echo`, and
//! `logprobs` as a number.
//!
//! Out of scope: what it shares with chats.

use super::{Prompt, Request, common, fields::Fields, sampling, small};
use crate::{engine::MAX_LOGPROBS, server::error::ApiError};
use serde_json::Value;

/// Most prompts of a request.
const MOST_PROMPTS: usize = 128;
/// Tokens of an answer where none are given, as OpenAI's API reference has it
/// for this endpoint.
const DEFAULT_TOKENS: usize = 16;

/// The body of `/v1/completions`.
///
/// # Errors
/// As [`super::parse_chat`].
pub fn parse_completion(body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let suffix = suffix(&mut fields)?;
    let mut request = common(&fields)?;
    if fields.asks_for("tools") {
        return Err(ApiError::unsupported("tools", "use /v1/chat/completions"));
    }
    request.prompt = prompt(&fields)?;
    if let Some(suffix) = suffix {
        request.prompt = match request.prompt {
            Prompt::Text(text) if !echo => Prompt::Fill(text, suffix),
            _ => {
                let why = "only with one text as the prompt, and without echo";
                return Err(ApiError::unsupported("suffix", why));
            }
        };
    }
    // Nothing is generated where the prompt alone is asked about.
    let least = u64::from(!echo);
    request.sampling = sampling::sampling(&fields, least, DEFAULT_TOKENS)?;
    request.sampling.continues = true;
    request.echo = echo;
    let logprobs = fields.whole("logprobs", 0..=MAX_LOGPROBS as u64)?;
    request.sampling.logprobs = logprobs.map(small);
    if fields.get("add_special_tokens") == Some(&Value::Bool(false)) {
        return Err(ApiError::unsupported(
            "add_special_tokens",
            "give tokens as the prompt",
        ));
    }
    Ok(request)
}

/// The text behind the gap, where there is one.
pub(in crate::server) fn suffix(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let suffix = fields.text("suffix")?.filter(|s| !s.is_empty());
    fields.leave(&["suffix"]);
    Ok(suffix)
}

/// A text, tokens, or a list of either.
fn prompt(fields: &Fields) -> Result<Prompt, ApiError> {
    let bad = || {
        ApiError::param(
            "prompt",
            format!(
                "`prompt` must be a string, an array of tokens, or an array of up to {MOST_PROMPTS} of either"
            ),
        )
    };
    let prompt = match fields.get("prompt") {
        Some(Value::Array(all)) => list(all),
        Some(text) => one(text),
        None => None,
    };
    prompt.ok_or_else(bad)
}

/// Tokens, or a list of texts and lists of tokens.
fn list(all: &[Value]) -> Option<Prompt> {
    match all {
        [Value::String(_) | Value::Array(_), ..] if all.len() <= MOST_PROMPTS => {
            let mut prompts: Vec<Prompt> = all.iter().map(one).collect::<Option<_>>()?;
            Some(match prompts.len() {
                1 => prompts.swap_remove(0),
                _ => Prompt::List(prompts),
            })
        }
        tokens => tokens_of(tokens),
    }
}

/// A text, or a list of tokens.
pub(super) fn one(v: &Value) -> Option<Prompt> {
    match v {
        Value::String(s) => Some(Prompt::Text(s.clone())),
        Value::Array(tokens) => tokens_of(tokens),
        _ => None,
    }
}

fn tokens_of(all: &[Value]) -> Option<Prompt> {
    let token = |v: &Value| u32::try_from(v.as_u64()?).ok();
    all.iter()
        .map(token)
        .collect::<Option<Vec<_>>>()
        .map(Prompt::Tokens)
}
