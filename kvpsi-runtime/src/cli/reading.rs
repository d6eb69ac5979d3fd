//! Reading a model, with a bar for whoever would else wait in the dark.

use crate::engine::{Engine, EngineConfig, EngineError};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// What may pass without a bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// Reads the model and says on stderr how long it took.
///
/// # Errors
/// As [`Engine::load`].
pub fn engine(config: &EngineConfig) -> Result<Engine, EngineError> {
    let started = Instant::now();
    let mut bar: Option<ProgressBar> = None;
    let engine = Engine::load_with(config, &mut |read, all| {
        if bar.is_none() && started.elapsed() > PATIENCE {
            bar = Some(new_bar(all.0));
        }
        if let Some(bar) = &bar {
            bar.set_position(read.0);
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let engine = engine?;
    eprintln!(
        "kvpsi: read {} of weights in {:.2} s",
        engine.decoder().weights(),
        started.elapsed().as_secs_f64()
    );
    Ok(engine)
}

/// Invisible where stderr is no terminal.
fn new_bar(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_message("reading the model");
    match ProgressStyle::with_template("{msg} {bar:40} {bytes}/{total_bytes} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
