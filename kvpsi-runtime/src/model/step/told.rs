//! What each layer is told of a row's token besides the stream (the per-layer
//! embeddings of Gemma 3n and 4, as transformers' `modeling_gemma4.py` has them).
//!
//! Out of scope: when a layer takes it.

use super::{ops, rows::Parts};
use crate::{
    model::{
        decoder::{PerLayer, Told},
        gguf::Config,
        linear::products_into,
    },
    thread_pool::thread_pool,
};
use candle_core::Result;

/// For all layers, from the embedding's rows in `x`.
pub(super) fn look_up(
    per_layer: &PerLayer,
    c: &Config,
    tokens: &[u32],
    p: &mut Parts<'_>,
) -> Result<()> {
    let width = per_layer.norm.len();
    products_into([&per_layer.product], p.x, tokens.len(), p.acts, [p.told])?;
    let rows = p.looked_up.chunks_exact_mut(width * c.layers);
    for (&token, row) in tokens.iter().zip(rows) {
        per_layer.table.row_into(token, row)?;
    }
    // The product by the root of its inputs, the table by that of its width;
    // both of one size, so that their sum is divided by the root of two.
    let (of_product, of_table) = ((c.hidden as f32).sqrt().recip(), (width as f32).sqrt());
    let half = std::f32::consts::FRAC_1_SQRT_2;
    thread_pool().spread_rows(tokens.len(), [p.told, p.looked_up], |_, [told, row]| {
        told.iter_mut().for_each(|t| *t *= of_product);
        ops::rms_norm_in_place(told, &per_layer.norm, c.rms_eps);
        for (told, row) in told.iter_mut().zip(row) {
            *told = (*told + *row * of_table) * half;
        }
    });
    Ok(())
}

/// What a layer makes of its part, from the stream in `h`, left in `h`.
pub(super) fn take(told: &Told, c: &Config, layer: usize, p: &mut Parts<'_>) -> Result<()> {
    let (rows, width) = (p.h.len() / c.hidden, told.gate.packed().n());
    let gate = &mut p.gate[..rows * width];
    products_into([&told.gate], p.h, rows, p.acts, [&mut *gate])?;
    let parts = p.told.chunks_exact(width * c.layers);
    for (gate, parts) in gate.chunks_exact_mut(width).zip(parts) {
        ops::gated(gate, &parts[layer * width..][..width], c.gate);
    }
    products_into([&told.out], gate, rows, p.acts, [p.h])
}
