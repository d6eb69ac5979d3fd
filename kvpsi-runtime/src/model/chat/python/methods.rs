//! Methods of Python's strings and of lists that a sandbox allows.
//!
//! Invariant: places are counted in characters, as by Python. Those of mappings are
//! minijinja-contrib's. Out of scope: methods that change a value.

use super::{bind, failed, given, write_repr, write_str};
use crate::model::chat::limits;
use minijinja::{
    Error, ErrorKind, State,
    value::{Value, ValueKind, from_args},
};

/// What Python takes for a space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Zeros of the scripts that have ten digits (Unicode, general category Nd, below
/// U+10000).
const ZEROS: [u32; 37] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66,
    0xde6, 0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90,
    0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
];

fn is_decimal(c: char) -> bool {
    ZEROS
        .iter()
        .any(|zero| (*zero..zero + 10).contains(&u32::from(c)))
}

fn is_digit(c: char) -> bool {
    let raised = "\u{b2}\u{b3}\u{b9}\u{2070}".contains(c);
    is_decimal(c)
        || raised
        || ('\u{2074}'..='\u{2079}').contains(&c)
        || ('\u{2080}'..='\u{2089}').contains(&c)
}

fn has_case(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase()
}

/// A text whose words begin with capitals.
fn title(s: &str) -> String {
    let mut within = false;
    let each = s.chars().flat_map(|c| -> Vec<char> {
        let was = std::mem::replace(&mut within, has_case(c));
        if was {
            c.to_lowercase().collect()
        } else {
            c.to_uppercase().collect()
        }
    });
    each.collect()
}

/// A part of a text, and how many characters are before it.
type Part<'s> = (usize, &'s str);

/// `s[start:end]`; `None` where it begins behind the end of one of them.
fn window(s: &str, start: Option<i64>, end: Option<i64>) -> Option<Part<'_>> {
    if start.is_none() && end.is_none() {
        return Some((0, s));
    }
    let count = i64::try_from(s.chars().count()).ok()?;
    let place = |n: i64| if n < 0 { (n + count).max(0) } else { n };
    let start = place(start.unwrap_or(0));
    let end = place(end.unwrap_or(count)).min(count);
    let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
    let at = |n: usize| s.char_indices().map(|(at, _)| at).chain([s.len()]).nth(n);
    Some((start, s.get(at(start)?..at(end)?)?))
}

/// The arguments of a search: what, and where.
fn searched<'s>(s: &'s str, args: &[Value]) -> Result<(Value, Option<Part<'s>>), Error> {
    let (what, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    Ok((what, window(s, start, end)))
}

fn text(v: &Value) -> Result<&str, Error> {
    v.as_str().ok_or_else(|| {
        failed(format!(
            "a text was expected, not a value that is {}",
            v.kind()
        ))
    })
}

/// Whether one of several texts, or the only one, is at an end.
fn at_an_end(what: &Value, is: impl Fn(&str) -> bool) -> Result<bool, Error> {
    if let Some(one) = what.as_str() {
        return Ok(is(one));
    }
    let several = matches!(what.kind(), ValueKind::Seq | ValueKind::Iterable);
    for one in several
        .then(|| what.try_iter())
        .transpose()?
        .into_iter()
        .flatten()
    {
        if is(text(&one)?) {
            return Ok(true);
        }
    }
    match several {
        true => Ok(false),
        false => text(what).map(|_| false),
    }
}

/// Methods that minijinja does not have.
pub(super) fn method(
    state: &State<'_, '_>,
    v: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(s) = v.as_str() {
        return of_text(state, v, s, name, args);
    }
    if matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable) {
        match name {
            "index" => {
                let (what,): (Value,) = from_args(args)?;
                let at = v.try_iter()?.position(|item| item == what);
                return at
                    .map(Value::from)
                    .ok_or_else(|| failed("the value is not in the list"));
            }
            "count" => {
                let (what,): (Value,) = from_args(args)?;
                return Ok(Value::from(
                    v.try_iter()?.filter(|item| *item == what).count(),
                ));
            }
            _ => {}
        }
    }
    if name == "copy" && matches!(v.kind(), ValueKind::Seq | ValueKind::Map) {
        let () = from_args(args)?;
        return Ok(v.clone());
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, v, name, args)
}

