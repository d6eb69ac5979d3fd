//! Text to tokens and back, as the model file says.
//!
//! Owns the tokenizer, the set of tokens that end an answer, and the
//! incremental way back to text. Invariant: text leaves only as whole UTF-8
//! characters, whatever bytes the tokens hold. Refuses to know of prompts and
//! templates.

use super::gguf::{Gguf, ModelError};
use candle_core::quantized::{gguf_file::Value, tokenizer::TokenizerFromGguf};
use tokenizers::{
    Tokenizer as Inner,
    pre_tokenizers::{
        PreTokenizerWrapper, byte_level::ByteLevel, digits::Digits, sequence::Sequence,
    },
};

/// Texts of tokens that end a turn in the chat formats of the supported
/// models; a file names only one of them as `eos_token_id`.
const TURN_ENDS: [&str; 5] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "</s>",
];

/// A character of UTF-8 has four bytes at most and a token has one at least:
/// what is still no character after this many tokens is not going to be one.
const MAX_HELD: usize = 8;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: Inner,
    ends: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
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
        let bad = |key: &str, what: String| ModelError::Metadata {
            path: gguf.path().into(),
            key: key.into(),
            what,
        };
        let count = match gguf.content().metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => tokens.len(),
            _ => {
                return Err(bad(
                    "tokenizer.ggml.tokens",
                    "is missing: this file holds no tokenizer; use a GGUF that was converted with its vocabulary".into(),
                ));
            }
        };
        let vocab = gguf.config().vocab;
        if count > vocab {
            return Err(bad(
                "tokenizer.ggml.tokens",
                format!("holds {count} tokens, but the model has {vocab}"),
            ));
        }
        let mut inner = Inner::from_gguf(gguf.content()).map_err(|e| {
            let what = e.to_string();
            bad(
                "tokenizer.ggml",
                format!(
                    "cannot be used: {}; supported: byte-level BPE (`gpt2`)",
                    what.lines().next().unwrap_or_default()
                ),
            )
        })?;
        if let Some(pre) = pre_tokenizer(gguf.string("tokenizer.ggml.pre")) {
            inner.with_pre_tokenizer(Some(pre));
        }
        let id = |key: &str| match gguf.content().metadata.get(key) {
            Some(Value::U32(id)) if (*id as usize) < count => Some(*id),
            _ => None,
        };
        let eos = id("tokenizer.ggml.eos_token_id");
        let bos = id("tokenizer.ggml.bos_token_id");
        let mut ends: Vec<u32> = eos
            .into_iter()
            .chain(id("tokenizer.ggml.eot_token_id"))
            .chain(TURN_ENDS.iter().filter_map(|t| inner.token_to_id(t)))
            .collect();
        ends.sort_unstable();
        ends.dedup();
        Ok(Self {
            inner,
            ends,
            bos,
            eos,
        })
    }

    /// Tokens of `text`. Special tokens written out in it are recognised;
    /// `start` lets the model's own start-of-text token be added where the
    /// file asks for it (a chat template brings its own).
    ///
    /// # Errors
    /// The tokenizer gives up on the text.
    pub fn encode(&self, text: &str, start: bool) -> Result<Vec<u32>, ModelError> {
        self.inner
            .encode_fast(text, start)
            .map(|e| e.get_ids().to_vec())
            .map_err(|e| ModelError::Tokenize(e.to_string()))
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
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            window: Vec::new(),
            context: 0,
        }
    }
}

/// How text is cut before BPE where candle's default (add a space in front,
/// keep digits together) is not what the model was trained with.
fn pre_tokenizer(kind: Option<&str>) -> Option<PreTokenizerWrapper> {
    let bytes = || ByteLevel::new(false, true, true);
    match kind {
        // SmolLM's tokenizer.json: Digits(individual), then ByteLevel.
        Some("smollm") => {
            Some(Sequence::new(vec![Digits::new(true).into(), bytes().into()]).into())
        }
        Some("gpt-2" | "gpt2") | None => Some(bytes().into()),
        _ => None,
    }
}

/// Tokens on their way to text.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens already shown that the next ones may depend on, then those held.
    window: Vec<u32>,
    /// How many of `window` were shown.
    context: usize,
}

impl TextStream<'_> {
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
