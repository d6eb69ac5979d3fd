//! What was said in a conversation, and its file.
//!
//! Owns the messages and which of them the model still sees: where the context
//! is full the oldest turns are left out, never the instructions and never the
//! last question. All of them stay here, and all are saved. A file is JSON,
//! `{"messages": [{"role": "user", "content": "..."}, ...]}`, as OpenAI's API has
//! them. Invariants: a file is whole under its name or as it was before; what is
//! loaded is bounded and checked. Out of scope: tokens.

use crate::model::{
    chat::{Message, Role},
    open_regular,
};
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Most bytes of a file that is loaded: more than any context holds.
const MOST_BYTES: u64 = 16 << 20;

/// A conversation.
#[derive(Debug, Default)]
pub(super) struct Dialogue {
    system: Option<Message>,
    /// Questions and answers.
    turns: Vec<Message>,
    /// The first of them that the model still sees.
    from: usize,
}

/// A message in a file.
#[derive(Serialize, Deserialize)]
struct Saved {
    role: String,
    content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    messages: Vec<Saved>,
}

impl Dialogue {
    /// One that begins with instructions, if there are any.
    pub fn new(system: Option<&str>) -> Self {
        Self {
            system: system.map(|text| Message::new(Role::System, text)),
            ..Self::default()
        }
    }

    /// Adds a question or an answer.
    pub fn push(&mut self, message: Message) {
        self.turns.push(message);
    }

    /// Takes back the last question.
    pub fn pop(&mut self) {
        self.turns.pop();
        self.from = self.from.min(self.turns.len());
    }

    /// Begins anew, with the same instructions.
    pub fn clear(&mut self) {
        self.turns.clear();
        self.from = 0;
    }

    /// What the model sees.
    pub fn seen(&self) -> Vec<Message> {
        let turns = self.turns.get(self.from..).unwrap_or_default();
        self.system.iter().chain(turns).cloned().collect()
    }

    /// The first turn that the model sees, for [`Dialogue::see_from`].
    pub fn first_seen(&self) -> usize {
        self.from
    }

    /// The model sees the turns from this one on.
    pub fn see_from(&mut self, first: usize) {
        self.from = first.min(self.turns.len());
    }

    /// Leaves out the oldest question that the model sees, and its answer; false
    /// if it is the only one.
    pub fn leave_out(&mut self) -> bool {
        let turns = self.turns.get(self.from..).unwrap_or_default();
        let next = turns.iter().skip(1).position(|m| m.role == Role::User);
        let Some(next) = next else { return false };
        self.from += next + 1;
        true
    }

    /// Questions and answers.
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    /// Writes all of it to a file: a new one, or one that has a conversation.
    ///
    /// # Errors
    /// Another file is there, or it cannot be written.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        match read(path) {
            Ok(_) => {}
            Err(e) if is_missing(&e) => {}
            Err(e) => bail!("it is there and no conversation, it stays as it is: {e:#}"),
        }
        let one = |m: &Message| Saved {
            role: match m.role {
                Role::System => "system",
                Role::User | Role::Tool => "user",
                Role::Assistant => "assistant",
            }
            .into(),
            content: m.content.clone(),
            reasoning_content: m.reasoning.clone(),
        };
        let messages = self.system.iter().chain(&self.turns).map(one).collect();
        let text = serde_json::to_string_pretty(&Written { messages })?;
        let name = path.file_name().context("it names no file")?;
        let mut new = name.to_owned();
        new.push(format!(".{}.new", std::process::id()));
        let new = path.with_file_name(new);
        let written = write_new(&new, text.as_bytes()).and_then(|()| std::fs::rename(&new, path));
        if written.is_err() {
            // What was begun; there may be none.
            let _ = std::fs::remove_file(&new);
        }
        Ok(written?)
    }

    /// The conversation of a file.
    ///
    /// # Errors
    /// It cannot be read, is larger than 16 MiB, or is no conversation.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let file = read(path)?;
        let mut loaded = Self::default();
        for (i, saved) in file.messages.into_iter().enumerate() {
            let role = match saved.role.as_str() {
                "system" if i == 0 => Role::System,
                "user" => Role::User,
                "assistant" => Role::Assistant,
                other => bail!("message {}: the role `{other}` has no place there", i + 1),
            };
            let mut message = Message::new(role, saved.content);
            message.reasoning = saved.reasoning_content;
            match role {
                Role::System => loaded.system = Some(message),
                _ => loaded.turns.push(message),
            }
        }
        Ok(loaded)
    }
}

fn is_missing(e: &anyhow::Error) -> bool {
    (e.downcast_ref::<std::io::Error>()).is_some_and(|e| e.kind() == ErrorKind::NotFound)
}

/// For its owner alone: what people say to a model is theirs.
fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut open = OpenOptions::new();
    let mut file = open.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.write_all(b"\n")?;
    file.sync_all()
}

fn read(path: &Path) -> anyhow::Result<Written> {
    let mut text = Vec::new();
    open_regular(path)?
        .take(MOST_BYTES + 1)
        .read_to_end(&mut text)?;
    let whole = u64::try_from(text.len()).is_ok_and(|n| n <= MOST_BYTES);
    ensure!(whole, "it is larger than 16 MiB");
    serde_json::from_slice(&text).context("not a saved conversation")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogue() -> Dialogue {
        let mut d = Dialogue::new(Some("be brief"));
        for n in 1..=3 {
            d.push(Message::new(Role::User, format!("question {n}")));
            d.push(Message::new(Role::Assistant, format!("answer {n}")));
        }
        d.push(Message::new(Role::User, "question 4"));
        d
    }

    #[test]
    fn the_oldest_turns_are_left_out_and_neither_instructions_nor_the_question() {
        let mut d = dialogue();
        assert!(d.leave_out() && d.leave_out());
        let seen: Vec<String> = d.seen().into_iter().map(|m| m.content).collect();
        assert_eq!(seen, ["be brief", "question 3", "answer 3", "question 4"]);
        assert!(d.leave_out() && !d.leave_out());
        d.pop();
        assert_eq!(d.seen().len(), 1);
        d.see_from(2);
        assert_eq!(d.seen().len(), 5);
    }

    #[test]
    fn what_is_saved_is_loaded_with_the_turns_that_were_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.json");
        let mut d = dialogue();
        assert!(d.leave_out());
        // Twice: a conversation is written over.
        d.save(&path).unwrap();
        d.save(&path).unwrap();
        let loaded = Dialogue::load(&path).unwrap();
        assert_eq!(loaded.seen(), dialogue().seen());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_file_is_neither_written_over_nor_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "notes").unwrap();
        let e = dialogue().save(&path).unwrap_err().to_string();
        assert!(e.contains("stays as it is"), "{e}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes");
        assert!(Dialogue::load(&path).is_err());
        assert!(Dialogue::load(dir.path()).is_err());
        std::fs::write(
            &path,
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}"#,
        )
        .unwrap();
        let e = Dialogue::load(&path).unwrap_err().to_string();
        assert!(e.contains("message 2") && e.contains("system"), "{e}");
    }
}
