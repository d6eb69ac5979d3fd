//! docs/MODELS.md: what is known of each family, as this test finds it.
//!
//! Written where `KVPSI_MODELS_PAGE` is set; else the page must have the same
//! rows, but for the last digits of differences, which are the processor's.

use super::compare;
use kvpsi::model::{
    gguf::{FAMILIES, Gguf},
    linear::Format,
};
use kvpsi_tests::families;
use std::{collections::BTreeSet, fmt::Write, path::Path};

const ABOVE: &str = "# Models

Families are read from a file's metadata into one decoder. Each is compared with Hugging Face transformers on tiny
random models that `tests/data/families.py` makes and llama.cpp's converter makes GGUF: logits after every token of a
text longer than the windows, matrices of f16. Differences are the largest of any logit (their root mean square is
about 1), of tokens decoded one by one and of prefills; what is left is the rounding of keys and values to f16, and
with MXFP4 that of activations to 8 bits. This page is written by
`KVPSI_MODELS_PAGE=1 cargo nextest run -p kvpsi-tests page_of_models`.

| `general.architecture` | models | compared with | model | decode | prefill |
|---|---|---|---|---|---|
";

const BELOW: &str = "
llama, qwen2, qwen3 and gemma3 are also compared with candle-transformers (`tests/tests/model_arch.rs`), SmolLM2's own
file too, and its ten greedy answers with llama.cpp's (`model_logits.rs`).

Tokenizers are those of the file, whatever its family: BPE by the 91 names that `tokenizer.ggml.pre` has in llama.cpp
(another or none is a warning, and the default), SentencePiece, and Gemma 4's. Their ids are compared with Hugging
Face's tokenizers on the vocabularies of Qwen 3, Llama 3.1, gpt-oss, DeepSeek V3 and Gemma 3, on 46 texts in twenty
scripts (`model_vocabularies.rs`). Unigram and WordPiece are refused by name: no family here has them.

What differs from llama.cpp, where transformers and llama.cpp do: the ramp of gpt-oss's YaRN is not rounded to
whole dimensions (its configuration says `truncate: false`, which no key of the file holds), the window of Phi 3 is
observed, and Phi's factors for long texts are used where the KV pool has room for more tokens than its first context.

## Not here

| | why |
|---|---|
| lfm2, qwen3next, granitehybrid, falcon-h1, nemotron-h, mamba | short convolutions and gated states are one state for a whole sequence, not rows: nothing of it can be dropped, thinned, packed or shared by content, and an answer that was preempted or lost tokens could not be recomputed from the middle. They need a memory of their own beside the pool |
| gemma4 26B and 31B | layers differ in their number of KV heads; blocks of the pool have one shape for all layers. Experts of 26B are chosen by another norm |
| gemma3n | several streams for each row |
| gptoss | Ollama's own files of gpt-oss: other names of tensors, queries, keys and values in one, gate and up in alternating rows, and no key that says YaRN. The files that llama.cpp's converter makes (`gpt-oss`) are read |
| deepseek2, minicpm3 | keys and values are one compressed row, of unequal sizes |
| qwen2moe, llama4, glm4moe, dots1, deepseek | a shared expert behind a gate, groups of experts, or dense layers among them: refused by the key's name where the family is here, by the family's elsewhere |
";

fn page() -> String {
    let mut page = ABOVE.to_owned();
    let mut compared = BTreeSet::new();
    let mut rows = Vec::new();
    for name in families::all() {
        let (path, text) = families::reference(&name);
        let family = Gguf::open(&path).unwrap().config().family;
        let [decoded, filled, _] = compare(&name);
        compared.insert(family.name);
        // None where the name says it.
        let models = [family.models, family.name];
        let models = models.into_iter().find(|m| !m.is_empty()).unwrap();
        let at = FAMILIES.iter().position(|f| f == family);
        let row = format!(
            "| {} | {} | transformers {} {} | {name} | {decoded:.4} | {filled:.4} |",
            family.name, models, text.transformers, text.class
        );
        rows.push((at, row));
    }
    rows.sort();
    for (_, row) in rows {
        writeln!(page, "{row}").unwrap();
    }
    for family in FAMILIES {
        assert!(compared.contains(family.name), "{}", family.name);
    }
    let types: Vec<_> = Format::all().map(|f| f.name).collect();
    write!(page, "\nTypes of tensors: {}.\n", types.join(", ")).unwrap();
    page + BELOW
}

/// Without the figures.
fn words(page: &str) -> Vec<&str> {
    let cells = page.lines().flat_map(|line| line.split(" | "));
    cells.filter(|cell| !cell.starts_with("0.")).collect()
}

#[test]
fn the_page_of_models_says_what_is_compared() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/MODELS.md");
    let page = page();
    if std::env::var_os("KVPSI_MODELS_PAGE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(words(&written), words(&page), "write docs/MODELS.md anew");
}