fn of_text(
    state: &State<'_, '_>,
    v: &Value,
    s: &str,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let none = || from_args::<()>(args);
    let all =
        |is: fn(char) -> bool| none().map(|()| Value::from(!s.is_empty() && s.chars().all(is)));
    Ok(match name {
        "split" | "rsplit" => {
            limits::listed(v)?;
            split(s, name == "rsplit", args)?
        }
        "splitlines" => {
            limits::listed(v)?;
            let [keep] = bind(name, ["keepends"], args)?;
            lines(s, keep.is_some_and(|keep| keep.is_true()))
                .map(Value::from)
                .collect()
        }
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let cut = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
            Value::from(match name {
                "strip" => s.trim_matches(cut),
                "lstrip" => s.trim_start_matches(cut),
                _ => s.trim_end_matches(cut),
            })
        }
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(args)?;
            Value::from(replaced(s, from, to, count)?)
        }
        "startswith" | "endswith" => {
            let (what, within) = searched(s, args)?;
            let is = |one: &str| {
                within.is_some_and(|(_, s)| match name {
                    "startswith" => s.starts_with(one),
                    _ => s.ends_with(one),
                })
            };
            Value::from(at_an_end(&what, is)?)
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what, within) = searched(s, args)?;
            let what = text(&what)?;
            let found = within.and_then(|(before, s)| {
                let at = if name.starts_with('r') {
                    s.rfind(what)
                } else {
                    s.find(what)
                };
                at.map(|at| before + s[..at].chars().count())
            });
            match found {
                Some(at) => Value::from(at),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(failed("substring not found")),
            }
        }
        "count" => {
            let (what, within) = searched(s, args)?;
            let what = text(&what)?;
            Value::from(within.map_or(0, |(_, s)| match what {
                "" => s.chars().count() + 1,
                what => s.matches(what).count(),
            }))
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            limits::joined(values, s)?;
            let mut joined = String::new();
            for (i, value) in values.try_iter()?.enumerate() {
                joined.push_str(if i > 0 { s } else { "" });
                joined.push_str(text(&value)?);
                limits::made(value.as_str().map_or(0, str::len))?;
            }
            Value::from(joined)
        }
        "format" => {
            limits::format(s, '{', args)?;
            // Python's own way to write what is no number.
            let written = args.iter().map(|v| match v.kind() {
                ValueKind::None | ValueKind::Bool => {
                    let mut text = String::new();
                    write_str(&mut text, v).map(|()| Value::from(text))
                }
                ValueKind::Seq | ValueKind::Iterable if !s.contains('[') => {
                    let mut text = String::new();
                    write_repr(&mut text, v, 0).map(|()| Value::from(text))
                }
                _ => Ok(v.clone()),
            });
            let written: Vec<Value> = written.collect::<Result<_, _>>()?;
            minijinja_contrib::pycompat::unknown_method_callback(state, v, name, &written)?
        }
        "upper" => none().map(|()| Value::from(s.to_uppercase()))?,
        "lower" | "casefold" => {
            let () = none()?;
            let lower = s.to_lowercase();
            Value::from(if name == "lower" {
                lower
            } else {
                lower.replace('ß', "ss")
            })
        }
        "title" => none().map(|()| Value::from(title(s)))?,
        "capitalize" => {
            let () = none()?;
            let mut rest = s.chars();
            let first = rest.next().into_iter().flat_map(char::to_uppercase);
            Value::from(first.collect::<String>() + &rest.as_str().to_lowercase())
        }
        "swapcase" => {
            let () = none()?;
            let swapped = s.chars().flat_map(|c| -> Vec<char> {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            });
            Value::from(swapped.collect::<String>())
        }
        "removeprefix" | "removesuffix" => {
            let (what,): (&str,) = from_args(args)?;
            let cut = match name {
                "removeprefix" => s.strip_prefix(what),
                _ => s.strip_suffix(what),
            };
            Value::from(cut.unwrap_or(s))
        }
        "partition" | "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            let parts = match (sep, name) {
                ("", _) => return Err(failed("empty separator")),
                (_, "partition") => s.split_once(sep).map_or([s, "", ""], |(a, b)| [a, sep, b]),
                _ => s.rsplit_once(sep).map_or(["", "", s], |(a, b)| [a, sep, b]),
            };
            parts.into_iter().map(Value::from).collect()
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let head = usize::from(s.starts_with(['-', '+']));
            Value::from(format!(
                "{}{}{}",
                &s[..head],
                filled(s, width, "0")?,
                &s[head..]
            ))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            let width = usize::try_from(width).unwrap_or(0);
            let fill = filled(s, width, fill.unwrap_or(" "))?;
            Value::from(match name {
                "ljust" => format!("{s}{fill}"),
                "rjust" => format!("{fill}{s}"),
                _ => {
                    // Python's odd one goes left where the width is odd.
                    let missing = fill.chars().count();
                    let left = missing / 2 + (missing & width & 1);
                    let at = fill
                        .char_indices()
                        .nth(left)
                        .map_or(fill.len(), |(at, _)| at);
                    format!("{}{s}{}", &fill[..at], &fill[at..])
                }
            })
        }
        "expandtabs" => {
            let [size] = bind(name, ["tabsize"], args)?;
            Value::from(expanded(s, given(size).map_or(Ok(8), usize::try_from)?)?)
        }
        "isalpha" => all(char::is_alphabetic)?,
        "isalnum" => all(char::is_alphanumeric)?,
        "isdecimal" => all(is_decimal)?,
        "isdigit" => all(is_digit)?,
        "isnumeric" => all(char::is_numeric)?,
        "isspace" => all(is_space)?,
        "isascii" => none().map(|()| Value::from(s.is_ascii()))?,
        "isprintable" => {
            let odd = |c: char| c != ' ' && (c.is_control() || is_space(c));
            none().map(|()| Value::from(!s.contains(odd)))?
        }
        "isidentifier" => {
            let () = none()?;
            let begins = s.starts_with(|c: char| c.is_alphabetic() || c == '_');
            Value::from(begins && s.chars().all(|c| c.is_alphanumeric() || c == '_'))
        }
        "islower" => none().map(|()| Value::from(is_lower(s)))?,
        "isupper" => none().map(|()| Value::from(is_upper(s)))?,
        "istitle" => none().map(|()| Value::from(s.contains(has_case) && title(s) == s))?,
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

