//! What a chat template may take: memory, time and depth.
//!
//! minijinja counts instructions. What one of them costs is counted here: each
//! that makes a value is followed by a filter that weighs it, each turn of a loop
//! looks at the clock, and filters that make much of little look before they do.
//! A render runs on a thread of its own, whose meter this is. Out of scope: what
//! a template means.

use super::python::{SLICED, failed};
use minijinja::{
    Environment, Error, State,
    machinery::{CompiledTemplate, Instruction, Instructions, Token, Tokenizer, WhitespaceConfig},
    syntax::SyntaxConfig,
    value::{Rest, StringInput, Value, ValueKind},
};
use rustix::time::{ClockId, clock_gettime};
use std::{cell::RefCell, time::Duration};

/// Bytes that a value may take, and all that are made together, whatever a
/// template is given.
const MOST: usize = 64 << 20;
/// Bytes of a value for each byte that it is given,
const VALUE_FOR_EACH: usize = 16;
/// and of all that are made: one that gathers a conversation in a variable
/// copies it twice for each message.
const MADE_FOR_EACH: usize = 1 << 10;
/// Of the render's thread: what is short of processor time is not at fault.
const MOST_TIME: Duration = Duration::from_secs(5);
/// How deep values may lie in each other; JSON is read up to 128.
const MOST_DEPTH: usize = 200;
/// Bytes of a value beside its text.
const VALUE: usize = 16;
/// Values weighed between two looks at the clock,
const BETWEEN: usize = 1 << 12;
/// and those that a turn of a loop counts as: it may compare long texts.
const TURN: usize = 1 << 6;
/// Most of a width, an indentation or a count that a template names.
const MOST_WIDTH: usize = 1 << 12;
/// Text between two tags that is long enough to be counted.
const LONG_TEXT: usize = 64;

/// What is looked up without a place in the VM's cache of filters.
const NOT_CACHED: u8 = !0;
const WEIGHED: &str = "__weighed";
const STORED: &str = "__stored";
const WRITTEN: &str = "__written";
const TURNED: &str = "__turned";
/// A number that the compiler does not know.
const ONE: &str = "__one";

struct Meter {
    /// Bytes that may be made, and that are left of them.
    all: usize,
    left: usize,
    /// Most that one value may weigh.
    most: usize,
    /// Processor time of the thread at which it ends.
    until: Duration,
    weighed: usize,
}

thread_local! {
    static METER: RefCell<Meter> = const {
        RefCell::new(Meter { all: MOST, left: MOST, most: MOST, until: Duration::MAX, weighed: 0 })
    };
}

fn now() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap_or_default()
}

/// Begins the meter of this thread, for a template that is given `variables`.
pub(super) fn begin(variables: &Value) -> Result<(), Error> {
    METER.with_borrow_mut(|m| {
        *m = Meter {
            all: usize::MAX,
            left: usize::MAX,
            most: usize::MAX,
            until: Duration::MAX,
            weighed: 0,
        };
        let given = m.weigh(variables, 0, false)?;
        m.most = MOST.saturating_add(given.saturating_mul(VALUE_FOR_EACH));
        m.all = MOST.saturating_add(given.saturating_mul(MADE_FOR_EACH));
        m.left = m.all;
        m.until = now() + MOST_TIME;
        Ok(())
    })
}

/// Counts bytes that are made or written.
pub(super) fn made(bytes: usize) -> Result<(), Error> {
    METER.with_borrow_mut(|m| m.made(bytes))
}

