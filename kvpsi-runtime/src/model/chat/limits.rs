//! What a chat template may take: memory, time and depth.
//!
//! minijinja counts instructions. What one of them costs is counted here: each
//! that makes a value is followed by a filter that weighs it, loops, comparisons
//! and tests look at the clock, and filters whose output can be much larger than
//! their input check its size first. A render runs on a thread of its own, whose
//! meter this is. Invariant: a namespace holds copies of plain values, so no value
//! holds itself: a cycle is never freed, and printing it overflows the stack. Out
//! of scope: what a template means.

use super::{CONCATENATED, DIVIDED, FLOORED, POWER, REMAINDER, SLICED, failed};
use minijinja::{
    Environment, Error, State,
    machinery::{CompiledTemplate, Instruction, Instructions, Token, Tokenizer, WhitespaceConfig},
    syntax::SyntaxConfig,
    value::{Value, ValueKind},
};
use rustix::time::{ClockId, clock_gettime};
use std::{cell::RefCell, time::Duration};

/// Bytes that a value may take, and all that are made together, whatever a
/// template is given.
const MOST: usize = 64 << 20;
/// Bytes of one text: a list of its characters takes 24 times as much.
const MOST_TEXT: usize = 2 << 20;
/// Bytes of a value and of a text for each byte that it is given,
const VALUE_FOR_EACH: usize = 16;
const TEXT_FOR_EACH: usize = 8;
/// and of all that are made: one that gathers a conversation in a variable
/// copies it twice for each message. It is never more than a GiB.
const MADE_FOR_EACH: usize = 1 << 10;
const MOST_MADE: usize = 1 << 30;
/// Processor time of the render's thread: a loaded machine refuses no template.
const MOST_TIME: Duration = Duration::from_secs(5);
/// How deep values may lie in each other; JSON is read up to 128.
pub(super) const MOST_DEPTH: usize = 200;
/// Bytes of a value beside its text.
const VALUE: usize = 16;
/// Values weighed between two looks at the clock. A turn of a loop and a
/// comparison count as so many: it may be of long lists.
const BETWEEN: usize = 1 << 12;
/// Most operators between two braces: the compiler looks at all before it for each.
const MOST_OPERATORS: usize = 1000;
/// Largest width, indentation or count that a template names.
const MOST_WIDTH: usize = 1 << 12;

/// What is looked up without a place in the VM's cache of filters.
const NOT_CACHED: u8 = !0;
const WEIGHED: &str = "__weighed";
const STORED: &str = "__stored";
const WRITTEN: &str = "__written";
const TURNED: &str = "__turned";
/// A number and a text that the compiler does not know.
const ONE: &str = "__one";
const EMPTY: &str = "__empty";

struct Meter {
    /// Bytes that may be made, and that are left of them.
    all: usize,
    left: usize,
    /// Most that one value may weigh, and one text.
    most: usize,
    text: usize,
    /// Processor time of the thread at which it ends.
    until: Duration,
    weighed: usize,
}

thread_local! {
    static METER: RefCell<Meter> = const {
        RefCell::new(Meter { all: MOST, left: MOST, most: MOST, text: MOST_TEXT, until: Duration::MAX, weighed: 0 })
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
            text: usize::MAX,
            until: Duration::MAX,
            weighed: 0,
        };
        let given = m.weigh(variables, 0)?;
        m.text = MOST_TEXT.saturating_add(given.saturating_mul(TEXT_FOR_EACH));
        m.most = MOST.saturating_add(given.saturating_mul(VALUE_FOR_EACH));
        m.all = MOST.saturating_add(given.saturating_mul(MADE_FOR_EACH));
        m.all = m.all.min(MOST_MADE);
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
    fn weigh(&mut self, v: &Value, depth: usize) -> Result<usize, Error> {
        if depth > MOST_DEPTH {
            return Err(failed("values lie too deep in each other"));
        }
        self.tick(1)?;
        if let Some(text) = v.as_str() {
            return match text.len() > self.text {
                true => Err(failed(format!(
                    "a text of more than {} MiB",
                    self.text >> 20
                ))),
                false => Ok(VALUE + text.len()),
            };
        }
        let mut bytes = VALUE;
        let mut add = |meter: &mut Self, v: &Value| {
            bytes = bytes.saturating_add(meter.weigh(v, depth + 1)?);
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
                let pairs = v.as_object().and_then(|o| o.try_iter_pairs());
                for (key, item) in pairs.into_iter().flatten() {
                    add(self, &key)?;
                    add(self, &item)?;
                }
            }
            _ => {}
        }
        Ok(bytes)
    }
}

