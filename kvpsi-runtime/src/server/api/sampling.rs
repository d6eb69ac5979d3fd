//! Fields that say how tokens are chosen, and those that are refused.
//!
//! Owns their names, ranges and neutral values. The names are those of OpenAI's
//! API reference (chat and completions, "create"), of vLLM
//! (`vllm/entrypoints/openai/{chat_completion,completion}/protocol.py`) and of
//! llama.cpp's server (`tools/server/README.md`, "POST /completion"). What
//! would change the answer and is not obeyed is refused by name, unless its
//! value asks for nothing. Out of scope: what a token is; ids are checked
//! against the vocabulary later.

use super::{super::error::ApiError, fields::Fields, is_nothing, small};
use crate::engine::SamplingConfig;
use serde_json::Value;

/// Most stop texts.
const MOST_STOPS: usize = 16;
/// Longest stop text, in bytes.
const LONGEST_STOP: usize = 512;
/// Most tokens that a request may name in a field.
const MOST_NAMED: usize = 1024;
/// Most answers to a prompt: OpenAI's.
pub(super) const MOST_CHOICES: u64 = 128;

/// Refused whatever the endpoint, and why. Null, false, 0 and what is empty ask
/// for nothing, unless [`is_neutral`] says otherwise.
pub(super) const REFUSED: [(&str, &str); 44] = [
    ("functions", "use tools"),
    ("function_call", "use tool_choice"),
    // OpenAI.
    ("audio", "text only"),
    ("prediction", "no predicted outputs"),
    ("web_search_options", "no search"),
    ("verbosity", "say in a message how long the answer is to be"),
    (
        "suffix",
        "only in /v1/completions and /api/generate, with one text as the prompt",
    ),
    // vLLM.
    ("use_beam_search", "no beam search"),
    (
        "prompt_logprobs",
        "use echo and logprobs of /v1/completions",
    ),
    ("prompt_embeds", "text or tokens only"),
    ("logits_processors", "no programs of clients"),
    ("logprob_token_ids", "use logprobs"),
    (
        "include_stop_str_in_output",
        "a stop text is never part of the answer",
    ),
    (
        "truncate_prompt_tokens",
        "a prompt that is too long is refused",
    ),
    ("truncation_side", "a prompt that is too long is refused"),
    ("allowed_token_ids", "use logit_bias"),
    ("bad_words", "use logit_bias"),
    ("repetition_detection", "use max_tokens"),
    ("thinking_token_budget", "use max_tokens"),
    ("watermarking", "no watermarks"),
    ("return_tokens_as_token_ids", "tokens are text"),
    ("return_token_ids", "use /tokenize"),
    ("vllm_xargs", "no custom extensions"),
    ("kv_transfer_params", "no transfer of KV caches"),
    ("mm_processor_kwargs", "text only"),
    ("ebnf", "use grammar"),
    ("length_penalty", "no beam search"),
    (
        "skip_special_tokens",
        "control tokens are never part of the answer",
    ),
    (
        "include_reasoning",
        "thoughts come apart, in `reasoning_content`",
    ),
    // llama.cpp.
    ("n_predict", "use max_tokens"),
    ("n_indent", "use stop"),
    ("n_keep", "a prompt that is too long is refused"),
    ("n_probs", "use logprobs"),
    ("return_tokens", "use /tokenize"),
    ("min_keep", "use top_k"),
    ("t_max_predict_ms", "use max_tokens"),
    ("dynatemp_range", "use temperature"),
    ("dry_multiplier", "use repetition_penalty"),
    ("xtc_probability", "use min_p"),
    ("mirostat", "use top_p or top_k"),
    ("samplers", "the order of samplers is fixed"),
    ("post_sampling_probs", "logprobs are those of the model"),
    ("response_fields", "answers are whole"),
    ("lora", "no adapters"),
];

/// Whether the value of a field asks for nothing.
fn is_neutral(name: &str, v: &Value) -> bool {
    match name {
        "length_penalty" => is_nothing(v) || v.as_f64() == Some(1.0),
        "n_predict"
        | "n_keep"
        | "thinking_token_budget"
        | "truncate_prompt_tokens"
        | "t_max_predict_ms" => is_nothing(v) || v.as_f64() == Some(-1.0),
        "function_call" => is_nothing(v) || v == "none",
        "verbosity" => is_nothing(v) || v == "medium",
        // Here it is false that asks for something.
        "skip_special_tokens" | "include_reasoning" => *v == true,
        _ => is_nothing(v),
    }
}

