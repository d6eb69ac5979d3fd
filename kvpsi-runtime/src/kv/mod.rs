//! KV memory: where keys and values live, and how their pages go back.
//!
//! Owns the arena, the block pool, the sequences' block tables, the layer
//! guards, and trimming. Refuses to know why memory is wanted back: no event,
//! no cgroup, no PSI is here.
//!
//! Invariants, each tested:
//! - resident + returned = reserved, at all times, and as smaps sees it;
//! - a block is owned by one sequence, or free-resident, or free-returned, or
//!   on its way out (draining): never two of them, never none;
//! - [`KvPool::trim`] allocates nothing, takes no lock and logs nothing;
//! - a block seen under a [`LayerGuard`] keeps its pages while the guard lives.

mod arena;
mod bitmap;
mod encoding;
mod guard;
mod pool;
mod sequence;
mod trim;
mod types;

pub use encoding::{GROUP, KvType};
pub use guard::LayerGuard;
pub use pool::{BlockView, KvPool};
pub use sequence::SeqId;
pub use trim::Trimmed;
pub use types::{Account, KvError, KvShape, PoolConfig, Step, Steps};

#[cfg(test)]
mod tests;
