//! An answer taken apart while it comes: thoughts, text, calls of functions.
//!
//! Owns the way back from what a family writes ([`ToolFormat`]). Invariants:
//! whatever pieces the text comes in, the parts are the same; nothing is lost:
//! what looks like a call and is none is text. Text leaves as soon as it cannot
//! be part of a call; a call leaves when it is whole, or cut off at the end.
//! Out of scope: the shapes that clients want.

use super::{
    Style, Tool, ToolFormat,
    harmony::Harmony,
    part::{CALL_END, Part, sure},
    xml::{self, Function},
};
use serde_json::Value;
use std::sync::Arc;

const THINK: (&str, &str) = ("<think>", "</think>");

/// Takes one answer apart.
#[derive(Clone, Debug)]
pub struct AnswerParser {
    /// How calls are written, where functions may be called.
    format: Option<ToolFormat>,
    functions: Arc<[Function]>,
    thinks: bool,
    state: State,
    held: String,
    /// Up to here no mark ends the call that is held.
    open_until: usize,
    /// White space at the beginning of the next text is not part of it.
    trim: bool,
    /// Calls without a mark are none.
    marked: bool,
    harmony: Option<Harmony>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space yet.
    Start,
    Thought,
    Text,
    /// Between the marks of a call.
    Call,
    /// All that comes is calls.
    Calls,
}

impl AnswerParser {
    /// For an answer by a model of `style` that may call `tools`. `thinking`: its
    /// first text is a thought already. `None` where all of an answer is text.
    #[must_use]
    pub fn new(style: Style, tools: &[Tool], thinking: bool) -> Option<Self> {
        let harmony = style.format == Some(ToolFormat::Harmony);
        let format = style.format.filter(|_| !tools.is_empty());
        let plain = format.is_none() && !style.thinks && !thinking && !harmony;
        (!plain).then(|| Self {
            format,
            functions: (format.into_iter())
                .flat_map(|format| tools.iter().map(move |tool| Function::new(tool, format)))
                .collect(),
            thinks: style.thinks || thinking,
            state: if thinking {
                State::Thought
            } else {
                State::Start
            },
            held: String::new(),
            open_until: 0,
            trim: thinking,
            marked: false,
            harmony: harmony.then(Harmony::default),
        })
    }

    /// The same for an answer that a grammar holds to the family's form: where
    /// calls have a mark, JSON without one is a text.
    #[must_use]
    pub fn held(self) -> Self {
        let bare = matches!(self.format, Some(ToolFormat::Llama3 | ToolFormat::Json));
        Self {
            marked: !bare,
            ..self
        }
    }

    /// Whether what comes next is part of a thought, as far as is known.
    #[must_use]
    pub fn in_thought(&self) -> bool {
        match &self.harmony {
            Some(harmony) => harmony.in_thought(),
            None => self.state == State::Thought,
        }
    }