impl Meter {
    fn made(&mut self, bytes: usize) -> Result<(), Error> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| failed(format!("it makes more than {} MiB", self.all >> 20)))?;
        self.tick(1 + bytes / 1024)
    }

    fn tick(&mut self, values: usize) -> Result<(), Error> {
        self.weighed += values;
        if self.weighed >= BETWEEN {
            self.weighed = 0;
            if now() > self.until {
                return Err(failed(format!("it takes more than {MOST_TIME:?}")));
            }
        }
        Ok(())
    }

    /// Bytes of a value and of all that lies in it, told as often as it is in there.
    fn weigh(&mut self, v: &Value, depth: usize, stored: bool) -> Result<usize, Error> {
        if depth > MOST_DEPTH {
            return Err(failed("values lie too deep in each other"));
        }
        self.tick(1)?;
        if let Some(text) = v.as_str() {
            return Ok(VALUE + text.len());
        }
        let Some(object) = v.as_object() else {
            return Ok(VALUE);
        };
        // One that holds itself can be neither shown nor freed.
        let holds =
            || ["Namespace", "Macro", "Loop", "Closure"].map(|n| object.type_name().contains(n));
        if stored && holds().contains(&true) {
            return Err(failed(
                "a namespace holds values, no namespace, macro or loop",
            ));
        }
        let mut bytes = VALUE;
        let mut add = |meter: &mut Self, v: &Value| {
            bytes = bytes.saturating_add(meter.weigh(v, depth + 1, stored)?);
            match bytes > meter.most {
                true => Err(failed(format!(
                    "a value takes more than {} MiB",
                    meter.most >> 20
                ))),
                false => Ok(()),
            }
        };
        match v.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in v.try_iter()? {
                    add(self, &item)?;
                }
            }
            ValueKind::Map => {
                for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                    add(self, &key)?;
                    add(self, &item)?;
                }
            }
            _ => {}
        }
        Ok(bytes)
    }
}

/// Bytes that are new in a value that was just made: what lies in it was there.
fn own_bytes(v: &Value) -> usize {
    match v.as_str() {
        Some(text) => text.len(),
        None => v.len().unwrap_or(0).saturating_mul(VALUE),
    }
}

/// Adds the filters that are put in, and puts those that make much of little
/// behind a look at what they would make.
pub(super) fn add_to(env: &mut Environment<'_>) {
    env.add_global(ONE, 1);
    env.add_filter(WEIGHED, |v: Value| {
        METER.with_borrow_mut(|m| {
            m.weigh(&v, 0, false)?;
            m.made(own_bytes(&v))
        })?;
        Ok::<_, Error>(v)
    });
    env.add_filter(STORED, |v: Value| {
        METER.with_borrow_mut(|m| m.weigh(&v, 0, true))?;
        Ok::<_, Error>(v)
    });
    env.add_filter(WRITTEN, |bytes: usize| made(bytes).map(|()| bytes));
    env.add_filter(TURNED, |v: Value| {
        METER.with_borrow_mut(|m| m.tick(TURN)).map(|()| v)
    });
    env.add_filter(
        "replace",
        |state: &State, v: StringInput<'_>, from: StringInput<'_>, to: StringInput<'_>| {
            replaced(v.as_str(), from.as_str(), to.as_str())?;
            minijinja::filters::replace(state, v, from, to)
        },
    );
    env.add_filter(
        "join",
        |state: &State, v: &Value, by: Option<StringInput<'_>>| {
            joined(v, by.as_ref().map_or("", StringInput::as_str))?;
            minijinja::filters::join(state, v, by)
        },
    );
    env.add_filter("format", |state: &State, v: &Value, given: Rest<Value>| {
        format(v.as_str().unwrap_or_default(), &given)?;
        minijinja::filters::format(state, v, given)
    });
    env.add_filter(
        "batch",
        |state: &State, v: Value, n: usize, fill: Option<Value>| {
            minijinja::filters::batch(state, v, narrow(n)?, fill)
        },
    );
    env.add_filter(
        "slice",
        |state: &State, v: Value, n: usize, fill: Option<Value>| {
            minijinja::filters::slice(state, v, narrow(n)?, fill)
        },
    );
}

/// A width or count that a template names.
pub(super) fn narrow(n: usize) -> Result<usize, Error> {
    match n > MOST_WIDTH {
        true => Err(failed(format!("{n} is more than {MOST_WIDTH}"))),
        false => Ok(n),
    }
}

/// Before `text.replace(from, to)`.
pub(super) fn replaced(text: &str, from: &str, to: &str) -> Result<(), Error> {
    made(text.matches(from).count().saturating_mul(to.len()))
}

