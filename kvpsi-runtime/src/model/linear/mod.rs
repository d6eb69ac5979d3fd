//! A linear layer over weights that stay quantized.
//!
//! Owns the choice of the matrix kernel for a weight. Refuses to know what
//! the layer is for.

use candle_core::{
    Module, Result, Tensor,
    quantized::{QMatMul, QTensor},
};
use std::sync::Arc;

/// `y = x W^T` with `W` of shape `[out, in]`, quantized as in the file.
#[derive(Clone, Debug)]
pub struct Linear {
    inner: QMatMul,
}

impl Linear {
    /// Wraps the weights without copying them (f32 and f16 weights are
    /// converted to f32 once).
    ///
    /// # Errors
    /// The weights cannot be converted.
    pub fn new(weight: Arc<QTensor>) -> Result<Self> {
        Ok(Self {
            inner: QMatMul::from_arc(weight)?,
        })
    }

    /// `x`: f32 `[rows, in]`; returns f32 `[rows, out]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.inner.forward(x)
    }
}
