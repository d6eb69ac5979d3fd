//! kvpsi behind the few calls that are measured.

use anyhow::Result;
use kvpsi::{
    attention::RowSpan,
    kv::{KvPool, KvShape, KvType, PoolConfig, SeqId},
    model::{
        decoder::Decoder,
        gguf::Gguf,
        step::{MOST_ROWS, Step},
    },
};
use std::{path::Path, sync::Arc};

/// Tokens of one prefill call.
pub const CHUNK: usize = 512;

/// Token ids: which ones does not change the time.
pub fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    let id = |i: usize| u32::try_from((i * 7919 + 13) % vocab).unwrap_or(0);
    (0..count).map(id).collect()
}

/// A pool for so many sequences of so many tokens in all, of which the last
/// `recent` stay.
pub fn pool(
    shape: KvShape,
    capacity_tokens: usize,
    max_sequences: usize,
    recent_tokens: usize,
) -> Result<Arc<KvPool>> {
    Ok(KvPool::new(PoolConfig {
        shape,
        capacity_tokens,
        max_sequences,
        sink_tokens: 4,
        recent_tokens,
        floor_tokens: 0,
        may_drop: true,
    })?)
}

/// Reads tokens into a sequence, at once.
pub fn read(
    decoder: &Decoder,
    pool: &KvPool,
    step: &mut Step,
    seq: SeqId,
    tokens: &[u32],
) -> Result<()> {
    let span = RowSpan {
        seq,
        first_pos: pool.append(seq, tokens.len())?.start,
        rows: tokens.len(),
    };
    Ok(decoder.step_through(tokens, span, pool, step, 0..0, &mut |_, _| ())?)
}

/// kvpsi with one or more sequences.
pub struct Ours {
    pub decoder: Decoder,
    pub pool: Arc<KvPool>,
    step: Step,
}

impl Ours {
    pub fn load(path: &Path, kv_type: KvType, capacity_tokens: usize) -> Result<Self> {
        let decoder = Decoder::load(&Gguf::open(path)?)?;
        let pool = pool(decoder.kv_shape(kv_type), capacity_tokens, 8, 256)?;
        let step = Step::new(&decoder, &pool, MOST_ROWS)?;
        Ok(Self {
            decoder,
            pool,
            step,
        })
    }

    /// One step over the same number of rows of each sequence.
    pub fn step(&mut self, seqs: &[SeqId], rows: usize) -> Result<()> {
        let mut spans = Vec::new();
        for seq in seqs {
            let at = self.pool.append(*seq, rows)?;
            spans.push(RowSpan {
                seq: *seq,
                first_pos: at.start,
                rows,
            });
        }
        let ids = tokens(rows * seqs.len(), self.decoder.config().vocab);
        self.decoder
            .step(&ids, &spans, &self.pool, &mut self.step)?;
        Ok(())
    }

    /// Prefills `seq` up to `depth` tokens.
    pub fn fill(&mut self, seq: SeqId, depth: usize) -> Result<()> {
        while self.pool.len(seq) < depth {
            let rows = (depth - self.pool.len(seq)).min(CHUNK);
            self.step(&[seq], rows)?;
        }
        Ok(())
    }
}
