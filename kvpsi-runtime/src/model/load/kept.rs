//! A decoder over cached weights.
//!
//! Owns the order: the file that is there, else one that is made now, else
//! private memory. Invariant: what is wrong with the cache is a line, and never
//! a model that does not load. Out of scope: files.

use super::{Matrices, Progress, Result};
use crate::{
    model::{
        decoder::Decoder,
        gguf::Gguf,
        linear::Packed,
        weights::{Place, Weights, WeightsError, file::Cached},
    },
    units::Bytes,
};
use std::time::Instant;

impl Decoder {
    /// [`Decoder::load_with`], with matrices that are mapped from the cache:
    /// from the file that is there, or from one that is made now. Where the
    /// cache cannot be used a line says why, and they are in private memory.
    ///
    /// # Errors
    /// As [`Decoder::load`]; none for what is wrong with the cache.
    pub fn load_kept(gguf: &Gguf, weights: &Weights, progress: Progress<'_>) -> Result<Self> {
        let because = |e: &dyn std::fmt::Display| {
            tracing::warn!("weights cache: {e}; --weights-cache off does without");
        };
        match weights.found(gguf) {
            Some(Ok(cached)) => match Self::mapped(gguf, &cached, Place::Mapped, progress) {
                Ok(decoder) => return Ok(decoder),
                Err(e) => because(&e),
            },
            Some(Err(e)) => because(&e),
            None => {}
        }
        let started = Instant::now();
        match Self::write(gguf, weights, progress) {
            // The model's own error comes again below.
            Ok(None) => {}
            Ok(Some(cached)) => {
                let place = Place::Made(started.elapsed());
                match Self::mapped(gguf, &cached, place, progress) {
                    Ok(decoder) => return Ok(decoder),
                    Err(e) => because(&e),
                }
            }
            Err(e) => because(&e),
        }
        Self::load_with(gguf, progress)
    }

    fn mapped(gguf: &Gguf, cached: &Cached, place: Place, progress: Progress<'_>) -> Result<Self> {
        let mut decoder = Self::read(gguf, Matrices::Mapped(cached, 0), progress)?;
        decoder.place = place;
        Ok(decoder)
    }

    /// Makes a file of the cache; `None` where the model itself is wrong.
    fn write(
        gguf: &Gguf,
        weights: &Weights,
        progress: Progress<'_>,
    ) -> std::result::Result<Option<Cached>, WeightsError> {
        let mut writer = weights.begin(gguf, packed_bytes(gguf))?;
        let read = Self::read(gguf, Matrices::Written(&mut writer), progress);
        match read {
            Err(_) if !writer.has_failed() => Ok(None),
            // A write that failed is what `finish` returns.
            _ => weights.finish(writer).map(Some),
        }
    }
}

/// About as many bytes as all matrices have in tiles: those that are not of the
/// decoder are among them, and of a tensor of several matrices the last tiles
/// are not.
fn packed_bytes(gguf: &Gguf) -> Bytes {
    let matrices = gguf.tensors().filter_map(|(_, format, shape)| {
        let [count @ .., n, k] = shape else {
            return None;
        };
        let [n, k] = [*n, *k].map(usize::try_from);
        let bytes = Packed::bytes_of(format, n.ok()?, k.ok()?)?;
        Some(count.iter().product::<u64>().saturating_mul(bytes as u64))
    });
    Bytes(matrices.fold(0, u64::saturating_add))
}
