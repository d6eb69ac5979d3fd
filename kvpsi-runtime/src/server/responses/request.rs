//! What OpenAI's clients send to `/v1/responses`.

use crate::{
    model::chat::{Conversation, Message, Role, ToolCall},
    server::{
        api::{
            Prompt, Request, ToolChoice, Tools, common,
            fields::Fields,
            messages::{MOST_MESSAGES, arguments, name_results},
            sampling, think,
            tools::response_format,
        },
        error::ApiError,
    },
};
use serde_json::{Map, Value, json};

/// Fields that would change the answer and are not obeyed.
const REFUSED: [(&str, &str); 6] = [
    (
        "previous_response_id",
        "nothing is stored here: send the whole conversation",
    ),
    (
        "conversation",
        "nothing is stored here: send the whole conversation",
    ),
    ("prompt", "nothing is stored here: send `input`"),
    ("background", "nothing is stored here"),
    ("max_tool_calls", "this server calls no tools of its own"),
    ("top_logprobs", "use /v1/chat/completions"),
];

/// Fields that a response repeats.
const REPEATED: [&str; 12] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "safety_identifier",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "user",
];

/// The body of `/v1/responses`, and what its response repeats of it.
///
/// # Errors
/// It is not JSON, a field has a wrong type or value, or asks for something
/// that this server cannot do.
pub fn parse(body: &[u8]) -> Result<(Request, Map<String, Value>), ApiError> {
    let mut fields = Fields::parse(body)?;
    for (name, why) in REFUSED {
        if fields.asks_for(name) {
            return Err(ApiError::unsupported(name, why));
        }
    }
    if fields.get("truncation").is_some_and(|t| t != "disabled") {
        return Err(ApiError::unsupported("truncation", "only `disabled`"));
    }
    if let Some(metadata) = fields.get("metadata").filter(|m| !m.is_null()) {
        let fits = metadata.as_object().is_some_and(|m| {
            let short = |(k, v): (&String, &Value)| {
                k.len() <= 64 && v.as_str().is_some_and(|v| v.len() <= 512)
            };
            m.len() <= 16 && m.iter().all(short)
        });
        if !fits {
            let why = "`metadata` must be an object of at most 16 texts, keys of 64 and values of 512 bytes";
            return Err(ApiError::param("metadata", why));
        }
    }
    let mut echo = repeated(&fields);
    let tools = tools(&fields)?;
    let mut conversation = Conversation::new(input(&fields)?);
    conversation.tools = tools.told().to_vec();
    if let Some(effort) = fields
        .get("reasoning")
        .and_then(|r| r.get("effort"))
        .and_then(Value::as_str)
    {
        let set = think(&mut conversation.variables, effort);
        set.map_err(|why| ApiError::param("reasoning.effort", why))?;
    }
    let format = fields
        .get("text")
        .and_then(|t| t.get("format"))
        .filter(|f| !f.is_null());
    let grammar = format.map(response_format).transpose()?.flatten();
    // What is left has chat's names and meanings, but for these.
    let most = fields.get("max_output_tokens").cloned();
    fields.keep(&["model", "stream", "temperature", "top_p"]);
    fields.set("max_completion_tokens", most);
    let mut request = common(&fields)?;
    let sampling = sampling::sampling(&fields, 1, usize::MAX);
    request.sampling = sampling.map_err(|e| match e.param.as_deref() {
        Some("max_completion_tokens") => {
            let why = "`max_output_tokens` must be a whole number of at least 1";
            ApiError::param("max_output_tokens", why)
        }
        _ => e,
    })?;
    echo.entry("parallel_tool_calls")
        .or_insert(json!(!tools.one_call));
    request.prompt = Prompt::Chat(conversation);
    request.tools = tools;
    request.grammar = grammar.map(|g| ("text.format".to_owned(), g));
    Ok((request, echo))
}

fn repeated(fields: &Fields) -> Map<String, Value> {
    let given = REPEATED.iter().filter_map(|name| {
        let value = fields.get(name)?;
        Some(((*name).to_owned(), value.clone()))
    });
    let mut echo: Map<String, Value> = given.collect();
    for (name, value) in [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("metadata", json!({})),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("temperature", json!(1.0)),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_p", json!(1.0)),
    ] {
        echo.entry(name).or_insert(value);
    }
    echo
}