/// Refuses what would change the answer and is not obeyed.
pub(in crate::server) fn refuse(fields: &Fields) -> Result<(), ApiError> {
    let asks = |name: &str| fields.get(name).is_some_and(|v| !is_neutral(name, v));
    match REFUSED.into_iter().find(|(name, _)| asks(name)) {
        Some((name, why)) => Err(ApiError::unsupported(name, why)),
        None => Ok(()),
    }
}

/// How many answers to a prompt.
pub(super) fn choices(fields: &Fields) -> Result<usize, ApiError> {
    let n = fields.whole("n", 1..=MOST_CHOICES)?;
    let n = match n {
        // llama.cpp's name.
        None => fields.whole("n_cmpl", 1..=MOST_CHOICES)?.unwrap_or(1),
        Some(n) => n,
    };
    // The best of as many as are asked for are all of them.
    if let Some(best) = fields.whole("best_of", 0..=u64::MAX)?
        && best > 1
        && best != n
    {
        return Err(ApiError::unsupported("best_of", "use n"));
    }
    Ok(small(n))
}

/// For APIs with one answer.
pub(in crate::server) fn one_choice(fields: &Fields) -> Result<(), ApiError> {
    match choices(fields)? {
        1 => Ok(()),
        _ => Err(ApiError::unsupported("n", "use /v1/chat/completions")),
    }
}

/// OpenAI's defaults, which change nothing. `max_tokens` is [`usize::MAX`] where
/// there is no limit but the context, by -1 or by `unless_given`.
#[expect(clippy::cast_possible_truncation, reason = "penalties are small")]
pub(in crate::server) fn sampling(
    fields: &Fields,
    least_tokens: u64,
    unless_given: usize,
) -> Result<SamplingConfig, ApiError> {
    let most = |name: &str| -> Result<Option<usize>, ApiError> {
        match fields.get(name).and_then(Value::as_i64) {
            Some(-1) => Ok(Some(usize::MAX)),
            _ => Ok(fields.whole(name, least_tokens..=u64::MAX)?.map(small)),
        }
    };
    let max_tokens = match most("max_completion_tokens")? {
        None => most("max_tokens")?,
        some => some,
    };
    let penalty = |name| {
        fields
            .number(name, -2.0..=2.0)
            .map(Option::unwrap_or_default)
    };
    let repeat = match fields.number("repetition_penalty", 0.01..=100.0)? {
        None => fields.number("repeat_penalty", 0.01..=100.0)?,
        some => some,
    };
    // -1 and 0 mean all, by vLLM's and llama.cpp's custom.
    let top_k = match fields.get("top_k").and_then(Value::as_i64) {
        Some(-1) => None,
        _ => fields.whole("top_k", 0..=u64::MAX)?.filter(|k| *k > 0),
    };
    // One that is zero or very small would take nothing: the likeliest is meant.
    let top_p = fields.number("top_p", 0.0..=1.0)?.map(|p| p.max(1e-6));
    let typical = match fields.number("typical_p", 0.0..=1.0)? {
        // Hugging Face's name in text-generation-inference.
        None => fields.number("typical", 0.0..=1.0)?,
        some => some,
    };
    let max_tokens = max_tokens.unwrap_or(unless_given);
    let min_tokens = small(fields.whole("min_tokens", 0..=u64::MAX)?.unwrap_or(0));
    if min_tokens > max_tokens {
        return Err(ApiError::param(
            "min_tokens",
            "`min_tokens` must be at most `max_tokens`",
        ));
    }
    Ok(SamplingConfig {
        max_tokens,
        min_tokens,
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_p,
        top_k: top_k.map(small),
        min_p: fields.number("min_p", 0.0..=1.0)?.filter(|p| *p > 0.0),
        typical_p: typical.filter(|p| *p > 0.0 && *p < 1.0),
        seed: seed(fields)?,
        repeat_penalty: repeat.unwrap_or(1.0) as f32,
        repeat_last: repeat_last(fields)?,
        presence_penalty: penalty("presence_penalty")? as f32,
        frequency_penalty: penalty("frequency_penalty")? as f32,
        logit_bias: logit_bias(fields)?,
        stops: stops(fields, "stop")?,
        stop_tokens: stop_tokens(fields)?,
        continues: false,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        logprobs: None,
    })
}

