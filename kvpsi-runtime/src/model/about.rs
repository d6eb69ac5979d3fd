//! What a model file says of itself, for those who ask over an API.
//!
//! Owns the names that Ollama's API has for it. Invariant: bounded, whatever the
//! file holds: lists, and texts longer than a line, are left out. Out of scope:
//! what a decoder needs, which is checked elsewhere.

use super::{
    chat,
    gguf::{Gguf, whole},
};
use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, Number, json};
use std::collections::BTreeMap;

/// Most bytes of a text of the metadata.
const MOST_TEXT: usize = 256;
/// Most keys of the metadata; models have some dozens.
const MOST_KEYS: usize = 512;

/// Of one model file.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Numbers of all tensors.
    pub parameters: u64,
    /// How most of them are written: `Q4_K_M`.
    pub quantization: String,
    /// The source of its chat template; empty without one.
    pub template: String,
    /// Its metadata. A list is null.
    pub metadata: Map<String, serde_json::Value>,
}

impl About {
    /// What `gguf` says.
    #[must_use]
    pub fn of(gguf: &Gguf) -> Self {
        let mut parameters = 0u64;
        let mut by_format = BTreeMap::new();
        for (_, format, shape) in gguf.tensors() {
            let numbers = shape.iter().fold(1u64, |n, d| n.saturating_mul(*d));
            parameters = parameters.saturating_add(numbers);
            *by_format.entry(format.name).or_insert(0u64) += numbers;
        }
        let most = by_format.into_iter().max_by_key(|(_, numbers)| *numbers);
        let said = &gguf.content().metadata;
        let mix = said.get("general.file_type").and_then(whole);
        let mix = mix.and_then(|id| MIXES.iter().find(|(n, _)| *n == id));
        let quantization = mix.map(|(_, name)| *name).or(most.map(|(name, _)| name));
        let keys = said
            .iter()
            .filter(|(key, _)| *key != chat::KEY && key.len() <= MOST_TEXT);
        let mut metadata: Map<_, _> = keys
            .take(MOST_KEYS)
            .filter_map(|(key, value)| Some((key.clone(), shown(value)?)))
            .collect();
        metadata.insert("general.parameter_count".into(), json!(parameters));
        Self {
            parameters,
            quantization: quantization.unwrap_or_default().into(),
            template: gguf.string(chat::KEY).unwrap_or_default().into(),
            metadata,
        }
    }

    /// The count of parameters as people say it: `134.52M`, `8.0B`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn size(&self) -> String {
        let n = self.parameters as f64;
        match self.parameters {
            0..1_000 => self.parameters.to_string(),
            1_000..1_000_000 => format!("{:.2}K", n / 1e3),
            1_000_000..1_000_000_000 => format!("{:.2}M", n / 1e6),
            _ => format!("{:.1}B", n / 1e9),
        }
    }
}

/// A value in JSON, which has no infinite numbers.
fn shown(value: &Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::String(text) if text.len() > MOST_TEXT => return None,
        Value::String(text) => json!(text),
        Value::Bool(is) => json!(is),
        // Its own digits, not those of the nearest f64.
        Value::F32(x) => json!(x.to_string().parse().ok().and_then(Number::from_f64)),
        Value::F64(x) => json!(Number::from_f64(*x)),
        Value::Array(_) => json!(null),
        Value::U64(n) => json!(n),
        number => json!(i64::try_from(whole(number)?).ok()?),
    })
}

/// `general.file_type` (llama.cpp's `llama_ftype`): what a quantizer was asked for.
const MIXES: [(i128, &str); 33] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_values_are_json() {
        let size = |parameters| {
            let about = About {
                parameters,
                ..About::default()
            };
            about.size()
        };
        assert_eq!(
            [950, 134_515_008, 8_030_261_312].map(size),
            ["950", "134.52M", "8.0B"]
        );
        assert_eq!(shown(&Value::I8(-3)), Some(json!(-3)));
        assert_eq!(shown(&Value::U64(u64::MAX)), Some(json!(u64::MAX)));
        assert_eq!(shown(&Value::F32(1e-5)), Some(json!(1e-5)));
        assert_eq!(shown(&Value::F32(f32::INFINITY)), Some(json!(null)));
        assert_eq!(shown(&Value::Array(vec![])), Some(json!(null)));
        assert_eq!(shown(&Value::String("x".repeat(MOST_TEXT + 1))), None);
    }
}