pub(super) fn is_lower(s: &str) -> bool {
    s.contains(char::is_lowercase) && !s.contains(char::is_uppercase)
}

pub(super) fn is_upper(s: &str) -> bool {
    s.contains(char::is_uppercase) && !s.contains(char::is_lowercase)
}

/// What is missing of a width, in `fill`s.
fn filled(s: &str, width: usize, fill: &str) -> Result<String, Error> {
    if fill.chars().count() != 1 {
        return Err(failed("what fills is one character"));
    }
    limits::made(limits::narrow(width)?)?;
    Ok(fill.repeat(width.saturating_sub(s.chars().count())))
}

/// `s.replace(from, to, count)`.
pub(super) fn replaced(s: &str, from: &str, to: &str, count: Option<i64>) -> Result<String, Error> {
    limits::replaced(s, from, to)?;
    Ok(match count.and_then(|n| usize::try_from(n).ok()) {
        Some(count) => s.replacen(from, to, count),
        None => s.replace(from, to),
    })
}

fn expanded(s: &str, size: usize) -> Result<String, Error> {
    limits::made(
        s.matches('\t')
            .count()
            .saturating_mul(limits::narrow(size)?),
    )?;
    let (mut out, mut column) = (String::new(), 0);
    for c in s.chars() {
        match c {
            '\t' => {
                let missing = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', missing));
                column += missing;
            }
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
            }
        }
    }
    Ok(out)
}

/// Lines, as `str.splitlines` cuts them.
pub(super) fn lines(s: &str, keep: bool) -> impl Iterator<Item = &str> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut rest = s;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = rest.find(ends).unwrap_or(rest.len());
        let end = match &rest[at..] {
            behind if behind.starts_with("\r\n") => at + 2,
            behind => at + behind.chars().next().map_or(0, char::len_utf8),
        };
        let line = &rest[..if keep { end } else { at }];
        rest = &rest[end..];
        Some(line)
    })
}

/// `split` and `rsplit`.
fn split(s: &str, from_behind: bool, args: &[Value]) -> Result<Value, Error> {
    let [sep, most] = bind("split", ["sep", "maxsplit"], args)?;
    let sep = given(sep);
    let sep = sep.as_ref().map(text).transpose()?;
    // A negative number is none.
    let most = given(most).map_or(Ok(-1), i64::try_from)?;
    let most = usize::try_from(most).map_or(usize::MAX, |n| n.saturating_add(1));
    let mut all: Vec<&str> = match (sep, from_behind) {
        (Some(""), _) => return Err(failed("empty separator")),
        (Some(sep), false) => s.splitn(most, sep).collect(),
        (Some(sep), true) => s.rsplitn(most, sep).collect(),
        (None, false) => words(
            s,
            most,
            |s| s.trim_start_matches(is_space),
            |s| s.find(is_space).map(|at| s.split_at(at)),
        ),
        (None, true) => words(
            s,
            most,
            |s| s.trim_end_matches(is_space),
            |s| {
                let (at, c) = s.char_indices().rfind(|(_, c)| is_space(*c))?;
                let (rest, word) = s.split_at(at + c.len_utf8());
                Some((word, rest))
            },
        ),
    };
    if from_behind {
        all.reverse();
    }
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