/// llama.cpp's `repeat_last_n`: tokens that `repeat_penalty` looks at; 0 turns it
/// off, and -1 is all of them.
fn repeat_last(fields: &Fields) -> Result<usize, ApiError> {
    match fields.get("repeat_last_n").and_then(Value::as_i64) {
        Some(-1) => Ok(usize::MAX),
        _ => {
            let given = fields.whole("repeat_last_n", 0..=u64::MAX)?;
            Ok(given.map_or(SamplingConfig::default().repeat_last, small))
        }
    }
}

/// Any number; without one, and for -1, every answer has its own.
fn seed(fields: &Fields) -> Result<u64, ApiError> {
    match fields.get("seed") {
        None => Ok(crate::random::number()),
        Some(v) if v.as_i64() == Some(-1) => Ok(crate::random::number()),
        Some(v) => (v.as_u64().or_else(|| v.as_i64().map(i64::cast_unsigned)))
            .ok_or_else(|| ApiError::param("seed", "`seed` must be a whole number")),
    }
}

/// An object of token ids and what is added to their logits, -100 to 100; or
/// llama.cpp's list of pairs, where false excludes a token.
#[expect(clippy::cast_possible_truncation, reason = "at most 100")]
fn logit_bias(fields: &Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let bad = || {
        ApiError::param(
            "logit_bias",
            format!(
                "`logit_bias` must be an object of up to {MOST_NAMED} token ids and numbers between -100 and 100"
            ),
        )
    };
    let bias = |v: &Value| match v {
        Value::Bool(false) => Some(f32::NEG_INFINITY),
        v => (v.as_f64().filter(|b| (-100.0..=100.0).contains(b))).map(|b| b as f32),
    };
    let all: Option<Vec<(u32, f32)>> = match fields.get("logit_bias") {
        None => Some(Vec::new()),
        Some(Value::Object(o)) if o.len() <= MOST_NAMED => {
            (o.iter().map(|(id, b)| Some((id.parse().ok()?, bias(b)?)))).collect()
        }
        Some(Value::Array(a)) if a.len() <= MOST_NAMED => a
            .iter()
            .map(|pair| match pair.as_array().map(Vec::as_slice) {
                Some([id, b]) => Some((u32::try_from(id.as_u64()?).ok()?, bias(b)?)),
                _ => None,
            })
            .collect(),
        Some(_) => None,
    };
    all.ok_or_else(bad)
}

fn stop_tokens(fields: &Fields) -> Result<Vec<u32>, ApiError> {
    let id = |v: &Value| u32::try_from(v.as_u64()?).ok();
    let all: Option<Vec<u32>> = match fields.get("stop_token_ids") {
        None => Some(Vec::new()),
        Some(Value::Array(a)) if a.len() <= MOST_NAMED => a.iter().map(id).collect(),
        Some(_) => None,
    };
    all.ok_or_else(|| {
        ApiError::param(
            "stop_token_ids",
            format!("`stop_token_ids` must be an array of up to {MOST_NAMED} token ids"),
        )
    })
}

/// Texts that end an answer, by a field of any API.
pub(in crate::server) fn stops(fields: &Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let bad = |why: String| ApiError::param(name, why);
    let shape = || bad(format!("`{name}` must be a string or an array of strings"));
    let mut stops = match fields.get(name) {
        None => Vec::new(),
        Some(Value::String(s)) => vec![s.clone()],
        Some(Value::Array(all)) => {
            let texts = all.iter().map(|v| v.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().ok_or_else(shape)?
        }
        Some(_) => return Err(shape()),
    };
    // What is empty asks for nothing.
    stops.retain(|s| !s.is_empty());
    if stops.len() > MOST_STOPS {
        return Err(bad(format!("`{name}` has more than {MOST_STOPS} texts")));
    }
    if stops.iter().any(|s| s.len() > LONGEST_STOP) {
        return Err(bad(format!(
            "a text of `{name}` must have at most {LONGEST_STOP} bytes"
        )));
    }
    Ok(stops)
}
