//! How fast a model runs here: prefill, decode, and the memory limit.
//!
//! Owns the method. A prompt of random tokens is taken through the decoder in
//! steps of `BATCH` rows; then every sequence decodes token after token at
//! that depth. Each repetition starts from an empty cache. Tokens are drawn, not
//! sampled: the time of a step does not depend on them. Decode reads every
//! weight and the whole cache once a step, which is set beside a loop that
//! reads as many bytes and does nothing else, with the same threads. Out of
//! scope: printing, what a server adds.

use crate::{
    attention::RowSpan,
    eval::EvalError,
    kv::{KvPool, KvType, PoolConfig, SeqId},
    model::{decoder::Decoder, step::Step},
    thread_pool::{MANY, thread_pool},
    units::Bytes,
};
use std::{
    hint::black_box,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Rows of one prefill step.
const BATCH: usize = 512;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Tokens of the prompt that is timed, for each sequence; 0: none.
    pub prompt: usize,
    /// Tokens that are decoded, for each sequence; 0: none.
    pub decode: usize,
    /// Tokens that are in the cache before either.
    pub depth: usize,
    /// Sequences that decode together.
    pub batch: usize,
    /// How keys and values are written.
    pub kv_type: KvType,
}

/// What one repetition took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// The prompt of one sequence.
    pub prompt: Duration,
    /// The tokens of all sequences.
    pub decode: Duration,
}

/// A model that is measured.
#[derive(Debug)]
pub struct Speed<'a> {
    decoder: &'a Decoder,
    plan: Plan,
    pool: Arc<KvPool>,
    step: Step,
    random: u64,
}

impl<'a> Speed<'a> {
    /// Room for the plan's sequences.
    ///
    /// # Errors
    /// The context is longer than the model's, or there is no memory.
    pub fn new(decoder: &'a Decoder, plan: Plan) -> Result<Self, EvalError> {
        let context = plan.depth + plan.prompt.max(plan.decode);
        let trained = decoder.config().context;
        if context > trained {
            let asked = context;
            return Err(EvalError::Context { asked, trained });
        }
        // A block more for each sequence, which may begin one.
        let tokens = plan.batch * (context + 64);
        let pool = KvPool::new(PoolConfig {
            shape: decoder.kv_shape(plan.kv_type),
            capacity_tokens: tokens,
            max_sequences: plan.batch,
            sink_tokens: 0,
            recent_tokens: tokens,
            floor_tokens: 0,
            may_drop: false,
        })?;
        let step = Step::new(decoder, &pool, plan.batch)?;
        Ok(Self {
            decoder,
            plan,
            pool,
            step,
            random: 1,
        })
    }

    /// One repetition.
    ///
    /// # Errors
    /// A step fails.
    pub fn run(&mut self) -> Result<Took, EvalError> {
        let mut took = Took::default();
        if self.plan.prompt > 0 {
            let seq = self.pool.open()?;
            self.prefill(seq, self.plan.depth)?;
            let started = Instant::now();
            self.prefill(seq, self.plan.prompt)?;
            took.prompt = started.elapsed();
            self.pool.close(seq);
        }
        if self.plan.decode > 0 {
            let mut all = Vec::new();
            for _ in 0..self.plan.batch {
                let seq = self.pool.open()?;
                self.prefill(seq, self.plan.depth)?;
                all.push(seq);
            }
            // The first step after a prefill lets go of its memory.
            let mut rest = self.plan.decode;
            if self.plan.depth == 0 {
                self.decode(&all)?;
                rest = rest.saturating_sub(1).max(1);
            }
            let started = Instant::now();
            for _ in 0..rest {
                self.decode(&all)?;
            }
            let decode = started.elapsed().as_secs_f64();
            took.decode = Duration::from_secs_f64(decode * self.plan.decode as f64 / rest as f64);
            all.into_iter().for_each(|seq| self.pool.close(seq));
        }
        Ok(took)
    }

    fn token(&mut self) -> u32 {
        // Knuth's MMIX generator.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let vocab = self.decoder.config().vocab as u64;
        u32::try_from((self.random >> 33) % vocab).unwrap_or(0)
    }

    fn prefill(&mut self, seq: SeqId, tokens: usize) -> Result<(), EvalError> {
        let mut left = tokens;
        while left > 0 {
            let rows = left.min(BATCH);
            let tokens: Vec<u32> = (0..rows).map(|_| self.token()).collect();
            self.take(&[(seq, rows)], &tokens)?;
            left -= rows;
        }
        Ok(())
    }

    fn decode(&mut self, all: &[SeqId]) -> Result<(), EvalError> {
        let tokens: Vec<u32> = all.iter().map(|_| self.token()).collect();
        let rows: Vec<_> = all.iter().map(|seq| (*seq, 1)).collect();
        self.take(&rows, &tokens)
    }

    fn take(&mut self, rows: &[(SeqId, usize)], tokens: &[u32]) -> Result<(), EvalError> {
        let mut spans = Vec::new();
        for &(seq, rows) in rows {
            let first_pos = self.pool.append(seq, rows)?.start;
            spans.push(RowSpan {
                seq,
                first_pos,
                rows,
            });
        }
        let logits = self
            .decoder
            .step(tokens, &spans, &self.pool, &mut self.step)?;
        black_box(logits);
        rows.iter().for_each(|(seq, _)| self.pool.written(*seq));
        Ok(())
    }

    /// Bytes that a decode step in the middle of the plan reads: weights, and
    /// the cache of every sequence.
    #[must_use]
    pub fn step_bytes(&self) -> Bytes {
        let token = self.pool.shape().token_bytes_as(self.plan.kv_type).0;
        let tokens = self.plan.batch * (self.plan.depth + self.plan.decode / 2);
        Bytes(self.decoder.step_bytes().0 + token * tokens as u64)
    }
}

/// Bytes per second at which all threads together read so many bytes, again
/// and again: the median of some rounds. What fits the caches comes from them,
/// as it does for weights.
#[must_use]
pub fn read_bandwidth(bytes: Bytes) -> f64 {
    const PIECE: usize = 1 << 16;
    let pieces = usize::try_from(bytes.0).unwrap_or(0) / PIECE;
    let pieces = pieces.max(1);
    let data = vec![[1u64; PIECE / 8]; pieces];
    let sum = AtomicU64::new(0);
    let mut seconds: Vec<f64> = (0..9)
        .map(|_| {
            let started = Instant::now();
            thread_pool().spread_range(pieces, MANY, |range| {
                // As many lanes as keep the loads in flight.
                let mut lanes = [0u64; 32];
                for piece in &data[range] {
                    for chunk in piece.as_chunks::<32>().0 {
                        for (lane, v) in lanes.iter_mut().zip(chunk) {
                            *lane = lane.wrapping_add(*v);
                        }
                    }
                }
                let all = lanes.iter().fold(0, |a: u64, b| a.wrapping_add(*b));
                sum.fetch_add(all, Ordering::Relaxed);
            });
            started.elapsed().as_secs_f64()
        })
        .collect();
    black_box(sum.into_inner());
    seconds.sort_by(f64::total_cmp);
    (pieces * PIECE) as f64 / seconds[seconds.len() / 2]
}
