//! kvpsi and candle-transformers behind the same few calls.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, quantized::gguf_file};
use candle_transformers::models::quantized_llama::ModelWeights;
use kvpsi::{
    attention::RowSpan,
    kv::{KvPool, PoolConfig, SeqId},
    model::{decoder::Decoder, gguf::Gguf},
};
use std::{fs::File, path::Path, sync::Arc};

/// Tokens of one prefill call.
pub const CHUNK: usize = 512;

/// Token ids: which ones does not change the time.
pub fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    let id = |i: usize| u32::try_from((i * 7919 + 13) % vocab).unwrap_or(0);
    (0..count).map(id).collect()
}

/// kvpsi with one or more sequences.
pub struct Ours {
    pub decoder: Decoder,
    pub pool: Arc<KvPool>,
}

impl Ours {
    pub fn load(path: &Path, capacity_tokens: usize) -> Result<Self> {
        let decoder = Decoder::load(&mut Gguf::open(path)?)?;
        let pool = KvPool::new(PoolConfig {
            shape: decoder.kv_shape(),
            capacity_tokens,
            max_sequences: 8,
            sink_tokens: 4,
            recent_tokens: 256,
        })?;
        Ok(Self { decoder, pool })
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
        self.decoder.forward(&ids, spans.into(), &self.pool)?;
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

/// candle-transformers' quantized_llama with its one sequence.
pub struct Candle {
    model: ModelWeights,
    vocab: usize,
    pub len: usize,
}

impl Candle {
    pub fn load(path: &Path, vocab: usize) -> Result<Self> {
        let mut file = File::open(path).with_context(|| path.display().to_string())?;
        let content = gguf_file::Content::read(&mut file)?;
        let model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
        Ok(Self {
            model,
            vocab,
            len: 0,
        })
    }

    pub fn step(&mut self, rows: usize) -> Result<()> {
        let ids = tokens(rows, self.vocab);
        let x = Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        self.model.forward(&x, self.len)?;
        self.len += rows;
        Ok(())
    }

    pub fn clear(&mut self) {
        self.model.clear_kv_cache();
        self.len = 0;
    }

    pub fn fill(&mut self, depth: usize) -> Result<()> {
        while self.len < depth {
            self.step((depth - self.len).min(CHUNK))?;
        }
        Ok(())
    }
}
