//! Splits attention over a batch into jobs, runs them on all cores, merges.
//!
//! Invariants: how a batch is split depends on its shape alone, never on the
//! number of threads, so results are the same on every machine with the same
//! kernels; every output value is written by one thread. Knows no pool and no
//! tensor: blocks come as views, mass leaves through a callback.

use super::dispatch::Isa;
use super::job::{Job, Partial, Scratch, Sums, at_least};
use super::{AttnConfig, decode, prefill};
use crate::kv::BlockView;
use crate::thread_pool::thread_pool;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of one sequence, and the blocks to attend over.
#[derive(Clone, Debug)]
pub(super) struct SpanBlocks {
    /// Position of the first row.
    pub(super) first_pos: usize,
    /// Query rows.
    pub(super) rows: usize,
    /// Which of the batch's views are this sequence's, in order of position.
    pub(super) blocks: Range<usize>,
}

/// A batch to attend over.
pub(super) struct Batch<'a> {
    /// Kernels to use.
    pub(super) isa: Isa,
    /// Shape of the heads.
    pub(super) cfg: AttnConfig,
    /// Tokens a block has room for.
    pub(super) block_tokens: usize,
    /// Queries `[rows, heads * head_dim]`, span after span.
    pub(super) q: &'a [f32],
    /// Scores for nothing, by head.
    pub(super) sinks: Option<&'a [f32]>,
    /// The spans.
    pub(super) spans: &'a [SpanBlocks],
    /// Views of all spans.
    pub(super) views: &'a [BlockView<'a>],
}

/// Jobs that one span is split into where its rows and KV heads alone give
/// fewer: enough for the cores of a large machine, each with work.
const JOBS: usize = 32;
/// Tokens below which a job is not worth its merge.
const LEAST_TOKENS: usize = 256;
/// Multiplications below which waking other threads costs more than it gives.
const INLINE_WORK: usize = 1 << 16;

/// Rows of one KV head that give one piece of the output.
#[derive(Clone, Debug)]
struct Unit {
    span: usize,
    /// First row, counted in the batch.
    row: usize,
    first_pos: usize,
    rows: usize,
    kv_head: usize,
    /// Its jobs.
    jobs: Range<usize>,
}

/// A unit's share of the blocks.
#[derive(Clone, Debug)]
struct Part {
    unit: usize,
    blocks: Range<usize>,
    /// Where its partial lies, if the unit has several.
    at: usize,
}

/// Memory of a call that the caller keeps; contents mean nothing.
#[derive(Debug, Default)]
pub(super) struct Memory {
    plan: Plan,
    partials: Vec<f32>,
}

impl Memory {
    /// Memory for decoding so many sequences, of up to so many blocks each.
    pub(super) fn with_room(cfg: &AttnConfig, sequences: usize, blocks: usize) -> Self {
        let parts = JOBS + cfg.kv_heads;
        let vectors = decode::MOST_ROWS * cfg.group();
        let partials =
            parts * Partial::len(vectors, 0, cfg.head_dim) + cfg.kv_heads * vectors * blocks;
        Self {
            plan: Plan {
                units: Vec::with_capacity(sequences * cfg.kv_heads),
                parts: Vec::with_capacity(sequences * parts),
                ..Plan::default()
            },
            // `at_least` takes powers of two.
            partials: Vec::with_capacity((sequences * partials).next_power_of_two()),
        }
    }
}

#[derive(Debug, Default)]
struct Plan {
    units: Vec<Unit>,
    parts: Vec<Part>,
    /// Values that the partials of split units take.
    partials: usize,
    /// Multiplications, about.
    work: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Memory that threads write disjoint parts of.
struct Parts(*mut f32, usize);
// SAFETY: `Parts::at` is handed out for disjoint ranges only, by its users'
// promise.
unsafe impl Sync for Parts {}
impl Parts {
    /// # Safety
    /// No other use of the range is alive.
    #[expect(
        clippy::mut_from_ref,
        reason = "disjoint parts, by the caller's promise"
    )]
    unsafe fn at(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.1));
        // SAFETY: within the memory; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }

    /// # Safety
    /// No thread writes the range any more.
    unsafe fn read(&self, at: usize, len: usize) -> &[f32] {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.1));
        // SAFETY: within the memory; not written, by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.add(at), len) }
    }
}

impl Plan {
    fn fill(&mut self, batch: &Batch<'_>) {
        self.units.clear();
        self.parts.clear();
        self.partials = 0;
        self.work = 0;
        let mut row = 0;
        for (i, span) in batch.spans.iter().enumerate() {
            self.add_span(batch, i, row);
            row += span.rows;
        }
    }

