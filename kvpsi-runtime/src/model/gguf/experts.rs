//! What the metadata says of experts.
//!
//! Owns the ranges of their numbers. What is not computed here (shared
//! experts behind a gate, groups of experts, other functions of choice) is
//! refused by its key. Out of scope: tensors.

use super::{
    ModelError,
    family::{Family, HasExperts},
    keys::Keys,
};

/// More experts than any model has.
const MOST: u64 = 4096;

/// Feed-forward networks of which each row goes through a few.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// All of them.
    pub count: usize,
    /// Those that a row goes through.
    pub used: usize,
    /// Width of each.
    pub feed_forward: usize,
    /// Width of one more that every row goes through.
    pub shared: Option<usize>,
    /// Whether the shares of the chosen ones add up to one.
    pub normed: bool,
    /// What the shares are multiplied by.
    pub scale: f32,
    /// Whether they have biases.
    pub bias: bool,
}

pub(super) fn read(
    keys: &Keys<'_>,
    family: &Family,
    feed_forward: usize,
) -> Result<Option<Experts>, ModelError> {
    let (normed, bias) = match family.experts {
        HasExperts::No => {
            let what = format!("is above 1: the experts of {} are not known", family.name);
            keys.refuse("expert_count", &what)?;
            return Ok(None);
        }
        HasExperts::Told { .. } if keys.refuse("expert_count", "").is_ok() => return Ok(None),
        HasExperts::Told { normed } => (normed, false),
        HasExperts::Yes { normed, bias } => (normed, bias),
    };
    let count = keys.required("expert_count", MOST)?;
    let used = keys.required("expert_used_count", MOST)?;
    if used > count {
        return Err(keys.bad(
            "expert_used_count",
            format!("is {used}, but there are {count} experts"),
        ));
    }
    for (key, what) in [
        (
            "leading_dense_block_count",
            "is set: dense layers among experts are not supported",
        ),
        (
            "expert_group_count",
            "is above 1: groups of experts are not supported",
        ),
    ] {
        keys.refuse(key, what)?;
    }
    // ggml's numbers: the softmax of all, and of those that were chosen.
    let normed = match keys.int("expert_gating_func", 1024)? {
        None | Some(1) => keys.flag("expert_weights_norm")?.unwrap_or(normed),
        Some(3) => true,
        Some(other) => {
            let what = format!("is {other}; supported: 1 (softmax), 3 (softmax of the chosen)");
            return Err(keys.bad("expert_gating_func", what));
        }
    };
    Ok(Some(Experts {
        count,
        used,
        feed_forward: keys
            .int("expert_feed_forward_length", 1 << 20)?
            .unwrap_or(feed_forward),
        shared: match keys.is_zero("expert_shared_feed_forward_length") {
            true => None,
            false => keys.int("expert_shared_feed_forward_length", 1 << 20)?,
        },
        normed,
        scale: keys
            .float_or_off("expert_weights_scale", 1e-6..=1e6)?
            .unwrap_or(1.0),
        bias,
    }))
}
