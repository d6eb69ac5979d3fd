//! Text that strangers wrote: its control tokens are text.
//!
//! Owns which tokens a text must not be able to name, the mark that breaks
//! them, and tokenizing a text with such marks. Invariants: a text that names
//! none gets the ids that it always had; one that does decodes to itself and
//! has no control token from it. llama.cpp does the same by
//! `parse_special = false`. Out of scope: which texts are strangers'.

use super::{ModelError, Tokenizer, TooLong};
use std::collections::HashSet;
use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer,
};

/// Noncharacters of Unicode: no text needs them, and no two are needed at once.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// The control tokens of a vocabulary, to be found in a text.
#[derive(Debug, Default)]
pub(super) struct Controls {
    texts: HashSet<String>,
    /// Their first two bytes: most places of a text begin none.
    begins: HashSet<[u8; 2]>,
    /// Their lengths, in bytes.
    lengths: Vec<usize>,
}

impl Controls {
    pub fn new(texts: impl Iterator<Item = String>) -> Self {
        // One character cannot be broken; no vocabulary has such a control token.
        let texts: HashSet<String> = texts.filter(|t| t.chars().nth(1).is_some()).collect();
        let begins = texts
            .iter()
            .filter_map(|t| t.as_bytes().first_chunk::<2>().copied());
        let begins = begins.collect();
        let mut lengths: Vec<usize> = texts.iter().map(String::len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        Self {
            texts,
            begins,
            lengths,
        }
    }

    /// Whether one begins here.
    fn begin(&self, text: &str) -> bool {
        let two = text.as_bytes().first_chunk::<2>();
        two.is_some_and(|two| self.begins.contains(two))
            && (self.lengths.iter()).any(|n| text.get(..*n).is_some_and(|t| self.texts.contains(t)))
    }
}

impl Tokenizer {
    /// A mark that none of `texts` has, for [`Tokenizer::guard`]; `None` where
    /// they have all of the 32 noncharacters that are tried.
    pub fn mark<'a>(&self, texts: impl Iterator<Item = &'a str> + Clone) -> Option<char> {
        MARKS
            .into_iter()
            .find(|mark| texts.clone().all(|t| !t.contains(*mark)))
    }

    /// `text` with `mark` in every control token that it names, or as it is.
    #[must_use]
    pub fn guard(&self, text: &str, mark: char) -> Option<String> {
        let mut guarded: Option<String> = None;
        let mut from = 0;
        for (at, c) in text.char_indices() {
            if self.controls.begin(&text[at..]) {
                let after = at + c.len_utf8();
                let into = guarded.get_or_insert_default();
                into.push_str(&text[from..after]);
                into.push(mark);
                from = after;
            }
        }
        if let Some(guarded) = &mut guarded {
            guarded.push_str(&text[from..]);
        }
        guarded
    }

    /// Tokens of a text that a template made of guarded ones: control tokens of
    /// the template are recognised, those with a mark in them are text. Bounded
    /// as [`Tokenizer::encode_up_to`].
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode_guarded(
        &self,
        text: &str,
        mark: char,
        most: usize,
    ) -> Result<Result<Vec<u32>, TooLong>, ModelError> {
        self.by_pieces(text, false, most, |piece| match piece.contains(mark) {
            true => self.guarded_ids(piece, mark),
            false => self.ids_of(piece),
        })
    }

    fn guarded_ids(&self, text: &str, mark: char) -> Result<Vec<u32>, ModelError> {
        let bad = |e: tokenizers::Error| ModelError::Tokenize(e.to_string());
        let encoding = self.inner.encode(text, false).map_err(bad)?;
        let ids = encoding.get_ids();
        let mut tokens = Vec::with_capacity(ids.len());
        // Between two added tokens a text is tokenized by itself.
        let (mut from, mut first) = (0, 0);
        for (i, (id, (start, end))) in ids.iter().zip(encoding.get_offsets()).enumerate() {
            // A byte of the mark may be typed as an added token, and have the mark's place.
            let written = || self.inner.id_to_token(*id);
            let is_written = |token: String| text[*start..*end].contains(&token);
            if self.added.contains(id) && written().is_some_and(is_written) {
                self.marked(&text[from..*start], mark, &ids[first..i], &mut tokens)?;
                tokens.push(*id);
                (from, first) = (*end, i + 1);
            }
        }
        self.marked(&text[from..], mark, &ids[first..], &mut tokens)?;
        Ok(tokens)
    }

    fn marked(
        &self,
        text: &str,
        mark: char,
        ids: &[u32],
        tokens: &mut Vec<u32>,
    ) -> Result<(), ModelError> {
        if text.contains(mark) {
            let plain = self.plain(&text.replace(mark, ""));
            tokens.extend(plain.map_err(|e| ModelError::Tokenize(e.to_string()))?);
        } else {
            tokens.extend_from_slice(ids);
        }
        Ok(())
    }

    /// What `Tokenizer::encode_fast` does, without looking for added tokens.
    fn plain(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let mut text = NormalizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            normalizer.normalize(&mut text)?;
        }
        let mut pieces = PreTokenizedString::from(text);
        if let Some(cutter) = self.inner.get_pre_tokenizer() {
            cutter.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
        let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
        let tokens = splits
            .into_iter()
            .filter_map(|(_, _, tokens)| tokens.as_ref());
        Ok(tokens.flatten().map(|t| t.id).collect())
    }
}
