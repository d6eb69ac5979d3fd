//! Sequences in flight: prefill, decode, sampling, stopping.
//!
//! Owns the decoder, the tokenizer and the KV pool of one model, and the
//! sessions that run on them. Invariants: every position is appended to the
//! pool before its row is computed; a stop request is obeyed within one
//! prefill chunk or one token; a session gives its KV back when it goes.
//! Out of scope: memory pressure: the pool may lose blocks at any time
//! and the text goes on.

mod answer;
pub mod batch;
mod constraint;
pub mod gbnf;
mod history;
mod recompute;
mod sampling;
mod session;
mod speculate;
mod stats;
mod stops;

pub use constraint::{Constraint, Grammar, GrammarError, Grammars, MOST_GRAMMAR};
pub use recompute::Recomputed;
pub use sampling::{MAX_LOGPROBS, SamplingConfig, TokenLogprobs};
pub use session::Session;
pub use speculate::Speculate;
pub use stats::{Finish, GenStats};

use crate::{
    kv::{KvError, KvPool, KvType, Ladder, LadderConfig, PoolConfig, Profile, evict::Evict},
    model::{
        Progress,
        about::About,
        chat::{ChatTemplate, Conversation, Message, Role},
        decoder::Decoder,
        gguf::{Gguf, ModelError},
        step::{MOST_ROWS, Step},
        tokenizer::Tokenizer,
        weights::Weights,
    },
    units::Bytes,
};
use speculate::StepCosts;
use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

/// Context of a session unless the user asks for another: a model may claim
/// more than a small machine should reserve.
const DEFAULT_CONTEXT: usize = 8192;

/// Why an engine could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model file.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The KV pool.
    #[error("KV pool: {0}")]
    Kv(#[from] KvError),
    /// A tensor operation failed.
    #[error("model step: {0}")]
    Step(String),
    /// The prompt does not fit.
    #[error(
        "the prompt has {prompt} tokens and the context {context}: shorten it or give --ctx (this model: up to {trained})"
    )]
    PromptTooLong {
        /// Tokens of the prompt, with what the session already holds.
        prompt: usize,
        /// Tokens of the context.
        context: usize,
        /// Tokens that the model was trained for.
        trained: usize,
    },
    /// A context that the model cannot have.
    #[error("--ctx {asked}: this model has a context of 1 to {trained} tokens")]
    Context {
        /// What was asked for.
        asked: usize,
        /// Tokens that the model was trained for.
        trained: usize,
    },
    /// A budget without room for anything.
    #[error(
        "--kv-budget: {budget} hold nothing, keys and values of the smallest step ({tokens} tokens) take {block}; give --kv-budget {} or more",
        .block.in_mib()
    )]
    Budget {
        /// What was given.
        budget: Bytes,
        /// Tokens of a block.
        tokens: usize,
        /// What a block takes.
        block: Bytes,
    },
    /// A floor that the budget cannot hold.
    #[error(
        "--kv-floor {floor}: its keys and values take {needed}, and --kv-budget allows {budget}; lower the floor, or give --kv-budget {} or more",
        .needed.in_mib()
    )]
    FloorOverBudget {
        /// Tokens of the floor.
        floor: usize,
        /// What they take.
        needed: Bytes,
        /// What was given.
        budget: Bytes,
    },
    /// The budget never holds a prompt.
    #[error(
        "the prompt of {prompt} tokens takes at least {needed} of KV cache, and --kv-budget allows {budget}; shorten it, or give --kv-budget {} or more",
        .needed.in_mib()
    )]
    PromptOverBudget {
        /// Tokens of the prompt, with what the session already holds.
        prompt: usize,
        /// What they take at least.
        needed: Bytes,
        /// What was given.
        budget: Bytes,
    },
    /// Nothing to start from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The answer cannot go on as its grammar wants.
    #[error("the grammar: {0}")]
    Grammar(#[from] GrammarError),
    /// A sampling setting is out of range.
    #[error("sampling: {0}")]
    Sampling(String),
}