fn tools(fields: &Fields) -> Result<Tools, ApiError> {
    let given = fields.list("tools")?;
    let mut functions: Vec<Map<String, Value>> = Vec::with_capacity(given.len());
    for tool in given {
        let Some(function) = tool.as_object().filter(|_| tool["type"] == "function") else {
            return Err(ApiError::unsupported(
                "tools",
                "only tools of the type `function`",
            ));
        };
        let mut function = function.clone();
        function.shift_remove("type");
        functions.push(function);
    }
    let mut tools = Tools::new(functions.iter().collect(), "tools")?;
    tools.one_call = fields.flag("parallel_tool_calls")? == Some(false);
    let choice = match fields.get("tool_choice") {
        None => return Ok(tools),
        Some(Value::String(s)) if s == "auto" => ToolChoice::Auto,
        Some(Value::String(s)) if s == "none" => ToolChoice::None,
        Some(Value::String(s)) if s == "required" => ToolChoice::Required,
        Some(object) => match object.get("name").and_then(Value::as_str) {
            Some(name) if object["type"] == "function" => ToolChoice::Named(name.to_owned()),
            _ => {
                return Err(ApiError::unsupported(
                    "tool_choice",
                    "only none, auto, required, or {\"type\": \"function\", \"name\": ...}",
                ));
            }
        },
    };
    tools.choose(choice, "tool_choice")?;
    Ok(tools)
}

fn input(fields: &Fields) -> Result<Vec<Message>, ApiError> {
    let mut messages = Vec::new();
    if let Some(instructions) = fields.text("instructions")?.filter(|i| !i.is_empty()) {
        messages.push(Message::new(Role::System, instructions));
    }
    match fields.get("input") {
        Some(Value::String(text)) => messages.push(Message::new(Role::User, text.as_str())),
        Some(Value::Array(items)) if !items.is_empty() && items.len() <= MOST_MESSAGES => {
            let mut thought = None;
            for (i, item) in items.iter().enumerate() {
                let added = add(&mut messages, &mut thought, item);
                added.map_err(|why| ApiError::param("input", format!("`input[{i}]` {why}")))?;
            }
        }
        _ => {
            let why = format!("`input` must be a string or an array of 1 to {MOST_MESSAGES} items");
            return Err(ApiError::param("input", why));
        }
    }
    name_results(&mut messages);
    Ok(messages)
}

/// An item; calls belong to the assistant's message before them.
fn add(
    messages: &mut Vec<Message>,
    thought: &mut Option<String>,
    item: &Value,
) -> Result<(), &'static str> {
    let text = |name: &str| item.get(name).and_then(Value::as_str);
    match text("type") {
        None | Some("message") => {
            let role = match text("role") {
                Some("system" | "developer") => Role::System,
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                _ => return Err("must have the role user, assistant, system or developer"),
            };
            let content = item.get("content").and_then(text_of);
            let content = content.ok_or("must have a `content`: a string or text parts")?;
            let mut message = Message::new(role, content);
            if role == Role::Assistant {
                message.reasoning = thought.take();
            }
            messages.push(message);
        }
        Some("reasoning") => {
            let parts = item.get("content").or_else(|| item.get("summary"));
            *thought = parts.and_then(text_of).filter(|t| !t.is_empty());
        }
        Some("function_call") => {
            let call = ToolCall {
                id: text("call_id").ok_or("must have a `call_id`")?.to_owned(),
                name: text("name").ok_or("must have a `name`")?.to_owned(),
                arguments: arguments(item.get("arguments")),
            };
            match messages.last_mut().filter(|m| m.role == Role::Assistant) {
                Some(message) => message.calls.push(call),
                None => {
                    let mut message = Message::new(Role::Assistant, "");
                    message.reasoning = thought.take();
                    message.calls.push(call);
                    messages.push(message);
                }
            }
        }
        Some("function_call_output") => {
            let output = item.get("output").and_then(text_of);
            let output = output.ok_or("must have an `output`: a string or text parts")?;
            let mut message = Message::new(Role::Tool, output);
            message.call_id = Some(text("call_id").ok_or("must have a `call_id`")?.to_owned());
            messages.push(message);
        }
        Some(_) => {
            return Err(
                "is not supported: only message, reasoning, function_call and function_call_output are",
            );
        }
    }
    Ok(())
}

/// A string, or text parts joined.
fn text_of(content: &Value) -> Option<String> {
    match content {
        Value::String(s) => Some(s.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match part.get("type").and_then(Value::as_str) {
                Some("input_text" | "output_text" | "text" | "reasoning_text" | "summary_text") => {
                    part.get("text").and_then(Value::as_str)
                }
                Some("refusal") => part.get("refusal").and_then(Value::as_str),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(|all| all.concat()),
        _ => None,
    }
}
