//! What Anthropic's clients send to `/v1/messages`.

use crate::{
    engine::SamplingConfig,
    model::chat::{Conversation, Message, Role, ToolCall},
    server::{
        api::{
            Prompt, Request, ToolChoice, Tools,
            fields::Fields,
            messages::{arguments, list, name_results},
            sampling::{self, refuse, stops},
            tools::{grammar, response_format},
            values::Left,
        },
        error::ApiError,
    },
};
use serde_json::{Map, Value};

/// The body of `/v1/messages`.
///
/// # Errors
/// It is not JSON, a field has a wrong type or value, or asks for something
/// that this server cannot do.
pub fn parse(body: &[u8]) -> Result<Request, ApiError> {
    let fields = Fields::parse(body)?;
    if fields.get("max_tokens").is_none() {
        return Err(ApiError::param("max_tokens", "`max_tokens` is required"));
    }
    request(fields)
}

/// The body of `/v1/messages/count_tokens`: the same, and no `max_tokens`.
///
/// # Errors
/// As [`parse`].
pub fn parse_count(body: &[u8]) -> Result<Request, ApiError> {
    request(Fields::parse(body)?)
}

fn request(mut fields: Fields) -> Result<Request, ApiError> {
    refuse(&fields)?;
    fields.refuse(&[
        ("container", "no containers"),
        ("mcp_servers", "no MCP servers"),
        ("response_format", "use output_config.format"),
        ("logprobs", "use /v1/chat/completions"),
    ])?;
    sampling::one_choice(&fields)?;
    kept_whole(&fields)?;
    let tools = tools(&mut fields)?;
    let mut conversation = Conversation::new(messages(&fields)?);
    conversation.tools = tools.told().to_vec();
    conversation.variables = thinking(&fields)?;
    let output = fields.get("output_config").and_then(|c| c.get("format"));
    let format = fields
        .get("output_format")
        .map(|f| ("output_format", f))
        .or_else(|| Some(("output_config.format", output.filter(|f| !f.is_null())?)));
    let format = format.map(|(name, format)| {
        let format = response_format(format, name)?;
        Ok::<_, ApiError>(format.map(|g| (name.to_owned(), g)))
    });
    let format = format.transpose()?.flatten();
    Ok(Request {
        model: fields.text("model")?,
        prompt: Prompt::Chat(conversation),
        field: "messages",
        tools,
        grammar: grammar(&fields, format)?,
        sampling: sampling(&fields)?,
        choices: 1,
        echo: false,
        stream: fields.flag("stream")?.unwrap_or(false),
        include_usage: false,
    })
}

/// `context_management` may ask that all is kept, and for nothing else.
fn kept_whole(fields: &Fields) -> Result<(), ApiError> {
    let name = "context_management";
    let edits = match fields.get(name) {
        None => return Ok(()),
        Some(given) => given.get("edits").and_then(Value::as_array),
    };
    let keeps = |edit: &Value| edit.get("keep").is_some_and(|keep| keep == "all");
    match edits.is_none_or(|edits| edits.iter().all(keeps)) {
        true => Ok(()),
        false => Err(ApiError::unsupported(name, "send what is to be kept")),
    }
}

/// The fields of OpenAI's chats, within Anthropic's ranges.
fn sampling(fields: &Fields) -> Result<SamplingConfig, ApiError> {
    let most = fields.whole("max_tokens", 1..=u64::MAX)?;
    let temperature = fields.number("temperature", 0.0..=1.0)?;
    let shared = sampling::sampling(fields, 1, usize::MAX)?;
    let mut all = stops(fields, "stop_sequences")?;
    all.extend(shared.stops);
    Ok(SamplingConfig {
        max_tokens: most.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        temperature: temperature.unwrap_or(1.0),
        stops: all,
        ..shared
    })
}

fn thinking(fields: &Fields) -> Result<Map<String, Value>, ApiError> {
    let mut variables = Map::new();
    let kind = fields
        .get("thinking")
        .map(|t| t.get("type").and_then(Value::as_str));
    match kind {
        None => {}
        Some(Some("disabled")) => {
            variables.insert("enable_thinking".into(), false.into());
        }
        Some(Some("enabled" | "adaptive")) => {
            variables.insert("enable_thinking".into(), true.into());
        }
        Some(_) => {
            let why = "`thinking` must have the `type` enabled, adaptive or disabled";
            return Err(ApiError::param("thinking", why));
        }
    }
    let effort = fields.get("output_config").and_then(|c| c.get("effort"));
    if let Some(effort) = effort.filter(|e| !e.is_null()) {
        // The templates' word for the most is OpenAI's.
        let effort = match effort.as_str() {
            Some(effort @ ("low" | "medium" | "high" | "xhigh")) => effort,
            Some("max") => "xhigh",
            _ => {
                let name = "output_config.effort";
                let why = format!("`{name}` must be low, medium, high, xhigh or max");
                return Err(ApiError::param(name, why));
            }
        };
        variables.insert("reasoning_effort".into(), effort.into());
    }
    Ok(variables)
}

