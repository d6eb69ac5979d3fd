//! What is wrong with a command line or a configuration, told as logs are.
//!
//! Owns the look for `--log-format` in what could not be parsed: a word of the
//! command line, else the environment, else the file, wrong as the rest may be.
//! Out of scope: what is wrong.

use super::{CONFIGURED, FILE, file, variable};
use crate::cli::{LogFormat, tell};
use clap::{
    ValueEnum,
    builder::StyledStr,
    error::{ContextKind, ContextValue, ErrorKind},
};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};
use toml::de::DeTable;

/// The flag that says how logs are written.
const FORMAT: &str = "log-format";
/// Of a wrong command line or configuration.
const WRONG: u8 = 2;

/// Why there is nothing to run.
#[derive(Debug)]
pub enum Refused {
    /// What clap says of a command line; help and version, too.
    Usage(clap::Error),
    /// File, line and key, or variable, and what is wrong.
    Setting(String),
}

/// Ollama's first word is a model, so one without a flag is neither guessed to be
/// that nor a prompt: whoever names a model would get an answer of another one.
const WORDS: &str = "a prompt goes behind -p (kvpsi run -p 'Why is the sky blue?'), a model behind -m \
                     (-m FILE, or -m ollama:NAME)";

impl Refused {
    /// What clap says of the command line of `command`.
    pub(super) fn usage(mut e: clap::Error, command: &str) -> Self {
        let word = match e.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(word)) => !word.starts_with('-'),
            _ => false,
        };
        if word && command == "run" && e.kind() == ErrorKind::UnknownArgument {
            let tip = ContextValue::StyledStrs(vec![StyledStr::from(WORDS)]);
            e.insert(ContextKind::Suggested, tip);
        }
        Self::Usage(e)
    }

    /// Says so, as an entry of the log where that is JSON; the exit code is that of a
    /// wrong command line.
    pub fn tell(self) -> ExitCode {
        match self {
            Self::Usage(e) if !e.use_stderr() || !tell::is_json() => e.exit(),
            Self::Usage(e) => tell::error(&one_line(&e.to_string())),
            Self::Setting(why) => tell::error(&why),
        }
        ExitCode::from(WRONG)
    }
}

/// What clap says in several lines.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let line = lines.collect::<Vec<_>>().join("; ");
    match line.strip_prefix("error: ") {
        Some(rest) => rest.to_owned(),
        None => line,
    }
}

/// How logs are to be written, of a command line that could not be parsed.
#[must_use]
pub fn format_of(argv: &[OsString], default_file: &Path) -> LogFormat {
    let env = |long| std::env::var(variable(long)).ok();
    let word = flag(argv, FORMAT).or_else(|| env(FORMAT));
    let configured = || CONFIGURED.iter().any(|c| argv.iter().any(|a| a == c));
    let word = word.or_else(|| {
        let named = flag(argv, FILE).or_else(|| env(FILE)).map(PathBuf::from);
        let file = named.unwrap_or_else(|| default_file.to_owned());
        configured().then(|| of_file(&file)).flatten()
    });
    let format = word.and_then(|w| LogFormat::from_str(&w, false).ok());
    format.unwrap_or_default()
}

/// The value of a flag, where it stands as a word.
fn flag(argv: &[OsString], long: &str) -> Option<String> {
    let name = format!("--{long}");
    let mut words = argv.iter().filter_map(|w| w.to_str());
    words
        .find_map(|w| w.strip_prefix(&name)?.strip_prefix('=').map(str::to_owned))
        .or_else(|| {
            let at = argv.iter().position(|w| *w == *name)?;
            argv.get(at + 1)?.to_str().map(str::to_owned)
        })
}

fn of_file(path: &Path) -> Option<String> {
    let text = file::text(path).ok()?;
    let table = DeTable::parse(&text).ok()?;
    let format = table
        .get_ref()
        .iter()
        .find(|(key, _)| key.get_ref().replace('_', "-") == FORMAT);
    Some(format?.1.get_ref().as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clap_says_becomes_one_line() {
        let text = "error: a thing\n\n  tip: another\n\nUsage: kvpsi\n";
        assert_eq!(one_line(text), "a thing; tip: another; Usage: kvpsi");
    }

    #[test]
    fn the_format_is_found_in_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k.toml");
        std::fs::write(&file, "prot = 1\nlog_format = 'json'").unwrap();
        let of = |line: &str| {
            let argv: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            format_of(&argv, &file)
        };
        for json in [
            "kvpsi run --bogus --log-format json",
            "kvpsi --log-format=json run --bogus",
            "kvpsi serve --bogus",
            "kvpsi config --log-format",
        ] {
            assert_eq!(of(json), LogFormat::Json, "{json}");
        }
        for human in [
            "kvpsi run --bogus",
            "kvpsi --log-format human serve --bogus",
            "kvpsi serve --config /nonexistent",
            "kvpsi run --log-format jsonl",
        ] {
            assert_eq!(of(human), LogFormat::Human, "{human}");
        }
    }
}
