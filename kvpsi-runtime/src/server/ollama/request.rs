//! What Ollama's clients send (ollama/ollama, `docs/api.md`, `api/types.go`).
//!
//! Owns the fields of `/api/chat` and `/api/generate`, Ollama's defaults, and
//! what is refused by name. Options of Ollama's runner (`num_ctx`, `num_gpu`,
//! `num_thread`, ...) and `keep_alive` do not change an answer here and are
//! taken without an effect. Pure.

use crate::{
    engine::{Grammar, SamplingConfig},
    model::chat::{Conversation, Message, Role, ToolCall},
    server::{
        api::{
            Prompt, Request, Tools,
            completion::suffix,
            fields::Fields,
            messages,
            sampling::{refuse, stops},
            think,
            values::Left,
        },
        error::ApiError,
    },
};
use serde_json::{Map, Value};

/// Options that would change the answer and are not obeyed unless they have the
/// value that changes nothing.
const REFUSED: [(&str, f64); 2] = [("mirostat", 0.0), ("tfs_z", 1.0)];

/// The body of `/api/chat`. Without messages it asks that the model be loaded,
/// and no more: a list of no prompts.
pub fn parse_chat(body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut request = common(&fields)?;
    request.field = "messages";
    if !fields.asks_for("messages") {
        return Ok(nothing(request));
    }
    request.tools = tools(&mut fields)?;
    let all = messages::list(&fields, "messages", "messages")?;
    let one = |(i, m): (usize, &Value)| {
        let why = |why| ApiError::param("messages", format!("`messages[{i}]` {why}"));
        message(m, &fields.left).map_err(why)
    };
    let mut conversation =
        Conversation::new(all.iter().enumerate().map(one).collect::<Result<_, _>>()?);
    conversation.tools = request.tools.told().to_vec();
    conversation.variables = thinking(&fields)?;
    request.prompt = Prompt::Chat(conversation);
    Ok(request)
}

/// The body of `/api/generate`, likewise.
pub fn parse_generate(body: &[u8]) -> Result<Request, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut request = common(&fields)?;
    let suffix = suffix(&mut fields)?;
    fields.refuse(&[
        ("images", "text only"),
        ("template", "start the server with --chat-template"),
        ("context", "send the conversation to /api/chat"),
    ])?;
    let Some(prompt) = fields.text("prompt")?.filter(|p| !p.is_empty()) else {
        return Ok(nothing(request));
    };
    if let Some(suffix) = suffix {
        fields.refuse(&[("system", "not beside suffix")])?;
        request.prompt = Prompt::Fill(prompt, suffix);
        return Ok(request);
    }
    if fields.flag("raw")?.unwrap_or(false) {
        request.prompt = Prompt::Text(prompt);
        request.sampling.continues = true;
        return Ok(request);
    }
    let system = fields.text("system")?.filter(|s| !s.is_empty());
    let system = system.map(|text| Message::new(Role::System, text));
    let messages = system.into_iter().chain([Message::new(Role::User, prompt)]);
    let mut conversation = Conversation::new(messages.collect());
    conversation.variables = thinking(&fields)?;
    request.prompt = Prompt::Chat(conversation);
    Ok(request)
}

/// No prompt at all: that the model be loaded, and no more.
fn nothing(request: Request) -> Request {
    Request {
        prompt: Prompt::List(Vec::new()),
        ..request
    }
}

fn common(fields: &Fields) -> Result<Request, ApiError> {
    fields.refuse(&[
        ("logprobs", "use /v1/chat/completions"),
        ("top_logprobs", "use /v1/chat/completions"),
    ])?;
    let format = match fields.get("format") {
        None => None,
        Some(Value::String(s)) if s.is_empty() => None,
        Some(Value::String(s)) if s == "json" => Some(Grammar::json_object()),
        Some(schema @ Value::Object(_)) => Some(Grammar::Schema(schema.clone())),
        Some(_) => {
            return Err(ApiError::param(
                "format",
                "`format` must be `json` or a JSON schema",
            ));
        }
    };
    Ok(Request {
        model: fields.text("model")?,
        prompt: Prompt::Tokens(Vec::new()),
        field: "prompt",
        tools: Tools::default(),
        grammar: format.map(|grammar| ("format".to_owned(), grammar)),
        sampling: sampling(fields)?,
        choices: 1,
        echo: false,
        stream: fields.flag("stream")?.unwrap_or(true),
        include_usage: false,
    })
}

