//! What sets one family of decoders apart from another, as data.
//!
//! Owns what no key of a file says: it was in the code that trained the model.
//! Sources: transformers' `modeling_*.py` and llama.cpp's `src/models`. Nothing
//! here is looked at once a decoder is loaded. Out of scope: what keys say.

use crate::model::step::ops::{Gate, RopePairs};

/// A family of decoders.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `general.architecture`, and the prefix of its metadata keys.
    pub name: &'static str,
    /// Its models, for people; none where the name says it.
    pub models: &'static str,
    /// Which values of a head RoPE turns together, as the files have them.
    pub pairs: RopePairs,
    /// Layers that RoPE turns.
    pub turns: Turns,
    /// Base of RoPE where the file has none.
    pub base: f64,
    /// Whether the ramp of YaRN runs over whole dimensions.
    pub whole_ramp: bool,
    /// Whether RoPE is stretched by factors where the file does not say how.
    pub long_rope: bool,
    /// Layers with a sliding window.
    pub windows: Windows,
    /// Whether queries, keys, values and what attention gives must have
    /// biases; they may in any case.
    pub qkv_bias: bool,
    /// As `qkv_bias`.
    pub out_bias: bool,
    /// Whether each head has a score for nothing, which takes its share of the
    /// softmax.
    pub sinks: bool,
    /// How queries and keys are normed before they are turned.
    pub qk_norm: QkNorm,
    /// Whether attention and feed-forward begin with a norm.
    pub norms_before: bool,
    /// Whether what they add is normed before.
    pub norms_behind: bool,
    /// Whether each head of values is normed, without weights.
    pub value_norm: bool,
    /// What a product of query and key is multiplied by where the file does not
    /// say; none is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// The tensor of the norm before feed-forward.
    pub ffn_norm: &'static str,
    /// Whether queries, keys and values are one tensor, gate and up another.
    pub fused: bool,
    /// What bends the gate of the feed-forward network.
    pub gate: Gate,
    /// Whether rows of the embedding are multiplied by the root of their width.
    pub embedding_root: bool,
    /// Layers of a model whose scale is `1 / sqrt(hidden / heads)`: no key says
    /// so (as in llama.cpp).
    pub shared_scale: Option<usize>,
    /// Soft caps of scores and logits where the file has none.
    pub softcaps: Option<[f32; 2]>,
    /// Whether there are experts.
    pub experts: HasExperts,
    /// Epsilon of the RMS norms where the file has none: `rms_norm_eps` of
    /// transformers' configurations.
    pub rms_eps: f32,
}

/// Layers that RoPE turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turns {
    /// All of them.
    All,
    /// All but each so-manieth.
    AllBut(usize),
    /// All or none: `rope.scaling.finetuned` says.
    Told,
}

/// Layers with a sliding window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Windows {
    /// None: files of Qwen name a window that the models do not use.
    None,
    /// All, if the file names one.
    All,
    /// All but each so-manieth.
    AllBut {
        /// That number, where the file has none.
        every: usize,
        /// The window where the file names none.
        window: Window,
        /// Base of their RoPE where the file has none; none is the others'.
        base: Option<f64>,
        /// Whether their RoPE is stretched as that of the others, by its factors
        /// too.
        stretched: bool,
    },
}

/// The window where a file names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The file must.
    Needed,
    /// No layer has one.
    Without,
    /// So many tokens.
    Of(usize),
}

/// How queries and keys are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Not at all.
    None,
    /// Each head.
    Heads,
    /// All heads of a row together.
    Rows,
}

/// Whether a family has experts. `normed`: the shares of the chosen ones add
/// up to one, else those of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HasExperts {
    /// Never.
    No,
    /// Where the file says so.
    Told {
        /// See above.
        normed: bool,
    },
    /// Always.
    Yes {
        /// See above.
        normed: bool,
        /// Whether gate, up and down of each expert, and what chooses, have
        /// biases.
        bias: bool,
    },
}

const LLAMA: Family = Family {
    name: "llama",
    models: "SmolLM2, Llama 2 and 3, Mistral, Mixtral, TinyLlama",
    pairs: RopePairs::Adjacent,
    turns: Turns::All,
    base: 1e4,
    whole_ramp: true,
    long_rope: false,
    windows: Windows::All,
    qkv_bias: false,
    out_bias: false,
    sinks: false,
    qk_norm: QkNorm::None,
    norms_before: true,
    norms_behind: false,
    value_norm: false,
    scale: None,
    ffn_norm: "ffn_norm",
    fused: false,
    gate: Gate::Silu,
    embedding_root: false,
    shared_scale: None,
    softcaps: None,
    experts: HasExperts::Told { normed: true },
    rms_eps: 1e-6,
};