impl From<candle_core::Error> for EngineError {
    fn from(e: candle_core::Error) -> Self {
        Self::Step(e.to_string().lines().next().unwrap_or_default().into())
    }
}

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The GGUF file.
    pub model: PathBuf,
    /// The other parts of a split model, where they cannot be found by the name
    /// of `model`: one that is held open, for one.
    pub more_parts: Vec<PathBuf>,
    /// Where repacked weights are kept; `None`: in private memory.
    pub weights: Option<Weights>,
    /// Source of the chat template to use in place of the file's.
    pub chat_template: Option<String>,
    /// Positions of a session; `None`: the model's, up to 8192.
    pub context: Option<usize>,
    /// How keys and values are written.
    pub kv_type: KvType,
    /// Most bytes of KV that may be resident; `None`: the whole pool.
    pub kv_budget: Option<Bytes>,
    /// Sessions that may be open at once.
    pub max_sequences: usize,
    /// Sessions that go on together, each with a context of its own: the pool
    /// has address space for all, and a step room for a row of each.
    pub parallel: usize,
    /// First tokens of a session that are never evicted.
    pub sink_tokens: usize,
    /// Last tokens of a session that are never evicted.
    pub recent_tokens: usize,
    /// Bytes that could be had if they must, whatever the budget is now.
    pub obtainable: fn() -> Bytes,
    /// What may be lost to return memory.
    pub profile: Profile,
    /// Which tokens go first.
    pub evict: Evict,
    /// Tokens below which a session's KV does not go, but all at once.
    pub floor_tokens: usize,
    /// Whether next tokens are guessed and checked together.
    pub speculate: Speculate,
    /// What a row more costs, as a share of a step of one row; `None`: as it is
    /// measured. Given, the same request computes the same drafts however busy
    /// the machine is.
    pub row_cost: Option<f64>,
    /// Set it to true, from any thread, to end the running generation within
    /// one prefill chunk or token. It stays set.
    pub stop: Arc<AtomicBool>,
}

impl EngineConfig {
    /// The defaults for a model; without speculation, so that a step is a token.
    #[must_use]
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            more_parts: Vec::new(),
            weights: None,
            chat_template: None,
            context: None,
            kv_type: KvType::F16,
            kv_budget: None,
            max_sequences: 16,
            parallel: 1,
            sink_tokens: 4,
            recent_tokens: 256,
            obtainable: || Bytes(u64::MAX),
            profile: Profile::default(),
            evict: Evict::default(),
            floor_tokens: 0,
            speculate: Speculate::Off,
            row_cost: None,
            stop: Arc::default(),
        }
    }
}

/// A token and the text that became complete with it.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The token; `None` for text that was still held when the answer ended.
    pub token: Option<u32>,
    /// Whole UTF-8 characters; may be empty.
    pub text: &'a str,
}

/// A model ready to generate.
#[derive(Debug)]
pub struct Engine {
    decoder: Decoder,
    step: Step,
    tokenizer: Arc<Tokenizer>,
    about: Arc<About>,
    chat: Option<Arc<ChatTemplate>>,
    pool: Arc<KvPool>,
    ladder: Arc<Ladder>,
    context: usize,
    obtainable: fn() -> Bytes,
    speculate: Speculate,
    costs: StepCosts,
    stop: Arc<AtomicBool>,
}

impl Engine {
    /// Reads the model and reserves its KV pool.
    ///
    /// # Errors
    /// The model cannot be used, the context is out of its range, or the
    /// address space cannot be reserved.
    pub fn load(config: &EngineConfig) -> Result<Self, EngineError> {
        Self::load_with(config, &mut |_, _| ())
    }