    fn add_span(&mut self, batch: &Batch<'_>, index: usize, first_row: usize) {
        let (span, cfg) = (&batch.spans[index], batch.cfg);
        let tile = if span.rows <= decode::MOST_ROWS {
            span.rows.max(1)
        } else {
            prefill::tile_rows(cfg.group())
        };
        let tiles = span.rows.div_ceil(tile);
        // The last rows see most: first, so that no thread starts them late.
        for t in (0..tiles).rev() {
            let rows = tile.min(span.rows - t * tile);
            let first_pos = span.first_pos + t * tile;
            let blocks = seen(batch, span, first_pos, rows);
            let most = (blocks.len() * batch.block_tokens).div_ceil(LEAST_TOKENS);
            let jobs = (JOBS / (cfg.kv_heads * tiles)).clamp(1, most.max(1));
            let share = blocks.len().div_ceil(jobs).max(1);
            self.work += blocks.len() * batch.block_tokens * rows * cfg.heads * cfg.head_dim * 2;
            for kv_head in 0..cfg.kv_heads {
                let (unit, first) = (self.units.len(), self.parts.len());
                let mut from = blocks.start;
                loop {
                    let until = blocks.end.min(from + share);
                    self.parts.push(Part {
                        unit,
                        blocks: from..until,
                        at: self.partials,
                    });
                    if from == blocks.start && until == blocks.end {
                        break;
                    }
                    let vectors = rows * cfg.group();
                    self.partials += Partial::len(vectors, until - from, cfg.head_dim);
                    from = until;
                    if from == blocks.end {
                        break;
                    }
                }
                self.units.push(Unit {
                    span: index,
                    row: first_row + t * tile,
                    first_pos,
                    rows,
                    kv_head,
                    jobs: first..self.parts.len(),
                });
            }
        }
    }
}

/// The views that any of the rows sees a token of.
fn seen(batch: &Batch<'_>, span: &SpanBlocks, first_pos: usize, rows: usize) -> Range<usize> {
    let views = &batch.views[span.blocks.clone()];
    let start = batch
        .cfg
        .window
        .map_or(0, |w| (first_pos + 1).saturating_sub(w));
    let from = views.partition_point(|b| b.first_pos + b.tokens <= start);
    let until = views.partition_point(|b| b.first_pos < first_pos + rows);
    span.blocks.start + from..span.blocks.start + until.max(from)
}

/// Attends; `out` is `[rows, heads * head_dim]` and written in full. `mass` is
/// told, for spans and views by index, how much probability fell on a block:
/// the sum over rows and heads, so all blocks of a span get `rows * heads`. A
/// view may be told of several times, by several threads.
pub(super) fn attend(
    batch: &Batch<'_>,
    memory: &mut Memory,
    out: &mut [f32],
    mass: &(dyn Fn(usize, usize, f32) + Sync),
) {
    let Memory { plan, partials } = memory;
    plan.fill(batch);
    let partials = at_least(partials, plan.partials);
    let partials = Parts(partials.as_mut_ptr(), partials.len());
    let out = Parts(out.as_mut_ptr(), out.len());
    let (plan, spread) = (&*plan, plan.work > INLINE_WORK);
    for_each(spread, plan.parts.len(), |part| {
        SCRATCH
            .with_borrow_mut(|scratch| run_part(batch, plan, part, &partials, &out, scratch, mass));
    });
    if plan.partials == 0 {
        return;
    }
    let spread = spread && plan.partials > INLINE_WORK;
    for_each(spread, plan.units.len(), |unit| {
        let unit = &plan.units[unit];
        if unit.jobs.len() > 1 {
            merge(batch, plan, unit, &partials, &out, mass);
        }
    });
}

fn for_each(spread: bool, n: usize, f: impl Fn(usize) + Sync) {
    if spread {
        thread_pool().spread(n, f);
    } else {
        (0..n).for_each(f);
    }
}

fn run_part(
    batch: &Batch<'_>,
    plan: &Plan,
    index: usize,
    partials: &Parts,
    out: &Parts,
    scratch: &mut Scratch,
    mass: &(dyn Fn(usize, usize, f32) + Sync),
) {
    let part = &plan.parts[index];
    let unit = &plan.units[part.unit];
    let cfg = batch.cfg;
    let width = cfg.heads * cfg.head_dim;
    let job = Job {
        isa: batch.isa,
        cfg,
        block_tokens: batch.block_tokens,
        q: &batch.q[unit.row * width..][..unit.rows * width],
        first_pos: unit.first_pos,
        rows: unit.rows,
        kv_head: unit.kv_head,
        sinks: batch.sinks,
        blocks: &batch.views[part.blocks.clone()],
    };
    let (vectors, blocks) = (job.vectors(), part.blocks.len());
    let len = Partial::len(vectors, blocks, cfg.head_dim);
    let alone = unit.jobs.len() == 1;
    let mut own = std::mem::take(&mut scratch.partial);
    let buf = if alone {
        at_least(&mut own, len)
    } else {
        // SAFETY: each part has its own range, and each part runs once.
        unsafe { partials.at(part.at, len) }
    };
    let mut partial = Partial::over(buf, vectors, blocks);
    partial.clear();
    if unit.rows <= decode::MOST_ROWS {
        decode::run(&job, scratch, &mut partial);
    } else {
        prefill::run(&job, scratch, &mut partial);
    }
    if alone {
        let mut shares = std::mem::take(&mut scratch.shares);
        let parts = std::slice::from_ref(part);
        write_out(
            batch,
            unit,
            parts,
            |_| partial.sums(),
            &mut shares,
            out,
            mass,
        );
        scratch.shares = shares;
    }
    scratch.partial = own;
}

