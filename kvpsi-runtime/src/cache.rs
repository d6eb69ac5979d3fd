//! The KV cache for programs of candle: a pool, its sequences, attention on
//! tensors.
//!
//! A model that keeps its keys and values here needs no other part of kvpsi:
//! it turns queries and keys by their positions, calls [`Step::attend`] in each
//! layer in place of its own cache and softmax, and what [`KvCache::govern`]
//! starts returns pages of it to the kernel whenever that stalls on memory.
//!
//! ```no_run
//! # use kvpsi::{cache::{CacheConfig, KvCache}, pressure::Choice};
//! let cache = KvCache::new(CacheConfig::new(30, 9, 3, 64))?;
//! let governor = cache.govern(Choice::Auto)?; // Trims until it is dropped.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A model's forward pass is then:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use kvpsi::cache::{CacheConfig, KvCache};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (layers, heads, kv_heads, head_dim) = (2, 4, 2, 64);
//! let cache = KvCache::new(CacheConfig::new(layers, heads, kv_heads, head_dim))?;
//! let mut sequence = cache.sequence()?;
//! // A prompt of 10 tokens, then one token a step.
//! for rows in [10, 1, 1] {
//!     let step = sequence.step(rows)?;
//!     for layer in 0..layers {
//!         let q = Tensor::randn(0f32, 1., (1, heads, rows, head_dim), &Device::Cpu)?;
//!         let k = Tensor::randn(0f32, 1., (1, kv_heads, rows, head_dim), &Device::Cpu)?;
//!         let attended = step.attend(layer, &q, &k, &k)?;
//!         assert_eq!(attended.dims(), [1, heads, rows, head_dim]);
//!     }
//! }
//! assert_eq!(sequence.len(), 12);
//! # Ok(())
//! # }
//! ```
//!
//! Invariants: a step's keys and values are stored in 16 bits or fewer and read
//! where they lie, without concatenation or repeated heads; positions are
//! absolute, and what was trimmed is a hole that nothing attends to. Out of
//! scope: position encoding, masks other than causal ones and windows, devices
//! other than the CPU.

use crate::{
    attention::{AttnConfig, AttnMemory, Qkv, RowSpan, attend_into},
    control::{Governor, GovernorConfig, GovernorError},
    kv::{
        Account, KvError, KvPool, KvShape, KvType, Ladder, LadderConfig, PoolConfig, Profile,
        SeqId,
        evict::{Evict, QueryStats},
    },
    pressure::{self, Choice, SignalError, SourceConfig},
    units::Bytes,
};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Tokens of a block: what is returned at once, for all layers.
const BLOCK_TOKENS: usize = 32;

/// Shape and bounds of a cache; change what differs from [`CacheConfig::new`].
#[derive(Clone, Copy, Debug)]
pub struct CacheConfig {
    /// Layers that store keys and values.
    pub layers: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// What a product of query and key is multiplied by.
    pub scale: f32,
    /// Sliding window of all layers, in tokens, the row's own included.
    pub window: Option<usize>,
    /// What scores stay below (`cap tanh(score / cap)`).
    pub softcap: Option<f32>,
    /// Tokens that all sequences have room for together, and one at most.
    pub context: usize,
    /// Sequences at once, 1 to 64.
    pub sequences: usize,
    /// How keys and values are written at first.
    pub kv_type: KvType,
    /// What may be lost to return memory.
    pub profile: Profile,
    /// Last tokens of a sequence that are always kept.
    pub recent_tokens: usize,
    /// Most bytes that may be resident; `None`: those of the context.
    pub budget: Option<Bytes>,
}

impl CacheConfig {
    /// One sequence of up to 4096 tokens in f16, scores divided by the root of
    /// `head_dim`, the last 256 tokens always kept.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "some hundred values")]
    pub fn new(layers: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            layers,
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim.max(1) as f32).sqrt().recip(),
            window: None,
            softcap: None,
            context: 4096,
            sequences: 1,
            kv_type: KvType::F16,
            profile: Profile::default(),
            recent_tokens: 256,
            budget: None,
        }
    }
}

