//! What may be typed in a conversation besides turns.
//!
//! Out of scope: a pipe's lines, which are turns whatever they begin with.

use std::path::PathBuf;

/// What `/help` says.
pub(super) const HELP: &str = "\
/clear        begin anew; the instructions stay
/save FILE    write the conversation to FILE, as JSON
/load FILE    go on with a saved conversation
/quit         end; Ctrl-D and Ctrl-C twice do the same
/help         this text
Ctrl-C stops an answer. A pasted text is one turn, however many lines it has.";

/// Something to do instead of answering.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Clear,
    Save(PathBuf),
    Load(PathBuf),
    Quit,
    /// There is none of this name, or it lacks its file.
    Wrong(String),
}

impl Command {
    /// The command of a line; `None` if it is a turn, as a path is (`/etc/hosts`)
    /// and a text of several lines.
    pub fn of(line: &str) -> Option<Self> {
        // A space before it makes it a turn.
        let line = line.trim_end();
        let (name, rest) = line
            .split_once(char::is_whitespace)
            .map_or((line, ""), |(name, rest)| (name, rest.trim()));
        let word = name.strip_prefix('/')?;
        let is_name = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic());
        if !is_name || line.contains('\n') {
            return None;
        }
        let wrong = |why: String| Some(Self::Wrong(why));
        Some(match (word, rest) {
            ("help", "") => Self::Help,
            ("clear", "") => Self::Clear,
            ("quit" | "exit" | "bye", "") => Self::Quit,
            ("save" | "load", "") => return wrong(format!("{name} FILE: which file?")),
            ("save", file) => Self::Save(file.into()),
            ("load", file) => Self::Load(file.into()),
            ("help" | "clear" | "quit" | "exit" | "bye", more) => {
                return wrong(format!("{name} takes nothing: `{more}`"));
            }
            _ => {
                return wrong(format!(
                    "{name}: no such command, /help lists them; a space before it makes it a turn"
                ));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_words_and_paths_are_turns() {
        let is = |line, command| assert_eq!(Command::of(line), Some(command), "{line}");
        is("/help", Command::Help);
        is("/save a file.json ", Command::Save("a file.json".into()));
        is("/load ../x", Command::Load("../x".into()));
        is("/quit", Command::Quit);
        for wrong in ["/save", "/hepl", "/clear all", "/clear the table"] {
            assert!(
                matches!(Command::of(wrong), Some(Command::Wrong(_))),
                "{wrong}"
            );
        }
        for turn in [
            "hi",
            "/etc/hosts",
            "//",
            "/",
            "/help\nme",
            " /hepl",
            "/* c */",
            "a /quit",
        ] {
            assert_eq!(Command::of(turn), None, "{turn}");
        }
    }
}
