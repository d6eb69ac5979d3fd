//! What OpenAI's clients send to `/v1/responses`.

use crate::{
    engine::{Grammar, MOST_GRAMMAR},
    model::chat::{Conversation, Message, Role, ToolCall},
    server::{
        api::{
            Prompt, Request, ToolChoice, Tools, common,
            fields::Fields,
            messages::{arguments, list, name_results},
            sampling, think,
            tools::{grammar, response_format},
            values::{Left, bytes},
            variables,
        },
        error::ApiError,
    },
};
use serde_json::{Map, Value, json};

/// Fields that would change the answer and are not obeyed.
const REFUSED: [(&str, &str); 9] = [
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
    ("logprobs", "use /v1/chat/completions"),
    ("top_logprobs", "use /v1/chat/completions"),
    ("max_tokens", "use max_output_tokens"),
    ("response_format", "use text.format"),
];

/// Fields whose meaning is another one in chats, or that are read here.
const OWN: [&str; 14] = [
    "include",
    "input",
    "instructions",
    "max_completion_tokens",
    "max_output_tokens",
    "metadata",
    "n",
    "parallel_tool_calls",
    "prompt",
    "reasoning",
    "stream_options",
    "text",
    "tool_choice",
    "tools",
];
/// Longest text of a name that is repeated, in bytes.
const LONGEST: usize = 512;

/// The body of `/v1/responses`, and what its response repeats of it: members of a
/// JSON object, as text, for it is kept while the request waits.
///
/// # Errors
/// It is not JSON, a field has a wrong type or value, or asks for something
/// that this server cannot do.
pub fn parse(body: &[u8]) -> Result<(Request, String), ApiError> {
    let mut fields = Fields::parse(body)?;
    fields.refuse(&REFUSED)?;
    sampling::one_choice(&fields)?;
    let hidden = "message.output_text.logprobs";
    if fields
        .get("include")
        .and_then(Value::as_array)
        .is_some_and(|all| all.iter().any(|i| i == hidden))
    {
        return Err(ApiError::unsupported(
            "include",
            "logprobs are told by /v1/chat/completions",
        ));
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
    let mut echo = Map::new();
    for name in ["instructions", "user", "safety_identifier"] {
        let text = fields.text(name)?;
        if name != "instructions" && text.as_ref().is_some_and(|t| t.len() > LONGEST) {
            let why = format!("`{name}` must have at most {LONGEST} bytes");
            return Err(ApiError::param(name, why));
        }
        if text.is_some() || name == "instructions" {
            echo.insert(name.into(), json!(text));
        }
    }
    let metadata = fields.get("metadata").cloned();
    echo.insert("metadata".into(), metadata.unwrap_or_else(|| json!({})));
    let (reasoning, effort) = reasoning(&fields)?;
    echo.insert("reasoning".into(), reasoning);
    let (text, format) = text(&fields)?;
    echo.insert("text".into(), text);
    let tools = tools(&mut fields, &mut echo)?;
    let mut conversation = Conversation::new(input(&fields)?);
    conversation.tools = tools.told().to_vec();
    conversation.variables = variables(&mut fields)?;
    if let Some(effort) = effort {
        let set = think(&mut conversation.variables, &effort);
        set.map_err(|why| {
            let why = why.replace("reasoning_effort", "reasoning.effort");
            ApiError::param("reasoning.effort", why)
        })?;
    }
    // What is left has chat's names and meanings.
    let most = fields.take("max_output_tokens");
    fields.leave(&OWN);
    fields.set("max_completion_tokens", most);
    let mut request = common(&fields)?;
    let sampling = sampling::sampling(&fields, 1, usize::MAX);
    request.sampling = sampling.map_err(|e| match e.param.as_deref() {
        Some("max_completion_tokens") => e.named("max_completion_tokens", "max_output_tokens"),
        _ => e,
    })?;
    for (name, or) in [("temperature", 1.0), ("top_p", 1.0)] {
        echo.insert(
            name.into(),
            json!(fields.number(name, 0.0..=2.0)?.unwrap_or(or)),
        );
    }
    let most = fields.get("max_completion_tokens").cloned();
    echo.insert("max_output_tokens".into(), most.unwrap_or_default());
    request.field = "input";
    request.prompt = Prompt::Chat(conversation);
    request.tools = tools;
    request.grammar = grammar(&fields, format.map(|g| ("text.format".to_owned(), g)))?;
    Ok((request, Value::Object(echo).to_string()))
}

/// `reasoning` as it is repeated, and its effort.
fn reasoning(fields: &Fields) -> Result<(Value, Option<String>), ApiError> {
    let bad = |param: &str, why: &str| Err(ApiError::param(param, format!("`{param}` {why}")));
    let none = Map::new();
    let given = match fields.get("reasoning") {
        None => &none,
        Some(Value::Object(given)) => given,
        Some(_) => return bad("reasoning", "must be an object"),
    };
    let effort = match given.get("effort") {
        None | Some(Value::Null) => None,
        Some(Value::String(effort)) => Some(effort.clone()),
        Some(_) => return bad("reasoning.effort", "must be a string"),
    };
    // Thoughts are told as they are: no summary is made of them.
    for name in ["summary", "generate_summary"] {
        match given.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::String(s)) if ["auto", "concise", "detailed"].contains(&s.as_str()) => {}
            Some(_) => return bad("reasoning.summary", "must be auto, concise or detailed"),
        }
    }
    let summary = given.get("summary").cloned().unwrap_or_default();
    Ok((json!({"effort": effort, "summary": summary}), effort))
}

