//! Tokenizers of SentencePiece's BPE kind (`llama` in files): Llama 2, Mistral,
//! Gemma.
//!
//! Files hold pieces with scores and no merges. Of two neighbours that make a
//! piece together, those of the best score are joined first; so a merge for
//! every cut of every piece, ranked by the score of the whole, is the same rule
//! (transformers converts these tokenizers that way). What has no piece becomes
//! its bytes. Where several cuts of one piece lie over each other SentencePiece
//! takes the leftmost, which ranks cannot say: such text may be cut otherwise.

use super::metadata::Metadata;
use crate::model::gguf::ModelError;
use std::collections::HashSet;
use tokenizers::{
    AddedToken, Tokenizer as Inner,
    decoders::{
        DecoderWrapper, byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders,
        strip::Strip,
    },
    models::bpe::BPE,
    normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers},
};

/// U+2581, by which pieces write a space.
const SPACE: &str = "\u{2581}";

/// `tokenizer.ggml.token_type`, as llama.cpp numbers it.
const NORMAL: u32 = 1;
const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;

/// Most bytes of a piece that is made of others: a longer one is found in a text
/// only where it is an added one. The longest of Gemma's have 93.
const LONGEST_CUT: usize = 256;
/// Most cuts, and bytes of all of them. Gemma's half a million have 5 MB.
const MOST_CUTS: usize = 1 << 21;
const MOST_BYTES: usize = 64 << 20;

/// Most bytes of all tokens that are found as they are written: the automaton that
/// finds them takes 80 for each. Gemma's six thousand have 80 KB.
const MOST_WRITTEN: usize = 2 << 20;

/// Reads the pieces and builds the tokenizer, without what comes before and
/// after a text.
pub(super) fn build(from: &Metadata<'_>, tokens: &[String]) -> Result<Inner, ModelError> {
    let scores = from.floats("tokenizer.ggml.scores", tokens.len())?;
    let kinds = from.counts("tokenizer.ggml.token_type", tokens.len())?;
    let bad =
        |e: tokenizers::Error| from.bad("tokenizer.ggml.tokens", format!("cannot be used: {e}"));
    let ids = tokens.iter().zip(0u32..).map(|(t, id)| (t.clone(), id));
    let merges = merges(tokens, &scores, &kinds).ok_or_else(|| {
        let what = "can be cut into more pieces than any vocabulary needs: the file is damaged";
        from.bad("tokenizer.ggml.tokens", what)
    })?;
    let mut model = BPE::builder()
        .vocab_and_merges(ids.collect::<tokenizers::models::bpe::Vocab>(), merges)
        .fuse_unk(true)
        .byte_fallback(true);
    let unknown = from.id("tokenizer.ggml.unknown_token_id", tokens.len())?;
    if let Some(unknown) = unknown.and_then(|id| tokens.get(id as usize)) {
        model = model.unk_token(unknown.clone());
    }
    let mut inner = Inner::new(model.build().map_err(bad)?);

    spaces(&mut inner, in_front(from)?).map_err(bad)?;
    add_written(&mut inner, tokens, &kinds).map_err(bad)?;
    Ok(inner)
}

/// Whether a space is put before a text.
pub(super) fn in_front(from: &Metadata<'_>) -> Result<bool, ModelError> {
    let flag = from.flag("tokenizer.ggml.add_space_prefix")?;
    Ok(flag.unwrap_or(true))
}

/// Spaces become U+2581 and come back, bytes come back from their tokens;
/// `in_front` puts one space before a text and takes it away again.
pub(super) fn spaces(inner: &mut Inner, in_front: bool) -> tokenizers::Result<()> {
    let mut before: Vec<NormalizerWrapper> = Vec::new();
    let mut after: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE, " ")?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if in_front {
        before.push(Prepend::new(SPACE.into()).into());
        after.push(Strip::new(' ', 1, 0).into());
    }
    before.push(Replace::new(" ", SPACE)?.into());
    inner
        .with_normalizer(Some(Normalizers::new(before)))?
        .with_decoder(Some(Decoders::new(after)));
    Ok(())
}

