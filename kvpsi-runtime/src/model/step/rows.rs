//! Memory for the rows of a step.
//!
//! Owns one mapping, cut into what the rows go through. Invariants: the kernel
//! has the pages back as soon as it is dropped, whatever an allocator would
//! keep; its size is that of the rows, never of the context; all its pages are
//! there from the start, for some are first written under a layer's guard.
//! Refuses to know what is computed.

use crate::model::{gguf::Config, linear::QuantizedRows};
use candle_core::{Result, bail};
use memmap2::MmapMut;

/// Memory for up to so many rows; what it holds between steps means nothing.
#[derive(Debug)]
pub(super) struct Rows {
    most: usize,
    widths: Widths,
    memory: MmapMut,
    acts: QuantizedRows,
    picks: Vec<Pick>,
}

/// Values of a row.
#[derive(Clone, Copy, Debug)]
struct Widths {
    hidden: usize,
    q: usize,
    kv: usize,
    feed_forward: usize,
    /// Half a head for each rotary embedding.
    angles: usize,
    /// 1, if queries grow with their position.
    grown: usize,
    /// Experts.
    router: usize,
    /// The width of the stream, if there are experts.
    gathered: usize,
    /// What all layers are told of a token.
    told: usize,
}

impl Widths {
    fn all(self) -> [usize; 16] {
        let Self {
            hidden,
            q,
            kv,
            feed_forward,
            angles,
            grown,
            router,
            gathered,
            told,
        } = self;
        [
            hidden,
            hidden,
            q,
            kv,
            kv,
            q,
            feed_forward,
            feed_forward,
            angles,
            angles,
            grown,
            router,
            gathered,
            gathered,
            told,
            told,
        ]
    }
}

/// What the rows at hand go through, each `[rows, ..]`.
pub(super) struct Parts<'a> {
    /// The residual stream `[rows, hidden]`.
    pub(super) x: &'a mut [f32],
    /// Its norm, or what is to be added to it.
    pub(super) h: &'a mut [f32],
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    pub(super) attended: &'a mut [f32],
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    /// `[ropes, rows, half a head]`.
    pub(super) cos: &'a mut [f32],
    pub(super) sin: &'a mut [f32],
    /// What a row's queries are multiplied by; empty where nothing is.
    pub(super) grown: &'a mut [f32],
    /// Scores of the experts `[rows, experts]`.
    pub(super) router: &'a mut [f32],
    /// Rows that go through one expert, and what comes out.
    pub(super) gathered: &'a mut [f32],
    /// What all of its experts make of a row.
    pub(super) mixed: &'a mut [f32],
    /// What the layers are told of a row's token `[rows, layers, width]`, and
    /// memory of that size.
    pub(super) told: &'a mut [f32],
    pub(super) looked_up: &'a mut [f32],
    pub(super) picks: &'a mut Vec<Pick>,
    pub(super) acts: &'a mut QuantizedRows,
    rows: usize,
}

/// A row's way through one of its experts. Ordered by expert, then by row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick {
    pub(super) expert: usize,
    pub(super) row: usize,
    pub(super) share: f32,
}

impl Rows {
    /// For models with so many rotary embeddings.
    pub(super) fn new(c: &Config, ropes: usize, most: usize) -> Result<Self> {
        let feed_forward = c.widest_feed_forward();
        let widths = Widths {
            hidden: c.hidden,
            q: c.heads * c.head_dim,
            kv: c.kv_heads * c.head_dim,
            feed_forward,
            angles: ropes * c.head_dim / 2,
            grown: usize::from(c.temperature.is_some()),
            router: c.experts.map_or(0, |e| e.count),
            gathered: c.experts.map_or(0, |_| c.hidden),
            told: c.per_layer.unwrap_or(0) * c.layers,
        };
        let values = widths.all().into_iter().sum::<usize>() * most;
        let bytes = (values * size_of::<f32>()).max(1);
        let memory = match MmapMut::map_anon(bytes) {
            Ok(mut memory) => {
                for page in memory.chunks_mut(rustix::param::page_size()) {
                    std::hint::black_box(page)[0] = 0;
                }
                memory
            }
            Err(e) => bail!("no memory for a step of {most} rows ({bytes} bytes): {e}"),
        };
        let widest = c.hidden.max(feed_forward).max(widths.q);
        Ok(Self {
            most,
            widths,
            memory,
            acts: QuantizedRows::with_room(most * widest),
            picks: Vec::with_capacity(most * c.experts.map_or(0, |e| e.used)),
        })
    }

    /// Rows that there is memory for.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// The parts of so many rows; they lie where they lay on the last call
    /// with as many.
    pub(super) fn parts(&mut self, rows: usize) -> Parts<'_> {
        assert!(rows <= self.most, "{rows} rows in memory for {}", self.most);
        let mut rest = bytemuck::cast_slice_mut::<u8, f32>(&mut self.memory);
        let parts = self.widths.all().map(|width| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(rows * width);
            rest = after;
            part
        });
        let [
            x,
            h,
            q,
            k,
            v,
            attended,
            gate,
            up,
            cos,
            sin,
            grown,
            router,
            gathered,
            mixed,
            told,
            looked_up,
        ] = parts;
        Parts {
            x,
            h,
            q,
            k,
            v,
            attended,
            gate,
            up,
            cos,
            sin,
            grown,
            router,
            gathered,
            mixed,
            told,
            looked_up,
            picks: &mut self.picks,
            acts: &mut self.acts,
            rows,
        }
    }
}

impl Parts<'_> {
    /// Leaves the first rows of what the end of a layer looks at.
    pub(super) fn shorten(&mut self, rows: usize) {
        let before = self.rows;
        for part in [
            &mut self.x,
            &mut self.h,
            &mut self.attended,
            &mut self.gate,
            &mut self.up,
            &mut self.router,
            &mut self.gathered,
            &mut self.mixed,
            &mut self.told,
            &mut self.looked_up,
        ] {
            let width = part.len() / before.max(1);
            *part = &mut std::mem::take(part)[..rows * width];
        }
        self.rows = rows;
    }
}
