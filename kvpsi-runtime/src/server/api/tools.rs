//! Functions that a model may call, and what an answer must be.
//!
//! Owns `tools`, `tool_choice`, `parallel_tool_calls`, `response_format` and the
//! fields of vLLM, SGLang and llama.cpp for guided decoding. Out of scope:
//! whether a grammar compiles.

use super::{
    fields::Fields,
    is_nothing,
    values::{Left, bytes},
};
use crate::{
    engine::{Grammar, gbnf},
    model::chat::Tool,
    server::error::ApiError,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Most functions.
const MOST_TOOLS: usize = 256;
/// Longest name of one, in bytes.
const LONGEST_NAME: usize = 128;
/// Most bytes of all functions, as JSON: twice what one grammar may have.
const MOST_BYTES: usize = 256 << 10;

/// Whether functions are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model sees fit.
    #[default]
    Auto,
    /// No.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// Functions, and how they are called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools {
    /// The functions that may be called.
    pub all: Vec<Tool>,
    /// Whether.
    pub choice: ToolChoice,
    /// At most one call an answer.
    pub one_call: bool,
}

impl Tools {
    /// Those that the model is told of: none where none may be called.
    #[must_use]
    pub fn told(&self) -> &[Tool] {
        match self.choice {
            ToolChoice::None => &[],
            _ => &self.all,
        }
    }

    /// Those that one must be called of.
    #[must_use]
    pub fn forced(&self) -> Option<Vec<Tool>> {
        match &self.choice {
            ToolChoice::Auto | ToolChoice::None => None,
            ToolChoice::Required => Some(self.all.clone()),
            ToolChoice::Named(name) => Some(
                self.all
                    .iter()
                    .filter(|t| t.name == *name)
                    .cloned()
                    .collect(),
            ),
        }
    }

    /// Functions by their definitions, each an object with `name`,
    /// `description` and `parameters`.
    ///
    /// # Errors
    /// Too many, or one is not what it must be; the error names `param`.
    pub fn new(functions: Vec<Map<String, Value>>, param: &str) -> Result<Self, ApiError> {
        let bad = |why: String| Err(ApiError::param(param, why));
        if functions.len() > MOST_TOOLS {
            return bad(format!("`{param}` has more than {MOST_TOOLS} functions"));
        }
        let size = functions.iter().map(bytes).fold(0, usize::saturating_add);
        if size > MOST_BYTES {
            return bad(format!(
                "`{param}` has {size} bytes, and {MOST_BYTES} are taken"
            ));
        }
        let mut all: Vec<Tool> = Vec::with_capacity(functions.len());
        for (i, function) in functions.into_iter().enumerate() {
            let name = function
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
            if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
                return bad(format!(
                    "`{param}[{i}]`: a name must have 1 to {LONGEST_NAME} letters, digits, `_`, `-` or `.`"
                ));
            }
            if all.iter().any(|t| t.name == name) {
                return bad(format!("`{param}[{i}]`: there are two functions `{name}`"));
            }
            if !matches!(
                function.get("parameters"),
                None | Some(Value::Null | Value::Object(_))
            ) {
                return bad(format!(
                    "`{param}[{i}]`: `parameters` must be a JSON schema"
                ));
            }
            let name = name.to_owned();
            let mut tool = Map::new();
            tool.insert("type".into(), json!("function"));
            tool.insert("function".into(), Value::Object(function));
            all.push(Tool {
                name,
                json: Arc::new(Value::Object(tool)),
            });
        }
        Ok(Self {
            all,
            ..Self::default()
        })
    }

    /// Chooses, where that is possible.
    ///
    /// # Errors
    /// There are no functions, or not that one; the error names `param`.
    pub fn choose(&mut self, choice: ToolChoice, param: &str) -> Result<(), ApiError> {
        let wrong = match &choice {
            ToolChoice::Required if self.all.is_empty() => Some("it needs `tools`".to_owned()),
            ToolChoice::Named(name) if !self.all.iter().any(|t| t.name == *name) => {
                Some(format!("`tools` has no function `{name}`"))
            }
            _ => None,
        };
        if let Some(why) = wrong {
            return Err(ApiError::param(param, format!("`{param}`: {why}")));
        }
        self.choice = choice;
        Ok(())
    }
}

/// `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let given = fields.take_list("tools")?;
    let mut functions = Vec::with_capacity(given.len());
    for (i, mut tool) in given.into_iter().enumerate() {
        let function = tool.get_mut("function").map(Value::take);
        match (tool.get("type").and_then(Value::as_str), function) {
            (Some("function"), Some(Value::Object(function))) => functions.push(function),
            (Some("function") | None, _) => {
                return Err(ApiError::param(
                    "tools",
                    format!("`tools[{i}]` must have `type: function` and a `function`"),
                ));
            }
            (Some(_), _) => {
                return Err(ApiError::unsupported(
                    "tools",
                    "only tools of the type `function`",
                ));
            }
        }
    }
    let mut tools = Tools::new(functions, "tools")?;
    tools.one_call = fields.flag("parallel_tool_calls")? == Some(false);
    let choice = match fields.get("tool_choice") {
        None => return Ok(tools),
        Some(Value::String(s)) => match s.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            _ => {
                return Err(ApiError::param(
                    "tool_choice",
                    "`tool_choice` must be none, auto, required, or a function",
                ));
            }
        },
        Some(object) => {
            let name = object.get("function").and_then(|f| f.get("name"));
            match name.and_then(Value::as_str) {
                Some(name) => ToolChoice::Named(name.to_owned()),
                None => {
                    return Err(ApiError::unsupported(
                        "tool_choice",
                        "only none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": ...}}",
                    ));
                }
            }
        }
    };
    tools.choose(choice, "tool_choice")?;
    Ok(tools)
}

