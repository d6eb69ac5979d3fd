//! kvpsi's text beside candle-transformers' quantized_llama: the likelihood
//! of a text, and greedy answers.

use crate::ours::Ours;
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, quantized::gguf_file};
use candle_transformers::models::quantized_llama::ModelWeights;
use kvpsi::{
    eval::{self, Score},
    kv::KvType,
    kv::SeqId,
    model::{gguf::Gguf, tokenizer::Tokenizer},
};
use std::{fs::File, ops::ControlFlow, path::Path};

/// The first two stories of The Adventures of Sherlock Holmes.
pub const TEXT: &str = include_str!("../data/holmes.txt");

/// Beginnings of texts that a small model can go on with.
pub const PROMPTS: [&str; 10] = [
    "Once upon a time there was a king who",
    "The water cycle describes how",
    "To bake a loaf of bread, first",
    "The capital of France is",
    "A list of the planets of the solar system:",
    "def fibonacci(n):",
    "In 1687, Isaac Newton",
    "Dear Sir, I am writing to you because",
    "The three most important rules of a good garden are",
    "Question: Why is the sky blue? Answer:",
];

/// The reference and kvpsi on the same file.
pub struct Both {
    ours: Ours,
    candle: ModelWeights,
    tokenizer: Tokenizer,
}

/// The likelihood of the same tokens, by both.
#[derive(Clone, Copy, Debug)]
pub struct Likelihood {
    /// By kvpsi.
    pub ours: Score,
    /// By candle.
    pub candle: Score,
}

/// Where two greedy answers part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parting {
    /// Tokens that are the same before.
    pub after: usize,
    /// By how much candle's logits prefer its own token to kvpsi's.
    pub margin: f32,
}

impl Both {
    /// Reads the file twice; `tokens_of` has the tokenizer.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn load(path: &Path, tokens_of: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let content = gguf_file::Content::read(&mut file)?;
        Ok(Self {
            candle: ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?,
            tokenizer: Tokenizer::from_gguf(&Gguf::open(tokens_of)?)?,
            ours: Ours::load(path, 1024),
        })
    }

    /// The likelihood of the first `count` chunks of [`TEXT`], `context`
    /// tokens each; `tell` is told after each.
    ///
    /// # Errors
    /// A step fails, or the text is shorter.
    pub fn likelihood(
        &mut self,
        context: usize,
        count: usize,
        tell: &mut dyn FnMut(&Likelihood),
    ) -> Result<Likelihood> {
        let tokens = self.tokenizer.encode(TEXT, false)?;
        ensure!(tokens.len() >= context * count, "{} tokens", tokens.len());
        let tokens = &tokens[..context * count];
        let mut all = Likelihood {
            ours: Score::default(),
            candle: Score::default(),
        };
        all.ours = eval::perplexity(
            self.ours.decoder(),
            tokens,
            context,
            eval::KvSetting::whole(KvType::F16),
            None,
            &mut |_| ControlFlow::Continue(()),
        )?;
        for chunk in eval::chunks(tokens, context, None) {
            let first = eval::first_scored(context);
            let mut logits = self.candle_step(&chunk[..=first], 0)?;
            for (at, &token) in (first + 1..).zip(&chunk[first + 1..]) {
                all.candle.add(&logits, token);
                logits = self.candle_step(&[token], at)?;
            }
            all.candle.chunks += 1;
            tell(&all);
        }
        Ok(all)
    }

    /// Greedy answers of `most` tokens: `None` where they are the same.
    ///
    /// # Errors
    /// A step fails.
    pub fn greedy(&mut self, prompt: &str, most: usize) -> Result<Option<Parting>> {
        let prompt = self.tokenizer.encode(prompt, false)?;
        let seq = self.ours.open();
        let parting = self.greedy_in(seq, &prompt, most);
        self.ours.close(seq);
        parting
    }

    fn greedy_in(&mut self, seq: SeqId, prompt: &[u32], most: usize) -> Result<Option<Parting>> {
        let mut next = prompt.to_vec();
        let mut at = 0;
        for after in 0..most {
            let ours = likeliest(&self.ours.run(seq, &next))?;
            let logits = self.candle_step(&next, at)?;
            at += next.len();
            let theirs = likeliest(&logits)?;
            if ours != theirs {
                let margin = logits[theirs as usize] - logits[ours as usize];
                return Ok(Some(Parting { after, margin }));
            }
            next = vec![ours];
        }
        Ok(None)
    }

    fn candle_step(&mut self, tokens: &[u32], at: usize) -> Result<Vec<f32>> {
        if at == 0 {
            self.candle.clear_kv_cache();
        }
        let x = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        Ok(self.candle.forward(&x, at)?.squeeze(0)?.to_vec1()?)
    }
}

fn likeliest(logits: &[f32]) -> Result<u32> {
    let best = (0u32..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
    best.map(|(token, _)| token).context("no logits")
}
