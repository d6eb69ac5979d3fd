//! The bytes that each token stands for.
//!
//! Owns the way from a token's name in the vocabulary to its bytes: GPT-2's
//! alphabet (openai/gpt-2, `encoder.py`, `bytes_to_unicode`) or
//! SentencePiece's, with `<0xHH>` for single bytes. Out of scope: texts.

use super::Tokenizer;
use std::{collections::HashMap, sync::LazyLock};

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// A character for each byte.
    ByteLevel,
    /// UTF-8, U+2581 for a space, `<0xHH>` for a byte.
    Pieces,
}

/// What a token is, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenBytes {
    /// Part of a text.
    Text(Vec<u8>),
    /// A control token and its name: no text is meant by it.
    Control(String),
}

impl Tokenizer {
    /// The bytes of every token, by id. `vocab` tokens; those that the file does
    /// not name are control tokens without a name.
    #[must_use]
    pub fn token_bytes(&self, vocab: usize) -> Vec<TokenBytes> {
        (0u32..).take(vocab).map(|id| self.bytes_of(id)).collect()
    }

    /// The bytes of one token.
    #[must_use]
    pub fn bytes_of(&self, id: u32) -> TokenBytes {
        match self.inner.id_to_token(id) {
            None => TokenBytes::Control(String::new()),
            Some(name) if self.control_ids.contains(&id) => TokenBytes::Control(name),
            // Added as they are written.
            Some(name) if self.added.contains(&id) => TokenBytes::Text(self.written(name)),
            Some(name) => TokenBytes::Text(match self.alphabet {
                Alphabet::ByteLevel => of_alphabet(&TABLE, &name),
                Alphabet::Pieces => of_piece(&name),
            }),
        }
    }

    /// A token that is found in texts as it is written.
    fn written(&self, name: String) -> Vec<u8> {
        match self.alphabet {
            Alphabet::ByteLevel => name.into_bytes(),
            Alphabet::Pieces => of_piece(&name),
        }
    }
}

static TABLE: LazyLock<HashMap<char, u8>> = LazyLock::new(byte_level);

/// GPT-2's characters and their bytes: printable ones stand for themselves,
/// the rest from U+0100 on.
fn byte_level() -> HashMap<char, u8> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut table: HashMap<char, u8> = (0..=255u8)
        .filter(printable)
        .map(|b| (char::from(b), b))
        .collect();
    let others = (0..=255u8).filter(|b| !printable(b));
    table.extend(('\u{100}'..).zip(others));
    table
}

fn of_alphabet(table: &HashMap<char, u8>, name: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = name.chars().map(|c| table.get(&c).copied()).collect();
    // A name outside of the alphabet is text as it is.
    bytes.unwrap_or_else(|| name.as_bytes().to_vec())
}

fn of_piece(name: &str) -> Vec<u8> {
    let byte = name
        .strip_prefix("<0x")
        .and_then(|n| n.strip_suffix('>'))
        .filter(|n| n.len() == 2)
        .and_then(|n| u8::from_str_radix(n, 16).ok());
    match byte {
        Some(byte) => vec![byte],
        None => name.replace('\u{2581}', " ").into_bytes(),
    }
}
