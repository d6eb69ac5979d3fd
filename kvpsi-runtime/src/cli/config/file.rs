//! The configuration file: TOML to the words that a flag would get.
//!
//! Owns the reading and what is said of a mistake: file, line, key, and what
//! would be right. Every value is asked of its flag's own parser. Invariant:
//! no content of a file makes it panic, and no file is read past [`MOST`].
//! Out of scope: which flags there are.

use super::{Refused, kind::Kind, secret};
use clap::{Arg, Command, error::ContextKind};
use std::{
    fmt::Display,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};
use toml::de::{DeTable, DeValue};

/// Bytes that a configuration may have: a hundred times what one needs.
const MOST: u64 = 1 << 20;

/// One key of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Of the argument.
    pub id: String,
    /// As the flag would take them.
    pub values: Vec<String>,
    /// Line of the key, from 1.
    pub line: usize,
}

/// A file and what is in it, by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Configuration {
    /// Where it lies.
    pub path: PathBuf,
    /// One for each key.
    pub entries: Vec<Entry>,
}

/// Reads the file. `args` are those that it may set, each with a long flag.
///
/// # Errors
/// It cannot be read, is not TOML, or has a key or a value that none of `args`
/// takes.
pub(super) fn read(path: &Path, args: &[&Arg]) -> Result<Configuration, Refused> {
    let text = text(path)?;
    parse(path, &text, args)
}

/// What is in the file.
pub(super) fn text(path: &Path) -> Result<String, Refused> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|f| f.take(MOST + 1).read_to_end(&mut bytes))
        .map_err(|e| refused(path, None, unreadable(&e)))?;
    if bytes.len() as u64 > MOST {
        return Err(refused(path, None, "more than 1 MiB: is this the file?"));
    }
    String::from_utf8(bytes).map_err(|e| {
        let line = line(e.as_bytes(), e.utf8_error().valid_up_to());
        refused(path, Some(line), "not UTF-8")
    })
}

fn unreadable(e: &io::Error) -> String {
    let hint = match e.kind() {
        io::ErrorKind::NotFound => "; see --config and KVPSI_CONFIG",
        io::ErrorKind::PermissionDenied => "; make it readable to this user",
        _ => "",
    };
    format!("cannot be read: {e}{hint}")
}

/// What [`read`] does with the file's content.
pub(super) fn parse(path: &Path, text: &str, args: &[&Arg]) -> Result<Configuration, Refused> {
    let at = |offset: usize| Some(line(text.as_bytes(), offset));
    let table = DeTable::parse(text).map_err(|e| {
        let line = e.span().and_then(|s| at(s.start));
        refused(path, line, format_args!("not TOML: {}", e.message()))
    })?;
    let mut keys: Vec<_> = table.get_ref().iter().collect();
    keys.sort_by_key(|(key, _)| key.span().start);

    let mut entries: Vec<Entry> = Vec::new();
    for (key, value) in keys {
        let line = line(text.as_bytes(), key.span().start);
        let refused = |why: String| refused(path, Some(line), why);
        let name = key.get_ref().as_ref();
        let long = name.replace('_', "-");
        let Some(arg) = args.iter().find(|a| a.get_long() == Some(&long)) else {
            return Err(refused(unknown(name, value.get_ref(), args)));
        };
        let id = arg.get_id().to_string();
        if let Some(first) = entries.iter().find(|e| e.id == id) {
            return Err(refused(format!(
                "{name}: it was set in line {}",
                first.line
            )));
        }
        let values = values(arg, value.get_ref())
            .and_then(|values| accepted(arg, &values).map(|()| values))
            .map_err(|why| refused(format!("{name}: {why}")))?;
        entries.push(Entry { id, values, line });
    }
    Ok(Configuration {
        path: path.to_owned(),
        entries,
    })
}

fn refused(path: &Path, line: Option<usize>, why: impl Display) -> Refused {
    let line = line.map_or_else(String::new, |l| format!(":{l}"));
    Refused::Setting(format!("{}{line}: {why}", path.display()))
}

/// The line, from 1, of a byte.
fn line(text: &[u8], offset: usize) -> usize {
    let before = &text[..offset.min(text.len())];
    1 + before.iter().filter(|b| **b == b'\n').count()
}

