//! What chat templates count on beyond Jinja: Python, and transformers.
//!
//! Owns the functions, filters, methods and the way values are written that
//! `apply_chat_template` of transformers gives a template (its
//! `chat_template_utils.py`). Invariant: a template that renders there renders
//! here to the same text, or fails by a name. Out of scope: messages.

use minijinja::{
    Environment, Error, ErrorKind, Output, State,
    value::{Kwargs, Value, ValueKind, from_args},
};
use std::fmt::Write;

/// Adds all of it.
pub(super) fn add_to(env: &mut Environment<'_>) {
    minijinja_contrib::add_to_environment(env);
    env.set_unknown_method_callback(method);
    env.set_formatter(formatter);
    env.add_function("raise_exception", |what: String| {
        Err::<String, _>(failed(what))
    });
    env.add_function("strftime_now", |format: String| strftime_now(&format));
    env.add_filter("tojson", tojson);
    // Jinja makes a string of what it trims.
    env.add_filter("trim", |v: &Value, chars: Option<String>| {
        let mut text = String::new();
        write_str(&mut text, v)?;
        let trimmed = match chars {
            Some(chars) => text.trim_matches(|c| chars.contains(c)),
            None => text.trim(),
        };
        Ok::<_, Error>(trimmed.to_owned())
    });
    env.add_filter("string", |v: &Value| {
        let mut text = String::new();
        write_str(&mut text, v).map(|()| text)
    });
}