const QWEN3: Family = Family {
    name: "qwen3",
    models: "",
    pairs: RopePairs::Halves,
    windows: Windows::None,
    qk_norm: QkNorm::Heads,
    experts: HasExperts::No,
    ..LLAMA
};

const GEMMA3: Family = Family {
    name: "gemma3",
    models: "",
    pairs: RopePairs::Halves,
    base: 1e6,
    windows: Windows::AllBut {
        every: 6,
        window: Window::Needed,
        base: Some(1e4),
        stretched: false,
    },
    qk_norm: QkNorm::Heads,
    norms_behind: true,
    gate: Gate::GeluTanh,
    embedding_root: true,
    shared_scale: Some(62),
    experts: HasExperts::No,
    ..LLAMA
};

const GRANITE: Family = Family {
    name: "granite",
    models: "",
    turns: Turns::Told,
    windows: Windows::None,
    experts: HasExperts::No,
    ..LLAMA
};

/// All of them.
pub static FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        name: "mistral3",
        models: "Ministral 3",
        rms_eps: 1e-5,
        ..LLAMA
    },
    Family {
        name: "smollm3",
        models: "",
        turns: Turns::AllBut(4),
        windows: Windows::None,
        experts: HasExperts::No,
        ..LLAMA
    },
    GRANITE,
    Family {
        name: "granitemoe",
        experts: HasExperts::Yes {
            normed: true,
            bias: false,
        },
        ..GRANITE
    },
    Family {
        name: "qwen2",
        models: "Qwen 2 and 2.5",
        qkv_bias: true,
        qk_norm: QkNorm::None,
        ..QWEN3
    },
    QWEN3,
    Family {
        name: "qwen3moe",
        experts: HasExperts::Yes {
            normed: true,
            bias: false,
        },
        ..QWEN3
    },
    Family {
        name: "olmo2",
        models: "OLMo 2 and 3",
        windows: Windows::AllBut {
            every: 4,
            window: Window::Without,
            base: None,
            stretched: false,
        },
        qk_norm: QkNorm::Rows,
        norms_before: false,
        norms_behind: true,
        rms_eps: 1e-5,
        ..QWEN3
    },
    Family {
        name: "olmoe",
        qk_norm: QkNorm::Rows,
        experts: HasExperts::Yes {
            normed: false,
            bias: false,
        },
        rms_eps: 1e-5,
        ..QWEN3
    },
    Family {
        name: "phi3",
        models: "Phi 3, 3.5 and 4",
        windows: Windows::All,
        qk_norm: QkNorm::None,
        long_rope: true,
        fused: true,
        rms_eps: 1e-5,
        ..QWEN3
    },
    Family {
        name: "gpt-oss",
        whole_ramp: false,
        windows: Windows::AllBut {
            every: 2,
            window: Window::Needed,
            base: None,
            stretched: true,
        },
        qkv_bias: true,
        out_bias: true,
        sinks: true,
        qk_norm: QkNorm::None,
        ffn_norm: "post_attention_norm",
        gate: Gate::Clamped,
        experts: HasExperts::Yes {
            normed: true,
            bias: true,
        },
        rms_eps: 1e-5,
        ..QWEN3
    },
    Family {
        name: "gemma2",
        base: 1e4,
        windows: Windows::AllBut {
            every: 2,
            window: Window::Of(4096),
            base: None,
            stretched: true,
        },
        qk_norm: QkNorm::None,
        shared_scale: Some(46),
        softcaps: Some([50.0, 30.0]),
        ..GEMMA3
    },
    GEMMA3,
    Family {
        name: "gemma4",
        models: "Gemma 4 E2B and E4B",
        windows: Windows::AllBut {
            every: 6,
            window: Window::Needed,
            base: Some(1e4),
            stretched: false,
        },
        value_norm: true,
        scale: Some(1.0),
        shared_scale: None,
        ..GEMMA3
    },
];

impl Family {
    /// The family of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// Names and models of all, for error messages.
    pub fn all_named() -> String {
        let each = FAMILIES.iter().map(|f| match f.models {
            "" => f.name.to_owned(),
            models => format!("{} ({models})", f.name),
        });
        each.collect::<Vec<_>>().join(", ")
    }
}
