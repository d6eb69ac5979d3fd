//! What a template's text says of its model: how tools are called, and whether
//! it thinks before it answers.
//!
//! Owns the families of tool calls and the grammar of a call that must come.
//! Each family is as its model's card and template have it. Out of scope: how
//! an answer is taken apart.

use super::xml;
use crate::model::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// How a family writes the calls of functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen,
    /// SmolLM3, Granite 4, and every model whose template knows no tools.
    Hermes,
    /// `<tool_call><function=NAME><parameter=KEY>...`: Qwen-Coder.
    Xml,
    /// `{"name": ..., "parameters": {...}}`: Llama 3.
    Llama3,
    /// `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`: Mistral.
    Mistral,
    /// `[TOOL_CALLS]NAME[ARGS]{...}`: Mistral since 2025.
    MistralArgs,
    /// `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>`: gpt-oss.
    Harmony,
    /// `<|tool_call|>[{"name": ..., "arguments": {...}}]`: Granite 3, Phi 4.
    Marked,
    /// `{"name": ..., "arguments": {...}}`: any other template with tools.
    Json,
}

/// What is known of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// The template writes tools, calls and results itself.
    pub native: bool,
    /// How calls are written; `None`: in a way that is not read here.
    pub format: Option<ToolFormat>,
    /// Answers may begin with thoughts between `<think>` and `</think>`.
    pub thinks: bool,
}

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// As the client sent it: `{"type": "function", "function": {...}}`.
    pub json: Value,
}

impl Tool {
    /// The JSON schema of its arguments.
    #[must_use]
    pub fn parameters(&self) -> Value {
        match &self.json["function"]["parameters"] {
            Value::Object(schema) if !schema.is_empty() => Value::Object(schema.clone()),
            _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        }
    }
}

impl Style {
    /// By the template's source.
    #[must_use]
    pub fn of(source: &str) -> Self {
        let has = |text: &str| source.contains(text);
        let native = has_word(source, "tools");
        let format = if has("<|channel|>") {
            Some(ToolFormat::Harmony)
        } else if !native {
            Some(ToolFormat::Hermes)
        } else if has("[TOOL_CALLS]") && has("[ARGS]") {
            Some(ToolFormat::MistralArgs)
        } else if has("[TOOL_CALLS]") {
            Some(ToolFormat::Mistral)
        } else if has("<start_function_call>") || has("<|tool_call>") {
            None
        } else if has("<parameter=") && has("<tool_call>") {
            Some(ToolFormat::Xml)
        } else if has("<tool_call>") {
            Some(ToolFormat::Hermes)
        } else if has("<|tool_call|>") {
            Some(ToolFormat::Marked)
        } else if has("<|python_tag|>") || has("\"parameters\"") {
            Some(ToolFormat::Llama3)
        } else {
            Some(ToolFormat::Json)
        };
        Self {
            native,
            format,
            thinks: has("<think>") || has("</think>"),
        }
    }
}

/// A word that is not part of another one.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(part) && !text[at + word.len()..].starts_with(part))
}

impl ToolFormat {
    /// A Lark grammar of calls that must come: one, or with `parallel` up to
    /// eight, of any of `tools`, each with arguments that its schema takes.
    ///
    /// # Errors
    /// A schema asks for what this form of calls cannot enforce.
    pub fn grammar(
        self,
        tools: &[Tool],
        parallel: bool,
        tokenizer: &Tokenizer,
    ) -> Result<String, String> {
        let special = |name: &str| special(tokenizer, name);
        let text = |text: &str| json!(text).to_string();
        let mut rules = String::new();
        let mut bodies = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            if self == Self::Xml {
                bodies.push(format!("t{i}"));
                rules.push_str(&xml::rules(tool, &format!("t{i}"))?);
                continue;
            }
            let key = match self {
                Self::Llama3 => "parameters",
                _ => "arguments",
            };
            let name = &tool.name;
            let (before, after) = match self {
                Self::MistralArgs => {
                    let begin = special("[TOOL_CALLS]");
                    (
                        format!("{begin} {} {}", text(name), special("[ARGS]")),
                        None,
                    )
                }
                Self::Harmony => {
                    let (channel, message) = (special("<|channel|>"), special("<|message|>"));
                    let head = text(&format!("commentary to=functions.{name} "));
                    let kind = special("<|constrain|>");
                    (format!("{channel} {head} {kind} \"json\" {message}"), None)
                }
                _ => {
                    let head = format!("{{\"name\": {}, \"{key}\": ", json!(name));
                    (text(&head), Some(text("}")))
                }
            };
            let mut schema = closed(tool.parameters());
            schema["x-guidance"] = json!({
                "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
            });
            bodies.push(format!("t{i}"));
            let after = after.unwrap_or_default();
            rules.push_str(&format!(
                "t{i}: {before} a{i} {after}\na{i}: %json {schema}\n"
            ));
        }
        let body = bodies.join(" | ");
        let more = |between: &str| match parallel {
            true => format!("call ({between} call){{0,7}}"),
            false => "call".to_owned(),
        };
        let (start, call) = match self {
            Self::Hermes | Self::Xml => {
                let (open, close) = (special("<tool_call>"), special("</tool_call>"));
                (
                    more("\"\\n\""),
                    format!("{open} \"\\n\" body \"\\n\" {close}"),
                )
            }
            Self::Mistral => {
                let calls = more("\", \"");
                (
                    format!("{} \"[\" {calls} \"]\"", special("[TOOL_CALLS]")),
                    "body".into(),
                )
            }
            Self::Marked => {
                let calls = more("\", \"");
                (
                    format!("{} \"[\" {calls} \"]\"", special("<|tool_call|>")),
                    "body".into(),
                )
            }
            Self::MistralArgs => (more(""), "body".into()),
            // One at a time: that is how they are written.
            Self::Llama3 | Self::Harmony | Self::Json => ("call".into(), "body".into()),
        };
        Ok(format!(
            "start: {start}\ncall: {call}\nbody: {body}\n{rules}"
        ))
    }

    /// What an answer of this family has before its text, for a grammar of the
    /// text: a Lark expression.
    #[must_use]
    pub fn before_text(self, tokenizer: &Tokenizer) -> Option<String> {
        let special = |name: &str| special(tokenizer, name);
        (self == Self::Harmony && tokenizer.token("<|message|>").is_some()).then(|| {
            format!(
                "{} \"final\" {}",
                special("<|channel|>"),
                special("<|message|>")
            )
        })
    }
}

