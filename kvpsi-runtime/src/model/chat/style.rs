//! What a template's text says of its model: how tools are called, and whether
//! it thinks before it answers.
//!
//! Owns the families of tool calls. Each is as its model's card and template have
//! it. Out of scope: grammars of calls, and how an answer is taken apart.

use super::schema::decoded;
use serde_json::{Value, json};
use std::sync::Arc;

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
    pub json: Arc<Value>,
}

impl Tool {
    /// Its arguments are to follow their schema whenever it is called.
    #[must_use]
    pub fn strict(&self) -> bool {
        self.json["function"]["strict"] == true
    }

    /// The JSON schema of its arguments.
    #[must_use]
    pub fn parameters(&self) -> Value {
        match &self.json["function"]["parameters"] {
            Value::Object(schema) if !schema.is_empty() => decoded(Value::Object(schema.clone())),
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
    /// The mark that calls begin with; `None` where they are bare.
    #[must_use]
    pub fn mark(self) -> Option<&'static str> {
        Some(match self {
            Self::Hermes | Self::Xml => "<tool_call>",
            Self::Llama3 => "<|python_tag|>",
            Self::Mistral | Self::MistralArgs => "[TOOL_CALLS]",
            Self::Marked => "<|tool_call|>",
            Self::Harmony | Self::Json => return None,
        })
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
}
