//! A conversation with tools, and the tokens that a template makes of it.
//!
//! Owns messages and calls, what transformers passes to a template, the text
//! that explains tools to a model whose template has none, where an answer that
//! was begun goes on, and the guard around strangers' texts: whatever a client
//! wrote cannot name a control token ([`Tokenizer::guard`]). Out of scope: what
//! comes back.

use super::{ChatTemplate, Style, Tool};
use crate::model::{gguf::ModelError, tokenizer::Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that come first.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// What a called function returned.
    Tool,
}

/// A call of a function, by the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// By which its result names it.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments: a JSON object.
    pub arguments: Value,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// What the model thought before.
    pub reasoning: Option<String>,
    /// The functions that the model called.
    pub calls: Vec<ToolCall>,
    /// Of a result: the call.
    pub call_id: Option<String>,
    /// Of a result: the function.
    pub name: Option<String>,
}

impl Message {
    /// A message.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            reasoning: None,
            calls: Vec::new(),
            call_id: None,
            name: None,
        }
    }

    /// As templates know it: transformers' keys, and those that have no value
    /// are not there. Moved: a call's arguments may be large.
    pub(super) fn json(self) -> Value {
        let mut m = json!({"role": self.role});
        m["content"] = self.content.into();
        if let Some(reasoning) = self.reasoning {
            m["reasoning_content"] = reasoning.into();
        }
        if !self.calls.is_empty() {
            let one = |c: ToolCall| {
                let mut call =
                    json!({"id": c.id, "type": "function", "function": {"name": c.name}});
                call["function"]["arguments"] = c.arguments;
                call
            };
            m["tool_calls"] = self.calls.into_iter().map(one).collect();
        }
        if let Some(id) = self.call_id {
            m["tool_call_id"] = id.into();
        }
        if let Some(name) = self.name {
            m["name"] = name.into();
        }
        m
    }
}

/// What a model is asked to go on with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// What was said.
    pub messages: Vec<Message>,
    /// Functions that may be called.
    pub tools: Vec<Tool>,
    /// More that the template may ask for (`chat_template_kwargs`).
    pub variables: Map<String, Value>,
    /// Whether the template begins an answer; `None`: unless one is gone on with.
    pub begin: Option<bool>,
    /// Whether the last message is gone on with; `None`: if it is the model's.
    pub go_on: Option<bool>,
}

/// A conversation as the template writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatText {
    /// The text, with `mark` in what would be control tokens of strangers.
    pub text: String,
    /// For [`Tokenizer::encode_guarded`].
    pub mark: char,
}

impl ChatText {
    /// The template began a thought: the answer goes on with it.
    #[must_use]
    pub fn thinking(&self) -> bool {
        self.text.trim_end().ends_with("<think>")
    }
}

impl Conversation {
    /// Of messages alone.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self {
            messages,
            ..Self::default()
        }
    }

    /// Whether the last message is gone on with.
    fn goes_on(&self) -> bool {
        let last = self.messages.last();
        let mine = last.is_some_and(|m| m.role == Role::Assistant && m.calls.is_empty());
        match (self.go_on, self.begin) {
            (Some(go_on), _) => go_on,
            (None, begin) => mine && begin != Some(true),
        }
    }
}

impl ChatTemplate {
    /// A conversation, up to where the model is to go on.
    ///
    /// # Errors
    /// The template does not compile, refuses this conversation or fails.
    pub fn text(&self, asked: Conversation, tokenizer: &Tokenizer) -> Result<ChatText, ModelError> {
        let style = self.style();
        let tooled = !asked.tools.is_empty()
            || (asked.messages.iter()).any(|m| m.role == Role::Tool || !m.calls.is_empty());
        if style.native || !tooled {
            return self.one(asked, tokenizer);
        }
        // Some templates refuse instructions: then the first question has them.
        let rendered = self.one(explained(&asked, Role::System), tokenizer);
        rendered.or_else(|_| self.one(explained(&asked, Role::User), tokenizer))
    }

