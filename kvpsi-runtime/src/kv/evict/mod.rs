//! Which tokens matter: what a row of keys and values is worth, by policy.
//!
//! One file per policy, with its paper. A policy sees the rows of one layer and
//! KV head and says what each is worth; it does not choose how many are kept,
//! and sinks and the recent window never come before it. Out of scope: blocks
//! and bytes.

mod expected;
mod heavy;
mod keydiff;
mod window;

pub use expected::{Expected, QueryStats, RopeOf};
pub use heavy::Heavy;
pub use keydiff::KeyDiff;
pub use window::Window;

use std::fmt::Debug;

/// The rows of one layer and KV head that compete, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct HeadRows<'a> {
    /// Which layer.
    pub layer: usize,
    /// Which KV head.
    pub kv_head: usize,
    /// Values of a row.
    pub head_dim: usize,
    /// Keys after RoPE, `[rows, head_dim]`.
    pub keys: &'a [f32],
    /// Values, the same shape.
    pub values: &'a [f32],
    /// Attention mass of each row so far; empty where it is not kept.
    pub mass: &'a [f32],
    /// Position of the next token.
    pub next_pos: usize,
}

/// A rule for what a row is worth.
pub trait Policy: Send + Sync + Debug {
    /// Name in text and JSON.
    fn name(&self) -> &'static str;

    /// Writes what each row is worth; the greatest are kept.
    fn score(&self, rows: &HeadRows<'_>, out: &mut [f32]);

    /// Share of the rows' attention that falls on those not in `kept`, 0 to 1,
    /// as far as the policy can tell: else their number's share.
    fn fell(&self, rows: &HeadRows<'_>, kept: &[u32]) -> f32 {
        let all: f32 = rows.mass.iter().sum();
        if all > 0.0 {
            let stays: f32 = kept.iter().map(|i| rows.mass[*i as usize]).sum();
            return (1.0 - stays / all).clamp(0.0, 1.0);
        }
        let count = rows.keys.len() / rows.head_dim;
        1.0 - kept.len() as f32 / count.max(1) as f32
    }
}

/// The policies, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Evict {
    /// The oldest: the newest stay
    Window,
    /// Those that most attention fell on so far
    Heavy,
    /// Those whose keys are least like the others
    #[default]
    Keydiff,
    /// Those that coming queries are expected to look at
    Expected,
}

impl Evict {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Window, Self::Heavy, Self::Keydiff, Self::Expected];

    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Heavy => "heavy",
            Self::Keydiff => "keydiff",
            Self::Expected => "expected",
        }
    }

    /// Whether the attention mass of every token must be kept.
    #[must_use]
    pub const fn needs_row_mass(self) -> bool {
        matches!(self, Self::Heavy)
    }
}
