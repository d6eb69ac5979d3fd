//! A grammar written in Lark.

use super::{Node, Ranges, lexemes::Lexed};
use std::fmt::Write;

/// `start` is the rule `root`. Classes and lexemes are terminals, all else rules.
pub(super) fn write(lexed: &Lexed) -> String {
    let grammar = &lexed.grammar;
    let mut out = String::new();
    line(&mut out, "start", |out| {
        let _ = write!(out, "r{}", grammar.root);
    });
    for (i, rule) in grammar.rules.iter().enumerate() {
        line(&mut out, &format!("r{i}"), |out| node(out, rule));
    }
    for (i, lexeme) in lexed.lexemes.iter().enumerate() {
        line(&mut out, &format!("L{i}"), |out| node(out, lexeme));
    }
    for (i, class) in grammar.classes.iter().enumerate() {
        line(&mut out, &format!("C{i}"), |out| regex(out, class));
    }
    out
}

fn line(out: &mut String, name: &str, body: impl FnOnce(&mut String)) {
    out.push_str(name);
    out.push_str(": ");
    body(out);
    out.push('\n');
}

/// Writing to a string does not fail.
fn node(out: &mut String, what: &Node) {
    match what {
        Node::Class { class, .. } => _ = write!(out, "C{class}"),
        Node::Rule(rule) => _ = write!(out, "r{rule}"),
        Node::Lexeme(lexeme) => _ = write!(out, "L{lexeme}"),
        Node::Sequence(all) if all.is_empty() => out.push_str("\"\""),
        Node::Sequence(all) => joined(out, all, " "),
        Node::Either(all) => {
            out.push('(');
            joined(out, all, " | ");
            out.push(')');
        }
        Node::Repeat { most: Some(0), .. } => out.push_str("\"\""),
        Node::Repeat {
            node: inner,
            least,
            most,
            ..
        } => {
            out.push('(');
            node(out, inner);
            out.push(')');
            match (least, most) {
                (0, None) => out.push('*'),
                (1, None) => out.push('+'),
                (0, Some(1)) => out.push('?'),
                (least, None) => _ = write!(out, "{{{least},}}"),
                (least, Some(most)) => _ = write!(out, "{{{least},{most}}}"),
            }
        }
    }
}

fn joined(out: &mut String, all: &[Node], between: &str) {
    for (i, one) in all.iter().enumerate() {
        if i > 0 {
            out.push_str(between);
        }
        node(out, one);
    }
}

fn regex(out: &mut String, ranges: &Ranges) {
    out.push_str("/[");
    for (first, last) in ranges {
        let _ = write!(out, "\\x{{{first:x}}}");
        if last > first {
            let _ = write!(out, "-\\x{{{last:x}}}");
        }
    }
    out.push_str("]/");
}