/// What the answer must be, by whichever field says so; two are an error. `found`:
/// what a field of another API says.
pub(in crate::server) fn grammar(
    fields: &Fields,
    found: Option<(String, Grammar)>,
) -> Result<Option<(String, Grammar)>, ApiError> {
    let mut found = found;
    let mut add = |name: &str, grammar: Option<Grammar>| match (grammar, &found) {
        (None, _) => Ok(()),
        (Some(_), Some((other, _))) => Err(ApiError::param(
            name,
            format!("`{name}` and `{other}` cannot be obeyed together"),
        )),
        (Some(grammar), None) => {
            found = Some((name.to_owned(), grammar));
            Ok(())
        }
    };
    if let Some(format) = fields.get("response_format") {
        let name = "response_format";
        add(name, response_format(format, name)?)?;
    }
    for (name, kind) in [
        ("guided_json", "json"),
        ("json_schema", "json"),
        ("guided_regex", "regex"),
        ("regex", "regex"),
        ("guided_choice", "choice"),
        ("guided_grammar", "grammar"),
        ("grammar", "grammar"),
    ] {
        if let Some(value) = fields.get(name).filter(|v| !is_no_grammar(v)) {
            add(name, Some(guided(name, kind, value, &fields.left)?))?;
        }
    }
    if let Some(outputs) = fields.get("structured_outputs") {
        let Value::Object(outputs) = outputs else {
            let why = "`structured_outputs` must be an object";
            return Err(ApiError::param("structured_outputs", why));
        };
        for (key, value) in outputs {
            let name = format!("structured_outputs.{key}");
            match key.as_str() {
                "json" | "regex" | "choice" | "grammar" if is_no_grammar(value) => {}
                "json" | "regex" | "choice" | "grammar" => {
                    add(&name, Some(guided(&name, key, value, &fields.left)?))?;
                }
                _ if is_nothing(value) => {}
                "json_object" => add(&name, Some(Grammar::json_object()))?,
                _ => {
                    return Err(ApiError::unsupported(
                        &name,
                        "only json, regex, choice, grammar and json_object",
                    ));
                }
            }
        }
    }
    Ok(found)
}

/// Whether a value is none of a grammar. `{}` is the schema of any JSON.
fn is_no_grammar(v: &Value) -> bool {
    is_nothing(v) && !v.is_object()
}

/// OpenAI's `response_format`, and the `schema` that llama.cpp takes beside
/// `json_object`.
pub(in crate::server) fn response_format(
    format: &Value,
    name: &str,
) -> Result<Option<Grammar>, ApiError> {
    let param = |why: &str| ApiError::param(name, format!("`{name}` {why}"));
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(match format.get("schema") {
            None | Some(Value::Null) => Grammar::json_object(),
            Some(schema) => Grammar::Schema(schema.clone()),
        })),
        Some("json_schema") => {
            let inner = format.get("json_schema").unwrap_or(format);
            match inner.get("schema") {
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
                    Ok(Some(Grammar::Schema(schema.clone())))
                }
                _ => Err(param("needs `json_schema` with a `schema`")),
            }
        }
        Some(_) => Err(ApiError::unsupported(
            name,
            "only `text`, `json_object` and `json_schema`",
        )),
        None => Err(param("must be an object with a `type`")),
    }
}

fn guided(name: &str, kind: &str, value: &Value, left: &Left) -> Result<Grammar, ApiError> {
    let bad = |what: &str| ApiError::param(name, format!("`{name}` must be {what}"));
    match kind {
        "json" => match value {
            Value::Object(_) | Value::Bool(_) => Ok(Grammar::Schema(value.clone())),
            Value::String(text) => {
                let schema = left.parse(text.as_bytes());
                schema
                    .map(Grammar::Schema)
                    .map_err(|e| bad(&format!("a JSON schema ({e})")))
            }
            _ => Err(bad("a JSON schema")),
        },
        "choice" => {
            let texts = value
                .as_array()
                .map(|all| all.iter().map(|t| t.as_str().map(str::to_owned)));
            let texts = texts.and_then(Iterator::collect::<Option<Vec<String>>>);
            let texts = texts.filter(|t| !t.is_empty() && t.iter().all(|t| !t.is_empty()));
            texts
                .map(Grammar::Choice)
                .ok_or_else(|| bad("an array of texts"))
        }
        _ => {
            let text = value.as_str().ok_or_else(|| bad("a string"))?.to_owned();
            match kind {
                "regex" => Ok(Grammar::Regex(text)),
                _ if gbnf::is(&text) => Ok(Grammar::Gbnf(text)),
                _ => Ok(Grammar::Lark(text)),
            }
        }
    }
}
