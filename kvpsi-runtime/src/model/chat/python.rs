//! What chat templates count on beyond Jinja: Python, and transformers.
//!
//! Owns the functions, filters, methods and the way values are written that
//! `apply_chat_template` of transformers gives a template (its
//! `chat_template_utils.py`). Invariant: a template that renders there renders
//! here to the same text, or fails by a name. Out of scope: messages.

mod json;

use super::{CONCATENATED, SLICED, failed, limits};
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
    env.add_filter("tojson", json::tojson);
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
    for name in ["length", "count"] {
        env.add_filter(name, |v: &Value| match v.is_undefined() {
            true => Ok(0),
            false => minijinja::filters::length(v),
        });
    }
    env.add_filter("pprint", |v: &Value| {
        let mut text = String::new();
        write_repr(&mut text, v, 0).map(|()| text)
    });
    env.remove_global("debug");
    env.add_filter("indent", indent);
    env.add_filter(SLICED, sliced);
    env.add_filter(CONCATENATED, |a: &Value, b: &Value| {
        let mut text = String::new();
        write_str(&mut text, a)?;
        write_str(&mut text, b).map(|()| text)
    });
    env.add_filter(
        "center",
        |state: &State, v: &Value, width: Option<usize>| {
            let mut text = String::new();
            write_str(&mut text, v)?;
            let width = Value::from(width.unwrap_or(80));
            method(state, &Value::from(text), "center", &[width])
        },
    );
    env.add_filter("string", |v: &Value| {
        let mut text = String::new();
        write_str(&mut text, v).map(|()| text)
    });
}

/// A slice as Python takes it.
fn sliced(v: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    let number = |v: &Value| match v.is_none() {
        true => Ok(None),
        false => i64::try_from(v.clone()).map(Some),
    };
    let step = number(step)?.unwrap_or(1);
    if step == 0 {
        return Err(failed("a slice by steps of 0"));
    }
    let text: Option<Vec<char>> = v.as_str().map(|s| s.chars().collect());
    let items: Vec<Value> = match (&text, v.kind()) {
        (Some(_), _) | (None, ValueKind::Undefined | ValueKind::None) => Vec::new(),
        (None, ValueKind::Seq | ValueKind::Iterable) => v.try_iter()?.collect(),
        (None, other) => return Err(failed(format!("a slice of a value that is {other}"))),
    };
    let all = text.as_ref().map_or(items.len(), Vec::len);
    let all = i64::try_from(all).unwrap_or(i64::MAX);
    // The first place, and the one behind the last, on the way.
    let (first, end) = if step > 0 { (0, all) } else { (all - 1, -1) };
    let place = |given: Option<i64>, otherwise: i64| match given {
        None => otherwise,
        Some(n) if n < 0 => n.saturating_add(all).max(first.min(end)),
        Some(n) => n.min(first.max(end)),
    };
    let (mut at, stop) = (place(number(start)?, first), place(number(stop)?, end));
    let mut places = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        places.extend(usize::try_from(at));
        at = at.saturating_add(step);
    }
    Ok(match text {
        Some(text) => Value::from(places.into_iter().map(|i| text[i]).collect::<String>()),
        None => places.into_iter().map(|i| items[i].clone()).collect(),
    })
}

/// Jinja's own, which keeps a line's end and indents by a text too.
fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        None => named.get::<Option<Value>>("width")?.unwrap_or(4.into()),
        Some(width) => width,
    };
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let by = match width.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(limits::narrow(usize::try_from(width)?)?),
    };
    let lines = text.split('\n').count();
    limits::made(lines.saturating_mul(by.len()))?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        out.push_str(if i > 0 { "\n" } else { "" });
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            out.push_str(&by);
        }
        out.push_str(line.strip_suffix('\r').unwrap_or(line));
    }
    Ok(out)
}

/// Local time, as `datetime.now().strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    if format.len() > 256 {
        return Err(failed("strftime_now: a format of more than 256 bytes"));
    }
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(format, &now).map_err(|e| failed(format!("strftime_now: {e}")))
}