/// Ollama's defaults where its options name none.
#[expect(clippy::cast_possible_truncation, reason = "penalties are small")]
fn sampling(fields: &Fields) -> Result<SamplingConfig, ApiError> {
    let options = match fields.get("options") {
        None => Map::new(),
        Some(Value::Object(options)) => options.clone(),
        Some(_) => return Err(ApiError::param("options", "`options` must be an object")),
    };
    let options = Fields::of(options);
    refuse(&options)?;
    for (name, neutral) in REFUSED {
        if options
            .number(name, -1e9..=1e9)?
            .is_some_and(|n| n != neutral)
        {
            return Err(ApiError::unsupported(name, "use top_p or top_k"));
        }
    }
    let number = |name, in_, or: f64| {
        let given = options.number(name, in_);
        given.map(|n| n.unwrap_or(or))
    };
    let whole = |name: &str| match options.get(name) {
        None => Ok(None),
        Some(v) => match (v.as_i64(), v.as_f64()) {
            (Some(n), _) => Ok(Some(n)),
            (None, Some(n)) if n.fract() == 0.0 && n.abs() < 9e15 => Ok(Some(n as i64)),
            _ => Err(ApiError::param(
                name,
                format!("`{name}` must be a whole number"),
            )),
        },
    };
    let positive = |n: i64| usize::try_from(n).ok().filter(|n| *n > 0);
    let seed = whole("seed")?.filter(|s| *s != -1).map(i64::cast_unsigned);
    let stops = match options.get("stop") {
        None => Vec::new(),
        Some(_) => stops(&options, "stop")?,
    };
    Ok(SamplingConfig {
        // -1 and -2: up to the context.
        max_tokens: whole("num_predict")?
            .and_then(positive)
            .unwrap_or(usize::MAX),
        temperature: number("temperature", 0.0..=100.0, 0.8)?,
        top_p: Some(number("top_p", 0.0..=1.0, 0.9)?.max(1e-6)),
        top_k: match whole("top_k")? {
            None => Some(40),
            Some(k) => positive(k),
        },
        repeat_penalty: number("repeat_penalty", 0.01..=100.0, 1.1)? as f32,
        repeat_last: match whole("repeat_last_n")? {
            None => 64,
            Some(-1) => usize::MAX,
            Some(n) => usize::try_from(n).unwrap_or(0),
        },
        min_p: Some(number("min_p", 0.0..=1.0, 0.0)?).filter(|p| *p > 0.0),
        typical_p: Some(number("typical_p", 0.0..=1.0, 1.0)?).filter(|p| *p > 0.0 && *p < 1.0),
        presence_penalty: number("presence_penalty", -2.0..=2.0, 0.0)? as f32,
        frequency_penalty: number("frequency_penalty", -2.0..=2.0, 0.0)? as f32,
        seed: seed.unwrap_or_else(crate::random::number),
        stops,
        ..SamplingConfig::default()
    })
}

/// `think`: whether, or how much.
fn thinking(fields: &Fields) -> Result<Map<String, Value>, ApiError> {
    let mut variables = Map::new();
    match fields.get("think") {
        None => {}
        Some(Value::Bool(think)) => {
            variables.insert("enable_thinking".into(), (*think).into());
        }
        Some(Value::String(level)) => {
            let set = think(&mut variables, level);
            set.map_err(|_| ApiError::param("think", "`think` must be true, false, or a level"))?;
        }
        Some(_) => {
            return Err(ApiError::param(
                "think",
                "`think` must be true, false, or a level",
            ));
        }
    }
    Ok(variables)
}

fn tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let given = fields.take_list("tools")?;
    let function = |mut tool: Value| match tool.get_mut("function")?.take() {
        Value::Object(function) => Some(function),
        _ => None,
    };
    let functions = given.into_iter().map(function);
    let functions = functions.collect::<Option<Vec<_>>>();
    let functions = functions
        .ok_or_else(|| ApiError::param("tools", "each of `tools` must have a `function`"))?;
    Tools::new(functions, "tools")
}

fn message(m: &Value, left: &Left) -> Result<Message, &'static str> {
    let text = |name: &str| m.get(name).and_then(Value::as_str);
    let role = match text("role") {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        _ => return Err("has a role that is none of system, developer, user, assistant, tool"),
    };
    if m.get("images")
        .is_some_and(|i| i.as_array().is_none_or(|i| !i.is_empty()) && !i.is_null())
    {
        return Err("has images: text only");
    }
    let content = match m.get("content") {
        None | Some(Value::Null) => "",
        Some(Value::String(s)) => s,
        Some(_) => return Err("has a content that is no string"),
    };
    let mut message = Message::new(role, content);
    message.reasoning = text("thinking")
        .filter(|t| !t.is_empty())
        .map(str::to_owned);
    message.name = text("tool_name")
        .or_else(|| text("name"))
        .map(str::to_owned);
    message.call_id = text("tool_call_id").map(str::to_owned);
    if let Some(Value::Array(calls)) = m.get("tool_calls") {
        if calls.len() > messages::MOST_CALLS {
            return Err("has more than 128 tool calls");
        }
        for (i, call) in calls.iter().enumerate() {
            let function = call
                .get("function")
                .ok_or("has a tool call without `function`")?;
            let name = function.get("name").and_then(Value::as_str);
            message.calls.push(ToolCall {
                // Ollama's calls had no ids for long; nine letters suit Mistral.
                id: match call.get("id").and_then(Value::as_str) {
                    Some(id) => id.to_owned(),
                    None => format!("call{i:05}"),
                },
                name: name.ok_or("has a tool call without a name")?.to_owned(),
                arguments: messages::arguments(function.get("arguments"), left),
            });
        }
    }
    Ok(message)
}
