//! Grammars of calls: of calls that must come, and of an answer that may have some.
//!
//! Owns the way from functions and their schemas to a Lark grammar in the form of
//! each family. Where a call may come the text before it is free, but for the mark
//! that calls begin with: what the parser would take for a call is one. Out of
//! scope: how an answer is taken apart.

use super::{Tool, ToolFormat, schema::closed, xml};
use crate::model::tokenizer::Tokenizer;
use serde_json::json;

/// A thought that the template began, and white space after it: what comes before
/// the answer, for [`crate::engine::Grammars::compile`]. Its first end ends it,
/// whether that is a control token or a text.
#[must_use]
pub fn rest_of_thought(tokenizer: &Tokenizer) -> String {
    let close = special(tokenizer, "</think>");
    let thought = match close.starts_with('<') {
        true => format!("thinking? {close} blank?\nthinking: /(?s:.+)/"),
        // Lazy: nothing behind the mark is part of it.
        false => format!("thinking blank?\nthinking[suffix={close}]: /(?s:.*)/"),
    };
    format!("{thought}\nblank: /\\s{{1,2}}/")
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
        let rules = self.bodies(tools, tokenizer, false)?;
        let calls = self.calls(parallel, tokenizer, false);
        Ok(format!("start: calls\n{calls}{rules}"))
    }

    /// A Lark grammar of an answer that is free until it calls a function: such a
    /// call is of one of `tools`, and with arguments that its schema takes where
    /// the function is strict. `thinks`: the answer may begin with a thought.
    /// `None`: calls of this family cannot be told from text by a grammar.
    ///
    /// # Errors
    /// A schema asks for what this form of calls cannot enforce.
    pub fn free_grammar(
        self,
        tools: &[Tool],
        parallel: bool,
        thinks: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Option<String>, String> {
        // The channels of an answer are the model's own.
        if self == Self::Harmony {
            return Ok(None);
        }
        let bare = matches!(self, Self::Llama3 | Self::Json);
        let mark = self.mark();
        let control = mark.is_some_and(|m| special(tokenizer, m).starts_with('<'));
        let opened = !bare && !control;
        let rules = self.bodies(tools, tokenizer, true)?;
        let calls = self.calls(parallel, tokenizer, opened);
        let mut free = "/(?s:.+)/".to_owned();
        let mut no = |regex: String| free.push_str(&format!(" & ~/{regex}/"));
        if let Some(mark) = mark {
            // As text, too: the parser reads texts.
            no(format!("(?s:.*){}(?s:.*)", escaped(mark)));
        }
        if bare {
            no(r"\s*[\[\{](?s:.*)".into());
        }
        let mut more = String::new();
        let (mut thought, mut unthought) = ("", "");
        if thinks {
            no(r"\s*<think>(?s:.*)".into());
            (thought, unthought) = ("thought? ", r" & ~/\s*<think>(?s:.*)/");
            let (open, close) = (
                special(tokenizer, "<think>"),
                special(tokenizer, "</think>"),
            );
            more.push_str(&match (open.starts_with('<'), close.starts_with('<')) {
                (true, true) => format!("thought: {open} thinking? {close}\nthinking: /(?s:.+)/\n"),
                (true, false) => {
                    format!("thought: {open} thinking\nthinking[suffix=\"</think>\"]: /(?s:.*)/\n")
                }
                (false, _) => "thought[suffix=\"</think>\"]: /\\s*<think>(?s:.*)/\n".to_owned(),
            });
        }
        let answer = if opened {
            let mark = json!(mark.unwrap_or_default());
            // Lazy: the mark ends it, whatever comes.
            more.push_str(&format!("head[suffix={mark}]: /(?s:.*)/{unthought}\n"));
            "FREE? | head calls"
        } else if bare {
            "FREE? | calls"
        } else {
            "FREE? calls?"
        };
        Ok(Some(format!(
            "start: {thought}answer\nanswer: {answer}\nFREE: {free}\n{more}{calls}{rules}"
        )))
    }

    /// Rules of `calls`. `opened`: the mark of the first one was there already.
    fn calls(self, parallel: bool, tokenizer: &Tokenizer, opened: bool) -> String {
        let mark = self.mark().map(|m| special(tokenizer, m));
        let mark = mark.unwrap_or_default();
        let first = if opened { "" } else { &mark };
        let more = |next: &str| match parallel {
            true => format!("({next}){{0,7}}"),
            false => String::new(),
        };
        match self {
            Self::Hermes | Self::Xml => {
                let close = special(tokenizer, "</tool_call>");
                let more = more(&format!("\"\\n\" {mark} call"));
                format!("calls: {first} call {more}\ncall: \"\\n\" body \"\\n\" {close}\n")
            }
            Self::Mistral | Self::Marked => {
                let more = more("\", \" body");
                format!("calls: {first} \"[\" body {more} \"]\"\n")
            }
            Self::MistralArgs => {
                let more = more(&format!("{mark} body"));
                format!("calls: {first} body {more}\n")
            }
            // One at a time: that is how they are written.
            Self::Llama3 | Self::Harmony | Self::Json => "calls: body\n".into(),
        }
    }

    /// Rules of `body`: a function and its arguments, which may be any unless
    /// the function is strict or must be called (not `free`).
    fn bodies(self, tools: &[Tool], tokenizer: &Tokenizer, free: bool) -> Result<String, String> {
        let special = |name: &str| special(tokenizer, name);
        let text = |text: &str| json!(text).to_string();
        let mut rules = String::new();
        let mut bodies = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            let held = !free || tool.strict();
            bodies.push(format!("t{i}"));
            if self == Self::Xml && held {
                rules.push_str(&xml::rules(tool, &format!("t{i}"))?);
                continue;
            }
            let name = &tool.name;
            if self == Self::Xml {
                let head = text(&format!("<function={name}>\n"));
                rules.push_str(&format!(
                    "t{i}: {head} a{i}\na{i}[suffix=\"</function>\"]: /(?s:.*)/\n"
                ));
                continue;
            }
            let key = match self {
                Self::Llama3 => "parameters",
                _ => "arguments",
            };
            let (before, after) = match self {
                Self::MistralArgs => (format!("{} {}", text(name), special("[ARGS]")), None),
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
            let mut schema = match held {
                true => closed(tool.parameters()),
                false => json!({"type": "object"}),
            };
            schema["x-guidance"] = json!({
                "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
            });
            let after = after.unwrap_or_default();
            rules.push_str(&format!(
                "t{i}: {before} a{i} {after}\na{i}: %json {schema}\n"
            ));
        }
        Ok(format!("body: {}\n{rules}", bodies.join(" | ")))
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

/// A text in a regular expression of Lark.
fn escaped(text: &str) -> String {
    let mut regex = String::new();
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() && !"<>_".contains(c) {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex
}

/// A control token by its number, or the text where there is no such token.
fn special(tokenizer: &Tokenizer, name: &str) -> String {
    match tokenizer.token(name).filter(|id| tokenizer.is_control(*id)) {
        Some(id) => format!("<[{id}]>"),
        None => json!(name).to_string(),
    }
}
