//! KeyDiff: keys that are unlike the others (Park et al., "KeyDiff: Key
//! Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
//! Resource-Constrained Environments", arXiv:2504.15364). Keys alone: it needs
//! neither attention nor queries.

use super::{HeadRows, Policy};

/// A row is worth the angle between its key and the mean direction of all.
#[derive(Clone, Copy, Debug)]
pub struct KeyDiff;

impl Policy for KeyDiff {
    fn name(&self) -> &'static str {
        "keydiff"
    }

    fn score(&self, rows: &HeadRows<'_>, out: &mut [f32]) {
        let d = rows.head_dim;
        let mut anchor = vec![0f32; d];
        for key in rows.keys.chunks_exact(d) {
            let scale = inverse_norm(key);
            for (a, k) in anchor.iter_mut().zip(key) {
                *a += k * scale;
            }
        }
        for (out, key) in out.iter_mut().zip(rows.keys.chunks_exact(d)) {
            let dot: f32 = key.iter().zip(&anchor).map(|(k, a)| k * a).sum();
            *out = -dot * inverse_norm(key);
        }
    }
}

fn inverse_norm(x: &[f32]) -> f32 {
    let square: f32 = x.iter().map(|v| v * v).sum();
    if square > 0.0 {
        square.sqrt().recip()
    } else {
        0.0
    }
}