/// Before `by.join(values)`.
pub(super) fn joined(values: &Value, by: &str) -> Result<(), Error> {
    made(values.len().unwrap_or(0).saturating_mul(by.len()))
}

/// Before a text is formatted: widths and precisions in it, or given to it.
pub(super) fn format(text: &str, given: &[Value]) -> Result<(), Error> {
    for digits in text.split(|c: char| !c.is_ascii_digit()) {
        if digits.len() > 4 {
            return Err(failed(format!("a format of {digits:.20} digits")));
        }
    }
    for n in given
        .iter()
        .filter_map(Value::as_usize)
        .filter(|_| text.contains('*'))
    {
        narrow(n)?;
    }
    // One value may be named many times.
    let longest = given.iter().map(own_bytes).max().unwrap_or(0);
    let named = text.matches(['%', '{']).count();
    made(named.saturating_mul(longest))
}

/// A source as it is compiled: without `{% generation %}`, which marks the
/// assistant's words for training and writes nothing, and with products that
/// the compiler does not compute.
pub(super) fn prepared(source: &str, spaces: WhitespaceConfig) -> String {
    let mut edits: Vec<(std::ops::Range<usize>, &str)> = Vec::new();
    let mut tokens = Tokenizer::new(source, "chat", false, SyntaxConfig, spaces);
    let (mut argument, mut block) = (false, false);
    // What is no token is told by the parser.
    while let Ok(Some((token, span))) = tokens.next_token() {
        let at = span.start_offset as usize..span.end_offset as usize;
        match token {
            Token::Mul if !argument => edits.push((at, "*__one*")),
            Token::Ident("generation") if block => edits.push((at, "if true")),
            Token::Ident("endgeneration") if block => edits.push((at, "endif")),
            _ => {}
        }
        argument = matches!(token, Token::ParenOpen | Token::Comma);
        block = matches!(token, Token::BlockStart);
    }
    let mut out = source.to_owned();
    for (at, text) in edits.into_iter().rev() {
        out.replace_range(at, text);
    }
    out
}

/// Puts the meter between the instructions of a template.
pub(super) fn meter(compiled: &mut CompiledTemplate<'_>) {
    metered(&mut compiled.instructions);
    compiled.blocks.values_mut().for_each(metered);
}

fn metered<'s>(of: &mut Instructions<'s>) {
    use Instruction as I;
    let filter = |name| I::ApplyFilter(name, Some(1), NOT_CACHED);
    let count = |bytes: usize| {
        [
            I::LoadConst(Value::from(bytes)),
            filter(WRITTEN),
            I::DiscardTop,
        ]
    };
    let mut out = Instructions::new(of.name(), of.source());
    // Where each instruction is now; one more for jumps behind the last.
    let mut moved = Vec::with_capacity(of.len() + 1);
    for at in 0..u32::try_from(of.len()).unwrap_or(u32::MAX) {
        let instruction = match of.get(at) {
            None => break,
            Some(I::Slice) => I::ApplyFilter(SLICED, Some(4), NOT_CACHED),
            Some(other) => other.clone(),
        };
        let line = of.get_line(at).and_then(|l| u16::try_from(l).ok());
        let mut add = |i: I<'s>| match line {
            Some(line) => out.add_with_line(i, line),
            None => out.add(i),
        };
        let before: Vec<I<'s>> = match &instruction {
            I::EmitRaw(text) if text.len() >= LONG_TEXT => count(text.len()).into(),
            I::SetAttr(_) => vec![I::Swap, filter(STORED), I::Swap],
            _ => Vec::new(),
        };
        let after: Vec<I<'s>> = match &instruction {
            I::Add
            | I::Mul
            | I::StringConcat
            | I::BuildList(_)
            | I::BuildMap(_)
            | I::ApplyFilter(..)
            | I::CallFunction(..)
            | I::CallMethod(..)
            | I::CallObject(_) => {
                vec![filter(WEIGHED)]
            }
            // Its item is on the stack.
            I::Iterate(_) => vec![filter(TURNED)],
            _ => Vec::new(),
        };
        let mut first = None;
        for i in before.into_iter().chain([instruction]).chain(after) {
            let index = add(i);
            first.get_or_insert(index);
        }
        moved.extend(first);
    }
    moved.push(u32::try_from(out.len()).unwrap_or(u32::MAX));
    for at in 0..u32::try_from(out.len()).unwrap_or(u32::MAX) {
        if let Some(
            I::Iterate(to)
            | I::Jump(to)
            | I::JumpIfFalse(to)
            | I::JumpIfFalseOrPop(to)
            | I::JumpIfTrueOrPop(to)
            | I::BuildMacro(_, to, _),
        ) = out.get_mut(at)
        {
            *to = moved[*to as usize];
        }
    }
    *of = out;
}