fn merge(
    batch: &Batch<'_>,
    plan: &Plan,
    unit: &Unit,
    partials: &Parts,
    out: &Parts,
    mass: &(dyn Fn(usize, usize, f32) + Sync),
) {
    let vectors = unit.rows * batch.cfg.group();
    let partial = |part: &Part| {
        let blocks = part.blocks.len();
        let len = Partial::len(vectors, blocks, batch.cfg.head_dim);
        // SAFETY: the jobs are done: partials are only read.
        Sums::over(unsafe { partials.read(part.at, len) }, vectors, blocks)
    };
    let parts = &plan.parts[unit.jobs.clone()];
    SCRATCH.with_borrow_mut(|scratch| {
        write_out(batch, unit, parts, partial, &mut scratch.shares, out, mass);
    });
}

/// Normalises over the parts of a unit, writes its output, tells the mass.
fn write_out<'p>(
    batch: &Batch<'_>,
    unit: &Unit,
    parts: &[Part],
    partial: impl Fn(&Part) -> Sums<'p>,
    shares: &mut Vec<f32>,
    out: &Parts,
    mass: &(dyn Fn(usize, usize, f32) + Sync),
) {
    let (cfg, d) = (batch.cfg, batch.cfg.head_dim);
    let group = cfg.group();
    let vectors = unit.rows * group;
    let shares = at_least(shares, parts.len() * vectors);
    let sink = |vector: usize| {
        let sinks = batch
            .sinks
            .map(|s| s[unit.kv_head * group + vector % group]);
        sinks.map_or(f32::NEG_INFINITY, |s| s * std::f32::consts::LOG2_E)
    };
    fill_shares(vectors, parts, &partial, sink, shares);
    for vector in 0..vectors {
        let (row, head) = (
            unit.row + vector / group,
            unit.kv_head * group + vector % group,
        );
        // SAFETY: rows and heads of a unit are its own, each written once.
        let to = unsafe { out.at((row * cfg.heads + head) * d, d) };
        to.fill(0.0);
        for (part, shares) in parts.iter().zip(shares.chunks_exact(vectors)) {
            for (to, acc) in to.iter_mut().zip(&partial(part).acc[vector * d..][..d]) {
                *to += shares[vector] * acc;
            }
        }
    }
    for (part, shares) in parts.iter().zip(shares.chunks_exact(vectors)) {
        let (blocks, sums) = (part.blocks.len(), partial(part));
        for b in 0..blocks {
            let by_vector = sums.mass.iter().skip(b).step_by(blocks);
            let fell: f32 = by_vector.zip(shares).map(|(m, s)| m * s).sum();
            mass(unit.span, part.blocks.start + b, fell);
        }
    }
}

/// What a vector's partial sums count in the whole, `[parts, vectors]`. Where
/// nothing was seen, they count nothing. A vector's `sink` counts as one more
/// score.
fn fill_shares<'p>(
    vectors: usize,
    parts: &[Part],
    partial: impl Fn(&Part) -> Sums<'p>,
    sink: impl Fn(usize) -> f32,
    shares: &mut [f32],
) {
    let shares = &mut shares[..parts.len() * vectors];
    shares.fill(0.0);
    for vector in 0..vectors {
        let maxima = parts.iter().map(|part| partial(part).max[vector]);
        let sink = sink(vector);
        let max = maxima.fold(sink, f32::max);
        // With neither a sink nor a score there is no difference of the two.
        let mut total = match sink {
            f32::NEG_INFINITY => 0.0,
            sink => (sink - max).exp2(),
        };
        for (part, shares) in parts.iter().zip(shares.chunks_exact_mut(vectors)) {
            let sums = partial(part);
            if sums.sum[vector] != 0.0 {
                let weight = (sums.max[vector] - max).exp2();
                shares[vector] = weight;
                total += sums.sum[vector] * weight;
            }
        }
        if total != 0.0 {
            for share in shares.iter_mut().skip(vector).step_by(vectors) {
                *share /= total;
            }
        }
    }
}