/// `text` as it is repeated, and what its format asks for.
fn text(fields: &Fields) -> Result<(Value, Option<Grammar>), ApiError> {
    let text = match fields.get("text") {
        None => return Ok((json!({"format": {"type": "text"}}), None)),
        Some(Value::Object(text)) => text,
        Some(_) => return Err(ApiError::param("text", "`text` must be an object")),
    };
    if let Some(verbosity) = text.get("verbosity").filter(|v| !v.is_null())
        && verbosity != "medium"
    {
        let why = "say in a message how long the answer is to be";
        return Err(ApiError::unsupported("text.verbosity", why));
    }
    let Some(format) = text.get("format").filter(|f| !f.is_null()) else {
        return Ok((json!({"format": {"type": "text"}}), None));
    };
    let grammar = response_format(format, "text.format")?;
    let mut told = Map::new();
    for name in ["type", "name", "description", "strict", "schema"] {
        if let Some(value) = format.get(name) {
            told.insert(name.into(), value.clone());
        }
    }
    check_size("text.format", &told)?;
    let mut text = Map::new();
    text.insert("format".into(), Value::Object(told));
    Ok((Value::Object(text), grammar))
}

/// What is repeated has as many bytes as a grammar may have.
fn check_size(param: &str, told: &Map<String, Value>) -> Result<(), ApiError> {
    let size = bytes(told);
    match size > MOST_GRAMMAR {
        true => Err(ApiError::param(
            param,
            format!("`{param}` has {size} bytes, and {MOST_GRAMMAR} are taken"),
        )),
        false => Ok(()),
    }
}

fn tools(fields: &mut Fields, echo: &mut Map<String, Value>) -> Result<Tools, ApiError> {
    let given = fields.take_list("tools")?;
    let mut functions: Vec<Map<String, Value>> = Vec::with_capacity(given.len());
    for tool in given {
        let Value::Object(mut given) = tool else {
            return Err(only_functions());
        };
        if given.get("type").is_none_or(|kind| kind != "function") {
            return Err(only_functions());
        }
        let known = ["name", "description", "parameters", "strict"];
        given.retain(|name, _| known.contains(&name.as_str()));
        functions.push(given);
    }
    let mut tools = Tools::new(functions, "tools")?;
    let told = tools.all.iter().map(|tool| {
        let mut told = Map::new();
        told.insert("type".into(), json!("function"));
        if let Some(function) = tool.json["function"].as_object() {
            told.extend(function.clone());
        }
        Value::Object(told)
    });
    echo.insert("tools".into(), told.collect());
    tools.one_call = fields.flag("parallel_tool_calls")? == Some(false);
    echo.insert("parallel_tool_calls".into(), json!(!tools.one_call));
    let choice = match fields.get("tool_choice") {
        None => ToolChoice::Auto,
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
    let told = match &choice {
        ToolChoice::Auto => json!("auto"),
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Named(name) => json!({"type": "function", "name": name}),
    };
    echo.insert("tool_choice".into(), told);
    tools.choose(choice, "tool_choice")?;
    Ok(tools)
}

fn only_functions() -> ApiError {
    ApiError::unsupported("tools", "only tools of the type `function`")
}

fn input(fields: &Fields) -> Result<Vec<Message>, ApiError> {
    let mut messages = Vec::new();
    if let Some(instructions) = fields.text("instructions")?.filter(|i| !i.is_empty()) {
        messages.push(Message::new(Role::System, instructions));
    }
    match fields.get("input") {
        Some(Value::String(text)) => messages.push(Message::new(Role::User, text.as_str())),
        _ => {
            let mut thought = None;
            for (i, item) in list(fields, "input", "items, or a string")?
                .iter()
                .enumerate()
            {
                let added = add(&mut messages, &mut thought, item, &fields.left);
                added.map_err(|why| ApiError::param("input", format!("`input[{i}]` {why}")))?;
            }
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
    left: &Left,
) -> Result<(), &'static str> {
    let text = |name: &str| item.get(name).and_then(Value::as_str);
    match text("type") {
        None | Some("message") => {
            let role = match text("role") {
                Some("system" | "developer") => Role::System,
                Some("user") => Role::User,
                Some("assistant") => Role::Assistant,
                _ => return Err("must have the role system, developer, user or assistant"),
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
                arguments: arguments(item.get("arguments"), left),
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
        Some("item_reference") => {
            return Err(
                "names an item, and nothing is stored here: send the items themselves (`store: false`)",
            );
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