    /// [`Engine::load`] with a progress report: `progress` is
    /// told the bytes read, and those of all tensors.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_with(config: &EngineConfig, progress: Progress<'_>) -> Result<Self, EngineError> {
        let gguf = match config.more_parts.as_slice() {
            [] => Gguf::open(&config.model)?,
            more => Gguf::open_parts(&config.model, more)?,
        };
        let trained = gguf.config().context;
        let context = config.context.unwrap_or(trained.min(DEFAULT_CONTEXT));
        if context == 0 || context > trained {
            return Err(EngineError::Context {
                asked: context,
                trained,
            });
        }
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf)?);
        let (bos, eos) = tokenizer.bos_eos();
        let chat = match &config.chat_template {
            Some(source) => Some(ChatTemplate::compile(source, bos, eos)?),
            None => ChatTemplate::from_gguf(&gguf, bos, eos),
        };
        if let Some(why) = chat.as_ref().and_then(ChatTemplate::broken) {
            tracing::warn!(
                "{}: the chat template cannot be used, completions can: {why}; --chat-template gives another",
                config.model.display()
            );
        }
        let chat = chat.map(Arc::new);
        let mut about = About::of(&gguf);
        if let Some(source) = &config.chat_template {
            about.template.clone_from(source);
        }
        let decoder = match &config.weights {
            Some(weights) => Decoder::load_kept(&gguf, weights, progress)?,
            None => Decoder::load_with(&gguf, progress)?,
        };
        let mut shape = decoder.kv_shape(config.kv_type);
        shape.row_mass = config.evict.needs_row_mass();
        let pool = KvPool::new(PoolConfig {
            shape,
            capacity_tokens: context.saturating_mul(config.parallel.max(1)),
            max_sequences: config.max_sequences,
            sink_tokens: config.sink_tokens,
            recent_tokens: config.recent_tokens,
            floor_tokens: config.floor_tokens,
            may_drop: config.profile != Profile::Lossless,
        })?;
        if let Some(budget) = config.kv_budget {
            held_by(budget, &pool, config.floor_tokens)?;
            pool.set_limit(budget);
        }
        let step = Step::new(&decoder, &pool, MOST_ROWS.max(config.parallel + 1))?;
        let ladder = LadderConfig {
            profile: config.profile,
            evict: config.evict,
            window: decoder.longest_window(),
            ..LadderConfig::default()
        };
        Ok(Self {
            ladder: Arc::new(Ladder::new(pool.clone(), ladder, step.queries())),
            step,
            decoder,
            tokenizer,
            about: Arc::new(about),
            chat,
            pool,
            context,
            obtainable: config.obtainable,
            speculate: config.speculate,
            costs: StepCosts::new(config.row_cost),
            stop: config.stop.clone(),
        })
    }

    /// The KV pool, for the reclaimer.
    #[must_use]
    pub fn pool(&self) -> Arc<KvPool> {
        self.pool.clone()
    }

    /// The slow steps over the pool, for background reclaim.
    #[must_use]
    pub fn ladder(&self) -> Arc<Ladder> {
        self.ladder.clone()
    }

    /// The model.
    #[must_use]
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The same, for other threads.
    #[must_use]
    pub fn shared_tokenizer(&self) -> Arc<Tokenizer> {
        self.tokenizer.clone()
    }

    /// What the model file says of itself.
    #[must_use]
    pub fn about(&self) -> Arc<About> {
        self.about.clone()
    }

    /// [`Engine::chat`], for other threads.
    #[must_use]
    pub fn shared_chat(&self) -> Option<Arc<ChatTemplate>> {
        self.chat.clone()
    }

    /// The model's chat template, if it has one.
    #[must_use]
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_deref()
    }

    /// Tokens of the shortest conversation by the chat template; `None` without a
    /// template that takes one.
    #[must_use]
    pub fn least_chat(&self) -> Option<usize> {
        let asked = Conversation::new(vec![Message::new(Role::User, "Hi")]);
        let text = self.chat()?.text(asked, &self.tokenizer).ok()?;
        let tokens = self
            .tokenizer
            .encode_guarded(&text.text, text.mark, usize::MAX);
        Some(tokens.ok()?.ok()?.len())
    }

    /// Positions of a session.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// Opens a session: a sequence that keeps its KV between generations.
    ///
    /// # Errors
    /// All sequences of the pool are in use.
    pub fn open(&self) -> Result<Session, EngineError> {
        Session::open(self.pool.clone())
    }

    /// Generates once, from an empty session.
    ///
    /// # Errors
    /// The prompt is empty or too long, or a step fails.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &SamplingConfig,
        sink: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<GenStats, EngineError> {
        let mut session = self.open()?;
        self.generate_in(&mut session, prompt, sampling, sink)
    }
}

/// Whether `budget` holds a step, and the floor that a user wants.
fn held_by(budget: Bytes, pool: &KvPool, floor: usize) -> Result<(), EngineError> {
    let (tokens, block) = (pool.shape().block_tokens, pool.shape().block_bytes());
    if block > budget {
        return Err(EngineError::Budget {
            budget,
            tokens,
            block,
        });
    }
    let needed = Bytes(floor.div_ceil(tokens) as u64 * block.0);
    if needed > budget {
        return Err(EngineError::FloorOverBudget {
            floor,
            needed,
            budget,
        });
    }
    Ok(())
}
