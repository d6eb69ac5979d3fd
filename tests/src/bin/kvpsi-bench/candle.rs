//! candle-transformers' quantized_llama, in a process of its own.
//!
//! It takes orders on stdin and answers each with its seconds. A process of
//! its own, because candle is fast only when it was compiled for this very
//! processor, and kvpsi is measured as it is shipped. Invariant: the model
//! works on the same number of keys as kvpsi's does at that depth.

use crate::{
    models::{CHUNK, tokens},
    piped::Piped,
};
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor, quantized::gguf_file};
use candle_transformers::models::quantized_llama::{MAX_SEQ_LEN, ModelWeights};
use std::{fs::File, path::Path, process::Command, time::Instant};

/// The model, and how many tokens its cache holds.
struct Model {
    weights: ModelWeights,
    vocab: usize,
    len: usize,
}

impl Model {
    fn load(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| path.display().to_string())?;
        let content = gguf_file::Content::read(&mut file)?;
        let vocab = content
            .tensor_infos
            .get("token_embd.weight")
            .and_then(|t| t.shape.dims().first().copied())
            .context("token_embd.weight")?;
        let weights = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
        let len = 0;
        Ok(Self {
            weights,
            vocab,
            len,
        })
    }

    /// candle's rotary table ends at `MAX_SEQ_LEN`. A single token may go on
    /// from there with the last position again, which is the same work; rows
    /// that need a mask may not.
    fn step(&mut self, rows: usize) -> Result<()> {
        let at = if rows == 1 {
            self.len.min(MAX_SEQ_LEN - 1)
        } else {
            self.len
        };
        let ids = tokens(rows, self.vocab);
        let x = Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        self.weights.forward(&x, at)?;
        self.len += rows;
        Ok(())
    }

    fn fill(&mut self, depth: usize) -> Result<()> {
        if self.len > depth {
            self.weights.clear_kv_cache();
            self.len = 0;
        }
        while self.len < depth {
            let room = MAX_SEQ_LEN.saturating_sub(self.len).max(1);
            self.step((depth - self.len).min(CHUNK).min(room))?;
        }
        Ok(())
    }

    fn obey(&mut self, order: &str) -> Result<f64> {
        let (what, count) = order.split_once(' ').context("WHAT COUNT")?;
        let count: usize = count.parse()?;
        let start = Instant::now();
        match what {
            "fill" => self.fill(count)?,
            "decode" => (0..count).try_for_each(|_| self.step(1))?,
            "prefill" => self.step(count)?,
            _ => bail!("{what}: fill, decode or prefill"),
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Obeys until stdin ends.
pub fn serve(model: &Path) -> Result<()> {
    let mut model = Model::load(model)?;
    println!("ready");
    for order in std::io::stdin().lines() {
        println!("{}", model.obey(&order?)?);
    }
    Ok(())
}

/// The other process.
pub struct Candle(Piped);

impl Candle {
    /// Starts `program candle`, and waits until the model is read.
    pub fn start(program: &Path, model: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        let command = command.args(["candle", "--model"]).arg(model);
        let mut candle = Piped::start(command).with_context(|| program.display().to_string())?;
        candle.answer()?;
        Ok(Self(candle))
    }

    /// Its seconds.
    pub fn order(&mut self, what: &str, count: usize) -> Result<f64> {
        self.0.say(&format!("{what} {count}"))?;
        Ok(self.0.answer()?.trim().parse()?)
    }
}
