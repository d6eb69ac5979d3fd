//! What an answer is made of, and the marks in it.

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the model thought before it answered.
    Thought(String),
    /// What it says.
    Text(String),
    /// A function that it calls.
    Call {
        /// The function.
        name: String,
        /// Its arguments, a JSON text; of a call that was cut off, its beginning.
        arguments: String,
    },
}

/// What ends a call in Hermes' form and Qwen-Coder's.
pub(super) const CALL_END: &str = "</tool_call>";

/// Bytes of a text that cannot be the beginning of a mark.
pub(super) fn sure(text: &str, mark: &str) -> usize {
    let begins = |n: &usize| text.ends_with(&mark[..*n]);
    let held = (1..mark.len())
        .rev()
        .find(|n| mark.is_char_boundary(*n) && begins(n));
    text.len() - held.unwrap_or(0)
}