/// A schema whose objects have no properties but those that it names, where it
/// does not say: a function has no use for others. Parts of an `allOf` stay open:
/// they name what others of them have.
pub(super) fn closed(mut schema: Value) -> Value {
    let Some(fields) = schema.as_object_mut() else {
        return schema;
    };
    for (key, value) in fields.iter_mut() {
        match (key.as_str(), value) {
            ("properties" | "$defs" | "definitions", Value::Object(all)) => {
                all.values_mut().for_each(|v| *v = closed(v.take()));
            }
            ("anyOf" | "oneOf" | "prefixItems", Value::Array(all)) => {
                all.iter_mut().for_each(|v| *v = closed(v.take()));
            }
            ("items", items) => *items = closed(items.take()),
            _ => {}
        }
    }
    let says = ["additionalProperties", "patternProperties", "allOf", "$ref"];
    if fields.contains_key("properties") && !says.iter().any(|key| fields.contains_key(*key)) {
        fields.insert("additionalProperties".into(), Value::Bool(false));
    }
    schema
}

/// A control token by its number, or the text where there is no such token.
fn special(tokenizer: &Tokenizer, name: &str) -> String {
    match tokenizer.token(name).filter(|id| tokenizer.is_control(*id)) {
        Some(id) => format!("<[{id}]>"),
        None => json!(name).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_is_read_from_the_template() {
        let of = |source: &str| Style::of(source).format;
        for (source, want) in [
            ("{{ messages }}", Some(ToolFormat::Hermes)),
            (
                "{{ message.tool_calls }} {{ tools_in_user }}",
                Some(ToolFormat::Hermes),
            ),
            (
                "{% if tools %}<tool_call>{% endif %}",
                Some(ToolFormat::Hermes),
            ),
            (
                "{% if tools %}[TOOL_CALLS]{% endif %}",
                Some(ToolFormat::Mistral),
            ),
            (
                "{{ tools }}[TOOL_CALLS]x[ARGS]",
                Some(ToolFormat::MistralArgs),
            ),
            ("{{ tools }}<|python_tag|>", Some(ToolFormat::Llama3)),
            ("{{ tools }}<|tool_call|>", Some(ToolFormat::Marked)),
            ("{{ tools }}<|channel|>", Some(ToolFormat::Harmony)),
            (
                "{{ tools }}<tool_call><function=f><parameter=x>",
                Some(ToolFormat::Xml),
            ),
            ("{{ tools }}<start_function_call>call:f{}", None),
            ("{{ tools }}", Some(ToolFormat::Json)),
        ] {
            assert_eq!(of(source), want, "{source}");
        }
        assert!(!Style::of("{{ message.tool_calls }}").native);
        assert!(Style::of("{{ '<think>' }}").thinks);
    }

    #[test]
    fn arguments_have_no_properties_that_their_schema_does_not_name() {
        let schema = json!({
            "properties": {
                "a": {"properties": {"b": {"type": "string"}}},
                "c": {"anyOf": [{"properties": {}}, {"type": "null"}]},
                "d": {"properties": {}, "additionalProperties": true},
            },
        });
        let closed = closed(schema);
        assert_eq!(closed["additionalProperties"], false);
        assert_eq!(closed["properties"]["a"]["additionalProperties"], false);
        assert_eq!(
            closed["properties"]["c"]["anyOf"][0]["additionalProperties"],
            false
        );
        assert_eq!(closed["properties"]["d"]["additionalProperties"], true);
        assert!(
            closed["properties"]["c"]
                .get("additionalProperties")
                .is_none()
        );
    }
}
