//! `tojson` as transformers has it: `json.dumps` and its arguments.
//!
//! Out of scope: JSON that is read.

use super::super::limits::MOST_DEPTH;
use super::{MOST_TEXT, bind, failed, given, lists::comparable, write_number};
use minijinja::{
    Error,
    value::{Rest, Value, ValueKind},
};
use std::fmt::Write;

/// Most characters that a line is indented by for each level.
const MOST_INDENT: usize = 64;

/// `json.dumps` with the arguments that transformers passes on, by their names or
/// in this order.
const ARGUMENTS: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];

pub(super) fn tojson(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let [ascii, indent, separators, sorted] = bind("tojson", ARGUMENTS, &args)?.map(given);
    let on = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let separators = match separators {
        None => None,
        Some(two) => {
            let texts = two.try_iter()?.map(|v| v.as_str().map(str::to_owned));
            let texts: Option<Vec<_>> = texts.collect();
            Some(texts.ok_or_else(|| failed("tojson: separators are texts"))?)
        }
    };
    let indent = match indent {
        None => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.chars().take(MOST_INDENT).collect(),
            None => " ".repeat(usize::try_from(v)?.min(MOST_INDENT)),
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
        ascii: on(ascii),
        sorted: on(sorted),
        indent,
        item,
        key,
    };
    json.write(value, 0)?;
    Ok(Value::from_safe_string(json.out))
}

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
                    comparable(&keys)?;
                    keys.sort();
                }
                self.all(('{', '}'), depth, &keys, |json, key| {
                    let mut text = String::new();
                    match key.kind() {
                        ValueKind::None => text.push_str("null"),
                        ValueKind::Bool => text = key.is_true().to_string(),
                        ValueKind::Number => write_number(&mut text, key),
                        _ => text = key.to_string(),
                    }
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
