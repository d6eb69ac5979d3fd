//! Attention of the rows of a batch, written into memory that the caller keeps.
//!
//! Invariant: a call asks for no memory once [`AttnMemory`] and the threads' own
//! scratch are as large as the context at hand wants; they grow by doubling.

use super::dispatch::Isa;
use super::job::Job;
use super::observe::observe;
use super::split::{self, Batch, Memory, SpanBlocks};
use super::{AttnConfig, RowSpan};
use crate::kv::{BlockView, KvPool, rotate};
use crate::profile::{Part, clock};
use crate::thread_pool::thread_pool;
use candle_core::{Result, bail};

/// Queries `[rows, heads * head_dim]`, keys and values `[rows, kv_heads *
/// head_dim]`, after position encoding. A call turns them into the basis that
/// keys and values are stored in, and leaves them there.
#[derive(Debug)]
pub struct Qkv<'a> {
    /// Queries.
    pub q: &'a mut [f32],
    /// Keys.
    pub k: &'a mut [f32],
    /// Values.
    pub v: &'a mut [f32],
    /// For each head a score that takes its share of the softmax and has no
    /// value (gpt-oss).
    pub sinks: Option<&'a [f32]>,
}

/// Memory of a call: the blocks that it looks at and how they are split. What
/// it holds between calls means nothing.
#[derive(Debug, Default)]
pub struct AttnMemory {
    views: Vec<BlockView<'static>>,
    spans: Vec<SpanBlocks>,
    split: Memory,
}

impl AttnMemory {
    /// Memory for decoding so many sequences of `pool` at their longest.
    #[must_use]
    pub fn with_room(pool: &KvPool, cfg: &AttnConfig, sequences: usize) -> Self {
        let blocks = pool
            .config()
            .capacity_tokens
            .div_ceil(pool.shape().block_tokens);
        Self {
            views: Vec::with_capacity(blocks * sequences),
            spans: Vec::with_capacity(sequences),
            split: Memory::with_room(cfg, sequences, blocks),
        }
    }
}

/// Stores keys and values of the rows, unless there are none, and attends causally over every live
/// block of each row's sequence; `out` is shaped as the queries.
///
/// A row at position p sees keys at positions up to p, of a sliding window the
/// last ones. Blocks are guarded against trims for the call. The pool gets,
/// per block, the probability that fell on it, summed over rows and heads.
///
/// # Errors
/// Lengths that do not agree with each other or with the pool, positions the
/// pool has not handed out, a sequence whose rows another thread writes.
pub fn attend_into(
    qkv: Qkv<'_>,
    pool: &KvPool,
    layer: usize,
    rows: &[RowSpan],
    cfg: AttnConfig,
    memory: &mut AttnMemory,
    out: &mut [f32],
) -> Result<()> {
    check(pool, layer, rows, &cfg)?;
    let total: usize = rows.iter().map(|span| span.rows).sum();
    let stored = if qkv.k.is_empty() && qkv.v.is_empty() {
        0
    } else {
        total
    };
    for (name, len, rows, heads) in [
        ("q", qkv.q.len(), total, cfg.heads),
        ("k", qkv.k.len(), stored, cfg.kv_heads),
        ("v", qkv.v.len(), stored, cfg.kv_heads),
        ("the output", out.len(), total, cfg.heads),
    ] {
        let width = heads * cfg.head_dim;
        if len != rows * width {
            bail!("attention: {name} has {len} values, expected [{rows}, {width}]");
        }
    }
    if qkv.sinks.is_some_and(|sinks| sinks.len() != cfg.heads) {
        bail!("attention: {} heads need a sink each", cfg.heads);
    }
    let _clock = clock(Part::Attention);
    let AttnMemory {
        views: memory_of_views,
        spans,
        split: of_split,
    } = memory;
    spans.clear();
    let (width, d) = (cfg.kv_heads * cfg.head_dim, cfg.head_dim);
    let turn = |x: &mut [f32]| rotate(x, d);
    match stored {
        0 => thread_pool().spread_rows(total, [&mut *qkv.q], |_, [q]| turn(q)),
        _ => {
            let all = [&mut *qkv.q, &mut *qkv.k, &mut *qkv.v];
            thread_pool().spread_rows(total, all, |_, all| all.into_iter().for_each(turn));
        }
    }
    let guard = pool.layer();
    let keys_values = qkv.k.chunks_exact(width).zip(qkv.v.chunks_exact(width));
    let mut writer = guard.writer();
    for span in rows {
        writer
            .claim(span.seq)
            .map_err(|e| candle_core::Error::wrap(e).context("attention"))?;
    }
    let positions = rows
        .iter()
        .flat_map(|span| (span.first_pos..span.first_pos + span.rows).map(|p| (span.seq, p)));
    for ((seq, pos), (k, v)) in positions.zip(keys_values) {
        writer.write(seq, layer, pos, k, v);
    }
    let mut views: Vec<BlockView<'_>> = std::mem::take(memory_of_views);
    for span in rows {
        let from = views.len();
        guard.blocks(span.seq, layer, &mut views);
        spans.push(SpanBlocks {
            first_pos: span.first_pos,
            rows: span.rows,
            blocks: from..views.len(),
        });
    }
    let batch = Batch {
        isa: Isa::detect(cfg.head_dim),
        cfg,
        block_tokens: pool.shape().block_tokens,
        q: qkv.q,
        sinks: qkv.sinks,
        spans,
        views: &views,
    };
    split::attend(&batch, of_split, out, &|span, view, mass| {
        pool.add_mass(rows[span].seq, views[view].index, mass);
    });
    if pool.shape().row_mass {
        observe_spans(&batch, rows);
    }
    *memory_of_views = emptied(views);
    // Until here: no other thread writes the rows that were read.
    drop(writer);
    drop(guard);
    thread_pool().spread_rows(total, [out], |_, [out]| rotate(out, d));
    Ok(())
}

