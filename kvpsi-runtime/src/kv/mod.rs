//! KV memory: where keys and values live, and how their pages are returned.
//!
//! Owns the pool ([`KvPool`]) and its parts: the allocator (`alloc`, `arena`),
//! blocks and their references (`block`), block tables (`table`), the prefix
//! index (`prefix`), blocks that left (`retire`, with `epoch` for readers), the
//! account (`account`). Over them: `sequence` and `share` for the engine,
//! `reclaim` for memory (with `evict` for what tokens are worth), `view` for
//! attention, `swap` for what the kernel swapped out, `encoding` and `hadamard` for rows.
//! Out of scope: why memory is wanted back. No event, no cgroup, no PSI is here.
//!
//! Invariants, each tested:
//! - resident + swapped + returned = reserved, at all times, and as smaps sees it;
//! - a block stands in as many tables as it has references, or is cached, or
//!   free with pages, or free without, or retired: never two of them, never
//!   none. Each state is a value that leaving it consumes (`block::token`);
//! - a table changes under its lock alone (`table`);
//! - [`KvPool::trim`] allocates nothing, waits for no lock and no guard, and
//!   logs nothing;
//! - a block seen under a [`LayerGuard`] keeps its pages and its content while
//!   the guard lives.

mod account;
mod alloc;
mod arena;
mod block;
mod encoding;
mod epoch;
pub mod evict;
mod hadamard;
mod pool;
mod prefix;
mod reclaim;
mod retire;
mod sequence;
mod share;
mod swap;
mod table;
mod types;
mod view;

pub use account::Account;
pub use encoding::{GROUP, KvType, Plane, recode};
#[cfg(feature = "llm")]
pub(crate) use encoding::{offset, scale};
#[cfg(feature = "llm")]
pub(crate) use hadamard::rotate;
pub use pool::KvPool;
pub use prefix::BlockHash;
pub use reclaim::{Ladder, LadderConfig, Profile, Reclaimed, ThinMemory, ThinOrder, Trimmed};
pub use table::{Loss, SeqId};
pub use types::{KvError, KvShape, PoolConfig, Step, Steps};
pub use view::{BlockView, LayerGuard, RowWriter};

#[cfg(test)]
#[cfg(loom)]
mod loom_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod model_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod ownership_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
