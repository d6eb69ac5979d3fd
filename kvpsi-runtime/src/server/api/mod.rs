//! What clients send: the bodies of `/v1/chat/completions` and
//! `/v1/completions`.
//!
//! Owns which fields there are, their types and ranges, and what is refused by
//! name. Unknown fields are ignored, as OpenAI's own clients send
//! more every year; fields that would change the answer and cannot be obeyed
//! are an error. Pure: bytes in, a request or an error out. Out of scope: of
//! tokens.

pub(super) mod completion;
mod embeddings;
pub(super) mod fields;
pub(super) mod messages;
pub(super) mod sampling;
pub(super) mod tools;
pub(super) mod values;

use super::error::ApiError;
use crate::{
    engine::{Grammar, MAX_LOGPROBS, SamplingConfig},
    model::chat::Conversation,
};
pub use completion::parse_completion;
pub(super) use embeddings::{Embeddings, parse_embeddings};
use fields::Fields;
use serde_json::Value;
pub use tools::{ToolChoice, Tools};

/// What is to be gone on with.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A conversation.
    Chat(Conversation),
    /// A text.
    Text(String),
    /// Texts around a gap.
    Fill(String, String),
    /// Tokens.
    Tokens(Vec<u32>),
    /// Several texts or tokens, each answered by itself.
    List(Vec<Prompt>),
}

/// Values that `chat_template_kwargs` may have.
const MOST_VARIABLES: usize = 1 << 12;

/// A request, checked but for what only the model knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The model that was named.
    pub model: Option<String>,
    /// What is to be gone on with.
    pub prompt: Prompt,
    /// The field that it came in, for errors.
    pub field: &'static str,
    /// Functions that may be called.
    pub tools: Tools,
    /// What the answer must be, and the field that says so.
    pub grammar: Option<(String, Grammar)>,
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
const REFUSED: [(&str, &str); 3] = [
    ("structural_tag", "use tools or response_format"),
    ("documents", "no documents"),
    ("chat_template", "start the server with --chat-template"),
];

/// The body of `/v1/chat/completions`.
///
/// # Errors
/// It is not JSON, a field has a wrong type or value, or asks for something
/// that this server cannot do.
pub fn parse_chat(body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut request = common(&fields)?;
    request.field = "messages";
    request.sampling = sampling::sampling(&fields, 1, usize::MAX)?;
    fields.refuse(&[
        ("echo", "the answer begins where the prompt ends"),
        ("add_special_tokens", "the chat template brings them"),
    ])?;
    let asked = conversation(&mut fields)?;
    request.tools = tools::tools(&mut fields)?;
    let messages = messages::messages(&fields)?;
    if asked.go_on == Some(true) && messages.last().is_some_and(|m| !m.calls.is_empty()) {
        return Err(ApiError::param(
            "continue_final_message",
            "`continue_final_message`: the last message calls functions, and calls cannot be gone on with",
        ));
    }
    request.prompt = Prompt::Chat(Conversation {
        messages,
        tools: request.tools.told().to_vec(),
        ..asked
    });
    let top = fields.whole("top_logprobs", 0..=MAX_LOGPROBS as u64)?;
    if fields.flag("logprobs")?.unwrap_or(false) {
        request.sampling.logprobs = Some(small(top.unwrap_or(0)));
    } else if top.is_some_and(|n| n > 0) {
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

/// What all have.
pub(super) fn common(fields: &Fields) -> Result<Request, ApiError> {
    sampling::refuse(fields)?;
    fields.refuse(&REFUSED)?;
    if let Some(modalities) = fields.get("modalities")
        && modalities != &serde_json::json!(["text"])
    {
        return Err(ApiError::unsupported("modalities", "text only"));
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
        field: "prompt",
        tools: Tools::default(),
        grammar: tools::grammar(fields, None)?,
        sampling: SamplingConfig::default(),
        choices: sampling::choices(fields)?,
        echo: false,
        stream,
        include_usage,
    })
}

/// What the template is told besides messages and tools, and where the answer
/// begins: the fields are vLLM's.
fn conversation(fields: &mut Fields) -> Result<Conversation, ApiError> {
    let mut variables = variables(fields)?;
    if let Some(effort) = fields.text("reasoning_effort")? {
        think(&mut variables, &effort).map_err(|why| ApiError::param("reasoning_effort", why))?;
    }
    let begin = fields.flag("add_generation_prompt")?;
    let go_on = fields.flag("continue_final_message")?;
    if begin == Some(true) && go_on == Some(true) {
        return Err(ApiError::param(
            "continue_final_message",
            "`continue_final_message` and `add_generation_prompt` cannot both be true",
        ));
    }
    Ok(Conversation {
        variables,
        begin,
        go_on,
        ..Conversation::default()
    })
}

/// `chat_template_kwargs`: what else the template is told.
pub(super) fn variables(fields: &mut Fields) -> Result<serde_json::Map<String, Value>, ApiError> {
    let name = "chat_template_kwargs";
    match fields.take(name) {
        None => Ok(serde_json::Map::new()),
        Some(v) if !values::within(&v, MOST_VARIABLES) => Err(ApiError::param(
            name,
            format!("`{name}` has more than {MOST_VARIABLES} values"),
        )),
        Some(Value::Object(variables)) => Ok(variables),
        Some(_) => Err(ApiError::param(name, format!("`{name}` must be an object"))),
    }
}

/// How much is thought: templates ask for `reasoning_effort` or for
/// `enable_thinking`.
pub(super) fn think(
    variables: &mut serde_json::Map<String, Value>,
    effort: &str,
) -> Result<(), &'static str> {
    if !["none", "minimal", "low", "medium", "high", "xhigh"].contains(&effort) {
        return Err("`reasoning_effort` must be none, minimal, low, medium, high or xhigh");
    }
    let thinks = variables.entry("enable_thinking");
    thinks.or_insert(Value::Bool(effort != "none"));
    variables.insert("reasoning_effort".into(), effort.into());
    Ok(())
}

/// Null, false, and what is empty asks for nothing.
fn is_nothing(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s.is_empty(),
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod other_tests;
#[cfg(test)]
mod tests;