    /// Takes a piece of the answer: the parts that are sure by now.
    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        if let Some(harmony) = &mut self.harmony {
            return harmony.push(piece);
        }
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.step(&mut parts, false) {}
        parts
    }

    /// The rest, once no more comes.
    pub fn finish(&mut self) -> Vec<Part> {
        if let Some(harmony) = &mut self.harmony {
            return harmony.finish();
        }
        let mut parts = Vec::new();
        while self.step(&mut parts, true) {}
        let held = std::mem::take(&mut self.held);
        match self.state {
            // After a call, the beginning of another one's mark.
            State::Text if self.trim && self.open().is_some_and(|o| o.starts_with(held.trim())) => {
            }
            State::Start | State::Text => self.text(&held, &mut parts),
            State::Thought => thought(held.trim_end(), &mut parts),
            State::Call | State::Calls => {
                let (calls, rest) = self.calls(&held);
                if held.trim().is_empty() && self.trim {
                    // Cut off behind the mark: there is nothing of a call yet.
                } else if calls.is_empty() && self.state == State::Call && is_begun(&held) {
                    // Cut off before its arguments.
                    parts.extend(name_of(&held).map(|name| Part::Call {
                        name: name.to_owned(),
                        arguments: String::new(),
                    }));
                } else if calls.is_empty() {
                    // It was no call: it is told as it was written.
                    let open = self.open().filter(|_| self.marked(&held));
                    let text = format!("{}{held}", open.unwrap_or_default());
                    self.trim = false;
                    self.text(&text, &mut parts);
                } else {
                    parts.extend(calls);
                    self.trim = true;
                    // Cut off within the mark that ends a call.
                    if !(self.state == State::Call && CALL_END.starts_with(rest.trim())) {
                        self.text(rest, &mut parts);
                    }
                }
            }
        }
        parts
    }

    /// The mark that calls begin with.
    fn open(&self) -> Option<&'static str> {
        self.format?.mark()
    }

    /// Whether what is held came after a mark, and not as bare JSON.
    fn marked(&self, held: &str) -> bool {
        self.state == State::Call || self.trim || !held.trim_start().starts_with(['{', '['])
    }

    /// One step; false when more text is needed. `over`: no more comes.
    fn step(&mut self, parts: &mut Vec<Part>, over: bool) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Thought => {
                if let Some((inside, rest)) = self.held.split_once(THINK.1) {
                    let rest = rest.to_owned();
                    let inside = if self.trim {
                        inside.trim_start()
                    } else {
                        inside
                    };
                    thought(inside.trim_end(), parts);
                    (self.state, self.held, self.trim) = (State::Text, rest, true);
                    return true;
                }
                if self.trim {
                    self.held = self.held.trim_start().to_owned();
                }
                let sure = sure(&self.held, THINK.1);
                let sure = self.held[..sure].trim_end().len();
                thought(&self.held[..sure], parts);
                self.trim &= sure == 0;
                self.held.drain(..sure);
                false
            }
            State::Text => {
                let Some(open) = self.open() else {
                    let held = std::mem::take(&mut self.held);
                    self.text(&held, parts);
                    return false;
                };
                if let Some((before, after)) = self.held.split_once(open) {
                    let (before, after) = (before.trim_end().to_owned(), after.to_owned());
                    self.text(&before, parts);
                    self.state = self.call_state();
                    (self.held, self.trim) = (after, true);
                    return true;
                }
                let sure = sure(&self.held, open);
                let sure = self.held[..sure].trim_end().len();
                let text: String = self.held.drain(..sure).collect();
                self.text(&text, parts);
                false
            }
            State::Call => {
                let Some(at) = self.closed(over) else {
                    return false;
                };
                self.open_until = 0;
                let (inside, rest) = (&self.held[..at], &self.held[at + CALL_END.len()..]);
                let (calls, left) = self.calls(inside);
                if calls.is_empty() || !left.trim().is_empty() {
                    let text = format!("<tool_call>{inside}{CALL_END}");
                    let rest = rest.to_owned();
                    self.trim = false;
                    self.text(&text, parts);
                    self.held = rest;
                } else {
                    self.held = rest.to_owned();
                    parts.extend(calls);
                    self.trim = true;
                }
                self.state = State::Text;
                true
            }
            State::Calls => false,
        }
    }

    /// Where a call ends: at the first mark that does not lie within a text of its
    /// arguments, or the first of all where that text has no end. Each mark is looked
    /// at once: an answer may be full of them.
    fn closed(&mut self, over: bool) -> Option<usize> {
        while let Some(at) = self.held[self.open_until..].find(CALL_END) {
            let at = self.open_until + at;
            let within = match self.format {
                Some(ToolFormat::Xml) => xml::is_open(&self.held[..at]),
                _ => in_text(&self.held[..at]),
            };
            if !within {
                return Some(at);
            }
            self.open_until = at + CALL_END.len();
        }
        self.held.find(CALL_END).filter(|_| over)
    }

    /// Whether the answer begins with a thought, or is a call as a whole.
    fn start(&mut self) -> bool {
        let begun = self.held.trim_start();
        if begun.is_empty() {
            return false;
        }
        if self.thinks {
            if let Some(rest) = begun.strip_prefix(THINK.0) {
                (self.state, self.held, self.trim) = (State::Thought, rest.to_owned(), true);
                return true;
            }
            if THINK.0.starts_with(begun) {
                return false;
            }
        }
        use ToolFormat::{Harmony, Mistral, MistralArgs, Xml};
        let bare = !matches!(
            self.format,
            None | Some(Mistral | MistralArgs | Harmony | Xml)
        );
        self.state = if bare && !self.marked && begun.starts_with(['{', '[']) {
            State::Calls
        } else {
            State::Text
        };
        true
    }

    fn call_state(&self) -> State {
        match self.format {
            Some(ToolFormat::Hermes | ToolFormat::Xml) => State::Call,
            _ => State::Calls,
        }
    }

    fn text(&mut self, text: &str, parts: &mut Vec<Part>) {
        let text = if self.trim { text.trim_start() } else { text };
        if !text.is_empty() {
            self.trim = false;
            parts.push(Part::Text(text.to_owned()));
        }
    }

    /// The calls that a text is, and what comes after them.
    fn calls<'a>(&self, text: &'a str) -> (Vec<Part>, &'a str) {
        match self.format {
            Some(ToolFormat::MistralArgs) => named_calls(text),
            Some(ToolFormat::Xml) => match xml::call(text, &self.functions) {
                Some((call, rest)) => (vec![call], rest),
                None => (Vec::new(), text),
            },
            _ => {
                let bare = self.state == State::Calls && !self.marked(text);
                let known = |name: &str| !bare || self.functions.iter().any(|f| f.name == name);
                json_calls(text, &known)
            }
        }
    }
}