/// Tokens that are found in a text as they are written, spaces and all. Unused
/// ones are not: a text that names one does not mean it.
pub(super) fn add_written(
    inner: &mut Inner,
    tokens: &[String],
    kinds: &[u32],
) -> tokenizers::Result<()> {
    let added = tokens.iter().zip(kinds).filter_map(|(token, &kind)| {
        let special = match kind {
            UNKNOWN | CONTROL => true,
            USER_DEFINED => false,
            _ => return None,
        };
        (!token.is_empty()).then_some((token.as_str(), special))
    });
    let bytes: usize = added.clone().map(|(token, _)| token.len()).sum();
    if bytes > MOST_WRITTEN {
        let count = added.count();
        return Err(format!(
            "{count} control and added tokens have {bytes} bytes, {MOST_WRITTEN} at most are possible"
        )
        .into());
    }
    inner.add_tokens(added.map(|(t, special)| AddedToken::from(t, special).normalized(false)))?;
    Ok(())
}

/// Every cut of every piece into two, best score first; `None` where they are more
/// than any vocabulary needs.
fn merges(tokens: &[String], scores: &[f32], kinds: &[u32]) -> Option<Vec<(String, String)>> {
    let pieces = || {
        let whole = tokens.iter().zip(scores).zip(kinds);
        whole.filter(|(_, kind)| matches!(**kind, NORMAL | USER_DEFINED))
    };
    let known: HashSet<&str> = pieces().map(|((t, _), _)| t.as_str()).collect();
    let mut cuts: Vec<(f32, &str, &str)> = Vec::new();
    let mut bytes = 0;
    for ((token, score), _) in pieces().filter(|((t, _), _)| t.len() <= LONGEST_CUT) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if known.contains(left) && known.contains(right) {
                bytes += token.len();
                if bytes > MOST_BYTES || cuts.len() == MOST_CUTS {
                    return None;
                }
                cuts.push((*score, left, right));
            }
        }
    }
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0));
    let texts = cuts
        .into_iter()
        .map(|(_, left, right)| (left.to_owned(), right.to_owned()));
    Some(texts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(tokens: &[String]) -> Option<Vec<(String, String)>> {
        let (scores, kinds) = (vec![0.0; tokens.len()], vec![NORMAL; tokens.len()]);
        merges(tokens, &scores, &kinds)
    }

    #[test]
    fn a_piece_is_cut_wherever_both_sides_are_pieces() {
        let tokens = ["a", "b", "ab", "abb", "bb", "b"].map(String::from);
        let pair = |(a, b): (&str, &str)| (a.to_owned(), b.to_owned());
        let want = [("a", "b"), ("a", "bb"), ("ab", "b"), ("b", "b")];
        assert_eq!(cuts(&tokens).unwrap(), want.map(pair));
    }

    #[test]
    fn the_cuts_of_a_vocabulary_are_bounded_by_more_than_its_size() {
        let nested = |n| (1..=n).map(|n| "a".repeat(n)).collect::<Vec<_>>();
        let made = cuts(&nested(1000)).unwrap();
        let bytes: usize = made.iter().map(|(a, b)| a.len() + b.len()).sum();
        assert!(bytes < 8 << 20, "{bytes} bytes of cuts");
        // Pieces that all consist of pieces, 4 MB of them.
        let mut random = 1_u64;
        let text: String = std::iter::repeat_with(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005) | 1;
            char::from(b'a' + (random >> 60) as u8)
        })
        .take(2000)
        .collect();
        let within = |n| (0..text.len() - n).map(move |i| (i, i + n));
        let all = (1..=64).flat_map(within);
        let all: Vec<_> = all.map(|(a, b)| text[a..b].to_owned()).collect();
        assert!(cuts(&all).is_none());
    }

    #[test]
    fn a_long_piece_takes_no_time() {
        let begun = std::time::Instant::now();
        let tokens = ["a".to_owned(), "a".repeat(1 << 20)];
        assert!(cuts(&tokens).unwrap().is_empty());
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    }
}
