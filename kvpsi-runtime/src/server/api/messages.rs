//! The messages of a conversation, as OpenAI's chat API has them.

use super::{fields::Fields, values::Left};
use crate::{
    model::chat::{Message, Role, ToolCall},
    server::error::ApiError,
};
use serde_json::{Map, Value};

/// Most messages of a conversation.
pub(in crate::server) const MOST_MESSAGES: usize = 4096;
/// Most calls of one message.
pub(in crate::server) const MOST_CALLS: usize = 128;

/// What is wrong with a message: which part, and why.
type Wrong = (&'static str, &'static str);

pub(super) fn messages(fields: &Fields) -> Result<Vec<Message>, ApiError> {
    let all = list(fields, "messages", "messages")?;
    let one = |(i, m): (usize, &Value)| {
        message(m, &fields.left).map_err(|(what, why)| {
            let param = format!("messages[{i}]{what}");
            ApiError::param(param.clone(), format!("`{param}` {why}"))
        })
    };
    let mut messages: Vec<Message> = all.iter().enumerate().map(one).collect::<Result<_, _>>()?;
    name_results(&mut messages);
    Ok(messages)
}

/// The messages or items of a field, which has one at least.
pub(in crate::server) fn list<'a>(
    fields: &'a Fields,
    name: &str,
    what: &str,
) -> Result<&'a [Value], ApiError> {
    match fields.get(name) {
        Some(Value::Array(all)) if (1..=MOST_MESSAGES).contains(&all.len()) => Ok(all),
        _ => Err(ApiError::param(
            name,
            format!("`{name}` must be an array of 1 to {MOST_MESSAGES} {what}"),
        )),
    }
}

/// A result says which function it is of, where its call is known: some
/// templates write it.
pub(in crate::server) fn name_results(messages: &mut [Message]) {
    let mut named = std::collections::HashMap::new();
    for m in messages {
        named.extend(m.calls.iter().map(|c| (c.id.clone(), c.name.clone())));
        if m.role == Role::Tool && m.name.is_none() {
            m.name = m.call_id.as_ref().and_then(|id| named.get(id).cloned());
        }
    }
}

/// A message, or which part of it is wrong and why.
fn message(m: &Value, left: &Left) -> Result<Message, Wrong> {
    let Value::Object(m) = m else {
        return Err(("", "must be an object with `role` and `content`"));
    };
    let role = match m.get("role").and_then(Value::as_str) {
        // The newer name of the same.
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        Some("function") => return Err((".role", "is not supported: use `tool`")),
        _ => {
            return Err((
                ".role",
                "must be system, developer, user, assistant or tool",
            ));
        }
    };
    let mut message = Message::new(role, "");
    if let Some(calls) = m.get("tool_calls").filter(|c| !super::is_nothing(c)) {
        if role != Role::Assistant {
            return Err((".tool_calls", "belongs to messages of the assistant"));
        }
        message.calls = calls_of(calls, left).ok_or((
            ".tool_calls",
            "must be an array of at most 128 calls, each with `id` and `function`: its `name` and `arguments`",
        ))?;
    }
    for name in ["reasoning_content", "reasoning"] {
        if let Some(Value::String(thought)) = m.get(name) {
            message.reasoning = Some(thought.clone());
        }
    }
    message.content = match m.get("content") {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(parts)) => text_of(parts)?,
        None | Some(Value::Null) if role == Role::Assistant => refusal(m, &message)?,
        _ => return Err((".content", "must be a string or an array of text parts")),
    };
    if role == Role::Tool {
        match m.get("tool_call_id") {
            Some(Value::String(id)) => message.call_id = Some(id.clone()),
            _ => return Err((".tool_call_id", "must be the `id` of the call")),
        }
        message.name = m.get("name").and_then(Value::as_str).map(str::to_owned);
    }
    Ok(message)
}

/// What an assistant said that has no content.
fn refusal(m: &Map<String, Value>, message: &Message) -> Result<String, Wrong> {
    match m.get("refusal") {
        Some(Value::String(refusal)) => Ok(refusal.clone()),
        _ if !message.calls.is_empty() || message.reasoning.is_some() => Ok(String::new()),
        _ => Err((
            ".content",
            "may be null only beside `tool_calls` or `reasoning_content`",
        )),
    }
}

/// The text of a content in parts.
fn text_of(parts: &[Value]) -> Result<String, Wrong> {
    let mut all = String::new();
    for part in parts {
        let kind = part.get("type").and_then(Value::as_str);
        let text = match kind {
            Some("text") => part.get("text"),
            Some("refusal") => part.get("refusal"),
            _ => return Err((".content", "may have text parts only")),
        };
        match text {
            Some(Value::String(text)) => all.push_str(text),
            _ => return Err((".content", "has a text part without text")),
        }
    }
    Ok(all)
}

fn calls_of(calls: &Value, left: &Left) -> Option<Vec<ToolCall>> {
    let calls = calls.as_array().filter(|c| c.len() <= MOST_CALLS)?;
    let one = |c: &Value| {
        let function = c.get("function")?;
        Some(ToolCall {
            id: c
                .get("id")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .into(),
            name: function.get("name")?.as_str()?.to_owned(),
            arguments: arguments(function.get("arguments"), left),
        })
    };
    calls.iter().map(one).collect()
}

/// Templates want an object; a text that is none (a call was cut off) stays one, and
/// what is too large becomes one.
pub(in crate::server) fn arguments(given: Option<&Value>, left: &Left) -> Value {
    match given {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
        Some(Value::String(text)) => match left.parse(text.as_bytes()) {
            Ok(object @ Value::Object(_)) => object,
            _ => Value::String(text.clone()),
        },
        Some(other) if left.spend(other) => other.clone(),
        Some(large) => Value::String(large.to_string()),
    }
}
