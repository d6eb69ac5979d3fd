//! kvpsi's decoder as tests of logits use it: one sequence at a time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use crate::tiny::Tiny;
use kvpsi::{
    attention::RowSpan,
    kv::{KvPool, KvType, PoolConfig, SeqId, evict::QueryStats},
    model::{decoder::Decoder, gguf::Gguf, step::Step},
};
use std::{path::Path, sync::Arc};

/// A decoder, its KV and the memory of a step of two rows.
#[derive(Debug)]
pub struct Ours {
    decoder: Decoder,
    pool: Arc<KvPool>,
    step: Step,
}

impl Ours {
    /// A model with room for so many tokens.
    #[must_use]
    pub fn load(path: &Path, capacity_tokens: usize) -> Self {
        Self::keeping(path, capacity_tokens, capacity_tokens)
    }

    /// [`Ours::load`] with a pool that keeps so many recent tokens and may
    /// lose the others.
    #[must_use]
    pub fn keeping(path: &Path, capacity_tokens: usize, recent_tokens: usize) -> Self {
        let decoder = Decoder::load(&Gguf::open(path).unwrap()).unwrap();
        let pool = KvPool::new(PoolConfig {
            shape: decoder.kv_shape(KvType::F16),
            capacity_tokens,
            max_sequences: 2,
            sink_tokens: 4,
            recent_tokens,
            floor_tokens: 0,
            may_drop: true,
        })
        .unwrap();
        let step = Step::new(&decoder, &pool, 2).unwrap();
        Self {
            decoder,
            pool,
            step,
        }
    }

    /// A tiny model, written and read again.
    #[must_use]
    pub fn of(tiny: &Tiny, capacity_tokens: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        tiny.write(&path).unwrap();
        Self::load(&path, capacity_tokens)
    }

    /// The decoder.
    #[must_use]
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &Arc<KvPool> {
        &self.pool
    }

    /// What is known of the queries.
    #[must_use]
    pub fn queries(&self) -> &Arc<QueryStats> {
        self.step.queries()
    }

    /// Begins a sequence.
    #[must_use]
    pub fn open(&self) -> SeqId {
        self.pool.open().unwrap()
    }

    /// Ends it.
    pub fn close(&self, seq: SeqId) {
        self.pool.close(seq);
    }

    /// Makes room for so many tokens of a sequence.
    #[must_use]
    pub fn append(&self, seq: SeqId, rows: usize) -> RowSpan {
        RowSpan {
            seq,
            first_pos: self.pool.append(seq, rows).unwrap().start,
            rows,
        }
    }

    /// The logits after `tokens`, whose place is `span`: decode if it is one,
    /// else prefill.
    pub fn step(&mut self, tokens: &[u32], span: &RowSpan) -> &[f32] {
        self.steps(tokens, std::slice::from_ref(span))
    }

    /// The logits after the tokens of several sequences, of up to two.
    pub fn steps(&mut self, tokens: &[u32], spans: &[RowSpan]) -> &[f32] {
        self.decoder
            .step(tokens, spans, &self.pool, &mut self.step)
            .unwrap()
    }

    /// The logits after `tokens`, added to the sequence.
    pub fn run(&mut self, seq: SeqId, tokens: &[u32]) -> Vec<f32> {
        let span = self.append(seq, tokens.len());
        self.step(tokens, &span).to_vec()
    }

    /// The logits after `tokens`, handed over in chunks of this length.
    pub fn after(&mut self, tokens: &[u32], chunk: usize) -> Vec<f32> {
        let seq = self.open();
        let logits = tokens.chunks(chunk).map(|c| self.run(seq, c)).last();
        self.close(seq);
        logits.unwrap()
    }
}

/// Largest and mean difference in units of the second's root mean square.
#[must_use]
pub fn apart(a: &[f32], b: &[f32]) -> (f32, f64) {
    assert_eq!(a.len(), b.len());
    let size = (b.iter().map(|v| v * v).sum::<f32>() / b.len() as f32).sqrt();
    let each = a.iter().zip(b).map(|(a, b)| (a - b).abs() / size);
    let most = each.clone().fold(0f32, f32::max);
    let sum: f64 = each.map(f64::from).sum();
    assert!(sum.is_finite(), "a logit is not finite");
    (most, sum / a.len() as f64)
}