/// A value that was weighed, as a namespace holds it.
fn stored(v: &Value) -> Result<Value, Error> {
    Ok(match v.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Result<Vec<_>, _> = v.try_iter()?.map(|item| stored(&item)).collect();
            Value::from(items?)
        }
        ValueKind::Map => {
            let pairs = v.as_object().and_then(|o| o.try_iter_pairs());
            let pairs = pairs.into_iter().flatten();
            let pairs: Result<Vec<_>, Error> =
                pairs.map(|(key, item)| Ok((key, stored(&item)?))).collect();
            pairs?.into_iter().collect()
        }
        ValueKind::Plain | ValueKind::Invalid => {
            return Err(failed("a namespace holds no macro and no other object"));
        }
        _ => v.clone(),
    })
}

/// Bytes that are new in a value that was just made: what lies in it was there.
fn own_bytes(v: &Value) -> usize {
    match v.as_str() {
        Some(text) => text.len(),
        None => v.len().unwrap_or(0).saturating_mul(VALUE),
    }
}

/// Adds the filters that are put in, and checks of the output's size before some of
/// minijinja's own; `python` asks for its filters.
pub(super) fn add_to(env: &mut Environment<'_>) {
    env.add_global(ONE, 1);
    env.add_global(EMPTY, "");
    env.add_filter(WEIGHED, |v: Value| {
        METER.with_borrow_mut(|m| {
            m.weigh(&v, 0)?;
            m.made(own_bytes(&v))
        })?;
        Ok::<_, Error>(v)
    });
    env.add_filter(STORED, |v: Value| {
        let bytes = METER.with_borrow_mut(|m| m.weigh(&v, 0))?;
        // A text is shared, all else is copied.
        if v.as_str().is_none() {
            made(bytes)?;
        }
        stored(&v)
    });
    env.add_filter(WRITTEN, |bytes: usize| made(bytes).map(|()| bytes));
    env.add_filter(TURNED, |v: Value| {
        METER.with_borrow_mut(|m| m.tick(BETWEEN)).map(|()| v)
    });
    // A value for each line, and `map` has them called for each of many.
    env.add_filter("lines", |v: &Value| {
        listed(v)?;
        minijinja::filters::lines(v)
    });
    env.add_filter(
        "split",
        |v: &Value, by: Option<Value>, most: Option<i64>| {
            listed(v)?;
            minijinja::filters::split(v, by.as_ref().and_then(Value::as_str).map(Into::into), most)
        },
    );
    env.add_test("in", |state: &State, v: &Value, all: &Value| {
        METER.with_borrow_mut(|m| m.tick(1 + own_bytes(all) / VALUE))?;
        minijinja::tests::is_in(state, v, all)
    });
    env.add_test("divisibleby", |v: i64, by: i64| {
        v.checked_rem(by) == Some(0)
    });
}

/// A width or count that a template names.
pub(super) fn narrow(n: usize) -> Result<usize, Error> {
    match n > MOST_WIDTH {
        true => Err(failed(format!("{n} is more than {MOST_WIDTH}"))),
        false => Ok(n),
    }
}

