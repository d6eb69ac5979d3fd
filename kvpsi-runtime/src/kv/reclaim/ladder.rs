//! The slow steps of the ladder, and which steps a user allows.
//!
//! Owns the order of requantization and token eviction, the eviction policy and
//! its memory. A caller may wait for another's step: never the reactor.
//! Out of scope: why memory is wanted.

use super::{Reclaimed, ThinMemory, ThinOrder};
use crate::kv::{
    encoding::KvType,
    evict::{Evict, Expected, Heavy, KeyDiff, Policy, QueryStats, Window},
    pool::KvPool,
    types::{Step, Steps},
};
use crate::units::Bytes;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// What may be lost for memory.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// No token and no bit: free and cached blocks, then whole sequences, which
    /// are computed anew later
    Lossless,
    /// Fewer bits first, then the tokens that matter least; whole blocks of old
    /// tokens only when there is no time for that
    #[default]
    Balanced,
    /// Whole blocks of old tokens at once: no work in the background
    Latency,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Lossless, Self::Balanced, Self::Latency];

    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lossless => "lossless",
            Self::Balanced => "balanced",
            Self::Latency => "latency",
        }
    }

    /// Steps that may be taken. Only what is quick and lossless, and the slow
    /// ones, unless it is urgent.
    #[must_use]
    pub const fn steps(self, urgent: bool) -> Steps {
        let slow = Steps::FREE.with(Step::Pack).with(Step::Thin);
        match self {
            Self::Lossless if urgent => Steps::FREE.with(Step::Preempt),
            Self::Lossless => Steps::FREE,
            Self::Balanced if urgent => slow.with(Step::Window).with(Step::Preempt),
            Self::Balanced => slow,
            Self::Latency => Steps::WINDOW.with(Step::Preempt),
        }
    }
}

/// How the slow steps are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LadderConfig {
    /// What may be lost at first.
    pub profile: Profile,
    /// Which tokens go first.
    pub evict: Evict,
    /// The encoding that cold blocks may be packed down to.
    pub pack_to: KvType,
    /// Blocks that are thinned together.
    pub group: usize,
    /// Longest sliding window of any layer, in tokens; 0: none has one.
    pub window: usize,
}

impl Default for LadderConfig {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            evict: Evict::default(),
            pack_to: KvType::ALL[KvType::ALL.len() - 1],
            group: 16,
            window: 0,
        }
    }
}

/// The slow steps over one pool.
#[derive(Debug)]
pub struct Ladder {
    pool: Arc<KvPool>,
    config: LadderConfig,
    /// As [`Profile::ALL`] counts.
    profile: AtomicUsize,
    policy: Box<dyn Policy>,
    /// One step at a time.
    memory: Mutex<ThinMemory>,
}

impl Ladder {
    /// A ladder over `pool`; `queries` are what the policy looks ahead by.
    #[must_use]
    pub fn new(pool: Arc<KvPool>, config: LadderConfig, queries: &Arc<QueryStats>) -> Self {
        let policy: Box<dyn Policy> = match config.evict {
            Evict::Window => Box::new(Window),
            Evict::Heavy => Box::new(Heavy),
            Evict::Keydiff => Box::new(KeyDiff),
            Evict::Expected => Box::new(Expected(queries.clone())),
        };
        let new = Self {
            pool,
            config,
            profile: AtomicUsize::new(0),
            policy,
            memory: Mutex::default(),
        };
        new.set_profile(config.profile);
        new
    }

    /// What may be lost now.
    #[must_use]
    pub fn profile(&self) -> Profile {
        Profile::ALL[self.profile.load(Relaxed)]
    }

    /// Changes what may be lost from the next step on.
    pub fn set_profile(&self, profile: Profile) {
        let at = Profile::ALL.iter().position(|p| *p == profile);
        self.profile.store(at.unwrap_or_default(), Relaxed);
        self.pool.set_may_drop(profile != Profile::Lossless);
    }

    /// The pool that it is over.
    #[must_use]
    pub fn pool(&self) -> &Arc<KvPool> {
        &self.pool
    }

    /// The settings that it was made with.
    #[must_use]
    pub fn config(&self) -> &LadderConfig {
        &self.config
    }

    /// Takes the cheapest slow step that is left and allowed: one block
    /// re-encoded, or one group thinned by about `want` bytes. `None`: there
    /// is none.
    pub fn step(&self, want: Bytes, allowed: Steps) -> Option<Reclaimed> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let pack = || self.pool.pack_one(self.config.pack_to);
        let packed = allowed.has(Step::Pack).then(pack).flatten();
        if packed.is_some() || !allowed.has(Step::Thin) {
            return packed;
        }
        let order = ThinOrder {
            group: self.config.group,
            window: self.config.window,
        };
        self.pool.thin_one(&*self.policy, order, want, &mut memory)
    }

    /// Takes slow steps until the blocks in use have at most `bytes`, or
    /// nothing is left to take; tells each.
    pub fn fit(&self, bytes: Bytes, allowed: Steps, tell: &mut dyn FnMut(Reclaimed)) {
        loop {
            let over = self.pool.account().in_use.saturating_sub(bytes);
            if over == Bytes::ZERO {
                return;
            }
            match self.step(over, allowed) {
                Some(done) => tell(done),
                None => return,
            }
        }
    }
}
