//! A gated feed-forward network of some rows.
//!
//! Out of scope: which rows, and what becomes of the last bias.

use super::{ops, rows::Parts};
use crate::{
    model::{
        decoder::Gated,
        gguf::Config,
        linear::{QuantizedRows, products_into},
    },
    thread_pool::thread_pool,
};
use candle_core::Result;

/// A gated feed-forward network, from the norms in `h` to `h`.
pub(super) fn gated(g: &Gated, c: &Config, p: &mut Parts<'_>) -> Result<()> {
    let (rows, width) = (p.h.len() / c.hidden, g.gate.packed().n());
    let (gate, up) = (&mut p.gate[..rows * width], &mut p.up[..rows * width]);
    bend(g, c, p.h, p.acts, [gate, up])?;
    products_into([&g.down], &p.gate[..rows * width], rows, p.acts, [p.h])
}

/// What goes into the last matrix of a feed-forward network, left in `gate`.
pub(super) fn bend(
    g: &Gated,
    c: &Config,
    x: &[f32],
    acts: &mut QuantizedRows,
    [gate, up]: [&mut [f32]; 2],
) -> Result<()> {
    let (rows, width) = (x.len() / c.hidden, g.gate.packed().n());
    products_into([&g.gate, &g.up], x, rows, acts, [&mut *gate, &mut *up])?;
    thread_pool().spread_rows(rows, [gate, up], |_, [gate, up]| {
        if let Some([of_gate, of_up, _]) = &g.bias {
            gate.chunks_exact_mut(width)
                .for_each(|x| ops::add(x, of_gate));
            up.chunks_exact_mut(width).for_each(|x| ops::add(x, of_up));
        }
        ops::gated(gate, up, c.gate);
    });
    Ok(())
}
