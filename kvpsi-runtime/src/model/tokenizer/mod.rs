//! Text to tokens and back, as the model file says.
//!
//! Owns the tokenizer, the set of tokens that end an answer, and the
//! incremental way back to text. Invariant: text leaves only as whole UTF-8
//! characters, whatever bytes the tokens hold. Out of scope: prompts and
//! templates.

mod bpe;
mod bytes;
mod fill;
mod guarded;
mod metadata;
mod pieces;
mod pre;
mod spm;

pub use bytes::TokenBytes;

use super::gguf::{Gguf, ModelError};
use bytes::Alphabet;
use fill::Fill;
use guarded::Controls;
use metadata::Metadata;
use pieces::Spans;
pub use pieces::TooLong;
use std::{collections::HashSet, sync::Arc};
use tokenizers::Tokenizer as Inner;

/// Texts of tokens that end a turn in chat formats: a file names only one of
/// them as `eos_token_id`. The list is llama.cpp's (`llama-vocab.cpp`).
const TURN_ENDS: [&str; 19] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<eos>",
    "</s>",
];

/// Where these are, `<|end|>` parts the messages of one answer (gpt-oss).
const HARMONY: [&str; 2] = ["<|return|>", "<|call|>"];

/// Texts that begin a turn, for files that have them among the tokens of a text.
fn is_turn(text: &str) -> bool {
    let turns = ["<start_of_turn>", "<|im_start|>", "[INST]", "[/INST]"];
    turns.contains(&text) || TURN_ENDS.contains(&text)
}

/// A character of UTF-8 has four bytes at most and a token has one at least:
/// what is still no character after this many tokens is not going to be one.
const MAX_HELD: usize = 8;

