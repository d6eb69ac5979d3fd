//! How byte-level BPE cuts a text before it merges: `tokenizer.ggml.pre`.
//!
//! Owns the table from a name to its rule. A rule is a list of regular
//! expressions; each one cuts what the one before it left, and both matches and
//! what lies between them stay. Invariant: every name has one rule, and the
//! rule of an unknown name is [`DEFAULT`].
//!
//! Source: the names and their rules are those of llama.cpp's `llama-vocab.cpp`
//! (commit 00ad355). Where that file approximates the expression of the model's
//! own tokenizer.json (its engine has no case folding and no classes in
//! classes), the one of tokenizer.json stands here.
//! Out of scope: merges, and tokens that are matched as they are written.

/// What a name of `tokenizer.ggml.pre` stands for.
#[derive(Debug)]
pub(super) struct Rule {
    /// Values of `tokenizer.ggml.pre`.
    pub names: &'static [&'static str],
    /// Applied one after the other.
    pub cuts: &'static [&'static str],
    /// A word that is a token is that token, whatever its merges would give.
    pub whole: bool,
    /// The text begins with the start token where the file does not say.
    pub start: bool,
    /// The text is composed (Unicode NFC) first, as its tokenizer.json does.
    pub nfc: bool,
    /// Tokens are UTF-8 with U+2581 for a space, not GPT-2's byte alphabet.
    pub raw: bool,
}

/// A rule with nothing but cuts.
const fn cut(names: &'static [&'static str], cuts: &'static [&'static str]) -> Rule {
    Rule {
        names,
        cuts,
        whole: false,
        start: false,
        nfc: false,
        raw: false,
    }
}

/// The same for tokens of plain UTF-8.
const fn raw(names: &'static [&'static str], cuts: &'static [&'static str], start: bool) -> Rule {
    Rule {
        start,
        raw: true,
        ..cut(names, cuts)
    }
}

/// GPT-2's own expression (openai/gpt-2, `encoder.py`).
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// meta-llama/Meta-Llama-3-8B, tokenizer.json: up to three digits together.
const LLAMA_3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Qwen/Qwen2-7B, tokenizer.json: each digit alone.
const QWEN_2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Qwen 3.5: marks stay with their letters.
const QWEN_3_5: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// openai/gpt-oss-20b, tokenizer.json (tiktoken's `o200k_base`).
const GPT_4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// mistralai/Mistral-Nemo, tokenizer.json: as GPT-4o's, digits alone and no
/// contractions.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Tencent's Youtu: as GPT-4o's with digits alone.
const YOUTU: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// moonshotai/Kimi-K2, `tokenization_kimi.py`: Han apart from other letters.
const KIMI_K2: &str = concat!(
    r"[\p{Han}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// deepseek-ai/DeepSeek-V3, tokenizer.json, the third of its three.
const DEEPSEEK_V3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// iFlytek's Spark: line ends stay apart from signs.
const SPARK: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
);
/// Han, Hiragana and Katakana, as DeepSeek V3 names them.
const HAN_AND_KANA: &str = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+";
/// East Asian scripts, as the first models of DeepSeek name them.
const EAST_ASIA: &str = r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+";
/// Letters that have a case, as deepseek-ai/deepseek-llm-7b-base lists them.
const CASED: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ",
    r"Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1f7d}ᾀ-ᾴᾶ-ᾼ\x{1fbe}ῂ-ῄῆ-ῌῐ-\x{1fd3}ῖ-\x{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄ",
    r"Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);
/// bigscience/bloom, tokenizer.json.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Digits in threes, counted from the right, where no letter follows them:
/// `\d{1,3}(?=(?:\d{3})*\b)` of its tokenizer.json, which looks to the end of a
/// number for each three of it. Here a number is looked at once: what follows a
/// match within a number is threes. What that expression leaves is the last
/// match, for a search is given up after a million characters.
const THREES: &str = concat!(
    r"\G(?<=\d)\d{3}|(?<!\d)\d{1,3}(?=(?:\d{3})*+\b)|",
    r"(?:\D+|\d++\B)+",
);
/// The same of all that are numbers, whatever follows:
/// `\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))`.
const THREES_OF_NUMBERS: &str = concat!(
    r"(?<=\p{N})\p{N}{3}|\p{N}{1,3}(?=(?:\p{N}{3})*+(?!\p{N}))|",
    r"\P{N}+",
);
/// A cut before each three digits counted from the right, behind `\p{N}+`:
/// `(?=(\d{3})+(?!\d))`. A match is from one cut to the next: three digits, or
/// at the beginning those that are over, and what is no digit with the digits
/// that are over behind it.
const BEFORE_THREES: &str = concat!(
    r"(?:^\d{1,2}?(?=(?:\d{3})*+(?!\d))|\d{3}|^(?=\D))",
    r"(?:\D+\d{0,2}?(?=(?:\d{3})*+(?!\d)))*",
);
/// Lines and runs of line ends.
const LINES: &str = r"[^\n]+|[\n]+";

/// What a file gets that names no rule, or one that is not in [`RULES`].
pub(super) const DEFAULT: Rule = cut(
    &["default"],
    &[
        r"[\p{P}\$\+<=>\^~\|]+",
        GPT_2,
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ],
);

