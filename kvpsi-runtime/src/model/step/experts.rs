//! Feed-forward networks of which each row goes through a few.
//!
//! Owns the choice. Rows are grouped by expert: an expert that no row chose is
//! not read, one that many chose is read once. Invariants: what a row gets does
//! not depend on the rows beside it (its experts are added up in their order);
//! nothing is allocated. Out of scope: what is done with the sum.

use super::{
    feed_forward::bend,
    ops,
    rows::{Parts, Pick},
};
use crate::curves::exp;
use crate::model::{decoder::Experts, gguf, linear::products_into};
use candle_core::Result;

/// Below everything that a score can be: one that was taken.
const TAKEN: f32 = f32::from_bits(u32::MAX);

/// From the norms in `h` to what the experts make of them, in `h`.
pub(super) fn mix(some: &Experts, c: &gguf::Config, p: &mut Parts<'_>) -> Result<()> {
    let (hidden, rows) = (c.hidden, p.h.len() / c.hidden);
    let Some(e) = c.experts else { return Ok(()) };
    products_into([&some.router], p.h, rows, p.acts, [p.router])?;
    p.picks.clear();
    for (row, scores) in p.router.chunks_exact_mut(e.count).enumerate() {
        if let Some(bias) = &some.router_bias {
            ops::add(scores, bias);
        }
        choose(scores, &e, row, p.picks);
    }
    p.picks.sort_unstable_by_key(|pick| (pick.expert, pick.row));
    match &some.shared {
        Some(shared) => {
            let room = rows * shared.gate.packed().n();
            let (gate, up) = (&mut p.gate[..room], &mut p.up[..room]);
            bend(shared, c, p.h, p.acts, [&mut *gate, up])?;
            products_into([&shared.down], gate, rows, p.acts, [p.mixed])?;
        }
        None => p.mixed.fill(0.0),
    }
    for picks in p.picks.chunk_by(|a, b| a.expert == b.expert) {
        let expert = &some.each[picks[0].expert];
        let gathered = &mut p.gathered[..picks.len() * hidden];
        for (pick, to) in picks.iter().zip(gathered.chunks_exact_mut(hidden)) {
            to.copy_from_slice(&p.h[pick.row * hidden..][..hidden]);
        }
        let room = picks.len() * e.feed_forward;
        let (gate, up) = (&mut p.gate[..room], &mut p.up[..room]);
        bend(expert, c, gathered, p.acts, [&mut *gate, up])?;
        products_into([&expert.down], gate, picks.len(), p.acts, [&mut *gathered])?;
        for (pick, from) in picks.iter().zip(gathered.chunks_exact_mut(hidden)) {
            if let Some([.., bias]) = &expert.bias {
                ops::add(from, bias);
            }
            let to = &mut p.mixed[pick.row * hidden..][..hidden];
            to.iter_mut()
                .zip(from)
                .for_each(|(to, from)| *to += pick.share * *from);
        }
    }
    p.h.copy_from_slice(p.mixed);
    Ok(())
}

/// The experts with the highest scores, and their shares: softmax over all of
/// them, or over the chosen ones. The scores are lost.
fn choose(scores: &mut [f32], e: &gguf::Experts, row: usize, picks: &mut Vec<Pick>) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let all: f32 = scores.iter().map(|s| exp(s - max)).sum();
    let first = picks.len();
    for _ in 0..e.used {
        let mut best = 0;
        for (expert, score) in scores.iter().enumerate() {
            if score.total_cmp(&scores[best]).is_gt() {
                best = expert;
            }
        }
        picks.push(Pick {
            expert: best,
            row,
            share: exp(scores[best] - max),
        });
        scores[best] = TAKEN;
    }
    let chosen = &mut picks[first..];
    let whole = match e.normed {
        true => chosen.iter().map(|pick| pick.share).sum(),
        false => all,
    };
    for pick in chosen {
        pick.share *= e.scale / whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_highest_scores_are_chosen_once_each_whatever_they_are(
            bits in prop::collection::vec(any::<u32>(), 1..40), used in 1usize..40, normed in any::<bool>(),
        ) {
            let scores: Vec<_> = bits.into_iter().map(f32::from_bits).collect();
            let used = used.min(scores.len());
            let e = gguf::Experts {
                count: scores.len(), used, feed_forward: 8, shared: None, normed, scale: 2.0, bias: false,
            };
            let mut picks = Vec::new();
            choose(&mut scores.clone(), &e, 3, &mut picks);
            prop_assert_eq!(picks.len(), used);
            let mut chosen: Vec<_> = picks.iter().map(|p| p.expert).collect();
            chosen.sort_unstable();
            chosen.dedup();
            prop_assert_eq!(chosen.len(), used);
            let least = picks.iter().map(|p| scores[p.expert]).min_by(f32::total_cmp).unwrap();
            let above = scores.iter().filter(|s| s.total_cmp(&least).is_gt()).count();
            prop_assert!(above < used);
            if normed && scores.iter().all(|s| s.is_finite()) {
                let sum: f32 = picks.iter().map(|p| p.share).sum();
                prop_assert!((sum - 2.0).abs() < 1e-5, "{}", sum);
            }
        }
    }
}
