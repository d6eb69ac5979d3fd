//! A decoder over cached weights.
//!
//! Owns the order: the file that is there, else one that is made now, else
//! private memory. Invariant: what is wrong with the cache is a line, and never
//! a model that does not load. Out of scope: files.

use super::{Matrices, Result, packed_bytes};
use crate::model::{
    Progress,
    decoder::Decoder,
    gguf::{Gguf, ModelError},
    linear::choose,
    weights::{Place, Weights, WeightsError, file::Cached},
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
        // Before it would seem to be the cache's fault.
        choose::active().map_err(ModelError::Kernels)?;
        let mut because = Vec::new();
        if let Some(found) = weights.found(gguf, progress) {
            match Self::mapped(gguf, found, Place::Mapped) {
                Ok(decoder) => return Ok(decoder),
                Err(e) => because.push(e),
            }
        }
        let started = Instant::now();
        // What is wrong with the model itself is told below.
        if let Some(made) = Self::write(gguf, weights, progress).transpose() {
            match Self::mapped(gguf, made, Place::Made(started.elapsed())) {
                Ok(decoder) => return Ok(decoder),
                Err(e) => because.push(e),
            }
        }
        if !because.is_empty() {
            let because = because.join("; ");
            tracing::warn!("weights cache: {because}; --weights-cache off does without");
        }
        Self::load_with(gguf, progress)
    }

    /// Why not, in words. What takes time, the check of the file, is done.
    fn mapped(
        gguf: &Gguf,
        cached: std::result::Result<Cached, WeightsError>,
        place: Place,
    ) -> std::result::Result<Self, String> {
        let cached = cached.map_err(|e| e.to_string())?;
        let read = Self::read(gguf, Matrices::Mapped(&cached, 0), &mut |_, _| ());
        let decoder = read.map_err(|e| e.to_string())?;
        Ok(Self { place, ..decoder })
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
            Err(_) if !writer.has_failed() => {
                weights.give_up(writer);
                Ok(None)
            }
            // A write that failed is what `finish` returns.
            _ => weights.finish(writer, progress).map(Some),
        }
    }
}