/// `{% generation %}` marks the assistant's words for training and writes
/// nothing: the same text with `if true` in its place.
pub(super) fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at..].find("%}").map(|n| at + n) else {
            break;
        };
        let inside = &rest[at + 2..end];
        let word = inside
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+']);
        let instead = match word.trim() {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match instead {
            Some(words) => {
                out.push_str(&rest[..at + 2]);
                out.push_str(&inside.replacen(word.trim(), words, 1));
                rest = &rest[end..];
            }
            None => {
                out.push_str(&rest[..at + 2]);
                rest = &rest[at + 2..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn failed(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Local time, as `datetime.now().strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(format, &now).map_err(|e| failed(format!("strftime_now: {e}")))
}

/// `json.dumps` with the arguments that transformers passes on.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(v)?.min(64)),
        }),
    };
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(failed("tojson: separators are two")),
        None => (
            if indent.is_some() { "," } else { ", " }.to_owned(),
            ": ".to_owned(),
        ),
    };
    let mut json = Json {
        out: String::new(),
        ascii: ascii.unwrap_or(false),
        sorted: sorted.unwrap_or(false),
        indent,
        item,
        key,
    };
    json.write(value, 0)?;
    Ok(Value::from_safe_string(json.out))
}

/// Most that one value may be written as.
const MOST_TEXT: usize = 16 << 20;
/// How deep values may lie in each other.
const MOST_DEPTH: usize = 64;

struct Json {
    out: String,
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Json {
    fn write(&mut self, v: &Value, depth: usize) -> Result<(), Error> {
        if depth > MOST_DEPTH || self.out.len() > MOST_TEXT {
            return Err(failed("tojson: the value is too deep or too large"));
        }
        match v.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if v.is_true() { "true" } else { "false" }),
            ValueKind::Number => write_number(&mut self.out, v),
            ValueKind::String => self.string(v.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<_> = v.try_iter()?.collect();
                self.all(('[', ']'), depth, &items, |json, item| {
                    json.write(item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<_> = v.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.all(('{', '}'), depth, &keys, |json, key| {
                    let text = match key.as_str() {
                        Some(text) => text.to_owned(),
                        None => key.to_string(),
                    };
                    json.string(&text);
                    let between = json.key.clone();
                    json.out.push_str(&between);
                    json.write(&v.get_item(key)?, depth + 1)
                })?;
            }
            other => return Err(failed(format!("tojson: a value is {other}"))),
        }
        Ok(())
    }

    fn all(
        &mut self,
        (open, close): (char, char),
        depth: usize,
        items: &[Value],
        mut one: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                let between = self.item.clone();
                self.out.push_str(&between);
            }
            self.line(depth + 1);
            one(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && (c as u32) > 0x7e) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number as Python writes it: floats have a point or an exponent.
fn write_number(out: &mut String, v: &Value) {
    if v.is_integer() {
        let _ = write!(out, "{v}");
        return;
    }
    let Ok(x) = f64::try_from(v.clone()) else {
        let _ = write!(out, "{v}");
        return;
    };
    if x.is_nan() {
        out.push_str("NaN");
    } else if x.is_infinite() {
        out.push_str(if x > 0.0 { "Infinity" } else { "-Infinity" });
    } else if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        let _ = write!(out, "{x:?}");
    } else {
        // 1e+20, 1.5e-07.
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(e) => ('-', e),
            None => ('+', exponent),
        };
        let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
    }
}

/// `str(value)`: True, None, and lists as Python shows them.
fn write_str(out: &mut String, v: &Value) -> Result<(), Error> {
    match v.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => out.push_str(v.as_str().unwrap_or_default()),
        _ => write_repr(out, v, 0)?,
    }
    Ok(())
}

fn write_repr(out: &mut String, v: &Value, depth: usize) -> Result<(), Error> {
    if depth > MOST_DEPTH || out.len() > MOST_TEXT {
        return Err(failed("a value is too deep or too large to be written"));
    }
    match v.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if v.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(out, v),
        ValueKind::String => quoted(out, v.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            out.push('[');
            for (i, item) in v.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in v.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &v.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{v}");
        }
    }
    Ok(())
}

/// A string's `repr`.
fn quoted(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(mark);
}

fn formatter(out: &mut Output<'_>, state: &State<'_, '_>, v: &Value) -> Result<(), Error> {
    if v.kind() == ValueKind::Invalid {
        // Carries why: its own writer says so.
        return minijinja::escape_formatter(out, state, v);
    }
    match v.as_str() {
        Some(text) => out.write_str(text)?,
        None => {
            let mut text = String::new();
            write_str(&mut text, v)?;
            out.write_str(&text)?;
        }
    }
    Ok(())
}

/// Methods of Python's strings that minijinja-contrib does not have.
fn method(state: &State<'_, '_>, v: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let known = minijinja_contrib::pycompat::unknown_method_callback(state, v, name, args);
    let missing = matches!(&known, Err(e) if e.kind() == ErrorKind::UnknownMethod);
    let Some(s) = v.as_str().filter(|_| missing) else {
        return known;
    };
    let parts = |parts: [&str; 3]| Ok(parts.into_iter().map(Value::from).collect::<Value>());
    match name {
        "removeprefix" | "removesuffix" => {
            let (what,): (&str,) = from_args(args)?;
            let cut = match name {
                "removeprefix" => s.strip_prefix(what),
                _ => s.strip_suffix(what),
            };
            Ok(Value::from(cut.unwrap_or(s)))
        }
        "partition" => {
            let (sep,): (&str,) = from_args(args)?;
            match s.split_once(sep) {
                Some((a, b)) => parts([a, sep, b]),
                None => parts([s, "", ""]),
            }
        }
        "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            match s.rsplit_once(sep) {
                Some((a, b)) => parts([a, sep, b]),
                None => parts(["", "", s]),
            }
        }
        "rsplit" => {
            let (sep, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most = most
                .and_then(|n| usize::try_from(n).ok())
                .map_or(usize::MAX, |n| n.saturating_add(1));
            let mut all: Vec<&str> = match sep {
                Some("") => return Err(failed("rsplit: empty separator")),
                Some(sep) => s.rsplitn(most, sep).collect(),
                None if most == usize::MAX => s.split_whitespace().rev().collect(),
                None => s.trim_end().rsplitn(most, char::is_whitespace).collect(),
            };
            all.reverse();
            Ok(all.into_iter().map(Value::from).collect())
        }
        "casefold" => {
            let () = from_args(args)?;
            Ok(Value::from(s.to_lowercase()))
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = s.chars().flat_map(|c| -> Vec<char> {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            });
            Ok(Value::from(swapped.collect::<String>()))
        }
        "index" => {
            let (what,): (&str,) = from_args(args)?;
            let at = s.find(what).ok_or_else(|| failed("substring not found"))?;
            Ok(Value::from(s[..at].chars().count()))
        }
        "zfill" | "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let fill = fill.unwrap_or(if name == "zfill" { "0" } else { " " });
            let missing = width.min(4096).saturating_sub(s.chars().count());
            let fill = |n: usize| fill.repeat(n);
            Ok(Value::from(match name {
                "ljust" => format!("{s}{}", fill(missing)),
                "rjust" => format!("{}{s}", fill(missing)),
                "zfill" => match s.strip_prefix(['-', '+']) {
                    Some(digits) => format!("{}{}{digits}", &s[..1], fill(missing)),
                    None => format!("{}{s}", fill(missing)),
                },
                _ => {
                    // Python's odd one goes left where the width is odd.
                    let left = missing / 2 + (missing & width & 1);
                    format!("{}{s}{}", fill(left), fill(missing - left))
                }
            }))
        }
        _ => known,
    }
}
