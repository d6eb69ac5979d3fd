//! A step: the rows of some sequences through the decoder.
//!
//! Owns the memory of steps. That of a few rows (decode) is asked for once,
//! and such a step allocates nothing. That of many rows (prefill) comes with the
//! first such step and goes with the next one of few rows, back to the kernel.
//! Several sequences share each weight read. Refuses to know where KV lives, and what
//! the logits are for.

mod experts;
mod feed_forward;
pub mod ops;
mod pass;
mod rows;
mod told;

use super::{decoder::Decoder, linear::products_into};
use crate::{
    attention::{AttnMemory, RowSpan},
    curves::soft_cap,
    kv::{KvPool, evict::QueryStats},
    thread_pool::thread_pool,
};
use candle_core::{Result, bail};
use pass::Pass;
use rows::Rows;
use std::{
    ops::Range,
    sync::{Arc, atomic::AtomicBool},
};

/// Rows that a step has memory for at all times unless the caller says
/// otherwise.
pub const MOST_ROWS: usize = 8;

/// A step ended between two layers because it was told to: what it stored is
/// incomplete, and it has no logits.
#[derive(Debug, thiserror::Error)]
#[error("the step was interrupted")]
pub struct Interrupted;

/// The memory of steps, for one decoder and one pool.
#[derive(Debug)]
pub struct Step {
    few: Rows,
    many: Option<Rows>,
    memory: AttnMemory,
    vocab: usize,
    logits: Vec<f32>,
    /// Rows that there are logits of.
    spans: usize,
    queries: Arc<QueryStats>,
    stop: Option<Arc<AtomicBool>>,
    /// Whether the pool's sequences are turned as long ones.
    long: bool,
}

impl Step {
    /// Memory for steps of up to `most_rows` rows of `decoder` over `pool`,
    /// and for the logits of as many.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(decoder: &Decoder, pool: &KvPool, most_rows: usize) -> Result<Self> {
        let c = decoder.config();
        let tokens = pool.config().capacity_tokens;
        Ok(Self {
            few: Rows::new(c, decoder.ropes.len(), most_rows)?,
            many: None,
            memory: AttnMemory::with_room(pool, &c.attention(0), most_rows),
            vocab: c.vocab,
            logits: vec![0.0; most_rows * c.vocab],
            spans: 0,
            queries: Arc::new(decoder.query_stats(tokens)),
            stop: None,
            long: decoder.is_long(tokens),
        })
    }

    /// What is known of the queries that went through.
    #[must_use]
    pub fn queries(&self) -> &Arc<QueryStats> {
        &self.queries
    }

    /// From now on a step ends with [`Interrupted`] at the next layer once
    /// this is set; `None`: steps are not interrupted.
    pub fn interrupt_by(&mut self, stop: Option<Arc<AtomicBool>>) {
        self.stop = stop;
    }

    /// Rows of which there can be logits at once.
    #[must_use]
    pub fn most_rows(&self) -> usize {
        self.few.most()
    }

    /// Rows that the last step left logits of.
    pub(crate) fn rows_with_logits(&self) -> usize {
        self.spans
    }

    /// The logits of the last step, `[spans, vocab]`.
    pub fn logits(&mut self) -> &mut [f32] {
        &mut self.logits[..self.spans * self.vocab]
    }
}

