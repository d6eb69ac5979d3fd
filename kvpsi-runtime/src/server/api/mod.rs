//! What clients send: the bodies of `/v1/chat/completions` and
//! `/v1/completions`.
//!
//! Owns which fields there are, their types and ranges, and what is refused by
//! name. Unknown fields are ignored, as OpenAI's own clients send
//! more every year; fields that would change the answer and cannot be obeyed
//! are an error. Pure: bytes in, a request or an error out. Out of scope: of
//! tokens.

pub(super) mod fields;
pub(super) mod messages;
pub(super) mod tools;

use super::error::ApiError;
use crate::{
    engine::{Grammar, MAX_LOGPROBS, SamplingConfig},
    model::chat::Conversation,
};
use fields::Fields;
use serde_json::Value;
use std::hash::{BuildHasher, Hasher, RandomState};
pub use tools::{ToolChoice, Tools};

/// Most stop texts.
const MOST_STOPS: usize = 16;
/// Longest stop text, in bytes.
const LONGEST_STOP: usize = 512;

/// What is to be gone on with.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A conversation.
    Chat(Conversation),
    /// A text.
    Text(String),
    /// Tokens.
    Tokens(Vec<u32>),
}

/// A request, checked but for what only the model knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The model that was named.
    pub model: Option<String>,
    /// What is to be gone on with.
    pub prompt: Prompt,
    /// Functions that may be called.
    pub tools: Tools,
    /// What the answer must be, and the field that says so.
    pub grammar: Option<(String, Grammar)>,
    /// How. `max_tokens` is [`usize::MAX`] where none was given.
    pub sampling: SamplingConfig,
    /// Piece by piece.
    pub stream: bool,
    /// A last piece with the usage.
    pub include_usage: bool,
}

/// The fields of OpenAI's and vLLM's APIs that would change the answer and that
/// kvpsi does not obey, and when they are harmless all the same.
const REFUSED: [(&str, &str); 16] = [
    ("functions", "use tools"),
    ("function_call", "use tool_choice"),
    ("logit_bias", "no bias is applied"),
    ("audio", "text only"),
    ("prediction", "no predicted outputs"),
    ("web_search_options", "no search"),
    ("suffix", "no insertion"),
    ("min_p", "use top_p or top_k"),
    ("typical_p", "use top_p or top_k"),
    ("mirostat", "use top_p or top_k"),
    ("min_tokens", "use ignore_eos"),
    ("stop_token_ids", "use stop"),
    ("bad_words", "no words are excluded"),
    ("use_beam_search", "no beam search"),
    ("prompt_logprobs", "no logprobs of prompts"),
    ("echo", "the prompt is not repeated"),
];

/// The body of `/v1/chat/completions`.
///
/// # Errors
/// It is not JSON, a field has a wrong type or value, or asks for something
/// that this server cannot do.
pub fn parse_chat(body: &[u8]) -> Result<Request, ApiError> {
    let fields = Fields::parse(body)?;
    let mut request = common(&fields)?;
    request.tools = tools::tools(&fields)?;
    request.prompt = Prompt::Chat(Conversation {
        messages: messages::messages(&fields)?,
        tools: request.tools.told().to_vec(),
        ..conversation(&fields)?
    });
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

/// The body of `/v1/completions`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_completion(body: &[u8]) -> Result<Request, ApiError> {
    let fields = Fields::parse(body)?;
    let mut request = common(&fields)?;
    if fields.asks_for("tools") {
        return Err(ApiError::unsupported("tools", "use /v1/chat/completions"));
    }
    request.prompt = prompt(&fields)?;
    let logprobs = fields.whole("logprobs", 0..=MAX_LOGPROBS as u64)?;
    request.sampling.logprobs = logprobs.map(small);
    if request.sampling.max_tokens == usize::MAX {
        // As OpenAI's API reference has it for this endpoint.
        request.sampling.max_tokens = 16;
    }
    Ok(request)
}

fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// What all have.
pub(super) fn common(fields: &Fields) -> Result<Request, ApiError> {
    for (name, why) in REFUSED {
        if fields.asks_for(name) {
            return Err(ApiError::unsupported(name, why));
        }
    }
    for name in ["n", "best_of"] {
        if fields.whole(name, 0..=u64::MAX)?.is_some_and(|n| n != 1) {
            return Err(ApiError::unsupported(name, "one answer at a time"));
        }
    }
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
        tools: Tools::default(),
        grammar: tools::grammar(fields)?,
        sampling: sampling(fields)?,
        stream,
        include_usage,
    })
}

