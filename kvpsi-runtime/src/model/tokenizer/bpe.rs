//! Byte-level BPE (`gpt2` in files): SmolLM, Llama 3, Qwen.
//!
//! candle reads vocabulary and merges; how text is cut before them is set here
//! by `tokenizer.ggml.pre`, because a wrong cut gives tokens that the model
//! never saw, in silence. One that is not known is refused.

use super::metadata::Metadata;
use crate::model::gguf::ModelError;
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use tokenizers::{
    SplitDelimiterBehavior, Tokenizer as Inner,
    models::ModelWrapper,
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

/// Words, runs of up to three digits, signs and white space: the pattern of
/// Llama 3's tokenizer.json.
const LLAMA_3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The tokenizer, without what comes before and after a text, and whether one
/// begins with a token of its own where the file does not say.
pub(super) fn build(from: &Metadata<'_>) -> Result<(Inner, bool), ModelError> {
    let mut inner = Inner::from_gguf(from.0.content()).map_err(|e| {
        let what = e.to_string();
        let what = what.lines().next().unwrap_or_default();
        from.bad("tokenizer.ggml", format!("cannot be used: {what}"))
    })?;
    let key = "tokenizer.ggml.pre";
    let bytes = || ByteLevel::new(false, true, true);
    let pre: PreTokenizerWrapper = match from.0.string(key) {
        None | Some("gpt-2" | "gpt2") => bytes().into(),
        // SmolLM's tokenizer.json: Digits(individual), then ByteLevel.
        Some("smollm") => Sequence::new(vec![Digits::new(true).into(), bytes().into()]).into(),
        Some("llama-bpe" | "llama3" | "llama-v3") => {
            let pattern = SplitPattern::Regex(LLAMA_3.into());
            let words = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|e| from.bad(key, e.to_string()))?;
            let bytes = ByteLevel::new(false, true, false);
            inner.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])));
            // Its tokenizer.json takes a word that is a token as it is.
            if let ModelWrapper::BPE(model) = inner.get_model() {
                let mut model = model.clone();
                model.ignore_merges = true;
                inner.with_model(model);
            }
            return Ok((inner, true));
        }
        // candle has the cuts of these.
        Some("qwen2" | "smaug-bpe") => return Ok((inner, false)),
        Some(other) => {
            return Err(from.bad(
                key,
                format!("is `{other}`; supported: gpt-2, smollm, llama-bpe, qwen2, smaug-bpe"),
            ));
        }
    };
    inner.with_pre_tokenizer(Some(pre));
    Ok((inner, false))
}
