//! Long texts, made into tokens piece by piece, up to a limit.
//!
//! Owns where a text may be cut so that the tokens of the pieces are those of
//! the whole, and the bounds of a text's tokens by its bytes. A tokenizer takes
//! about a hundred bytes for each byte of a text: a text that has too many
//! tokens anyway is not made into tokens whole. Out of scope: one piece.
//!
//! A text is cut before a space between two letters, and after the end of a
//! line between a sign and a letter. No rule of [`super::pre`] that cuts there
//! looks over it, and a merge over it would make a token that holds both sides
//! of the cut: a kind of cut that any token of the vocabulary spans is not used.

use super::{Inner, ModelError, Tokenizer};
use std::collections::HashSet;
use tokenizers::{NormalizerWrapper, pre_tokenizers::byte_level::ByteLevel};

/// Bytes after which a text is cut where it may be.
const PIECE: usize = 8 << 10;
/// Most bytes without such a place, and for each token that may be: a tokenizer takes
/// some 300 times as much memory for them.
const LONGEST_PIECE: usize = 512 << 10;
const BYTES_A_TOKEN: usize = 16;

/// What is known of a vocabulary's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spans {
    /// Most bytes of a text that a token may stand for.
    longest: usize,
    /// None spans a letter and a space.
    spaces: bool,
    /// None spans the end of a line and a letter.
    lines: bool,
}

/// A text that was not made into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLong {
    /// It has at least so many tokens.
    Tokens(usize),
    /// It has so many bytes without a place where it may be cut.
    Run(usize),
}

/// The signs that tokens write these by: as they are, by GPT-2's alphabet of
/// bytes, and by SentencePiece.
const SPACES: [char; 3] = [' ', '\u{120}', '\u{2581}'];
const LINES: [char; 2] = ['\n', '\u{10a}'];

/// By how much NFC may shorten a text in UTF-8, at most (Unicode Standard
/// Annex 15, "Maximum Expansion Factors" of NFD).
const NFC_SHORTENS: usize = 3;

impl Spans {
    /// Of a tokenizer and its tokens, added ones too; `in_front`: a space is put
    /// before a text.
    pub fn of(inner: &Inner, tokens: &[String], in_front: bool) -> Self {
        let mut found = Self::of_tokens(tokens.iter().map(String::as_str));
        if matches!(inner.get_normalizer(), Some(NormalizerWrapper::NFC(_))) {
            found.longest = found.longest.saturating_mul(NFC_SHORTENS);
        }
        if !every_byte(tokens) {
            // What has no token may be one unknown token together, or none.
            found.longest = usize::MAX;
        }
        found.lines &= !in_front;
        found
    }

    fn of_tokens<'a>(tokens: impl Iterator<Item = &'a str>) -> Self {
        let mut found = Self {
            longest: 1,
            spaces: true,
            lines: true,
        };
        for token in tokens {
            // As it is written: no alphabet writes a byte by less than one.
            found.longest = found.longest.max(token.len());
            let pairs = token.chars().zip(token.chars().skip(1));
            for (a, b) in pairs {
                found.spaces &= !(a.is_ascii_alphabetic() && SPACES.contains(&b));
                // Letters of other scripts begin with a byte that GPT-2 writes
                // as a letter, too.
                found.lines &= !(LINES.contains(&a) && b.is_alphabetic());
            }
        }
        found
    }

    /// The first place from `from` on where the text may be cut.
    fn cut(self, text: &str, from: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        (from.max(2)..bytes.len().saturating_sub(1)).find(|&i| {
            let letter = |at: usize| bytes[at].is_ascii_alphabetic();
            match (bytes[i - 1], bytes[i]) {
                (_, b' ') => self.spaces && letter(i - 1) && letter(i + 1),
                (b'\n', _) => self.lines && bytes[i - 2].is_ascii_graphic() && letter(i),
                _ => false,
            }
        })
    }
}

/// Every byte has a token of its own, by GPT-2's alphabet or SentencePiece's.
fn every_byte(tokens: &[String]) -> bool {
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let alphabet = ByteLevel::alphabet();
    let mut utf8 = [0; 4];
    (alphabet.iter()).all(|c| known.contains(&*c.encode_utf8(&mut utf8)))
        || (0..=u8::MAX).all(|b| known.contains(format!("<0x{b:02X}>").as_str()))
}

impl Tokenizer {
    /// [`Tokenizer::encode`], unless there are more than `most` tokens: then only
    /// as much is made into tokens as it takes to know.
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode_up_to(
        &self,
        text: &str,
        start: bool,
        most: usize,
    ) -> Result<Result<Vec<u32>, TooLong>, ModelError> {
        self.by_pieces(text, start, most, |piece| self.ids_of(piece))
    }