fn unknown(name: &str, value: &DeValue<'_>, args: &[&Arg]) -> String {
    let what = match value {
        DeValue::Table(_) => "no section is known, keys stand alone",
        _ => "no such key",
    };
    let near = near(name, args);
    let hint = if near.is_empty() {
        "`kvpsi serve --help` lists them".into()
    } else {
        format!("did you mean {}?", near.join(" or "))
    };
    format!("{}: {what}; {hint}", name.escape_debug())
}

/// What clap would suggest for a flag of this name.
fn near(name: &str, args: &[&Arg]) -> Vec<String> {
    let flags = args.iter().filter_map(|a| a.get_long());
    let probe = Command::new("kvpsi")
        .no_binary_name(true)
        .disable_help_flag(true)
        .args(flags.map(|long| Arg::new(long.to_owned()).long(long.to_owned())));
    let Err(e) = probe.try_get_matches_from([format!("--{}", name.replace('_', "-"))]) else {
        return Vec::new();
    };
    match e.get(ContextKind::SuggestedArg) {
        Some(s) => s
            .to_string()
            .split(", ")
            .map(|s| {
                let word = s.split(' ').next().unwrap_or(s);
                word.trim_start_matches('-').to_owned()
            })
            .collect(),
        None => Vec::new(),
    }
}

/// The value as words of a command line.
fn values(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let kind = Kind::of(arg);
    match value {
        DeValue::Array(elements) if super::kind::repeats(arg) => elements
            .iter()
            .map(|e| word(kind, e.get_ref()))
            .collect::<Result<_, _>>(),
        one => word(kind, one).map(|w| vec![w]),
    }
    // The value is not shown where it must not be.
    .map_err(|(wanted, got)| match got {
        Some(got) if !secret(arg) => format!("wants {wanted}, not {got}"),
        _ => format!("wants {wanted}"),
    })
}

type Unfit = (&'static str, Option<String>);

fn word(kind: Kind, value: &DeValue<'_>) -> Result<String, Unfit> {
    let integer = |i: &toml::de::DeInteger<'_>| {
        i128::from_str_radix(i.as_str(), i.radix()).map(|i| i.to_string())
    };
    match (kind, value) {
        (Kind::Flag, DeValue::Boolean(b)) => Ok(b.to_string()),
        (Kind::Text | Kind::Other, DeValue::String(s)) => Ok(s.to_string()),
        (Kind::Integer | Kind::Float | Kind::Other, DeValue::Integer(i)) => {
            integer(i).map_err(|_| (kind.wanted(), Some(i.to_string())))
        }
        (Kind::Float | Kind::Other, DeValue::Float(f)) => Ok(f.as_str().to_owned()),
        (_, other) => Err((kind.wanted(), Some(described(other)))),
    }
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("the text {:?}", s.as_ref()),
        DeValue::Integer(i) => format!("the number {i}"),
        DeValue::Float(f) => format!("the number {f}"),
        DeValue::Boolean(b) => format!("{b}"),
        DeValue::Datetime(d) => format!("the date {d}"),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// What the flag's own parser says of these words.
pub(super) fn accepted(arg: &Arg, values: &[String]) -> Result<(), String> {
    let alone = Arg::new("value")
        .long("value")
        .value_parser(arg.get_value_parser().clone())
        .ignore_case(arg.is_ignore_case_set());
    let probe = Command::new("kvpsi").no_binary_name(true).arg(alone);
    for value in values {
        let given = [format!("--value={value}")];
        if let Err(e) = probe.clone().try_get_matches_from(given) {
            return Err(objection(arg, value, &e));
        }
    }
    Ok(())
}

fn objection(arg: &Arg, value: &str, e: &clap::Error) -> String {
    let value = match Kind::of(arg) {
        _ if secret(arg) => "this value".into(),
        Kind::Integer | Kind::Float => value.escape_debug().to_string(),
        Kind::Flag | Kind::Text | Kind::Other => format!("{value:?}"),
    };
    let valid = e.get(ContextKind::ValidValue).map(ToString::to_string);
    match (std::error::Error::source(e), valid) {
        (Some(why), _) => format!("{value} will not do: {why}"),
        (None, Some(valid)) if !valid.is_empty() => format!("{value} is none of {valid}"),
        (None, _) => format!("{value} will not do"),
    }
}

#[cfg(test)]
mod tests;