    fn one(&self, mut c: Conversation, tokenizer: &Tokenizer) -> Result<ChatText, ModelError> {
        let mut goes_on = c.goes_on();
        if goes_on
            && c.messages
                .last()
                .is_some_and(|m| m.content.trim().is_empty())
        {
            // Nothing was begun.
            c.messages.pop();
            goes_on = false;
            c.begin = c.begin.or(Some(true));
        }
        let mut variables = Value::Object(std::mem::take(&mut c.variables));
        if c.messages.iter().any(|m| !m.calls.is_empty()) && self.wants_text() {
            let calls = c.messages.iter_mut().flat_map(|m| &mut m.calls);
            calls.for_each(ToolCall::as_text);
        }
        variables["messages"] = c.messages.into_iter().map(Message::json).collect();
        if !c.tools.is_empty() {
            variables["tools"] = c.tools.iter().map(|t| (*t.json).clone()).collect();
        }
        let mut all = Vec::new();
        texts(&variables, &mut all);
        let mark = tokenizer.mark(all.into_iter()).ok_or_else(|| {
            ModelError::Template("the conversation has every noncharacter of Unicode".into())
        })?;
        guard(&mut variables, tokenizer, mark);
        variables["add_generation_prompt"] = json!(!goes_on && c.begin.unwrap_or(true));
        // Two marks side by side stand nowhere else: the answer goes on there.
        let here = String::from_iter([mark, mark]);
        if goes_on
            && let Some(Value::String(begun)) = variables["messages"]
                .as_array_mut()
                .and_then(|m| m.last_mut())
                .map(|m| &mut m["content"])
        {
            begun.truncate(begun.trim_end().len());
            begun.push_str(&here);
        }
        let mut text = self.render_value(variables)?;
        if goes_on {
            text.truncate(text.find(&here).ok_or_else(|| {
                ModelError::Template(
                    "the last message is not in its text as it was sent: it cannot be gone on with"
                        .into(),
                )
            })?);
        }
        Ok(ChatText { text, mark })
    }
}

/// Every text of a value, keys too.
fn texts<'a>(v: &'a Value, all: &mut Vec<&'a str>) {
    match v {
        Value::String(s) => all.push(s),
        Value::Array(items) => items.iter().for_each(|v| texts(v, all)),
        Value::Object(fields) => fields.iter().for_each(|(k, v)| {
            all.push(k);
            texts(v, all);
        }),
        _ => {}
    }
}

