//! What the metadata says of positions: RoPE, how it is stretched, windows.
//!
//! Owns the ranges of those numbers. Out of scope: what a turn is.

use super::{
    ModelError,
    family::{Family, Turns, Window, Windows},
    keys::{Keys, MOST_CONTEXT},
};
use crate::model::rope::{LongRope, RopeScaling, Yarn};
use candle_core::quantized::gguf_file::Value;
use std::ops::RangeInclusive;

/// Bases of rotary embeddings: 1 would turn all pairs alike.
const ROPE_BASES: RangeInclusive<f32> = 2.0..=1e12;

/// Rotary embedding of some layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub base: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

/// Some of the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layers {
    /// All.
    All,
    /// None.
    None,
    /// All but each so-manieth.
    AllBut(usize),
    /// Told for each.
    Told(Box<[bool]>),
}

impl Layers {
    /// Whether a layer is one of them.
    #[must_use]
    pub fn has(&self, layer: usize) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::AllBut(every) => !(layer + 1).is_multiple_of(*every),
            Self::Told(each) => each.get(layer).is_some_and(|one| *one),
        }
    }
}

/// Layers that see the last tokens only.
#[derive(Clone, Debug, PartialEq)]
pub struct Sliding {
    /// Tokens that they see, the row's own included.
    pub window: usize,
    /// Which layers.
    pub layers: Layers,
    /// Their rotary embedding.
    pub rope: RopeConfig,
    /// Whether it has the factors of the others'.
    pub factors: bool,
}

/// Queries that grow with their position: by `1 + by ln(1 + floor(p / every))`
/// (Llama 4, Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Tokens for which they stay as they are.
    pub every: usize,
    /// How much they grow.
    pub by: f32,
}

impl Temperature {
    /// What a query of that position is multiplied by.
    #[must_use]
    pub fn at(self, pos: usize) -> f32 {
        self.by * ((pos / self.every) as f32).ln_1p() + 1.0
    }
}

/// The rotary embedding of the layers that see everything.
pub(super) fn rope(
    keys: &Keys<'_>,
    family: &Family,
    context: usize,
) -> Result<RopeConfig, ModelError> {
    Ok(RopeConfig {
        base: keys
            .float("rope.freq_base", ROPE_BASES)?
            .map_or(family.base, f64::from),
        scaling: scaling(keys, family, context)?,
    })
}

/// The layers that RoPE turns.
pub(super) fn turned(keys: &Keys<'_>, family: &Family) -> Layers {
    match family.turns {
        Turns::All => Layers::All,
        Turns::AllBut(every) => Layers::AllBut(every),
        Turns::Told => match keys.value("rope.scaling.finetuned") {
            Some(Value::Bool(false)) => Layers::None,
            _ => Layers::All,
        },
    }
}

/// How queries grow with their position.
pub(super) fn temperature(keys: &Keys<'_>) -> Result<Option<Temperature>, ModelError> {
    let Some(by) = keys.float("attention.temperature_scale", 0.0..=1e3)? else {
        return Ok(None);
    };
    let every = keys.required("rope.scaling.original_context_length", MOST_CONTEXT)?;
    Ok((by != 0.0).then_some(Temperature { every, by }))
}

