//! `--weights-cache`: whether a command keeps repacked weights in a file.
//!
//! Owns the two flags and the step from them to an open folder. What is wrong
//! with the folder is a line, and no error. Out of scope: the files.

use super::governor::HeldModel;
use crate::{
    cli::tell::tell,
    model::weights::{Folder, Weights, WeightsError, When},
    units::Bytes,
};
use std::path::Path;

/// The flags.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Keep repacked weights in a file that is mapped: the next start is faster, processes share
    /// the memory, and the kernel may drop pages of it
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    weights_cache: When,
    /// Most disk space of such files, in MiB; those used longest ago go first
    #[arg(long, value_name = "MIB", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(1..))]
    weights_cache_size: u32,
}

impl Args {
    /// Opens the cache for a model, of the user that this process will run as.
    /// Call it while there is the privilege to.
    pub fn hold(&self, model: &Path, held: &HeldModel, user: Option<u32>) -> Option<Weights> {
        if self.weights_cache == When::Off {
            return None;
        }
        match self.tried(model, held, user) {
            Ok(weights) => weights,
            Err(e) => {
                tell!("weights cache: {e}; --weights-cache off does without");
                None
            }
        }
    }

    fn tried(
        &self,
        model: &Path,
        held: &HeldModel,
        user: Option<u32>,
    ) -> Result<Option<Weights>, WeightsError> {
        // That the model cannot be opened is told when it is read.
        let Some(files) = held.files() else {
            return Ok(None);
        };
        let path = match Folder::usual() {
            // A service without a home has asked for nothing.
            Err(WeightsError::NoFolder) if self.weights_cache == When::Auto => return Ok(None),
            path => path?,
        };
        let folder = Folder::make(&path, user)?;
        if let (When::Auto, Some(kind)) = (self.weights_cache, folder.unsuited()) {
            tracing::info!("no weights cache: {} is on {kind}", folder.path().display());
            return Ok(None);
        }
        let most = Bytes::mib(u64::from(self.weights_cache_size));
        Weights::hold(folder, most, model, files).map(Some)
    }
}