/// How tokens are chosen: OpenAI's defaults, which change nothing.
#[expect(clippy::cast_possible_truncation, reason = "penalties are small")]
fn sampling(fields: &Fields) -> Result<SamplingConfig, ApiError> {
    let most = match fields.whole("max_completion_tokens", 1..=u64::MAX)? {
        None => fields.whole("max_tokens", 1..=u64::MAX)?,
        some => some,
    };
    let penalty = |name| {
        fields
            .number(name, -2.0..=2.0)
            .map(Option::unwrap_or_default)
    };
    let repeat = match fields.number("repetition_penalty", 0.01..=100.0)? {
        None => fields.number("repeat_penalty", 0.01..=100.0)?,
        some => some,
    };
    // -1 and 0 mean all, by vLLM's and llama.cpp's custom.
    let top_k = match fields.get("top_k").and_then(Value::as_i64) {
        Some(-1) => None,
        _ => fields.whole("top_k", 0..=u64::MAX)?.filter(|k| *k > 0),
    };
    // One that is zero or very small would take nothing: the likeliest is meant.
    let top_p = fields.number("top_p", 0.0..=1.0)?.map(|p| p.max(1e-6));
    Ok(SamplingConfig {
        max_tokens: most.map_or(usize::MAX, small),
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_p,
        top_k: top_k.map(small),
        seed: seed(fields)?,
        repeat_penalty: repeat.unwrap_or(1.0) as f32,
        presence_penalty: penalty("presence_penalty")? as f32,
        frequency_penalty: penalty("frequency_penalty")? as f32,
        stops: stops(fields, "stop")?,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        logprobs: None,
        ..SamplingConfig::default()
    })
}

/// Any number; without one every answer has its own.
fn seed(fields: &Fields) -> Result<u64, ApiError> {
    match fields.get("seed") {
        None => Ok(RandomState::new().build_hasher().finish()),
        Some(v) => (v.as_u64().or_else(|| v.as_i64().map(i64::cast_unsigned)))
            .ok_or_else(|| ApiError::param("seed", "`seed` must be a whole number")),
    }
}

pub(super) fn stops(fields: &Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let bad = |why: String| ApiError::param(name, why);
    let shape = || bad(format!("`{name}` must be a string or an array of strings"));
    let stops = match fields.get(name) {
        None => Vec::new(),
        Some(Value::String(s)) => vec![s.clone()],
        Some(Value::Array(all)) => {
            let texts = all.iter().map(|v| v.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().ok_or_else(shape)?
        }
        Some(_) => return Err(shape()),
    };
    if stops.len() > MOST_STOPS {
        return Err(bad(format!("`{name}` has more than {MOST_STOPS} texts")));
    }
    if stops.iter().any(|s| s.is_empty() || s.len() > LONGEST_STOP) {
        return Err(bad(format!(
            "a text of `{name}` must have 1 to {LONGEST_STOP} bytes"
        )));
    }
    Ok(stops)
}

/// What the template is told besides messages and tools, and where the answer
/// begins: the fields are vLLM's.
fn conversation(fields: &Fields) -> Result<Conversation, ApiError> {
    let mut variables = match fields.get("chat_template_kwargs") {
        None => serde_json::Map::new(),
        Some(Value::Object(variables)) => variables.clone(),
        Some(_) => {
            return Err(ApiError::param(
                "chat_template_kwargs",
                "`chat_template_kwargs` must be an object",
            ));
        }
    };
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

fn prompt(fields: &Fields) -> Result<Prompt, ApiError> {
    let bad = || {
        ApiError::param(
            "prompt",
            "`prompt` must be a string or an array of tokens; one prompt at a time",
        )
    };
    match fields.get("prompt") {
        Some(Value::String(s)) => Ok(Prompt::Text(s.clone())),
        Some(Value::Array(all)) => match all.as_slice() {
            [Value::String(s)] => Ok(Prompt::Text(s.clone())),
            [Value::Array(tokens)] => tokens_of(tokens).ok_or_else(bad),
            tokens => tokens_of(tokens).ok_or_else(bad),
        },
        _ => Err(bad()),
    }
}

fn tokens_of(all: &[Value]) -> Option<Prompt> {
    let token = |v: &Value| u32::try_from(v.as_u64()?).ok();
    all.iter()
        .map(token)
        .collect::<Option<Vec<_>>>()
        .map(Prompt::Tokens)
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