/// How the rotary embedding is stretched. A factor without a type is linear,
/// as it was before there were types.
fn scaling(keys: &Keys<'_>, family: &Family, context: usize) -> Result<RopeScaling, ModelError> {
    // 0 is no factor to llama.cpp, too.
    let factor = |key| keys.float_not_0(key, 1e-3..=1e6, None);
    let or = |key, range, default| {
        Ok::<_, ModelError>(keys.float(key, range)?.map_or(default, f64::from))
    };
    let original = || keys.int("rope.scaling.original_context_length", MOST_CONTEXT);
    let attention = || or("rope.scaling.attn_factor", 1e-3..=1e3, 1.0);
    let linear = || {
        let by = match factor("rope.scaling.factor")? {
            None => factor("rope.scale_linear")?,
            by => by,
        };
        Ok(by.map_or(RopeScaling::None, |by| RopeScaling::Linear(f64::from(by))))
    };
    let long = || {
        Ok(RopeScaling::Long(LongRope {
            original_context: original()?.unwrap_or(context),
            attention: attention()?,
        }))
    };
    let kind = match keys.value("rope.scaling.type") {
        None if family.long_rope => return long(),
        None => return linear(),
        Some(Value::String(kind)) => kind.as_str(),
        Some(other) => {
            let what = format!("is {:?}, not a string", other.value_type());
            return Err(keys.bad("rope.scaling.type", what));
        }
    };
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" => linear(),
        "longrope" => long(),
        "yarn" => {
            let by = keys.float_not_0("rope.scaling.factor", 1.0..=1e6, Some(1.0))?;
            let by = by
                .map(f64::from)
                .ok_or_else(|| keys.bad("rope.scaling.factor", "is missing: YaRN needs it"))?;
            // DeepSeek's `mscale_all_dim`, which takes its part off again.
            let off = or("rope.scaling.yarn_log_multiplier", 0.0..=1e3, 0.0)?;
            Ok(RopeScaling::Yarn(Yarn {
                factor: by,
                original_context: original()?.unwrap_or(context) as f64,
                beta_fast: or("rope.scaling.yarn_beta_fast", 1e-3..=1e6, 32.0)?,
                beta_slow: or("rope.scaling.yarn_beta_slow", 1e-3..=1e6, 1.0)?,
                extrapolation: or("rope.scaling.yarn_ext_factor", 0.0..=1.0, 1.0)?,
                attention: attention()? * or("rope.scaling.yarn_attn_factor", 1e-3..=1e3, 1.0)?
                    / (1.0 + 0.1 * off * by.ln()),
                whole: family.whole_ramp,
            }))
        }
        other => Err(keys.bad(
            "rope.scaling.type",
            format!("is {other:?}; supported: none, linear, yarn, longrope"),
        )),
    }
}

/// The layers with a sliding window.
pub(super) fn sliding(
    keys: &Keys<'_>,
    family: &Family,
    layers: usize,
    rope: RopeConfig,
) -> Result<Option<Sliding>, ModelError> {
    let key = "attention.sliding_window";
    let window = || keys.int(key, MOST_CONTEXT);
    match family.windows {
        Windows::None => {
            window()?;
            Ok(None)
        }
        // Phi 4 says so that it has none.
        Windows::All if keys.is_zero(key) => Ok(None),
        Windows::All => Ok(window()?.map(|window| Sliding {
            window,
            layers: Layers::All,
            rope,
            factors: true,
        })),
        Windows::AllBut {
            every,
            window: default,
            base,
            stretched,
        } => {
            let window = match (window()?, default) {
                (Some(window), _) => window,
                (None, Window::Of(window)) => window,
                (None, Window::Without) => return Ok(None),
                (None, Window::Needed) => {
                    let what = format!("is missing: {} needs it", family.name);
                    return Err(keys.bad(key, what));
                }
            };
            let mut base = base.unwrap_or(rope.base);
            for key in ["rope.local_freq_base", "rope.freq_base_swa"] {
                base = keys.float(key, ROPE_BASES)?.map_or(base, f64::from);
            }
            let pattern = "attention.sliding_window_pattern";
            let which = match keys.flags(pattern, layers)? {
                Some(each) => Layers::Told(each),
                None => {
                    let mut every = every;
                    for key in ["attention.sliding_window_type", pattern] {
                        every = keys.int(key, 1024)?.unwrap_or(every);
                    }
                    Layers::AllBut(every)
                }
            };
            Ok(Some(Sliding {
                window,
                layers: which,
                factors: stretched,
                rope: RopeConfig {
                    base,
                    scaling: if stretched {
                        rope.scaling
                    } else {
                        RopeScaling::None
                    },
                },
            }))
        }
    }
}
