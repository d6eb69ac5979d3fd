//! What a flag takes, as far as a file must know it.
//!
//! Owns the way from clap's parsers to TOML's types and back. Out of scope:
//! any flag by name.

use clap::{Arg, ArgAction};
use std::any::TypeId;

/// Types of TOML that a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A boolean.
    Flag,
    /// An integer.
    Integer,
    /// A float, or an integer.
    Float,
    /// A string.
    Text,
    /// Of a type that clap does not bring: a string or a number, as its parser
    /// likes.
    Other,
}

impl Kind {
    /// Of a flag.
    pub fn of(arg: &Arg) -> Self {
        let parser = arg.get_value_parser();
        let is = |types: &[TypeId]| types.iter().any(|t| parser.type_id() == *t);
        if is(&[TypeId::of::<bool>()]) {
            Self::Flag
        } else if is(&INTEGERS) {
            Self::Integer
        } else if is(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) {
            Self::Float
        } else if is(&TEXTS) || !arg.get_possible_values().is_empty() {
            Self::Text
        } else {
            Self::Other
        }
    }

    /// For who wrote something else.
    pub const fn wanted(self) -> &'static str {
        match self {
            Self::Flag => "true or false",
            Self::Integer => "a whole number",
            Self::Float => "a number",
            Self::Text => "a text in quotes",
            Self::Other => "a text in quotes or a number",
        }
    }

    /// A word of a command line as TOML; `None` for what is no text.
    pub fn toml(self, word: &std::ffi::OsStr) -> Option<String> {
        let word = word.to_str()?;
        let number = match self {
            // Text that is no number of Rust's is one to the flag's own parser.
            Self::Integer => word.parse::<i128>().ok().map(|n| n.to_string()),
            Self::Float => word.parse::<f64>().ok().map(float),
            Self::Flag => truth(word).map(|b| b.to_string()),
            Self::Text | Self::Other => None,
        };
        Some(number.unwrap_or_else(|| toml::Value::from(word).to_string()))
    }
}

const INTEGERS: [TypeId; 10] = [
    TypeId::of::<u8>(),
    TypeId::of::<u16>(),
    TypeId::of::<u32>(),
    TypeId::of::<u64>(),
    TypeId::of::<usize>(),
    TypeId::of::<i8>(),
    TypeId::of::<i16>(),
    TypeId::of::<i32>(),
    TypeId::of::<i64>(),
    TypeId::of::<isize>(),
];

const TEXTS: [TypeId; 3] = [
    TypeId::of::<String>(),
    TypeId::of::<std::ffi::OsString>(),
    TypeId::of::<std::path::PathBuf>(),
];

/// TOML's spelling: what is not finite has no capitals.
fn float(f: f64) -> String {
    format!("{f:?}").to_lowercase()
}

/// The words of `clap::builder::BoolishValueParser`.
fn truth(word: &str) -> Option<bool> {
    match word.to_lowercase().as_str() {
        "y" | "yes" | "t" | "true" | "on" | "1" => Some(true),
        "n" | "no" | "f" | "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// It takes several values: an array in a file.
pub(super) fn repeats(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
        || arg.get_num_args().is_some_and(|n| n.max_values() > 1)
}