/// Most that one value may be written as.
const MOST_TEXT: usize = 16 << 20;

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
    if depth > limits::MOST_DEPTH || out.len() > MOST_TEXT {
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
    let mut shown = String::new();
    let text = match v.as_str() {
        Some(text) => text,
        None => {
            write_str(&mut shown, v)?;
            &shown
        }
    };
    limits::made(text.len())?;
    Ok(out.write_str(text)?)
}

/// The methods of strings that make a list.
fn split(s: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (first, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let given = |key| Ok::<_, Error>(first.clone().or(named.get(key)?));
    let all: Vec<&str> = if name == "splitlines" {
        let keep = given("keepends")?.is_some_and(|keep| keep.is_true());
        match keep {
            true => s.split_inclusive('\n').collect(),
            false => s.lines().collect(),
        }
    } else {
        let sep = given("sep")?.filter(|sep| !sep.is_none());
        let sep = match &sep {
            None => None,
            Some(sep) => Some(
                sep.as_str()
                    .ok_or_else(|| failed(format!("{name}: a separator is a text")))?,
            ),
        };
        // A negative number is none.
        let most = most.or(named.get("maxsplit")?);
        let most = most.and_then(|n| usize::try_from(n).ok());
        let most = most.map_or(usize::MAX, |n| n.saturating_add(1));
        let mut all: Vec<&str> = match (sep, name) {
            (Some(""), _) => return Err(failed(format!("{name}: empty separator"))),
            (Some(sep), "split") => s.splitn(most, sep).collect(),
            (Some(sep), _) => s.rsplitn(most, sep).collect(),
            (None, "split") => words(s, most, str::trim_start, |s| {
                s.split_once(char::is_whitespace)
            }),
            (None, _) => words(s, most, str::trim_end, |s| {
                s.rsplit_once(char::is_whitespace)
                    .map(|(rest, word)| (word, rest))
            }),
        };
        if name == "rsplit" {
            all.reverse();
        }
        all
    };
    named.assert_all_used()?;
    Ok(all.into_iter().map(Value::from).collect())
}

/// Up to `most` parts between spaces, the last one whole; `next` gives a word and
/// what is behind it, in the direction of `trim`.
fn words<'s>(
    s: &'s str,
    most: usize,
    trim: impl Fn(&'s str) -> &'s str,
    next: impl Fn(&'s str) -> Option<(&'s str, &'s str)>,
) -> Vec<&'s str> {
    let (mut all, mut rest) = (Vec::new(), trim(s));
    while !rest.is_empty() {
        let (word, behind) = match next(rest) {
            Some(cut) if all.len() + 1 < most => cut,
            _ => (rest, ""),
        };
        all.push(word);
        rest = trim(behind);
    }
    all
}

/// Methods of Python's strings that minijinja-contrib does not have.
fn method(state: &State<'_, '_>, v: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (v.as_str(), name, args) {
        (Some(s), "replace", [from, to, ..]) => {
            let (from, to) = (from.as_str(), to.as_str());
            limits::replaced(s, from.unwrap_or_default(), to.unwrap_or_default())?;
        }
        (Some(s), "join", [values, ..]) => limits::joined(values, s)?,
        (Some(s), "format", _) => limits::format(s, '{', args)?,
        (Some(s), "split" | "rsplit" | "splitlines", _) => {
            limits::listed(v)?;
            return split(s, name, args);
        }
        // Python counts the places between characters; the search would never end.
        (Some(s), "count", [what]) if what.as_str() == Some("") => {
            return Ok(Value::from(s.chars().count() + 1));
        }
        _ => {}
    }
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
            if fill.chars().count() != 1 {
                return Err(failed(format!("{name}: what fills is one character")));
            }
            limits::made(limits::narrow(width)?)?;
            let missing = width.saturating_sub(s.chars().count());
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

#[cfg(test)]
mod tests;
