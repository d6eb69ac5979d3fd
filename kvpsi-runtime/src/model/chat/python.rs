//! What chat templates count on beyond Jinja: Python, and transformers.
//!
//! Owns the functions, filters, methods and the way values are written that
//! `apply_chat_template` of transformers gives a template (its
//! `chat_template_utils.py`). Invariant: a template that renders there renders
//! here to the same text, or fails by a name. Out of scope: messages.

mod json;
mod lists;
mod methods;
mod numbers;
mod percent;
mod words;

use super::{CONCATENATED, REMAINDER, SLICED, failed, limits};
use minijinja::{
    Environment, Error, Output, State,
    value::{Kwargs, Value, ValueKind, from_args},
};
use std::fmt::Write;

/// Adds all of it.
pub(super) fn add_to(env: &mut Environment<'_>) {
    minijinja_contrib::add_to_environment(env);
    env.set_unknown_method_callback(methods::method);
    env.set_formatter(formatter);
    env.add_function("raise_exception", |what: String| {
        Err::<String, _>(failed(what))
    });
    env.add_function("strftime_now", |format: String| strftime_now(&format));
    env.remove_global("debug");
    env.add_filter("tojson", json::tojson);
    env.add_filter(SLICED, sliced);
    env.add_filter(CONCATENATED, |a: &Value, b: &Value| {
        Ok::<_, Error>(string(a)? + &string(b)?)
    });
    env.add_filter(REMAINDER, |a: &Value, b: &Value| match a.as_str() {
        Some(text) => percent::formatted(text, b).map(Value::from),
        None => numbers::remainder(a, b),
    });
    numbers::add_to(env);
    words::add_to(env);
    lists::add_to(env);
    env.add_test("number", |v: &Value| numbers::number(v).is_some());
    env.add_test("lower", |v: &Value| {
        string(v).map(|s| methods::is_lower(&s))
    });
    env.add_test("upper", |v: &Value| {
        string(v).map(|s| methods::is_upper(&s))
    });
    // What has a length and items.
    env.add_test("sequence", |v: &Value| {
        use ValueKind as K;
        matches!(v.kind(), K::String | K::Seq | K::Iterable | K::Map) && !is_macro(v)
    });
    // What is not defined may be called, and fails; so are methods not known here.
    env.add_test("callable", |v: &Value| {
        matches!(v.kind(), ValueKind::Plain | ValueKind::Undefined) || is_macro(v)
    });
}

/// minijinja gives a macro the kind of a mapping.
fn is_macro(v: &Value) -> bool {
    v.as_object()
        .is_some_and(|object| object.type_name().ends_with("::Macro"))
}

/// Arguments by their places or their names; one that is given twice is an error.
fn bind<const N: usize>(
    of: &str,
    names: [&str; N],
    args: &[Value],
) -> Result<[Option<Value>; N], Error> {
    let (places, named): (&[Value], Kwargs) = from_args(args)?;
    if places.len() > N {
        return Err(failed(format!("{of}: {N} arguments at most")));
    }
    let mut given = names.map(|_| None);
    for (i, (given, name)) in given.iter_mut().zip(names).enumerate() {
        *given = match places.get(i) {
            Some(place) => Some(place.clone()),
            None if named.has(name) => Some(named.get(name)?),
            None => None,
        };
    }
    named.assert_all_used()?;
    Ok(given)
}

/// An argument for which None is as good as nothing.
fn given(argument: Option<Value>) -> Option<Value> {
    argument.filter(|v| !v.is_none())
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

/// A number as JSON of Python's has it: floats have a point or an exponent.
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

/// `str(value)` as a text of its own.
fn string(v: &Value) -> Result<String, Error> {
    let mut text = String::new();
    write_str(&mut text, v).map(|()| text)
}

fn write_repr(out: &mut String, v: &Value, depth: usize) -> Result<(), Error> {
    if depth > limits::MOST_DEPTH || out.len() > MOST_TEXT {
        return Err(failed("a value is too deep or too large to be written"));
    }
    match v.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Bool => out.push_str(if v.is_true() { "True" } else { "False" }),
        ValueKind::Number => match f64::try_from(v.clone()) {
            Ok(x) if x.is_nan() => out.push_str("nan"),
            Ok(x) if x.is_infinite() => out.push_str(if x > 0.0 { "inf" } else { "-inf" }),
            _ => write_number(out, v),
        },
        ValueKind::String => quoted(out, v.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in v.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map if !is_macro(v) => {
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

/// What `repr` escapes: controls, spaces but the usual one, and marks of direction.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
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
            c if is_unprintable(c) => {
                let _ = match u32::from(c) {
                    n @ ..0x100 => write!(out, "\\x{n:02x}"),
                    n @ ..0x1_0000 => write!(out, "\\u{n:04x}"),
                    n => write!(out, "\\U{n:08x}"),
                };
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
    let shown = match v.as_str() {
        Some(_) => String::new(),
        None => string(v)?,
    };
    let text = v.as_str().unwrap_or(&shown);
    limits::made(text.len())?;
    Ok(out.write_str(text)?)
}

#[cfg(test)]
mod tests;