/// The room of some views, for those of the next guard.
fn emptied(mut views: Vec<BlockView<'_>>) -> Vec<BlockView<'static>> {
    views.clear();
    // The standard library collects in place: no memory is asked for, which the
    // test of a decode step's allocations holds it to.
    let none = views.into_iter().map_while(|_| None);
    none.collect()
}

/// Leaves the attention mass of every token with the pool, by a sample.
fn observe_spans(batch: &Batch<'_>, rows: &[RowSpan]) {
    let width = batch.cfg.heads * batch.cfg.head_dim;
    let mut row = 0;
    for (span, blocks) in rows.iter().zip(batch.spans) {
        observe(&Job {
            isa: batch.isa,
            cfg: batch.cfg,
            block_tokens: batch.block_tokens,
            q: &batch.q[row * width..][..span.rows * width],
            first_pos: span.first_pos,
            rows: span.rows,
            kv_head: 0,
            sinks: batch.sinks,
            blocks: &batch.views[blocks.blocks.clone()],
        });
        row += span.rows;
    }
}

/// Whether a layer's heads and rows fit the pool.
fn check(pool: &KvPool, layer: usize, rows: &[RowSpan], cfg: &AttnConfig) -> Result<()> {
    let AttnConfig {
        heads,
        kv_heads,
        head_dim,
        ..
    } = *cfg;
    if heads == 0 || kv_heads == 0 || head_dim == 0 || !heads.is_multiple_of(kv_heads) {
        bail!("attention: {heads} heads cannot share {kv_heads} KV heads of {head_dim} values");
    }
    if cfg.window == Some(0) {
        bail!("attention: a sliding window of 0 tokens leaves nothing to see");
    }
    let shape = pool.shape();
    if (shape.kv_heads, shape.head_dim) != (kv_heads, head_dim) || layer >= shape.layers {
        bail!(
            "attention: layer {layer} with {kv_heads} KV heads of {head_dim} does not fit a pool \
             of {} layers with {} KV heads of {}",
            shape.layers,
            shape.kv_heads,
            shape.head_dim
        );
    }
    for span in rows {
        let (until, len) = (span.first_pos.saturating_add(span.rows), pool.len(span.seq));
        if until > len {
            bail!("attention: position {until} was not appended, the sequence has {len}");
        }
    }
    Ok(())
}
