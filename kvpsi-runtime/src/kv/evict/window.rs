//! StreamingLLM: attention sinks and a recent window (Xiao et al., "Efficient
//! Streaming Language Models with Attention Sinks", arXiv:2309.17453).

use super::{HeadRows, Policy};

/// A row is worth as much as it is new.
#[derive(Clone, Copy, Debug)]
pub struct Window;

impl Policy for Window {
    fn name(&self) -> &'static str {
        "window"
    }

    #[expect(clippy::cast_precision_loss, reason = "an order, exact to 2^24")]
    fn score(&self, _rows: &HeadRows<'_>, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = i as f32;
        }
    }
}