/// Most bytes of one token. The longest that is known has a thousand.
const MOST_TOKEN: usize = 64 << 10;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: Inner,
    ends: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Put before a text that starts, and after it.
    around: (Option<u32>, Option<u32>),
    alphabet: Alphabet,
    /// Tokens that are found in a text as they are written.
    added: HashSet<u32>,
    /// Those of them that no text is meant by.
    control_ids: HashSet<u32>,
    controls: Controls,
    /// A space is put before a text.
    in_front: bool,
    spans: Spans,
    fill: Option<Fill>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer from the metadata of a file.
    ///
    /// # Errors
    /// The file holds none, a damaged one, or one of an unsupported kind.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let from = Metadata(gguf);
        let key = "tokenizer.ggml.tokens";
        let tokens = from.texts(key)?;
        let (count, vocab) = (tokens.len(), gguf.config().vocab);
        if count > vocab {
            return Err(from.bad(
                key,
                format!("holds {count} tokens, but the model has {vocab}"),
            ));
        }
        if let Some((id, token)) = (tokens.iter().enumerate()).find(|(_, t)| t.len() > MOST_TOKEN) {
            let bytes = token.len();
            return Err(from.bad(
                key,
                format!("has {bytes} bytes at {id}: a token has {MOST_TOKEN} at most, the file is damaged"),
            ));
        }
        let bos = from.id("tokenizer.ggml.bos_token_id", count)?;
        let eos = from.id("tokenizer.ggml.eos_token_id", count)?;
        let key = "tokenizer.ggml.model";
        let (inner, starts, alphabet) = match gguf.string(key) {
            Some("gpt2" | "gemma4") => bpe::build(&from, &tokens)?,
            Some("llama") => (spm::build(&from, &tokens)?, true, Alphabet::Pieces),
            Some(other) => {
                return Err(from.bad(
                    key,
                    format!(
                        "is `{other}`; supported: gpt2 (byte-level BPE), gemma4 (BPE of UTF-8), llama (SentencePiece)"
                    ),
                ));
            }
            None => return Err(from.bad(key, "is missing: the tokenizer's kind is not known")),
        };
        let starts = from.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(starts);
        let stops = from.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let harmony = HARMONY.iter().all(|t| inner.token_to_id(t).is_some());
        let turn_ends = TURN_ENDS.iter().filter(|t| !harmony || **t != "<|end|>");
        let mut ends: Vec<u32> = eos
            .into_iter()
            .chain(from.id("tokenizer.ggml.eot_token_id", count)?)
            .chain(from.id("tokenizer.ggml.eom_token_id", count)?)
            .chain(turn_ends.filter_map(|t| inner.token_to_id(t)))
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let in_front = match gguf.string("tokenizer.ggml.model") {
            Some("llama") => spm::in_front(&from)?,
            _ => false,
        };
        let written = inner.get_added_tokens_decoder();
        // Some files have the ends of turns among the tokens of a text.
        let is_control =
            |id: &u32, special: bool, text: &str| special || ends.contains(id) || is_turn(text);
        let controls = || {
            let all = written.iter();
            all.filter(|(id, t)| is_control(id, t.special, &t.content))
        };
        Ok(Self {
            alphabet,
            added: written.keys().copied().collect(),
            control_ids: controls().map(|(id, _)| *id).collect(),
            controls: Controls::new(controls().map(|(_, t)| t.content.clone())),
            in_front,
            fill: fill::find(&from, &inner, count)?,
            spans: Spans::of(&inner, &tokens, in_front),
            inner,
            ends,
            bos,
            eos,
            around: (bos.filter(|_| starts), eos.filter(|_| stops)),
        })
    }

    /// Tokens of `text`. Special tokens written out in it are recognised;
    /// `start` lets the model's own start and end tokens be added where the
    /// file asks for them (a chat template brings its own).
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode(&self, text: &str, start: bool) -> Result<Vec<u32>, ModelError> {
        let (first, last) = if start { self.around } else { (None, None) };
        let ids = self.ids_of(text)?;
        Ok(first.into_iter().chain(ids).chain(last).collect())
    }

    fn ids_of(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| ModelError::Tokenize(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `tokens`, with special tokens written out.
    ///
    /// # Errors
    /// A token is outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        self.inner
            .decode(tokens, false)
            .map_err(|e| ModelError::Tokenize(e.to_string()))
    }

    /// Whether this token ends an answer.
    #[must_use]
    pub fn ends(&self, token: u32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// Tokens that end an answer, in ascending order.
    #[must_use]
    pub fn end_tokens(&self) -> &[u32] {
        &self.ends
    }

    /// Whether no text is meant by this token.
    #[must_use]
    pub fn is_control(&self, token: u32) -> bool {
        self.control_ids.contains(&token) || self.ends(token)
    }

    /// The token of a name, a control token's too.
    #[must_use]
    pub fn token(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// Text of the start-of-text and end-of-text tokens, empty without one.
    #[must_use]
    pub fn bos_eos(&self) -> (String, String) {
        let text = |id: Option<u32>| {
            id.and_then(|id| self.inner.id_to_token(id))
                .unwrap_or_default()
        };
        (text(self.bos), text(self.eos))
    }

    /// Starts to turn tokens into text one by one.
    #[must_use]
    pub fn stream(self: &Arc<Self>) -> TextStream {
        self.stream_behind(None)
    }

    /// The same for a text that goes on behind a token: a space that it begins with is
    /// kept, which a tokenizer takes away from the beginning of a text.
    #[must_use]
    pub fn stream_behind(self: &Arc<Self>, last: Option<u32>) -> TextStream {
        let window: Vec<u32> = last.into_iter().filter(|t| !self.is_control(*t)).collect();
        TextStream {
            tokenizer: self.clone(),
            context: window.len(),
            window,
        }
    }
}

/// Tokens on their way to text.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    /// Tokens already shown that the next ones may depend on, then those held.
    window: Vec<u32>,
    /// How many of `window` were shown.
    context: usize,
}

impl TextStream {
    /// Takes a token and returns the text that is complete with it: empty
    /// while a character is still in pieces.
    ///
    /// # Errors
    /// The token is outside the vocabulary.
    pub fn push(&mut self, token: u32) -> Result<String, ModelError> {
        self.window.push(token);
        self.take(false)
    }

    /// The rest: a character that never became whole is shown as U+FFFD.
    ///
    /// # Errors
    /// None but those of [`TextStream::push`].
    pub fn finish(&mut self) -> Result<String, ModelError> {
        self.take(true)
    }

    fn take(&mut self, all: bool) -> Result<String, ModelError> {
        let held = self.window.len() - self.context;
        if held == 0 {
            return Ok(String::new());
        }
        let shown = self.tokenizer.decode(&self.window[..self.context])?;
        let text = self.tokenizer.decode(&self.window)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && held < MAX_HELD && !all {
            return Ok(String::new());
        }
        // The last piece stays as context: a decoder may treat the first token
        // of a text differently (a leading space, for one).
        let new = text.get(shown.len()..).unwrap_or_default().to_owned();
        self.window.drain(..self.context);
        self.context = self.window.len();
        Ok(new)
    }
}
