//! What clients send: the bodies of `/v1/chat/completions` and
//! `/v1/completions`.
//!
//! Owns which fields there are, their types and ranges, and what is refused by
//! name. Unknown fields are ignored, as OpenAI's own clients send
//! more every year; fields that would change the answer and cannot be obeyed
//! are an error. Pure: bytes in, a request or an error out. Out of scope: of
//! tokens.

mod completion;
mod embeddings;
mod fields;
mod sampling;

use super::error::ApiError;
use crate::{
    engine::{MAX_LOGPROBS, SamplingConfig},
    model::chat::{Message, Role},
};
pub use completion::parse_completion;
pub(super) use embeddings::parse_embeddings;
use fields::Fields;
use serde_json::Value;

/// Most messages of a conversation.
const MOST_MESSAGES: usize = 4096;

/// What is to be gone on with.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A conversation.
    Chat(Vec<Message>),
    /// A text.
    Text(String),
    /// Tokens.
    Tokens(Vec<u32>),
    /// Several texts or tokens, each answered by itself.
    List(Vec<Prompt>),
}

/// A request, checked but for what only the model knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The model that was named.
    pub model: Option<String>,
    /// What is to be gone on with.
    pub prompt: Prompt,
    /// How. `max_tokens` is [`usize::MAX`] where none was given.
    pub sampling: SamplingConfig,
    /// Answers to each prompt.
    pub choices: usize,
    /// The prompt is repeated before the answer.
    pub echo: bool,
    /// Piece by piece.
    pub stream: bool,
    /// A last piece with the usage.
    pub include_usage: bool,
}

/// Refused here; what is refused everywhere is in [`sampling`].
const REFUSED: [(&str, &str); 11] = [
    ("tools", "this server calls no tools"),
    ("guided_json", "no guided decoding"),
    ("guided_regex", "no guided decoding"),
    ("guided_choice", "no guided decoding"),
    ("guided_grammar", "no guided decoding"),
    ("structured_outputs", "no guided decoding"),
    ("structural_tag", "no guided decoding"),
    ("grammar", "no guided decoding"),
    ("json_schema", "no guided decoding"),
    ("documents", "no documents"),
    ("chat_template", "start the server with --chat-template"),
];

/// The body of `/v1/chat/completions`.
///
/// # Errors
/// It is not JSON, a field has a wrong type or value, or asks for something
/// that this server cannot do.
pub fn parse_chat(body: &[u8]) -> Result<Request, ApiError> {
    let fields = Fields::parse(body)?;
    let mut request = common(&fields)?;
    request.sampling = sampling::sampling(&fields, 1, usize::MAX)?;
    for (name, why) in [
        ("echo", "the answer begins where the prompt ends"),
        ("add_special_tokens", "the chat template brings them"),
    ] {
        if fields.asks_for(name) {
            return Err(ApiError::unsupported(name, why));
        }
    }
    request.prompt = Prompt::Chat(messages(&fields)?);
    if fields.flag("logprobs")?.unwrap_or(false) {
        let top = fields.whole("top_logprobs", 0..=MAX_LOGPROBS as u64)?;
        request.sampling.logprobs = Some(small(top.unwrap_or(0)));
    } else if fields
        .whole("top_logprobs", 0..=MAX_LOGPROBS as u64)?
        .is_some()
    {
        return Err(ApiError::param(
            "top_logprobs",
            "`top_logprobs` needs `logprobs: true`",
        ));
    }
    Ok(request)
}

fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// What both have.
fn common(fields: &Fields) -> Result<Request, ApiError> {
    sampling::refuse(fields)?;
    for (name, why) in REFUSED {
        if fields.asks_for(name) {
            return Err(ApiError::unsupported(name, why));
        }
    }
    if let Some(choice) = fields.get("tool_choice")
        && !matches!(choice.as_str(), Some("none" | "auto"))
    {
        return Err(ApiError::unsupported(
            "tool_choice",
            "this server calls no tools",
        ));
    }
    if let Some(modalities) = fields.get("modalities")
        && modalities != &serde_json::json!(["text"])
    {
        return Err(ApiError::unsupported("modalities", "text only"));
    }
    if let Some(format) = fields.get("response_format") {
        match format.get("type").and_then(Value::as_str) {
            Some("text") => {}
            Some(_) => {
                return Err(ApiError::unsupported("response_format", "only `text`"));
            }
            None => {
                return Err(ApiError::param(
                    "response_format",
                    "`response_format` must be an object with a `type`",
                ));
            }
        }
    }
    let include_usage = match fields.get("stream_options") {
        None => false,
        Some(Value::Object(o)) => match o.get("include_usage") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(b)) => *b,
            Some(_) => {
                return Err(ApiError::param(
                    "stream_options.include_usage",
                    "`include_usage` must be true or false",
                ));
            }
        },
        Some(_) => {
            return Err(ApiError::param(
                "stream_options",
                "`stream_options` must be an object",
            ));
        }
    };
    let stream = fields.flag("stream")?.unwrap_or(false);
    if include_usage && !stream {
        return Err(ApiError::param(
            "stream_options",
            "`stream_options` needs `stream: true`",
        ));
    }
    Ok(Request {
        model: fields.text("model")?,
        prompt: Prompt::Tokens(Vec::new()),
        sampling: SamplingConfig::default(),
        choices: sampling::choices(fields)?,
        echo: false,
        stream,
        include_usage,
    })
}

fn messages(fields: &Fields) -> Result<Vec<Message>, ApiError> {
    let Some(Value::Array(all)) = fields.get("messages") else {
        return Err(ApiError::param(
            "messages",
            "`messages` must be an array of messages",
        ));
    };
    if all.is_empty() || all.len() > MOST_MESSAGES {
        return Err(ApiError::param(
            "messages",
            format!("`messages` must have 1 to {MOST_MESSAGES} messages"),
        ));
    }
    let one = |(i, m): (usize, &Value)| {
        message(m).map_err(|(what, why)| {
            let param = format!("messages[{i}]{what}");
            ApiError::param(param.clone(), format!("`{param}` {why}"))
        })
    };
    all.iter().enumerate().map(one).collect()
}

/// A message, or which part of it is wrong and why.
fn message(m: &Value) -> Result<Message, (&'static str, &'static str)> {
    let Value::Object(m) = m else {
        return Err(("", "must be an object with `role` and `content`"));
    };
    let role = match m.get("role").and_then(Value::as_str) {
        // The newer name of the same.
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool" | "function") => {
            return Err((".role", "is not supported: this server calls no tools"));
        }
        _ => return Err((".role", "must be system, user or assistant")),
    };
    if m.get("tool_calls").is_some_and(|c| !is_nothing(c)) {
        return Err((
            ".tool_calls",
            "is not supported: this server calls no tools",
        ));
    }
    let content = match m.get("content") {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(parts)) => {
            let mut all = String::new();
            for part in parts {
                match (part.get("type").and_then(Value::as_str), part.get("text")) {
                    (Some("text"), Some(Value::String(text))) => all.push_str(text),
                    (Some("text"), _) => return Err((".content", "has a text part without text")),
                    _ => return Err((".content", "may have text parts only")),
                }
            }
            all
        }
        _ => return Err((".content", "must be a string or an array of text parts")),
    };
    Ok(Message::new(role, content))
}

/// Null, false, and what is empty asks for nothing.
fn is_nothing(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s.is_empty() || s == "none",
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests;
