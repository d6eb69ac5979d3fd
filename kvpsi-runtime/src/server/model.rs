//! The thread that computes.
//!
//! Owns the batch while it runs, and the way to it: a channel. Invariant: it
//! never waits for a client. Out of scope: HTTP.

use crate::{
    control::Governor,
    engine::{
        Engine, GrammarError, Grammars,
        batch::{Ask, Batch, BatchAccount, BatchConfig, Progress},
    },
    kv::{KvPool, Ladder},
    model::{about::About, chat::ChatTemplate, tokenizer::Tokenizer},
};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Between two looks for memory that a request waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Between two signs of life of one who has nothing to do.
const IDLE: Duration = Duration::from_secs(1);

enum Message {
    Ask(Box<Ask>),
    End,
}

/// A model that is ready, as the handlers see it.
#[derive(Debug)]
pub struct Loaded {
    asks: Sender<Message>,
    /// What is in flight.
    pub account: Arc<BatchAccount>,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's chat template, if it has one.
    pub chat: Option<Arc<ChatTemplate>>,
    /// Positions of a request.
    pub context: usize,
    /// Tokens that there are.
    pub vocab: usize,
    /// Numbers of a vector that a text becomes.
    pub hidden: usize,
    /// The architecture, as the file names it.
    pub family: String,
    /// What its file says of itself.
    pub about: Arc<About>,
    /// Bytes of its weights.
    pub model_bytes: u64,
    /// The KV memory.
    pub pool: Arc<KvPool>,
    /// What of it may be lost.
    pub ladder: Arc<Ladder>,
    /// What trims it; none with `--signal none`.
    pub governor: Option<Governor>,
    /// What compiles grammars, once one was asked for: some MiB.
    grammars: OnceLock<Result<Arc<Grammars>, GrammarError>>,
    alive: Arc<Alive>,
}

/// When the thread last showed that it lives.
#[derive(Debug)]
struct Alive {
    since: Instant,
    at_ms: AtomicU64,
}

impl Alive {
    fn beat(&self) {
        let ms = self.since.elapsed().as_millis();
        self.at_ms
            .store(u64::try_from(ms).unwrap_or(u64::MAX), Relaxed);
    }
}

impl Loaded {
    /// Hands a request to the model. False when the thread has ended: then its
    /// client will not be told anything.
    #[must_use]
    pub fn ask(&self, ask: Ask) -> bool {
        self.asks.send(Message::Ask(Box::new(ask))).is_ok()
    }

    /// What compiles grammars for this vocabulary. The first call takes some
    /// tens of milliseconds.
    ///
    /// # Errors
    /// This vocabulary cannot follow one.
    pub fn grammars(&self) -> Result<Arc<Grammars>, GrammarError> {
        let new = || Grammars::new(&self.tokenizer, self.vocab);
        self.grammars.get_or_init(new).clone()
    }

    /// How long ago the thread showed that it lives.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        let alive = &self.alive;
        let at = Duration::from_millis(alive.at_ms.load(Relaxed));
        alive.since.elapsed().saturating_sub(at)
    }
}

/// The running thread.
#[derive(Debug)]
pub struct ModelThread {
    asks: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl ModelThread {
    /// Starts it over an engine that was made for as many sessions in parallel.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start(
        engine: Engine,
        config: BatchConfig,
        governor: Option<Governor>,
    ) -> std::io::Result<(Self, Loaded)> {
        let (asks, asked) = mpsc::channel();
        let tokenizer = engine.shared_tokenizer();
        let (chat, about) = (engine.shared_chat(), engine.about());
        let (context, pool, ladder) = (engine.context(), engine.pool(), engine.ladder());
        let decoder = engine.decoder();
        let (vocab, family) = (decoder.config().vocab, decoder.config().family.name);
        let hidden = decoder.config().hidden;
        let model_bytes = decoder.weights().0;
        let batch = Batch::new(engine, config);
        let account = batch.account();
        let alive = Arc::new(Alive {
            since: Instant::now(),
            at_ms: AtomicU64::new(0),
        });
        let beating = alive.clone();
        let thread = std::thread::Builder::new()
            .name("kvpsi-model".into())
            .spawn(move || {
                let _ends = EndsOnPanic;
                run(batch, &asked, &beating);
            })?;
        let loaded = Loaded {
            asks: asks.clone(),
            account,
            tokenizer,
            chat,
            context,
            vocab,
            hidden,
            family: family.into(),
            about,
            model_bytes,
            pool,
            ladder,
            governor,
            grammars: OnceLock::new(),
            alive,
        };
        let this = Self {
            asks,
            thread: Some(thread),
        };
        Ok((this, loaded))
    }
}

impl Drop for ModelThread {
    /// Ends what is in flight, within a step.
    fn drop(&mut self) {
        let _ = self.asks.send(Message::End);
        if let Some(thread) = self.thread.take() {
            // A panic has ended the process.
            let _ = thread.join();
        }
    }
}

/// A server without its model's thread would refuse every request and look
/// well: it ends, and whoever started it may start it again.
struct EndsOnPanic;

impl Drop for EndsOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the model's thread panicked: the server ends");
            std::process::exit(101);
        }
    }
}

fn run(mut batch: Batch, asked: &Receiver<Message>, alive: &Alive) {
    let mut progress = Progress::Idle;
    loop {
        alive.beat();
        let wait = match progress {
            Progress::Idle => IDLE,
            Progress::Blocked => LOOK_AGAIN,
            Progress::Worked => Duration::ZERO,
        };
        let mut next = asked.recv_timeout(wait);
        loop {
            match next {
                Ok(Message::Ask(ask)) => batch.submit(*ask),
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => {
                    batch.end();
                    return;
                }
                Err(RecvTimeoutError::Timeout) => break,
            }
            next = asked.recv_timeout(Duration::ZERO);
        }
        progress = batch.step();
    }
}
