//! From a conversation to the text that the model was trained on.
//!
//! Owns the chat template of the model file, a Jinja program by an unknown
//! author: it runs with bounded fuel, memory and time, and sees the messages and
//! nothing else. `conversation` makes tokens of it, `answer` takes apart what
//! comes back. Out of scope: how tokens are computed.

mod answer;
mod builtin;
mod calls;
mod conversation;
mod harmony;
mod limits;
mod part;
mod python;
mod schema;
mod style;
mod xml;

pub use answer::AnswerParser;
pub use builtin::NAMES;
pub use calls::rest_of_thought;
pub use conversation::{ChatText, Conversation, Message, Role, ToolCall};
pub use part::Part;
pub use schema::decoded;
pub use style::{Style, Tool, ToolFormat};

use super::gguf::{Gguf, ModelError};
use candle_core::quantized::gguf_file::Value;
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, context,
    machinery::{CompiledTemplate, TemplateConfig, Vm, WhitespaceConfig, make_string_output},
    syntax::SyntaxConfig,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

/// The key of a file's chat template.
pub(super) const KEY: &str = "tokenizer.chat_template";
/// What `value[start:stop:step]` and `a ~ b` are compiled to.
const SLICED: &str = "__sliced";
const CONCATENATED: &str = "__concatenated";
/// `a / b`, `a // b`, `a % b` and `a ** b`.
const DIVIDED: &str = "__divided";
const FLOORED: &str = "__floored";
const REMAINDER: &str = "__remainder";
const POWER: &str = "__power";

fn failed(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Instructions a template may take; real ones need some dozens for each
/// message and a few thousand at most, about half of them those of `limits`.
const FUEL: u64 = 4_000_000;
/// Most bytes of a template; those of models have up to 20 KiB.
const MOST_SOURCE: usize = 256 << 10;
/// Of the thread that compiles and renders, touched only as deep as it goes: the
/// parser, and what frees a value, are recursive.
const STACK: usize = 256 << 20;

/// A chat template. One of a model file that does not compile is kept with
/// what is wrong with it: the model is of use without.
#[derive(Debug)]
pub struct ChatTemplate {
    program: Result<Program, String>,
    style: Style,
    bos: String,
    eos: String,
    /// Whether arguments of calls are given as texts, once it was tried.
    text_arguments: OnceLock<bool>,
}

impl ChatTemplate {
    /// The template of a model file, `None` if it has none. `bos` and `eos`
    /// are the texts of the special tokens that it may refer to. One that does
    /// not compile says so whenever it is rendered.
    #[must_use]
    pub fn from_gguf(gguf: &Gguf, bos: String, eos: String) -> Option<Self> {
        let source = gguf.content().metadata.get(KEY)?;
        let program = match source {
            Value::String(source) => Program::new(source),
            other => Err(format!("`{KEY}` is {:?}, not a string", other.value_type())),
        };
        let style = Style::of(source.to_string().map_or("", String::as_str));
        Some(Self {
            program,
            style,
            bos,
            eos,
            text_arguments: OnceLock::new(),
        })
    }

    /// A template by its source.
    ///
    /// # Errors
    /// It does not compile.
    pub fn compile(source: &str, bos: String, eos: String) -> Result<Self, ModelError> {
        let program = Program::new(source).map_err(ModelError::Template)?;
        Ok(Self {
            program: Ok(program),
            style: Style::of(source),
            bos,
            eos,
            text_arguments: OnceLock::new(),
        })
    }

    /// What is wrong with the template, where it did not compile.
    #[must_use]
    pub fn broken(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }

    /// The text of a conversation; with `prompt`, up to where the model is to
    /// go on.
    ///
    /// # Errors
    /// The template does not compile, refuses these messages or fails.
    pub fn render(&self, messages: &[Message], prompt: bool) -> Result<String, ModelError> {
        let messages: Vec<_> = messages.iter().cloned().map(Message::json).collect();
        self.render_value(json!({"messages": messages, "add_generation_prompt": prompt}))
    }

    /// The same for whatever else a template may ask for: `variables` is a JSON
    /// object of `messages`, `tools`, `add_generation_prompt` and more, as
    /// transformers' `apply_chat_template` takes them. Keys keep their order.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and `variables` is no JSON object.
    pub fn render_json(&self, variables: &str) -> Result<String, ModelError> {
        let given: BTreeMap<String, minijinja::Value> = serde_json::from_str(variables)
            .map_err(|e| ModelError::Template(format!("its variables are no JSON object: {e}")))?;
        self.written(given.into_iter().collect())
    }

    /// The same for variables of ours.
    fn render_value(&self, variables: serde_json::Value) -> Result<String, ModelError> {
        let given = minijinja::Value::from_serialize(&variables);
        drop(variables);
        self.written(given)
    }

    fn written(&self, variables: minijinja::Value) -> Result<String, ModelError> {
        let variables = context! { bos_token => self.bos, eos_token => self.eos, ..variables };
        let written = self.program.as_ref().map_err(Clone::clone);
        written
            .and_then(|program| program.run(variables))
            .map_err(ModelError::Template)
    }
}

/// The source of a template and what it may call.
#[derive(Debug)]
struct Program {
    source: String,
    env: Environment<'static>,
}

impl Program {
    fn new(source: &str) -> Result<Self, String> {
        if source.len() > MOST_SOURCE {
            return Err(format!("is longer than {} KiB", MOST_SOURCE >> 10));
        }
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL));
        python::add_to(&mut env);
        limits::add_to(&mut env);
        let source = limits::prepared(source, SPACES)?;
        let program = Self { source, env };
        deep(|| limits::meter(&mut program.compiled()?))?;
        Ok(program)
    }

    fn compiled(&self) -> Result<CompiledTemplate<'_>, Error> {
        let config = TemplateConfig {
            syntax_config: SyntaxConfig,
            ws_config: SPACES,
            default_auto_escape: Arc::new(|_| AutoEscape::None),
        };
        CompiledTemplate::new("chat", &self.source, &config)
    }

    /// Compiles it anew: what minijinja compiles borrows the source.
    fn run(&self, variables: minijinja::Value) -> Result<String, String> {
        deep(|| {
            limits::begin(&variables)?;
            let mut compiled = self.compiled()?;
            limits::meter(&mut compiled)?;
            let mut text = String::new();
            let mut out = make_string_output(&mut text);
            let (program, blocks) = (&compiled.instructions, &compiled.blocks);
            Vm::new(&self.env).eval(program, variables, blocks, &mut out, AutoEscape::None)?;
            Ok(text)
        })
    }
}

