//! Jinja's filters of texts, with its names and places of their arguments.
//!
//! Invariant: what is not a text is written as Python writes it first. Out of scope:
//! HTML but for its escapes: chat templates have none.

use super::{bind, failed, given, methods, percent, string, write_repr};
use crate::model::chat::limits;
use minijinja::{
    Environment, Error,
    value::{Kwargs, Rest, Value, ValueKind, from_args},
};

/// Adds all of it.
pub(super) fn add_to(env: &mut Environment<'_>) {
    env.add_filter("string", string);
    env.add_filter("upper", |v: &Value| string(v).map(|s| s.to_uppercase()));
    env.add_filter("lower", |v: &Value| string(v).map(|s| s.to_lowercase()));
    env.add_filter("capitalize", |state: &minijinja::State, v: &Value| {
        methods::method(state, &string(v)?.into(), "capitalize", &[])
    });
    env.add_filter("title", |v: &Value| string(v).map(|s| title(&s)));
    // Jinja makes a string of what it trims.
    env.add_filter("trim", |v: &Value, chars: Option<String>| {
        let text = string(v)?;
        let cut =
            |c: char| (chars.as_ref()).map_or_else(|| methods::is_space(c), |all| all.contains(c));
        Ok::<_, Error>(text.trim_matches(cut).to_owned())
    });
    env.add_filter("pprint", |v: &Value| {
        let mut text = String::new();
        write_repr(&mut text, v, 0).map(|()| text)
    });
    env.add_filter("replace", |v: &Value, args: Rest<Value>| {
        let [from, to, count] = bind("replace", ["old", "new", "count"], &args)?;
        let (Some(from), Some(to)) = (from, to) else {
            return Err(failed("replace: what, and by what?"));
        };
        let count = given(count).map(i64::try_from).transpose()?;
        methods::replaced(&string(v)?, &string(&from)?, &string(&to)?, count)
    });
    env.add_filter(
        "center",
        |state: &minijinja::State, v: &Value, width: Option<i64>| {
            let width = Value::from(width.unwrap_or(80));
            methods::method(state, &string(v)?.into(), "center", &[width])
        },
    );
    env.add_filter("format", |v: &Value, args: Rest<Value>| {
        let (places, named): (&[Value], Kwargs) = from_args(&args)?;
        let given: Vec<&str> = named.args().collect();
        if given.is_empty() {
            return percent::formatted(&string(v)?, &Value::from(places.to_vec()));
        }
        if !places.is_empty() {
            return Err(failed("format: values by place or by name, not both"));
        }
        let pairs = given
            .into_iter()
            .map(|name| Ok((name, named.get::<Value>(name)?)));
        let pairs: Vec<_> = pairs.collect::<Result<_, Error>>()?;
        percent::formatted(&string(v)?, &pairs.into_iter().collect())
    });
    env.add_filter("indent", indent);
    env.add_filter("truncate", truncate);
    env.add_filter("wordcount", |v: &Value| {
        let text = string(v)?;
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        Ok::<_, Error>(words.filter(|word| !word.is_empty()).count())
    });
    env.add_filter("wordwrap", wordwrap);
    env.add_filter("random", |_: &Value| {
        Err::<Value, _>(failed(
            "random: the text of a conversation is the same each time",
        ))
    });
    for name in ["e", "escape"] {
        env.add_filter(name, |v: &Value| match v.is_safe() {
            true => Ok(v.clone()),
            false => string(v).map(|s| Value::from_safe_string(escaped(&s))),
        });
    }
    env.add_filter("forceescape", |v: &Value| {
        string(v).map(|s| Value::from_safe_string(escaped(&s)))
    });
    env.add_filter("xmlattr", xmlattr);
}

/// As HTML; the escapes are markupsafe's.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

fn xmlattr(v: &Value, autospace: Option<bool>) -> Result<Value, Error> {
    let mut out = String::new();
    if v.kind() != ValueKind::Map {
        return Err(failed("xmlattr: no mapping"));
    }
    for key in v.try_iter()? {
        let value = v.get_item(&key)?;
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let key = string(&key)?;
        if key.contains(|c: char| methods::is_space(c) || "/>=".contains(c)) {
            return Err(failed(format!("xmlattr: {key:?} is no name")));
        }
        if !out.is_empty() || autospace != Some(false) {
            out.push(' ');
        }
        out.push_str(&format!(
            "{}=\"{}\"",
            escaped(&key),
            escaped(&string(&value)?)
        ));
    }
    Ok(Value::from_safe_string(out))
}

/// Words begin behind spaces, hyphens and opening brackets only.
fn title(text: &str) -> String {
    let mut within = false;
    let each = text.chars().flat_map(|c| -> Vec<char> {
        let part = methods::is_space(c) || "-({[<".contains(c);
        match std::mem::replace(&mut within, !part) {
            true => c.to_lowercase().collect(),
            false => c.to_uppercase().collect(),
        }
    });
    each.collect()
}

