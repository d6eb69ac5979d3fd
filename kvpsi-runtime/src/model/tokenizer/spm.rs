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

/// Reads the pieces and builds the tokenizer, without what comes before and
/// after a text.
pub(super) fn build(from: &Metadata<'_>, tokens: &[String]) -> Result<Inner, ModelError> {
    let scores = from.floats("tokenizer.ggml.scores", tokens.len())?;
    let kinds = from.counts("tokenizer.ggml.token_type", tokens.len())?;
    let bad =
        |e: tokenizers::Error| from.bad("tokenizer.ggml.tokens", format!("cannot be used: {e}"));
    let ids = tokens.iter().zip(0u32..).map(|(t, id)| (t.clone(), id));
    let mut model = BPE::builder()
        .vocab_and_merges(
            ids.collect::<tokenizers::models::bpe::Vocab>(),
            merges(tokens, &scores, &kinds),
        )
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
        (!token.is_empty()).then(|| AddedToken::from(token.as_str(), special).normalized(false))
    });
    inner.add_tokens(added)?;
    Ok(())
}

/// Every cut of every piece into two, best score first.
fn merges(tokens: &[String], scores: &[f32], kinds: &[u32]) -> Vec<(String, String)> {
    let pieces = || {
        let whole = tokens.iter().zip(scores).zip(kinds);
        whole.filter(|(_, kind)| matches!(**kind, NORMAL | USER_DEFINED))
    };
    let known: HashSet<&str> = pieces().map(|((t, _), _)| t.as_str()).collect();
    let mut cuts: Vec<(f32, &str, &str)> = Vec::new();
    for ((token, score), _) in pieces() {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if known.contains(left) && known.contains(right) {
                cuts.push((*score, left, right));
            }
        }
    }
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0));
    cuts.into_iter()
        .map(|(_, left, right)| (left.to_owned(), right.to_owned()))
        .collect()
}