/// As transformers has it.
const SPACES: WhitespaceConfig = WhitespaceConfig {
    keep_trailing_newline: false,
    lstrip_blocks: true,
    trim_blocks: true,
};

/// The thread that compiles and renders: a panic there is an error of the template.
pub const THREAD: &str = "template";

/// Does it on a thread of its own with [`STACK`]; its error is one line.
fn deep<T: Send>(what: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, String> {
    std::thread::scope(|s| {
        let thread = std::thread::Builder::new()
            .name(THREAD.into())
            .stack_size(STACK);
        let done = thread
            .spawn_scoped(s, || what().map_err(|e| one_line(&e)))
            .map_err(|e| format!("no thread for it: {e}"))?;
        done.join()
            .unwrap_or_else(|_| Err("minijinja panicked over it".into()))
    })
}

fn one_line(e: &Error) -> String {
    let mut text = e.to_string().replace('\n', " ");
    text.truncate(text.floor_char_boundary(300));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::compile(source, "<s>".into(), "</s>".into()).unwrap()
    }

    #[test]
    fn a_template_sees_roles_contents_and_special_tokens() {
        let t = template(
            "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content.strip() }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
        );
        let messages = [
            Message::new(Role::System, " be brief "),
            Message::new(Role::User, "hi"),
        ];
        assert_eq!(
            t.render(&messages, true).unwrap(),
            "<s>[system] be brief</s>\n[user] hi</s>\n[assistant]"
        );
        assert!(!t.render(&messages, false).unwrap().contains("[assistant]"));
    }

    #[test]
    fn no_expression_overflows_the_stack_or_takes_the_program_with_it() {
        for (part, end) in [
            ("1+", "1"),
            ("not ", "1"),
            ("[", ""),
            ("a.", "a"),
            ("1|string|", "upper"),
        ] {
            let most = MOST_SOURCE / part.len() - 10;
            let source = format!("{{{{ {}{end} }}}}", part.repeat(most));
            let compiled = ChatTemplate::compile(&source, String::new(), String::new());
            // It compiles or does not: either is an answer.
            if let Err(e) = compiled {
                assert!(e.to_string().len() < 400, "{e}");
            }
        }
        let longer = " ".repeat(MOST_SOURCE + 1);
        let error = ChatTemplate::compile(&longer, String::new(), String::new());
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("longer than 256 KiB")
        );
        let panics = template("{{ '%.1000000000f'|format(1.0) }}");
        assert!(panics.render(&[], true).is_err());
    }

    #[test]
    fn what_the_templates_of_llama_qwen_and_gemma_use_of_jinja_is_there() {
        let messages = [
            Message::new(Role::System, "be brief"),
            Message::new(Role::User, " hi "),
            Message::new(Role::Assistant, "<think>\nhm\n</think>\n\nhello\n"),
            Message::new(Role::User, "bye"),
        ];
        for (source, want) in [
            // Qwen 3 looks for the last question from the end.
            (
                "{%- set ns = namespace(more=true, last=messages|length - 1) %}\
                 {%- for m in messages[::-1] %}{%- set at = (messages|length - 1) - loop.index0 %}\
                 {%- if ns.more and m.role == 'user' and m.content is string and \
                 not(m.content.startswith('<x>') and m.content.endswith('</x>')) %}\
                 {%- set ns.more = false %}{%- set ns.last = at %}{%- endif %}{%- endfor %}{{ ns.last }}",
                "3",
            ),
            // and takes the thoughts out of earlier answers.
            (
                "{% set c = messages[2].content %}{% if '</think>' in c %}\
                 {{ c.split('</think>')[-1].lstrip('\\n').rstrip('\\n') }}|\
                 {{ c.split('</think>')[0].split('<think>')[-1].strip('\\n') }}{% endif %}",
                "hello|hm",
            ),
            // What was not given is not defined, and none is none.
            (
                "{% if tools %}a{% endif %}{% if not tools is defined %}{% set tools = none %}b{% endif %}\
                 {% if tools is not none %}c{% endif %}{% if 'tool_calls' in messages[0] %}d{% endif %}\
                 {% if enable_thinking is defined and enable_thinking is false %}e{% endif %}\
                 {% if strftime_now is defined %}f{% endif %}{% if messages[0].tool_calls %}g{% endif %}",
                "bf",
            ),
            // Gemma puts the instructions before the first question.
            (
                "{%- if messages[0]['role'] == 'system' -%}\
                 {%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set rest = messages[1:] -%}{%- endif -%}\
                 {%- for m in rest -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}\
                 {{ raise_exception('roles') }}{%- endif -%}\
                 {%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}\
                 {{ '<' + role + '>\\n' + (first if loop.first else '') }}{{ m['content'] | trim }}{%- endfor -%}",
                "<user>\nbe brief\n\nhi<model>\n<think>\nhm\n</think>\n\nhello<user>\nbye",
            ),
        ] {
            assert_eq!(
                template(source).render(&messages, true).unwrap(),
                want,
                "{source}"
            );
        }
    }

    #[test]
    fn a_broken_template_and_a_refused_conversation_give_one_line() {
        let e = ChatTemplate::compile("{% for %}", String::new(), String::new())
            .unwrap_err()
            .to_string();
        assert!(e.contains("chat template") && !e.contains('\n'), "{e}");
        let e = template("{{ raise_exception('roles must alternate') }}")
            .render(&[], true)
            .unwrap_err()
            .to_string();
        // Each command has a way of its own to do without.
        assert!(
            e.contains("roles must alternate") && !e.contains("--"),
            "{e}"
        );
    }

    #[test]
    fn a_template_that_never_ends_runs_out_of_fuel() {
        let t = template(
            "{% for a in range(10000) %}{% for b in range(10000) %}{{ a * b }}{% endfor %}{% endfor %}",
        );
        assert!(t.render(&[], true).is_err());
    }
}