fn thought(text: &str, parts: &mut Vec<Part>) {
    if !text.is_empty() {
        parts.push(Part::Thought(text.to_owned()));
    }
}

/// JSON objects one after another, in an array or not, each a call of a `known`
/// function. One that is cut off is a call as far as it goes.
fn json_calls<'a>(text: &'a str, known: &dyn Fn(&str) -> bool) -> (Vec<Part>, &'a str) {
    let mut calls = Vec::new();
    let mut rest = text;
    loop {
        let next = rest.trim_start_matches(|c: char| c.is_whitespace() || "[],;".contains(c));
        if !next.starts_with('{') {
            return (calls, if next.is_empty() { next } else { rest });
        }
        let mut values = serde_json::Deserializer::from_str(next).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => match call_of(&value).filter(|(name, _)| known(name)) {
                Some((name, arguments)) => calls.push(Part::Call { name, arguments }),
                None => return (calls, rest),
            },
            Some(Err(e)) if e.is_eof() => {
                return match cut_off(next).filter(|(name, _)| known(name)) {
                    Some((name, arguments)) => {
                        calls.push(Part::Call { name, arguments });
                        (calls, "")
                    }
                    None => (calls, rest),
                };
            }
            _ => return (calls, rest),
        }
        rest = &next[values.byte_offset()..];
    }
}

/// The function and its arguments, whatever names a family has for them.
fn call_of(value: &Value) -> Option<(String, String)> {
    if let Some(inner) = value.get("function").filter(|f| f.is_object()) {
        return call_of(inner);
    }
    let name = value
        .get("name")
        .or_else(|| value.get("function"))?
        .as_str()?;
    let arguments = value.get("arguments").or_else(|| value.get("parameters"));
    let arguments = match arguments {
        None | Some(Value::Null) => "{}".to_owned(),
        // Some write the text of it.
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    Some((name.to_owned(), arguments))
}

/// A call that ended in the middle of its arguments.
fn cut_off(text: &str) -> Option<(String, String)> {
    let arguments = after(text, "arguments").or_else(|| after(text, "parameters"))?;
    Some((name_of(text)?.to_owned(), arguments.to_owned()))
}

/// What comes after a key of an object.
fn after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let rest = text.split_once(&format!("\"{key}\""))?.1.trim_start();
    Some(rest.strip_prefix(':')?.trim_start())
}

fn name_of(text: &str) -> Option<&str> {
    let quoted = after(text, "name")?.strip_prefix('"')?;
    Some(quoted.split_once('"')?.0)
}

/// Whether an object ends within a text.
fn in_text(json: &str) -> bool {
    if !json.trim_start().starts_with('{') {
        return false;
    }
    let (mut within, mut escaped) = (false, false);
    for b in json.bytes() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = within,
            b'"' => within = !within,
            _ => {}
        }
    }
    within
}

/// An object that ends too soon.
fn is_begun(text: &str) -> bool {
    let text = text.trim();
    let parsed = serde_json::from_str::<Value>(text);
    text.starts_with('{') && parsed.is_err_and(|e| e.is_eof())
}

/// `NAME[ARGS]{...}`, one after another, each after the mark but the first.
fn named_calls(text: &str) -> (Vec<Part>, &str) {
    let mut calls = Vec::new();
    for call in text.split("[TOOL_CALLS]") {
        let Some((name, arguments)) = call.split_once("[ARGS]") else {
            continue;
        };
        // An id may come between.
        let name = name.split("[CALL_ID]").next().unwrap_or(name).trim();
        calls.push(Part::Call {
            name: name.to_owned(),
            arguments: arguments.trim().to_owned(),
        });
    }
    (calls, "")
}

#[cfg(test)]
mod tests;
