//! KV memory: where keys and values live, and how their pages go back.
//!
//! Owns the arena, the block pool, the sequences' block tables, the prefix
//! cache, the layer guards, and every way to give blocks up: trimming at once,
//! re-encoding and thinning in the background. Refuses to know why memory is
//! wanted back: no event, no cgroup, no PSI is here.
//!
//! Invariants, each tested:
//! - resident + returned = reserved, at all times, and as smaps sees it;
//! - a block stands in as many tables as it has references, or is cached, or
//!   free-resident, or free-returned, or on its way out (draining): never two
//!   of them, never none;
//! - [`KvPool::trim`] allocates nothing, takes no lock that a slow path holds
//!   and logs nothing;
//! - a block seen under a [`LayerGuard`] keeps its pages while the guard lives.

mod arena;
mod basis;
mod bitmap;
mod block;
mod encoding;
pub mod evict;
mod guard;
mod ladder;
mod pack;
mod pool;
mod prefix;
mod sequence;
mod supply;
mod thin;
mod trim;
mod types;
mod view;

#[cfg(feature = "llm")]
pub(crate) use basis::rotate;
pub use encoding::{GROUP, KvType, Plane, recode};
#[cfg(feature = "llm")]
pub(crate) use encoding::{offset, scale};
pub use guard::LayerGuard;
pub use ladder::{Ladder, LadderConfig, Profile};
pub use pack::Reclaimed;
pub use pool::KvPool;
pub use prefix::BlockHash;
pub use sequence::{Loss, SeqId};
pub use thin::{ThinMemory, ThinOrder};
pub use trim::Trimmed;
pub use types::{Account, KvError, KvShape, PoolConfig, Step, Steps};
pub use view::BlockView;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
