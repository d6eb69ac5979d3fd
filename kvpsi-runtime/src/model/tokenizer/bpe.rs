//! BPE by merges (`gpt2` and `gemma4` in files): SmolLM, Llama 3, Qwen, GPT-4o.
//!
//! Owns the way from vocabulary, merges and token types to a tokenizer; where a
//! text is cut before it is merged is [`super::pre`]'s. Invariant: a merge joins
//! two tokens into a third that is there, or the file is refused by its name.
//! Out of scope: what comes before and after a text.

use super::{
    bytes::Alphabet,
    metadata::Metadata,
    pre::{DEFAULT, Rule, rule},
    spm,
};
use crate::model::gguf::ModelError;
use std::collections::HashSet;
use tokenizers::{
    SplitDelimiterBehavior, Tokenizer as Inner,
    decoders::byte_level::ByteLevel as ByteLevelDecoder,
    models::bpe::BPE,
    normalizers::unicode::NFC,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

const PRE: &str = "tokenizer.ggml.pre";
const MERGES: &str = "tokenizer.ggml.merges";

/// The tokenizer, without what comes before and after a text, and whether one
/// begins with a token of its own where the file does not say.
pub(super) fn build(
    from: &Metadata<'_>,
    tokens: &[String],
) -> Result<(Inner, bool, Alphabet), ModelError> {
    let rule = chosen(from)?;
    let merges = merges(from, tokens)?;
    let ids = tokens.iter().zip(0u32..).map(|(t, id)| (t.clone(), id));
    let model = BPE::builder()
        .vocab_and_merges(ids.collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(rule.whole)
        .byte_fallback(rule.raw)
        .build()
        .map_err(|e| from.bad(MERGES, format!("cannot be used: {e}")))?;
    let mut inner = Inner::new(model);
    let bad = |e: tokenizers::Error| from.bad(PRE, format!("cannot be used: {e}"));
    inner.with_pre_tokenizer(Some(cutter(rule).map_err(bad)?));
    if rule.raw {
        spm::spaces(&mut inner, false).map_err(bad)?;
    } else {
        inner.with_decoder(Some(ByteLevelDecoder::default()));
        if rule.nfc {
            inner.with_normalizer(Some(NFC)).map_err(bad)?;
        }
    }
    let kinds = match from.has("tokenizer.ggml.token_type") {
        true => from.counts("tokenizer.ggml.token_type", tokens.len())?,
        false => Vec::new(),
    };
    spm::add_written(&mut inner, tokens, &kinds)
        .map_err(|e| from.bad("tokenizer.ggml.tokens", format!("cannot be used: {e}")))?;
    let alphabet = if rule.raw {
        Alphabet::Pieces
    } else {
        Alphabet::ByteLevel
    };
    Ok((inner, rule.start, alphabet))
}

/// The rule of the file. llama.cpp takes its default where none is named; so
/// does kvpsi, and where the name is newer than this table as well.
fn chosen(from: &Metadata<'_>) -> Result<&'static Rule, ModelError> {
    const FALLBACK: &Rule = &DEFAULT;
    let path = from.0.path().display();
    if from.0.string("tokenizer.ggml.model") == Some("gemma4") {
        return Ok(rule("gemma4").unwrap_or(FALLBACK));
    }
    let Some(name) = from.text(PRE)? else {
        tracing::warn!(
            "{path}: `{PRE}` is missing: text is cut by the default rule, answers may suffer; convert the model again"
        );
        return Ok(FALLBACK);
    };
    Ok(rule(name).unwrap_or_else(|| {
        let name: String = name.chars().take(64).collect();
        tracing::warn!(
            "{path}: `{PRE}` is {name:?}, which kvpsi does not know: text is cut by the default rule, answers may suffer"
        );
        FALLBACK
    }))
}

/// Cuts a text as the rule says, down to the alphabet of the tokens.
pub(super) fn cutter(rule: &Rule) -> tokenizers::Result<Sequence> {
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for cut in rule.cuts {
        let pattern = SplitPattern::Regex((*cut).into());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
    }
    if !rule.raw {
        steps.push(ByteLevel::new(false, true, false).into());
    }
    Ok(Sequence::new(steps))
}

/// The merges in their order, each checked.
fn merges(from: &Metadata<'_>, tokens: &[String]) -> Result<Vec<(String, String)>, ModelError> {
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let lines = from.texts(MERGES)?;
    let pairs = lines.iter().enumerate().map(|(i, line)| {
        // A token may begin with the space that also parts the two.
        let at = line.char_indices().skip(1).find(|(_, c)| *c == ' ');
        let Some((at, _)) = at else {
            return Err(from.bad(MERGES, format!("holds {line:?} at {i}, which is no pair")));
        };
        let (left, right) = (&line[..at], &line[at + 1..]);
        let joined = format!("{left}{right}");
        match [left, right, &joined].into_iter().find(|t| !known.contains(t)) {
            None => Ok((left.to_owned(), right.to_owned())),
            Some(lost) => Err(from.bad(
                MERGES,
                format!("names the token {lost:?} at {i}, which is not there: the file is damaged, convert the model again"),
            )),
        }
    });
    pairs.collect()
}