/// Before a list is made of a text's characters or of values.
pub(super) fn listed(v: &Value) -> Result<(), Error> {
    let values = v.as_str().map_or_else(|| v.len().unwrap_or(0), str::len);
    made(values.saturating_mul(size_of::<Value>()))
}

/// Before `text.replace(from, to)`.
pub(super) fn replaced(text: &str, from: &str, to: &str) -> Result<(), Error> {
    made(text.matches(from).count().saturating_mul(to.len()))
}

/// Before `by.join(values)`.
pub(super) fn joined(values: &Value, by: &str) -> Result<(), Error> {
    made(values.len().unwrap_or(0).saturating_mul(by.len()))
}

/// Before a text is formatted, by what follows each `%` or `{` in it: widths and
/// precisions there, or given to it.
pub(super) fn format(text: &str, mark: char, given: &[Value]) -> Result<(), Error> {
    let mut longest = given.iter().map(own_bytes).max().unwrap_or(0);
    let specs = text.split(mark).skip(1);
    for spec in specs.clone() {
        let end = match mark {
            '{' => spec.find('}'),
            _ => spec.find(|c: char| c.is_alphabetic() && c != 'l' || c == '%'),
        };
        let spec = &spec[..end.unwrap_or(spec.len())];
        for digits in spec.split(|c: char| !c.is_ascii_digit()) {
            if !digits.is_empty() {
                let width = digits.parse().unwrap_or(usize::MAX);
                longest = longest.max(narrow(width)?);
            }
        }
        if spec.contains(['*', '{']) {
            for width in given.iter().filter_map(Value::as_usize) {
                longest = longest.max(narrow(width)?);
            }
        }
    }
    // One value may be named many times.
    made(specs.count().saturating_mul(longest))
}

/// A source as it is compiled: without `{% generation %}`, which marks the
/// assistant's words for training and writes nothing, with lines that end as Jinja
/// has them, and with products, quotients and joined texts that the compiler does not
/// compute.
///
/// # Errors
/// An expression has more than [`MOST_OPERATORS`].
pub(super) fn prepared(source: &str, spaces: WhitespaceConfig) -> Result<String, String> {
    let source = &source.replace("\r\n", "\n").replace('\r', "\n");
    let mut tokens = Tokenizer::new(source, "chat", false, SyntaxConfig, spaces);
    let (mut out, mut copied) = (String::with_capacity(source.len()), 0);
    let (mut argument, mut block, mut operators) = (false, false, 0);
    // What is no token is told by the parser.
    while let Ok(Some((token, span))) = tokens.next_token() {
        use Token as T;
        operators = match token {
            T::VariableStart | T::BlockStart => 0,
            T::Plus | T::Minus | T::Mul | T::Div | T::FloorDiv | T::Pow | T::Mod | T::Tilde => {
                operators + 1
            }
            T::Eq | T::Ne | T::Gt | T::Gte | T::Lt | T::Lte => operators + 1,
            T::Ident("and" | "or" | "not" | "in") => operators + 1,
            _ => operators,
        };
        if operators > MOST_OPERATORS {
            let line = span.start_line;
            return Err(format!(
                "an expression of more than {MOST_OPERATORS} operators (in chat:{line})"
            ));
        }
        let (mut from, to) = (span.start_offset as usize, span.end_offset as usize);
        let instead = match token {
            // Jinja keeps the end of a line behind this tag, and of this one only.
            T::TemplateData(_) if is_raw(&source[..from]) => {
                from -= "%}".len();
                Some("+%}")
            }
            T::Mul if !argument => Some("*__one*"),
            T::Tilde => Some("~__empty~"),
            // minijinja computes 1/0.
            T::Div => Some("/__one/"),
            T::Ident("generation") if block => Some("if true"),
            T::Ident("endgeneration") if block => Some("endif"),
            _ => None,
        };
        if let Some(text) = instead {
            out.push_str(&source[copied..from]);
            out.push_str(text);
            copied = match token {
                T::TemplateData(_) => from + "%}".len(),
                _ => to,
            };
        }
        argument = matches!(token, T::ParenOpen | T::Comma);
        block = matches!(token, T::BlockStart);
    }
    out.push_str(&source[copied..]);
    Ok(out)
}