/// Why a cache is not governed.
#[derive(Debug, thiserror::Error)]
pub enum GovernError {
    /// There is no source of pressure events.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// Its threads could not be started.
    #[error(transparent)]
    Governor(#[from] GovernorError),
}

/// Keys and values of the sequences of one model.
#[derive(Debug)]
pub struct KvCache {
    pool: Arc<KvPool>,
    ladder: Arc<Ladder>,
    attn: AttnConfig,
    /// Of one call of attention at a time.
    memory: Mutex<AttnMemory>,
}

impl KvCache {
    /// Reserves address space for the context; no page of it is resident yet.
    ///
    /// # Errors
    /// A dimension is zero or does not fit the encoding, attention cannot be
    /// computed by these numbers, or the kernel refused the address space.
    pub fn new(config: CacheConfig) -> std::result::Result<Self, KvError> {
        let CacheConfig {
            heads,
            kv_heads,
            head_dim,
            scale,
            window,
            softcap,
            ..
        } = config;
        let finite = scale.is_finite() && softcap.is_none_or(|cap| cap.is_finite() && cap > 0.0);
        let groups = heads > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads);
        if !finite || !groups || window == Some(0) {
            return Err(KvError::Attention(format!(
                "{heads} heads over {kv_heads}, scale {scale}, window {window:?}, softcap {softcap:?}"
            )));
        }
        let pool = KvPool::new(PoolConfig {
            shape: KvShape {
                layers: config.layers,
                kv_heads,
                head_dim,
                block_tokens: BLOCK_TOKENS,
                kind: config.kv_type,
                row_mass: false,
            },
            capacity_tokens: config.context,
            max_sequences: config.sequences,
            sink_tokens: 4,
            recent_tokens: config.recent_tokens,
            floor_tokens: 0,
            may_drop: config.profile != Profile::Lossless,
        })?;
        if let Some(budget) = config.budget {
            pool.set_limit(budget);
        }
        let ladder = LadderConfig {
            profile: config.profile,
            // The default looks at keys alone: queries are the model's own.
            evict: Evict::Keydiff,
            window: window.unwrap_or(0),
            ..LadderConfig::default()
        };
        let queries = Arc::new(QueryStats::new(heads, kv_heads, head_dim, Vec::new()));
        Ok(Self {
            ladder: Arc::new(Ladder::new(pool.clone(), ladder, &queries)),
            pool,
            attn: AttnConfig {
                heads,
                kv_heads,
                head_dim,
                scale,
                window,
                softcap,
            },
            memory: Mutex::default(),
        })
    }

    /// Starts what returns pages to the kernel when it stalls on memory, until
    /// the [`Governor`] is dropped. [`Choice::Auto`] takes eBPF where this
    /// process may load it (root, or CAP_BPF and CAP_PERFMON), else PSI.
    ///
    /// # Errors
    /// No source of pressure events works here, or a thread could not be made.
    pub fn govern(&self, choice: Choice) -> std::result::Result<Governor, GovernError> {
        self.govern_with(choice, &GovernorConfig::default())
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// As [`KvCache::govern`].
    pub fn govern_with(
        &self,
        choice: Choice,
        config: &GovernorConfig,
    ) -> std::result::Result<Governor, GovernError> {
        let opened = pressure::open(choice, &SourceConfig::default())?;
        for note in opened.notes {
            tracing::info!("{note}");
        }
        let prepared = Governor::prepare(opened.source, None, config)?;
        Ok(prepared.start(self.ladder.clone())?)
    }

    /// Begins a sequence.
    ///
    /// # Errors
    /// All of them are in use.
    pub fn sequence(&self) -> std::result::Result<Sequence<'_>, KvError> {
        Ok(Sequence {
            seq: self.pool.open()?,
            cache: self,
        })
    }

    /// Bytes resident, in use and returned, and what was lost.
    #[must_use]
    pub fn account(&self) -> Account {
        self.pool.account()
    }

    /// The pool, for those who want more of it.
    #[must_use]
    pub fn pool(&self) -> &Arc<KvPool> {
        &self.pool
    }
}

/// A sequence; dropping it frees its memory.
#[derive(Debug)]
pub struct Sequence<'a> {
    cache: &'a KvCache,
    seq: SeqId,
}

impl Sequence<'_> {
    /// Positions so far, those that were trimmed included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.pool.len(self.seq)
    }

    /// There is none yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions that lost their keys and values.
    #[must_use]
    pub fn lost_tokens(&self) -> u64 {
        self.cache.pool.lost_tokens(self.seq)
    }

    /// All memory of the sequence went to whoever was short of it: further
    /// steps fail, and its tokens must be computed anew, from
    /// [`Sequence::restart`]. The profile decides whether that happens.
    #[must_use]
    pub fn preempted(&self) -> bool {
        self.cache.pool.preempted(self.seq)
    }

    /// Begins anew, with no position.
    ///
    /// # Errors
    /// None while the cache is not shared with others who open sequences.
    pub fn restart(&mut self) -> std::result::Result<(), KvError> {
        self.seq = self.cache.pool.reopen(self.seq)?;
        Ok(())
    }

    /// Hands out the next `rows` positions. Each layer attends once, then the
    /// step is dropped and its rows are part of the sequence; of a step that
    /// ended before its last layer none are.
    ///
    /// # Errors
    /// Beyond the context, preempted, or no memory is left within the budget;
    /// then nothing changed.
    pub fn step(&mut self, rows: usize) -> std::result::Result<Step<'_>, KvError> {
        let at = self.cache.pool.append(self.seq, rows)?;
        Ok(Step {
            span: RowSpan {
                seq: self.seq,
                first_pos: at.start,
                rows,
            },
            cache: self.cache,
            stored: AtomicUsize::new(0),
        })
    }
}