#[cfg(test)]
mod tests {
    use crate::model::chat::{ChatTemplate, Message, Role};
    use std::time::Instant;

    fn rendered(source: &str) -> Result<String, String> {
        let template = ChatTemplate::compile(source, String::new(), String::new());
        let messages = [Message::new(Role::User, "a user's question")];
        template
            .and_then(|t| t.render(&messages, true))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn what_takes_too_much_is_an_error_in_time() {
        let doubled = |what: &str| {
            format!(
                "{{% set n = namespace(s='x', l=[1]) %}}{{% for i in range(60) %}}{what}{{% endfor %}}{{{{ n.s|length }}}}"
            )
        };
        for source in [
            // A text, a list or what is written, doubled.
            doubled("{% set n.s = n.s ~ n.s %}"),
            doubled("{% set n.s = n.s + n.s %}"),
            doubled("{% set n.s = n.s * 2 %}"),
            doubled("{% set n.s = [n.s, n.s]|join %}"),
            doubled("{% set n.s = n.s.replace('x', 'xx') %}"),
            doubled("{% set n.s = n.s|replace('x', 'xx') %}"),
            doubled("{% set n.s = '%s%s'|format(n.s, n.s) %}"),
            doubled("{% set n.s = '{0}{0}'.format(n.s) %}"),
            doubled("{% set n.l = n.l + n.l %}"),
            doubled("{% set n.l = [n.l, n.l] %}"),
            doubled("{% set n.l = {'a': n.l, 'b': n.l} %}"),
            doubled("{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}"),
            "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}".to_owned()
                + &doubled("{% set n.s = m(n.s) %}"),
            "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}".to_owned()
                + &doubled("{% set t %}{% call m() %}{{ n.s }}{% endcall %}{% endset %}{% set n.s = t %}"),
            doubled("{% set t %}{% filter replace('x', 'xx') %}{{ n.s }}{% endfilter %}{% endset %}{% set n.s = t %}"),
            // Much at once.
            "{{ 'x' * 10 ** 9 }}".into(),
            "{{ 10 ** 9 * 'x' }}".into(),
            format!("{{% set s = {} %}}", vec!["'x' * 90000000"; 100].join(" ~ ")),
            "{{ ([0] * 10 ** 12)|list|length }}".into(),
            "{{ ([0] * 10 ** 12)|sum }}".into(),
            "{{ ([[0] * 10 ** 6] * 10 ** 6)|string|length }}".into(),
            "{{ '%.1000000000f'|format(1.0) }}".into(),
            "{{ '%*d'|format(1000000000, 1) }}".into(),
            "{{ '{:>1000000000}'.format(1) }}".into(),
            "{{ 'a\nb'|indent(1000000000) }}".into(),
            "{{ 'a\nb'|indent(width=1000000000) }}".into(),
            "{{ [1]|batch(1000000000, 'x')|list }}".into(),
            "{{ [1]|slice(1000000000)|list }}".into(),
            "{{ 'a'|center(1000000000) }}".into(),
            "{{ 'a'.center(4000, 'x' * 1000000) }}".into(),
            "{{ ('a' * 100000).replace('a', 'b' * 100000)|length }}".into(),
            "{{ ('a' * 100000).join(range(100000))|length }}".into(),
            "{% set l = ['a' * 1000000] * 60 %}{{ l|map('replace', 'a', 'bb')|map('replace', 'b', 'cc')|list|length }}".into(),
            // Without an end.
            "{% for i in range(100000) %}{% for k in range(100000) %}{% endfor %}{% endfor %}".into(),
            "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}".into(),
            "{% set l = range(100000)|list %}{% for i in l %}{% if -1 in l %}{% endif %}{% endfor %}".into(),
            // Written, and not shown.
            format!("{{% for i in range(100000) %}}{{% set t %}}{}{{% endset %}}{{% endfor %}}", "long ".repeat(1000)),
            // Too deep, and in itself.
            "{% set n = namespace(l=[]) %}{% for i in range(100000) %}{% set n.l = [n.l] %}{% endfor %}".into(),
            "{% set n = namespace() %}{% set n.n = n %}{{ n ~ '' }}".into(),
            "{% set n = namespace() %}{% set n.n = [n] %}{{ n|pprint }}".into(),
            "{% set n = namespace() %}{% set m = namespace(n=n) %}{% set n.m = {'m': m} %}{{ n == m }}".into(),
            "{% set n = namespace() %}{% macro m() %}{{ n }}{% endmacro %}{% set n.m = m %}".into(),
        ] {
            let begun = Instant::now();
            let error = rendered(&source).expect_err(&source);
            assert!(error.len() < 500 && !error.contains('\n'), "{source}: {error}");
            assert!(begun.elapsed().as_secs() < 120, "{source}: {:?}", begun.elapsed());
        }
    }

    #[test]
    fn what_a_conversation_needs_is_there() {
        // A variable that gathers all of a long conversation, message by message.
        let source = "{% set n = namespace(s='') %}{% for m in messages %}{% set n.s = n.s + m.content + '\\n' %}{% endfor %}{{ n.s }}";
        let template = ChatTemplate::compile(source, String::new(), String::new()).unwrap();
        let text = "some words of a turn ".repeat(100);
        let messages: Vec<_> = (0..500).map(|_| Message::new(Role::User, &text)).collect();
        assert_eq!(template.render(&messages, true).unwrap().len(), 500 * 2101);
        let source = "{% for m in messages[::-1] %}{{ m.content|upper|trim }}{% endfor %}";
        let template = ChatTemplate::compile(source, String::new(), String::new()).unwrap();
        let messages: Vec<_> = (0..20_000)
            .map(|_| Message::new(Role::User, "hi"))
            .collect();
        assert_eq!(template.render(&messages, true).unwrap().len(), 40_000);
    }

    #[test]
    fn words_of_templates_are_none_in_a_text() {
        for (source, want) in [
            ("{{ '{% generation %}' }}", "{% generation %}"),
            ("{% raw %}{% generation %}{% endraw %}", "{% generation %}"),
            ("{# {% generation %} #}a", "a"),
            ("{%- generation -%} a {%- endgeneration %}", "a"),
            ("{{ '2 * 3' }}{{ 2 * 3 }}{{ 2 *3.5 }}", "2 * 367.0"),
            ("{{ 'ab' * 2 }}{{ 2 * 'ab' }}", "abababab"),
            ("{{ [1, 2] * 2 }}", "[1, 2, 1, 2]"),
            ("{{ dict(*[{'a': 1}]) }}", "{'a': 1}"),
            ("{% set a, b = 2, 3 %}{{ (a) * b }}", "6"),
            (
                "{{ 'a'|center(4) }}|{{ 'abc'.count('') }}|{{ 'a b'|urlencode }}",
                " a  |4|a%20b",
            ),
            (
                "{% for i in [1, [2, 3]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
                "123",
            ),
        ] {
            assert_eq!(rendered(source).as_deref(), Ok(want), "{source}");
        }
        let error = rendered("\n\n{{ nothing.of.it }}").unwrap_err();
        assert!(error.contains(":3)"), "{error}");
    }
}
