//! Reading a model, with a progress bar.

use crate::cli::tell::tell;
use crate::{
    engine::{Engine, EngineConfig, EngineError},
    model::{
        Progress,
        decoder::Decoder,
        gguf::{Gguf, ModelError},
        weights::Weights,
    },
};
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
    let engine = with_bar(|progress| Engine::load_with(config, progress))?;
    let decoder = engine.decoder();
    tell!(
        "read {} of weights in {:.2} s, {}",
        decoder.weights(),
        started.elapsed().as_secs_f64(),
        decoder.place()
    );
    Ok(engine)
}

/// Why no conversation fits the context that a user `asked` for, if none does.
pub fn no_chat(engine: &Engine, asked: Option<usize>) -> Option<String> {
    let context = asked?;
    let least = engine.least_chat().filter(|least| *least >= context)?;
    Some(format!(
        "--ctx {context}: a question of one word takes {least} tokens by the chat template, and its answer needs room, too"
    ))
}

/// Reads the weights alone, from the cache where one is given.
///
/// # Errors
/// As [`Decoder::load`].
pub fn decoder(gguf: &Gguf, weights: Option<&Weights>) -> Result<Decoder, ModelError> {
    with_bar(|progress| match weights {
        Some(weights) => Decoder::load_kept(gguf, weights, progress),
        None => Decoder::load_with(gguf, progress),
    })
}

fn with_bar<T>(read: impl FnOnce(Progress<'_>) -> T) -> T {
    let started = Instant::now();
    let mut shown: Option<ProgressBar> = None;
    let done = read(&mut |read, all| {
        if shown.is_none() && started.elapsed() > PATIENCE {
            let template = "reading the model {bar:40} {bytes}/{total_bytes} {eta}";
            shown = Some(bar(all.0, template));
        }
        if let Some(bar) = &shown {
            // A file that is checked has other bytes than the model.
            bar.set_length(all.0);
            bar.set_position(read.0);
        }
    });
    if let Some(bar) = shown {
        bar.finish_and_clear();
    }
    done
}

/// A bar on stderr; invisible where that is no terminal.
pub fn bar(len: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(len);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