/// Whether a source ends with `{% raw %}`.
fn is_raw(source: &str) -> bool {
    let tag = source.strip_suffix("%}").map(str::trim_end);
    let tag = tag
        .and_then(|tag| tag.strip_suffix("raw"))
        .map(str::trim_end);
    tag.is_some_and(|tag| {
        ["{%", "{%-", "{%+"]
            .iter()
            .any(|start| tag.ends_with(start))
    })
}

/// Puts the meter between the instructions of a template.
///
/// # Errors
/// A jump leaves a block that minijinja would not end: it goes on capturing, or
/// panics.
pub(super) fn meter(compiled: &mut CompiledTemplate<'_>) -> Result<(), Error> {
    let all = std::iter::once(&mut compiled.instructions).chain(compiled.blocks.values_mut());
    for instructions in all {
        blocks_end(instructions)?;
        metered(instructions);
    }
    Ok(())
}

fn blocks_end(of: &Instructions<'_>) -> Result<(), Error> {
    use Instruction as I;
    let mut open = 0_u32;
    let mut depths = Vec::with_capacity(of.len());
    let mut jumps = Vec::new();
    for at in 0..u32::try_from(of.len()).unwrap_or(u32::MAX) {
        // Before it is carried out: the end of an `if` may jump to what ends its block.
        depths.push(open);
        match of.get(at) {
            Some(I::EndCapture | I::PopFrame | I::PopAutoEscape) => open = open.saturating_sub(1),
            Some(I::BeginCapture(_) | I::PushWith | I::PushAutoEscape) => open += 1,
            Some(I::Jump(to)) => jumps.push((open, *to as usize)),
            _ => {}
        }
    }
    let leaves = |(from, to): &(u32, usize)| depths.get(*to).is_some_and(|depth| depth < from);
    match jumps.iter().any(leaves) {
        true => Err(failed(
            "`break` and `continue` cannot leave a block that captures text, `with` or `autoescape`",
        )),
        false => Ok(()),
    }
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
            Some(I::StringConcat) => I::ApplyFilter(CONCATENATED, Some(2), NOT_CACHED),
            Some(I::Div) => I::ApplyFilter(DIVIDED, Some(2), NOT_CACHED),
            Some(I::IntDiv) => I::ApplyFilter(FLOORED, Some(2), NOT_CACHED),
            Some(I::Rem) => I::ApplyFilter(REMAINDER, Some(2), NOT_CACHED),
            Some(I::Pow) => I::ApplyFilter(POWER, Some(2), NOT_CACHED),
            Some(other) => other.clone(),
        };
        let line = of.get_line(at).and_then(|l| u16::try_from(l).ok());
        let mut add = |i: I<'s>| match line {
            Some(line) => out.add_with_line(i, line),
            None => out.add(i),
        };
        let before: Vec<I<'s>> = match &instruction {
            I::EmitRaw(text) => count(text.len()).into(),
            I::SetAttr(_) => vec![I::Swap, filter(STORED), I::Swap],
            _ => Vec::new(),
        };
        let after: Vec<I<'s>> = match &instruction {
            I::Add
            | I::Mul
            | I::BuildList(_)
            | I::BuildMap(_)
            | I::ApplyFilter(..)
            | I::CallFunction(..)
            | I::CallMethod(..)
            | I::CallObject(_) => {
                vec![filter(WEIGHED)]
            }
            // The next item, or what was found, is on the stack.
            I::Iterate(_)
            | I::Eq
            | I::Ne
            | I::Gt
            | I::Gte
            | I::Lt
            | I::Lte
            | I::In
            | I::CompareAndPreserve(_)
            | I::PerformTest(..) => vec![filter(TURNED)],
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
mod tests;
