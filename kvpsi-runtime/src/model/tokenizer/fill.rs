//! Prompts with a gap: the model writes what goes between two texts.
//!
//! Owns the tokens that mark the parts, and their order: what is before the gap,
//! what is after it, and the gap at the end. A file names the tokens, or they have
//! one of the usual names (llama.cpp's list, `llama-vocab.cpp`). Out of scope:
//! vocabularies without a token for the gap.

use super::{Metadata, Tokenizer, TooLong};
use crate::model::gguf::ModelError;
use tokenizers::Tokenizer as Inner;

/// Begins of the keys of a part: `fim_pre_token_id`, and the older `prefix_token_id`.
const KEYS: [[&str; 2]; 3] = [
    ["fim_pre", "prefix"],
    ["fim_suf", "suffix"],
    ["fim_mid", "middle"],
];
/// Names of the three, by vocabulary: Qwen, StarCoder and Granite, Code Llama, `DeepSeek`.
const NAMES: [[&str; 3]; 5] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["\u{2581}<PRE>", "\u{2581}<SUF>", "\u{2581}<MID>"],
    [
        "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
        "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
        "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
    ],
];

/// The tokens before each of the three parts.
pub(super) type Fill = [u32; 3];

/// Those of a vocabulary of `count` tokens, if it has all of them.
pub(super) fn find(
    from: &Metadata<'_>,
    inner: &Inner,
    count: usize,
) -> Result<Option<Fill>, ModelError> {
    let mut named = [None; 3];
    for (id, keys) in named.iter_mut().zip(KEYS) {
        for key in keys {
            let found = from.id(&format!("tokenizer.ggml.{key}_token_id"), count)?;
            *id = id.or(found);
        }
    }
    let all = |ids: [Option<u32>; 3]| match ids {
        [Some(a), Some(b), Some(c)] => Some([a, b, c]),
        _ => None,
    };
    let usual = NAMES
        .iter()
        .find_map(|names| all(names.map(|n| inner.token_to_id(n))));
    Ok(all(named).or(usual))
}

impl Tokenizer {
    /// Tokens of a prompt whose gap is between two texts; the outer `None` where the
    /// vocabulary has none for that. Up to `most` tokens, as
    /// [`Tokenizer::encode_up_to`].
    ///
    /// # Errors
    /// The tokenizer fails on a text.
    pub fn fill(
        &self,
        before: &str,
        after: &str,
        most: usize,
    ) -> Result<Option<Result<Vec<u32>, TooLong>>, ModelError> {
        let Some([pre, suf, mid]) = self.fill else {
            return Ok(None);
        };
        let mut tokens: Vec<u32> = self.around.0.into_iter().collect();
        for (mark, text) in [(pre, before), (suf, after)] {
            tokens.push(mark);
            match self.encode_up_to(text, false, most)? {
                Ok(part) => tokens.extend(part),
                Err(e) => return Ok(Some(Err(e))),
            }
        }
        tokens.push(mid);
        Ok(Some(match tokens.len() > most {
            true => Err(TooLong::Tokens(tokens.len())),
            false => Ok(tokens),
        }))
    }
}