impl Drop for Sequence<'_> {
    fn drop(&mut self) {
        self.cache.pool.close(self.seq);
    }
}

/// Rows of a sequence on their way through the layers of a model.
#[derive(Debug)]
pub struct Step<'a> {
    cache: &'a KvCache,
    span: RowSpan,
    /// Layers that stored their rows.
    stored: AtomicUsize,
}

impl Step<'_> {
    /// Position of the first row, for what encodes positions.
    #[must_use]
    pub fn position(&self) -> usize {
        self.span.first_pos
    }

    /// Stores the rows' keys and values `[1, kv_heads, rows, head_dim]` and
    /// attends causally over all of the sequence that is there: queries and
    /// result are `[1, heads, rows, head_dim]`. Queries and keys come after
    /// position encoding. Any strides will do.
    ///
    /// # Errors
    /// A tensor has another shape, is not f32 or not on the CPU, the layer is
    /// none of the cache's, or the sequence was preempted meanwhile: what this
    /// step computed means nothing then.
    pub fn attend(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let seen = q.apply_op3_no_bwd(k, v, &Attend { step: self, layer })?;
        self.stored.fetch_add(1, Relaxed);
        if self.cache.pool.preempted(self.span.seq) {
            return Err(candle_core::Error::wrap(KvError::Preempted));
        }
        Ok(seen)
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        let (pool, RowSpan { seq, first_pos, .. }) = (&self.cache.pool, self.span);
        if self.stored.load(Relaxed) < pool.shape().layers {
            pool.take_back(seq, first_pos);
        }
        pool.written(seq);
    }
}

/// The operation that candle calls: tensors come as storage, of any strides, and
/// a device that has no kernel is refused by name.
struct Attend<'a> {
    step: &'a Step<'a>,
    layer: usize,
}

impl CustomOp3 for Attend<'_> {
    fn name(&self) -> &'static str {
        "kvpsi-attend"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        of_q: &Layout,
        k: &CpuStorage,
        of_k: &Layout,
        v: &CpuStorage,
        of_v: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Step { cache, span, .. } = self.step;
        let AttnConfig {
            heads,
            kv_heads,
            head_dim,
            ..
        } = cache.attn;
        let rows = |name, storage, layout, heads| {
            by_row(name, storage, layout, [heads, span.rows, head_dim])
        };
        let mut q = rows("q", q, of_q, heads)?;
        let mut k = rows("k", k, of_k, kv_heads)?;
        let mut v = rows("v", v, of_v, kv_heads)?;
        let mut out = vec![0.0; q.len()];
        let qkv = Qkv {
            q: &mut q,
            k: &mut k,
            v: &mut v,
            sinks: None,
        };
        let mut memory = cache.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let spans = std::slice::from_ref(span);
        attend_into(
            qkv,
            &cache.pool,
            self.layer,
            spans,
            cache.attn,
            &mut memory,
            &mut out,
        )?;
        // As candle's models have it: heads before rows.
        let mut by_head = q;
        for (at, row) in out.chunks_exact(head_dim).enumerate() {
            let (row_at, head) = (at / heads, at % heads);
            by_head[(head * span.rows + row_at) * head_dim..][..head_dim].copy_from_slice(row);
        }
        let shape = Shape::from((1, heads, span.rows, head_dim));
        Ok((CpuStorage::F32(by_head), shape))
    }
}

/// The values of `[1, heads, rows, head_dim]`, row after row.
fn by_row(
    name: &str,
    storage: &CpuStorage,
    layout: &Layout,
    [heads, rows, head_dim]: [usize; 3],
) -> Result<Vec<f32>> {
    if layout.dims() != [1, heads, rows, head_dim] {
        let dims = layout.dims();
        bail!("kvpsi-attend: {name} is {dims:?}, expected [1, {heads}, {rows}, {head_dim}]");
    }
    let CpuStorage::F32(values) = storage else {
        bail!("kvpsi-attend: {name} must be f32: convert it with to_dtype(DType::F32)");
    };
    let (start, stride) = (layout.start_offset(), layout.stride());
    let mut out = Vec::with_capacity(heads * rows * head_dim);
    for row in 0..rows {
        for head in 0..heads {
            let at = start + head * stride[1] + row * stride[2];
            out.extend((0..head_dim).map(|i| values[at + i * stride[3]]));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