fn tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let given = fields.take_list("tools")?;
    let mut functions: Vec<Map<String, Value>> = Vec::with_capacity(given.len());
    for mut tool in given {
        let kind = tool.get("type").and_then(Value::as_str);
        if !matches!(kind, None | Some("custom")) {
            return Err(ApiError::unsupported(
                "tools",
                "only tools of the type `custom`",
            ));
        }
        let mut function = Map::new();
        for (from, to) in [
            ("name", "name"),
            ("description", "description"),
            ("input_schema", "parameters"),
            ("strict", "strict"),
        ] {
            if let Some(value) = tool.get_mut(from) {
                function.insert(to.into(), value.take());
            }
        }
        functions.push(function);
    }
    let mut tools = Tools::new(functions, "tools")?;
    let Some(choice) = fields.get("tool_choice") else {
        return Ok(tools);
    };
    let one = choice.get("disable_parallel_tool_use");
    tools.one_call = one.and_then(Value::as_bool).unwrap_or(false);
    let name = choice.get("name").and_then(Value::as_str);
    let choice = match (choice.get("type").and_then(Value::as_str), name) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("none"), _) => ToolChoice::None,
        (Some("any"), _) => ToolChoice::Required,
        (Some("tool"), Some(name)) => ToolChoice::Named(name.to_owned()),
        _ => {
            let why = "`tool_choice` must have the `type` auto, any, none, or tool with a `name`";
            return Err(ApiError::param("tool_choice", why));
        }
    };
    tools.choose(choice, "tool_choice")?;
    Ok(tools)
}

fn messages(fields: &Fields) -> Result<Vec<Message>, ApiError> {
    let all = list(fields, "messages", "messages")?;
    let mut messages = Vec::with_capacity(all.len() + 1);
    if let Some(system) = fields.get("system") {
        let text = text_of(system).ok_or_else(|| {
            ApiError::param(
                "system",
                "`system` must be a string or an array of text blocks",
            )
        })?;
        if !text.is_empty() {
            messages.push(Message::new(Role::System, text));
        }
    }
    for (i, m) in all.iter().enumerate() {
        let added = add(&mut messages, m, &fields.left);
        added.map_err(|why| ApiError::param("messages", format!("`messages[{i}]` {why}")))?;
    }
    name_results(&mut messages);
    Ok(messages)
}

/// A string, or text blocks joined.
fn text_of(content: &Value) -> Option<String> {
    match content {
        Value::String(s) => Some(s.clone()),
        Value::Array(blocks) => {
            let texts = blocks.iter().map(|b| {
                let is_text = b.get("type").and_then(Value::as_str) == Some("text");
                b.get("text").and_then(Value::as_str).filter(|_| is_text)
            });
            Some(texts.collect::<Option<Vec<_>>>()?.join("\n"))
        }
        _ => None,
    }
}

/// A message; results of calls become messages of their own before its text.
fn add(messages: &mut Vec<Message>, m: &Value, left: &Left) -> Result<(), &'static str> {
    let role = match m.get("role").and_then(Value::as_str) {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        _ => return Err("must have the role user, assistant or system"),
    };
    let blocks = match m.get("content") {
        Some(Value::String(text)) => {
            messages.push(Message::new(role, text.as_str()));
            return Ok(());
        }
        Some(Value::Array(blocks)) => blocks,
        _ => return Err("must have a `content`: a string or an array of blocks"),
    };
    let mut message = Message::new(role, "");
    let mut has_text = false;
    for block in blocks {
        let text = |name: &str| block.get(name).and_then(Value::as_str);
        match text("type") {
            Some("text") => {
                message
                    .content
                    .push_str(text("text").ok_or("has a text block without `text`")?);
                has_text = true;
            }
            Some("thinking") => {
                message.reasoning = text("thinking").map(str::to_owned);
            }
            Some("redacted_thinking") => {}
            Some("tool_use") => message.calls.push(ToolCall {
                id: text("id").unwrap_or_default().to_owned(),
                name: text("name")
                    .ok_or("has a tool_use block without a `name`")?
                    .to_owned(),
                arguments: arguments(block.get("input"), left),
            }),
            Some("tool_result") => {
                let content = match block.get("content") {
                    None | Some(Value::Null) => String::new(),
                    Some(content) => text_of(content).ok_or("has a result that is not text")?,
                };
                let mut result = Message::new(Role::Tool, content);
                let id = text("tool_use_id").ok_or("has a tool_result without `tool_use_id`")?;
                result.call_id = Some(id.to_owned());
                messages.push(result);
            }
            _ => {
                return Err(
                    "has a block that is not supported: only text, thinking, tool_use and tool_result are",
                );
            }
        }
    }
    let has_results = messages.last().is_some_and(|m| m.role == Role::Tool);
    if has_text || !message.calls.is_empty() || !has_results {
        messages.push(message);
    }
    Ok(())
}
