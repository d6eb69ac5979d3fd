//! The tiny models of each family and what transformers makes of them
//! (tests/data/families.py).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

/// A text, and transformers' logits after each of its tokens.
#[derive(Debug)]
pub struct Reference {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// transformers' version.
    pub transformers: String,
    /// transformers' class, without `ForCausalLM`.
    pub class: String,
    logits: Vec<f32>,
}

impl Reference {
    /// The logits after the first `n` tokens.
    #[must_use]
    pub fn after(&self, n: usize) -> &[f32] {
        let vocab = self.logits.len() / self.tokens.len();
        &self.logits[(n - 1) * vocab..n * vocab]
    }
}

/// Where the files lie.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/families")
}

/// All of them.
#[must_use]
pub fn all() -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter_map(|name| Some(name.strip_suffix(".gguf")?.to_owned()))
        .collect();
    names.sort();
    names
}

/// A model's file, and its text.
#[must_use]
pub fn reference(name: &str) -> (PathBuf, Reference) {
    let text = std::fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    let text: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tokens = text["tokens"].as_array().unwrap();
    let hex = text["logits"].as_str().unwrap().as_bytes();
    let byte = |at: usize| {
        let digits = std::str::from_utf8(&hex[2 * at..2 * at + 2]).unwrap();
        u8::from_str_radix(digits, 16).unwrap()
    };
    let float = |at: usize| f32::from_le_bytes(std::array::from_fn(|i| byte(4 * at + i)));
    let word = |key: &str| text[key].as_str().unwrap().to_owned();
    let reference = Reference {
        transformers: word("transformers"),
        class: word("class"),
        tokens: tokens
            .iter()
            .map(|t| t.as_u64().unwrap().try_into().unwrap())
            .collect(),
        logits: (0..hex.len() / 8).map(float).collect(),
    };
    (folder().join(format!("{name}.gguf")), reference)
}