impl Decoder {
    /// One step over the rows of any number of sequences. `tokens` holds the
    /// rows of the spans one after another; their positions must have been
    /// appended to `pool` already. Returns f32 logits `[spans, vocab]`, those
    /// of each span's last row, to be changed at will until the next step.
    ///
    /// # Errors
    /// The spans do not add up to the tokens or are more than `step` has room
    /// for, a token is outside the vocabulary, there is no memory for so many
    /// rows, or a kernel fails.
    pub fn step<'s>(
        &self,
        tokens: &[u32],
        spans: &[RowSpan],
        pool: &KvPool,
        step: &'s mut Step,
    ) -> Result<&'s mut [f32]> {
        let most = step.most_rows();
        if spans.len() > most {
            bail!("{} sequences for a step of at most {most}", spans.len());
        }
        let ends = spans.iter().scan(0, |end, span| {
            *end += span.rows;
            Some(*end)
        });
        self.pass(tokens, spans, pool, step, ends.map(|end| end - 1))?;
        self.logits(tokens.len(), 0..spans.len(), step)?;
        Ok(step.logits())
    }

    /// [`Decoder::step`] over one span for whoever wants the logits of several
    /// rows: `tell` gets those of each row of `wanted`, counted from the
    /// span's first. None may be wanted: keys and values are stored all the
    /// same.
    ///
    /// # Errors
    /// As [`Decoder::step`]; a row is wanted that is not there.
    pub fn step_through(
        &self,
        tokens: &[u32],
        span: RowSpan,
        pool: &KvPool,
        step: &mut Step,
        wanted: Range<usize>,
        tell: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        if wanted.end > tokens.len() {
            bail!("row {} of {} is wanted", wanted.end, tokens.len());
        }
        self.pass(tokens, &[span], pool, step, wanted.clone())?;
        let mut from = 0;
        while from < wanted.len() {
            let until = wanted.len().min(from + step.most_rows());
            self.logits(tokens.len(), from..until, step)?;
            let vocab = step.vocab;
            for (row, logits) in (from..).zip(step.logits().chunks_exact(vocab)) {
                tell(wanted.start + row, logits);
            }
            from = until;
        }
        Ok(())
    }

    /// [`Decoder::step`] over one span for whoever wants the hidden states of
    /// its rows, after the last norm: `tell` gets each, counted from the span's
    /// first.
    ///
    /// # Errors
    /// As [`Decoder::step`].
    pub fn hidden_through(
        &self,
        tokens: &[u32],
        span: RowSpan,
        pool: &KvPool,
        step: &mut Step,
        tell: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.pass(tokens, &[span], pool, step, 0..tokens.len())?;
        let rows = step.many.as_mut().unwrap_or(&mut step.few);
        let hidden = rows.parts(tokens.len()).h;
        for (row, h) in hidden.chunks_exact(self.config().hidden).enumerate() {
            tell(row, h);
        }
        Ok(())
    }

    /// [`Decoder::step`] for keys and values alone: of any number of spans, and
    /// without logits.
    ///
    /// # Errors
    /// As [`Decoder::step`].
    pub fn store(
        &self,
        tokens: &[u32],
        spans: &[RowSpan],
        pool: &KvPool,
        step: &mut Step,
    ) -> Result<()> {
        self.pass(tokens, spans, pool, step, std::iter::empty())
    }

    /// Takes the rows through the layers; the final norms of those `wanted`
    /// are then the first rows of `h`.
    fn pass(
        &self,
        tokens: &[u32],
        spans: &[RowSpan],
        pool: &KvPool,
        step: &mut Step,
        wanted: impl Iterator<Item = usize>,
    ) -> Result<()> {
        let count = spans.iter().map(|s| s.rows).sum::<usize>();
        if count != tokens.len() || spans.iter().any(|s| s.rows == 0) {
            bail!("{} tokens for spans of {count} rows", tokens.len());
        }
        step.spans = 0;
        step.make_room(self, count)?;
        let (rows, memory) = match &mut step.many {
            Some(many) => (many, &mut step.memory),
            None => (&mut step.few, &mut step.memory),
        };
        let mut pass = Pass {
            decoder: self,
            spans,
            pool,
            memory,
            queries: &step.queries,
            stop: step.stop.as_deref(),
            long: step.long,
        };
        pass.run(tokens, rows, wanted)
    }

    /// The logits of some of the rows that a pass over `count` tokens left.
    fn logits(&self, count: usize, of: Range<usize>, step: &mut Step) -> Result<()> {
        let hidden = self.config().hidden;
        step.spans = of.len();
        let logits = &mut step.logits[..of.len() * step.vocab];
        let p = step.many.as_mut().unwrap_or(&mut step.few).parts(count);
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let h = &p.h[of.start * hidden..of.end * hidden];
        products_into([output], h, of.len(), p.acts, [&mut *logits])?;
        let c = self.config();
        if c.logit_scale != 1.0 || c.logit_cap.is_some() {
            thread_pool().spread_rows(of.len(), [logits], |_, [logits]| {
                logits.iter_mut().for_each(|l| *l *= c.logit_scale);
                if let Some(cap) = c.logit_cap {
                    soft_cap(logits, cap);
                }
            });
        }
        Ok(())
    }
}

impl Step {
    fn make_room(&mut self, decoder: &Decoder, rows: usize) -> Result<()> {
        if rows <= self.few.most() {
            self.many = None;
        } else if self.many.as_ref().is_none_or(|many| many.most() < rows) {
            // What is too small goes first: both need not be there at once.
            self.many = None;
            self.many = Some(Rows::new(decoder.config(), decoder.ropes.len(), rows)?);
        }
        Ok(())
    }
}