/// All other rules.
pub(super) const RULES: &[Rule] = &[
    cut(
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[GPT_2],
    ),
    cut(
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        &[r"\p{N}", GPT_2],
    ),
    Rule {
        whole: true,
        start: true,
        ..cut(
            &[
                "llama-bpe",
                "llama3",
                "llama-v3",
                "falcon3",
                "falcon-h1",
                "pixtral",
                "midm-2.0",
                "lfm2",
                "jina-v5-nano",
            ],
            &[LLAMA_3],
        )
    },
    cut(&["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], &[LLAMA_3]),
    Rule {
        nfc: true,
        ..cut(
            &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"],
            &[QWEN_2],
        )
    },
    cut(&["stablelm2", "hunyuan", "solar-open", "grok-2"], &[QWEN_2]),
    Rule {
        nfc: true,
        ..cut(&["qwen35"], &[QWEN_3_5])
    },
    // tiktoken looks a word up before it merges.
    Rule {
        whole: true,
        ..cut(
            &[
                "gpt-4o",
                "llama4",
                "kanana2",
                "talkie",
                "granite-embed-multi-97m",
            ],
            &[GPT_4O],
        )
    },
    cut(&["minimax-m2"], &[GPT_4O]),
    cut(&["tiny_aya", "cohere2moe"], &[THREES, GPT_4O]),
    Rule {
        whole: true,
        start: true,
        ..cut(&["tekken"], &[TEKKEN])
    },
    Rule {
        whole: true,
        ..cut(
            &["youtu"],
            &[
                concat!(
                    r"[\x{ac00}-\x{d7a3}\x{3131}-\x{318e}]+|",
                    r"[！…“”‘’—：；，\x{3001}-\x{303f}\x{fe30}-\x{fe4f}]+|",
                    r"[\x{3105}-\x{312f}]+|",
                    r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
                ),
                YOUTU,
            ],
        )
    },
    cut(&["kimi-k2"], &[KIMI_K2]),
    cut(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[r"\p{N}{1,3}", HAN_AND_KANA, DEEPSEEK_V3],
    ),
    cut(
        &["spark2_5"],
        &[r"\p{N}{1,3}", HAN_AND_KANA, SPARK, r"\p{N}"],
    ),
    cut(
        &["deepseek-llm"],
        &[
            r"[\r\n]",
            CASED,
            r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-\x{3002}]+",
            r"\s+$",
            EAST_ASIA,
            r"\p{N}+",
        ],
    ),
    cut(
        &["deepseek-coder"],
        &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIA, r"\p{N}"],
    ),
    cut(
        &["falcon"],
        &[r"[\p{P}\$\+<=>\^~\|`]+", GPT_2, r"[0-9][0-9][0-9]"],
    ),
    cut(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    cut(&["viking"], &[BLOOM, r"\p{N}"]),
    Rule {
        start: true,
        ..cut(
            &["chameleon"],
            &[
                r"<sentinel:[0-9]+>",
                r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT_2,
            ],
        )
    },
    cut(&["superbpe"], &[r"\p{N}+", BEFORE_THREES]),
    cut(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
    ),
    cut(
        &["seed-coder"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}|",
            r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
    ),
    // Turkish suffixes stay with their apostrophe.
    cut(
        &["ufakzeka"],
        &[concat!(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
    ),
    cut(
        &["afmoe"],
        &[
            THREES_OF_NUMBERS,
            concat!(
                r"[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{f900}-\x{faff}\x{3040}-\x{30ff}",
                r"\x{ff65}-\x{ff9f}\x{2f00}-\x{2fdf}\x{0e40}-\x{0eff}\x{1780}-\x{17ff}",
                r"\x{1000}-\x{109f}\x{aa60}-\x{aa7f}\x{a9e0}-\x{a9ff}\x{ac00}-\x{d7af}",
                r"\x{1100}-\x{11ff}]+",
            ),
            DEEPSEEK_V3,
        ],
    ),
    cut(&["laguna"], &[LINES, QWEN_2]),
    cut(
        &["exaone-moe"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|",
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
    ),
    // Within spaces that are cut no end of a line follows: it is looked for once.
    cut(
        &["jais-2"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|(?<![^\S\r\n])\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|",
            r"\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|",
            r"\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        )],
    ),
    Rule {
        whole: true,
        ..cut(
            &["minicpm5"],
            &[
                r"\p{N}{1,3}",
                concat!(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|",
                    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
            ],
        )
    },
    raw(&["gemma4", "granite-embed-multi-311m"], &[LINES], true),
    raw(&["sarvam-moe"], &[LINES], false),
    raw(&["whitespace"], &[r"\S+"], false),
];

/// The rule of a name, if there is one.
pub(super) fn rule(name: &str) -> Option<&'static Rule> {
    const DEFAULTS: &[Rule] = &[DEFAULT];
    let all = RULES.iter().chain(DEFAULTS);
    all.into_iter().find(|rule| rule.names.contains(&name))
}

#[cfg(test)]
mod tests;