    /// The same by a tokenizer of pieces.
    pub(super) fn by_pieces(
        &self,
        text: &str,
        start: bool,
        most: usize,
        ids_of: impl Fn(&str) -> Result<Vec<u32>, ModelError>,
    ) -> Result<Result<Vec<u32>, TooLong>, ModelError> {
        let (first, last) = if start { self.around } else { (None, None) };
        let mut tokens: Vec<u32> = first.into_iter().collect();
        let (mut at, mut next) = (0, 0);
        while at < text.len() {
            let least = (text.len() - at) / self.spans.longest;
            if tokens.len() + least > most {
                return Ok(Err(TooLong::Tokens(tokens.len() + least)));
            }
            let end = match text.len() - at {
                0..=PIECE => text.len(),
                _ => self.spans.cut(text, at + PIECE).unwrap_or(text.len()),
            };
            // Texts in any script have fewer bytes a token.
            let longest = most.saturating_mul(BYTES_A_TOKEN).max(4 * PIECE);
            if end - at > longest.min(LONGEST_PIECE) {
                return Ok(Err(TooLong::Run(end - at)));
            }
            tokens.extend(ids_of(&text[next..end])?);
            // The space that some tokenizers put before a text is the one that
            // the piece begins with.
            next = end + usize::from(self.in_front && text[end..].starts_with(' '));
            at = end;
        }
        tokens.extend(last);
        if tokens.len() > most {
            return Ok(Err(TooLong::Tokens(tokens.len())));
        }
        Ok(Ok(tokens))
    }

    /// Bytes of the longest token: a text has at least its bytes by this.
    #[must_use]
    pub fn longest_token(&self) -> usize {
        self.spans.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_where_no_token_spans_the_cut() {
        let all = Spans::of_tokens(["a", "\u{120}b", "ab!", "\u{10a}"].into_iter());
        assert_eq!((all.longest, all.spaces, all.lines), (3, true, true));
        assert_eq!(all.cut("ab cd", 0), Some(2));
        assert_eq!(all.cut("ab  cd", 0), None);
        assert_eq!(all.cut("ab.\ncd", 0), Some(4));
        assert_eq!(all.cut("ab.\n\ncd", 0), None);
        assert_eq!(all.cut("ab \ncd", 0), None);
        assert_eq!(all.cut("ab cd ef", 3), Some(5));
        assert_eq!(all.cut("", 0), None);
        assert_eq!(all.cut("ab ", 0), None);
        for (token, spaces, lines) in [
            ("of the", false, true),
            ("of\u{120}the", false, true),
            ("\u{2581}of\u{2581}", false, true),
            ("\u{10a}x", true, false),
            ("\n\u{e9}", true, false),
        ] {
            let one = Spans::of_tokens(std::iter::once(token));
            assert_eq!((one.spaces, one.lines), (spaces, lines), "{token}");
        }
    }

    /// Between letters a rule cuts before a space, and after the end of a line,
    /// whatever the text behind it is; a rule that does not, looks up no word
    /// whole, so that merges alone decide.
    #[test]
    fn no_rule_looks_over_a_cut() {
        use super::super::{bpe::cutter, pre};
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
        let all = Spans {
            longest: 1,
            spaces: true,
            lines: true,
        };
        let texts = [
            "It's 12345678 m of the road.\nThen  he said\tso; don't we'll X y\nz 1 a b2 c",
            "naïve Ünïcode words of 漢字 and 한국어 here हिन्दी go on\nhTML xML, 'quoted' words\nend",
            "fn main() { let x = 1; }\nreturn a / b\nif a && b\n",
            "of the of the of the IMGIMGA bZ\nabc def\nghi   jkl\n\nmno p",
        ];
        let mut over = Vec::new();
        for rule in pre::RULES.iter().chain(&[pre::DEFAULT]) {
            let cutter = cutter(rule).unwrap();
            let pieces = |text: &str| -> Vec<String> {
                let mut cut = PreTokenizedString::from(text);
                cutter.pre_tokenize(&mut cut).unwrap();
                let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
                (splits.into_iter())
                    .map(|(_, (a, b), _)| text[a..b].to_owned())
                    .collect()
            };
            let mut same = true;
            for text in texts {
                let mut from = 0;
                while let Some(at) = all.cut(text, from) {
                    let (left, right) = text.split_at(at);
                    same &= [pieces(left), pieces(right)].concat() == pieces(text);
                    from = at + 1;
                }
                assert!(from > 10, "{text}: no cut was tried");
            }
            if !same {
                assert!(!rule.whole, "{:?}", rule.names);
                over.push(rule.names[0]);
            }
        }
        let known = [
            "gemma4",
            "sarvam-moe",
            "superbpe",
            "exaone-moe",
            "whitespace",
        ];
        assert!(over.iter().all(|name| known.contains(name)), "{over:?}");
    }
}