/// Jinja's own, which keeps a line's end and indents by a text too.
fn indent(v: &Value, args: Rest<Value>) -> Result<String, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], &args)?;
    let on = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (first, blank) = (on(first), on(blank));
    let width = width.unwrap_or(4.into());
    let by = match width.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(limits::narrow(usize::try_from(width)?)?),
    };
    let text = string(v)? + "\n";
    let lines = || methods::lines(&text, false);
    limits::made(lines().count().saturating_mul(by.len()))?;
    let mut out = String::new();
    for (i, line) in lines().enumerate() {
        out.push_str(if i > 0 { "\n" } else { "" });
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn truncate(v: &Value, args: Rest<Value>) -> Result<String, Error> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kill, end, leeway] = bind("truncate", names, &args)?;
    let number = |v: Option<Value>, usual| given(v).map_or(Ok(usual), usize::try_from);
    let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
    let end = end.map_or_else(|| Ok("...".into()), |end| string(&end))?;
    let text = v.as_str().ok_or_else(|| failed("truncate: no text"))?;
    let kept = length.checked_sub(end.chars().count());
    let kept = kept.ok_or_else(|| failed(format!("truncate: {length} is shorter than {end:?}")))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let at = text
        .char_indices()
        .nth(kept)
        .map_or(text.len(), |(at, _)| at);
    let cut = &text[..at];
    let cut = match kill.is_some_and(|kill| kill.is_true()) {
        true => cut,
        false => cut.rsplit_once(' ').map_or(cut, |(words, _)| words),
    };
    Ok(format!("{cut}{end}"))
}

fn wordwrap(v: &Value, args: Rest<Value>) -> Result<String, Error> {
    let names = [
        "width",
        "break_long_words",
        "wrapstring",
        "break_on_hyphens",
    ];
    let [width, long, by, hyphens] = bind("wordwrap", names, &args)?;
    let on = |flag: Option<Value>| flag.is_none_or(|flag| flag.is_true());
    let width = given(width).map_or(Ok(79), usize::try_from)?;
    if width == 0 {
        return Err(failed("wordwrap: a width of 0"));
    }
    let by = given(by).map_or_else(|| Ok("\n".into()), |by| string(&by))?;
    let (long, hyphens) = (on(long), on(hyphens));
    let text = string(v)?;
    limits::made(
        text.len()
            .saturating_mul(by.len().saturating_add(size_of::<&str>())),
    )?;
    let each =
        methods::lines(&text, false).map(|line| wrapped(line, width, long, hyphens).join(&by));
    Ok(each.collect::<Vec<_>>().join(&by))
}

/// The lines that Python's textwrap makes of one.
fn wrapped(line: &str, width: usize, long: bool, hyphens: bool) -> Vec<String> {
    let mut chunks: Vec<&str> = chunks(line, hyphens);
    chunks.reverse();
    let mut out = Vec::new();
    while !chunks.is_empty() {
        if !out.is_empty() && chunks.last().is_some_and(|c| c.trim().is_empty()) {
            chunks.pop();
        }
        let (mut now, mut length): (Vec<&str>, usize) = (Vec::new(), 0);
        while let Some(chunk) = chunks.pop() {
            let count = chunk.chars().count();
            if length + count <= width {
                now.push(chunk);
                length += count;
                continue;
            }
            if count > width && long {
                let room = chunk.char_indices().nth(width - length);
                let (head, rest) = chunk.split_at(room.map_or(chunk.len(), |(at, _)| at));
                now.push(head);
                chunks.push(rest);
            } else if count > width && now.is_empty() {
                now.push(chunk);
            } else {
                chunks.push(chunk);
            }
            break;
        }
        if now.last().is_some_and(|c| c.trim().is_empty()) {
            now.pop();
        }
        if !now.is_empty() {
            out.push(now.concat());
        }
    }
    out
}

/// Words, the spaces between them, and the parts of words with hyphens between letters.
fn chunks(line: &str, hyphens: bool) -> Vec<&str> {
    let mut out = Vec::new();
    let mut from = 0;
    let kept: Vec<(usize, char)> = line.char_indices().collect();
    let letter = |i: usize| {
        kept.get(i)
            .is_some_and(|(_, c)| c.is_alphabetic() || *c == '_')
    };
    let word = |i: usize| {
        kept.get(i)
            .is_some_and(|(_, c)| c.is_alphanumeric() || *c == '_')
    };
    for i in 1..kept.len() {
        let (at, c) = kept[i];
        let before = kept[i - 1].1;
        let parts = methods::is_space(before) != methods::is_space(c);
        let joint = hyphens
            && before == '-'
            && i >= 3
            && letter(i - 2)
            && word(i - 3)
            && word(i)
            && letter(i + 1);
        if parts || joint {
            out.push(&line[from..at]);
            from = at;
        }
    }
    if from < line.len() {
        out.push(&line[from..]);
    }
    out
}