fn guard(v: &mut Value, tokenizer: &Tokenizer, mark: char) {
    match v {
        Value::String(s) => {
            if let Some(guarded) = tokenizer.guard(s, mark) {
                *s = guarded;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|v| guard(v, tokenizer, mark)),
        Value::Object(fields) => {
            if fields.keys().any(|k| tokenizer.guard(k, mark).is_some()) {
                let old = std::mem::take(fields);
                fields.extend(old.into_iter().map(|(k, v)| {
                    let guarded = tokenizer.guard(&k, mark);
                    (guarded.unwrap_or(k), v)
                }));
            }
            fields.values_mut().for_each(|v| guard(v, tokenizer, mark));
        }
        _ => {}
    }
}

/// The same conversation for a template that knows no tools: they are explained
/// in a message of `role`, calls and results are texts.
fn explained(c: &Conversation, role: Role) -> Conversation {
    let mut messages: Vec<Message> = Vec::with_capacity(c.messages.len() + 1);
    for m in &c.messages {
        match m.role {
            Role::Tool => {
                let result = format!("<tool_response>\n{}\n</tool_response>", m.content);
                match messages
                    .last_mut()
                    .filter(|l| l.content.ends_with("</tool_response>"))
                {
                    Some(last) => {
                        last.content.push('\n');
                        last.content.push_str(&result);
                    }
                    None => messages.push(Message::new(Role::User, result)),
                }
            }
            _ if !m.calls.is_empty() => {
                let one = |c: &ToolCall| {
                    let call = json!({"name": c.name, "arguments": c.arguments});
                    format!("<tool_call>\n{call}\n</tool_call>")
                };
                let calls = m.calls.iter().map(one);
                let said = (!m.content.is_empty()).then(|| m.content.clone());
                let all: Vec<String> = said.into_iter().chain(calls).collect();
                messages.push(Message::new(m.role, all.join("\n")));
            }
            _ => messages.push(m.clone()),
        }
    }
    if !c.tools.is_empty() {
        let list: Vec<String> = c
            .tools
            .iter()
            .map(|t| t.json["function"].to_string())
            .collect();
        let text = format!(
            "You can call functions. They are, with the JSON schema of their parameters:\n{}\n\
             To call one, answer with\n<tool_call>\n\
             {{\"name\": \"its name\", \"arguments\": {{its arguments}}}}\n</tool_call>\n\
             and nothing else. What it returned comes back between <tool_response> and \
             </tool_response>. Answer in words when no function is needed.",
            list.join("\n")
        );
        let at = messages.iter().position(|m| m.role == role);
        match at.and_then(|at| messages.get_mut(at)) {
            Some(m) if role == Role::System => m.content = format!("{}\n\n{text}", m.content),
            Some(m) => m.content = format!("{text}\n\n{}", m.content),
            None => messages.insert(0, Message::new(role, text)),
        }
    }
    Conversation {
        messages,
        tools: Vec::new(),
        variables: c.variables.clone(),
        begin: c.begin,
        go_on: c.go_on,
    }
}

impl ToolCall {
    /// Arguments as OpenAI's API has them: JSON in a text.
    fn as_text(&mut self) {
        if !self.arguments.is_string() {
            self.arguments = Value::String(self.arguments.to_string());
        }
    }
}

impl ChatTemplate {
    /// Whether calls are written right only where their arguments are a text: the
    /// template adds them to its own. Most want an object; a call of each kind
    /// shows which, for no source says it. A template that writes neither gets objects.
    fn wants_text(&self) -> bool {
        *self.text_arguments.get_or_init(|| {
            let arguments = json!({"needle": "hay"});
            let as_text = arguments.to_string();
            let mut call = ToolCall {
                id: "call00001".into(),
                name: "look".into(),
                arguments,
            };
            let written = |call: &ToolCall| {
                let mut calls = Message::new(Role::Assistant, "");
                calls.calls.push(call.clone());
                self.render(&[Message::new(Role::User, "hi"), calls], false)
            };
            // Not as Python writes a dictionary, `{'needle': 'hay'}`.
            let object = written(&call)
                .is_ok_and(|text| text.contains("needle") && !text.contains("'needle'"));
            call.as_text();
            !object && written(&call).is_ok_and(|text| text.contains(&as_text))
        })
    }

    /// What the template's source says of the model.
    #[must_use]
    pub fn style(&self) -> Style {
        self.style
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_gets_arguments_in_the_form_that_it_writes_right() {
        const ARGUMENTS: &str = "c.function.arguments";
        for (written, text) in [
            ("{{ c.function.name + a }}", true),
            ("{{ a }}", true),
            ("{{ a | tojson }}", false),
            ("{{ a if a is string else a | tojson }}", false),
            (
                "{% for k, v in a|items %}{{ k }}={{ v }}{% endfor %}",
                false,
            ),
            ("{{ c.function.name }}", false),
            ("{{ raise_exception('no calls') }}", false),
        ] {
            let source = format!(
                "{{% for m in messages %}}{{% for c in m.tool_calls or [] %}}\
                 {{% set a = {ARGUMENTS} %}}{written}{{% endfor %}}{{% endfor %}}"
            );
            let template = ChatTemplate::compile(&source, String::new(), String::new()).unwrap();
            assert_eq!(template.wants_text(), text, "{written}");
        }
    }
}
