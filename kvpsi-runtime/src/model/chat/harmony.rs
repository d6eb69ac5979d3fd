//! Answers in gpt-oss' harmony format: channels, each with a header.
//!
//! Owns the way from channels to parts: `analysis` is thought, `final` and
//! `commentary` are said, what goes `to=functions.NAME` is a call (openai/harmony,
//! `docs/format.md`). Out of scope: the prompt.

use super::part::{Part, sure};

const MARKS: [&str; 7] = [
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|start|>",
    "<|call|>",
    "<|return|>",
    "<|constrain|>",
];

/// What the text that comes belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Within {
    /// Nothing was named: it is said.
    #[default]
    Bare,
    /// The head of a message.
    Head(String),
    Thought,
    Text,
    Call(String),
    /// Between two messages.
    Nothing,
}

/// Takes an answer apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Harmony {
    within: Within,
    held: String,
    arguments: String,
}

impl Harmony {
    pub fn in_thought(&self) -> bool {
        self.within == Within::Thought
    }

    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        loop {
            let first = MARKS.iter().filter_map(|m| Some((self.held.find(m)?, *m)));
            let Some((at, mark)) = first.min_by_key(|(at, _)| *at) else {
                let sure = MARKS.iter().map(|m| sure(&self.held, m)).min();
                let text: String = self.held.drain(..sure.unwrap_or(0)).collect();
                self.take(&text, &mut parts);
                return parts;
            };
            let text = self.held[..at].to_owned();
            self.held.drain(..at + mark.len());
            self.take(&text, &mut parts);
            self.mark(mark, &mut parts);
        }
    }

    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let rest = std::mem::take(&mut self.held);
        self.take(&rest, &mut parts);
        self.end(&mut parts);
        parts
    }

    fn take(&mut self, text: &str, parts: &mut Vec<Part>) {
        if text.is_empty() {
            return;
        }
        match &mut self.within {
            Within::Head(head) => head.push_str(text),
            Within::Thought => parts.push(Part::Thought(text.to_owned())),
            Within::Bare | Within::Text => parts.push(Part::Text(text.to_owned())),
            Within::Call(_) => self.arguments.push_str(text),
            Within::Nothing => {}
        }
    }

    fn mark(&mut self, mark: &str, parts: &mut Vec<Part>) {
        match (mark, &mut self.within) {
            ("<|message|>", Within::Head(head)) => self.within = named(head),
            // `<|constrain|>json` says how the arguments are written, and a role
            // may name the function before the channel.
            ("<|constrain|>" | "<|channel|>", Within::Head(head)) => head.push(' '),
            ("<|start|>" | "<|channel|>", _) => {
                self.end(parts);
                self.within = Within::Head(String::new());
            }
            _ => self.end(parts),
        }
    }

    /// The end of a message.
    fn end(&mut self, parts: &mut Vec<Part>) {
        if let Within::Call(name) = &mut self.within {
            parts.push(Part::Call {
                name: std::mem::take(name),
                arguments: std::mem::take(&mut self.arguments).trim().to_owned(),
            });
        }
        self.within = Within::Nothing;
    }
}

fn named(head: &str) -> Within {
    let call = head.split_whitespace().find_map(|w| w.strip_prefix("to="));
    match call {
        Some(to) => Within::Call(to.strip_prefix("functions.").unwrap_or(to).to_owned()),
        None if head.split_whitespace().any(|w| w == "analysis") => Within::Thought,
        None => Within::Text,
    }
}
