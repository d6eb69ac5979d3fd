//! The model's process: opens the signal, drops its privileges, loads the
//! model and talks, while its reactor trims. Everything it knows goes to the
//! supervisor as JSON lines; it may be killed at any moment.

use super::{
    Args, PROMPT,
    messages::{Done, FromWorker, Kv, Trim},
};
use crate::{
    cli::governor::{self, HeldModel},
    control::{Governor, GovernorConfig},
    engine::{Engine, SamplingConfig, Session},
    kv::KvPool,
    model::{
        chat::{Message, Role},
        default_model,
    },
};
use anyhow::{Context, Result};
use std::{
    io::Write,
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// Asked when an answer ends before the demo does.
const MORE: [&str; 4] = [
    "Go on: tell it again as a story from the view of Edith Marsh.",
    "Now write a letter from Thomas Reed to a young engineer about what he learned.",
    "Now describe one day in the life of the keepers, from morning to night.",
    "Now give a long list of machines that could learn from it, each with a reason.",
];

/// Time between two reports of the cache.
const KV_EVERY: Duration = Duration::from_millis(50);

pub(super) fn run(args: &Args) -> Result<()> {
    super::join(&args.join)?;
    let model = default_model::named(args.model.as_deref())?;
    let held = HeldModel::open(&model);
    let kept = governor::Kept::open(args.record.as_deref())?;
    let config = GovernorConfig {
        tap: kept.as_ref().map(governor::Kept::tap),
        measure_rss: true,
        observe_only: args.no_trim,
        ..Default::default()
    };
    let listening = governor::listen(
        args.signal,
        crate::pressure::programs::Rung::Auto,
        true,
        &config,
    )?;
    let mut engine = Engine::load(&held.config())?;
    let pool = engine.pool();
    let realtime = listening.prepared.hardening().realtime;
    let recording = kept.map(|k| k.start(listening.prepared.signal(), engine.pool()));
    let recording = recording.transpose()?;
    let governor = listening.prepared.start(engine.ladder())?;
    let mut session = engine.open()?;
    let stats = talk(
        args,
        &mut engine,
        &governor,
        &pool,
        listening.notes,
        &mut session,
    )?;
    drop(recording);
    let totals = governor.stats();
    while let Some(trim) = governor.next_trim() {
        say(&FromWorker::Trim(Trim::from(&trim)))?;
    }
    say(&FromWorker::Done(Done {
        tokens: stats.0,
        tokens_per_s: stats.1,
        events: totals.events.into(),
        ignored: totals.verdicts.ignored(),
        wakeups: totals.wakeups,
        trim_records_lost: totals.records_lost,
        source_error: totals.source_error,
        realtime,
        kv: kv(&pool),
    }))
}

/// Talks until the tokens are spent; (tokens, tokens a second while decoding).
fn talk(
    args: &Args,
    engine: &mut Engine,
    governor: &Governor,
    pool: &KvPool,
    notes: Vec<String>,
    session: &mut Session,
) -> Result<(u64, f64)> {
    let mut messages = vec![Message::new(Role::User, PROMPT)];
    let mut held = String::new();
    let (mut left, mut time, mut tokens) = (args.tokens as usize, Duration::ZERO, 0u64);
    let mut notes = notes;
    let usable = engine
        .chat()
        .is_some_and(|chat| chat.render(&messages, true).is_ok());
    if !usable {
        notes.push("this model has no chat template that works: it continues a text".into());
    }
    let mut ready = Some(notes);
    for more in MORE.iter().cycle() {
        let text = match engine.chat().filter(|_| usable) {
            Some(chat) => chat.render(&messages, true)?,
            None => plain(&messages),
        };
        let added = text.strip_prefix(&held).unwrap_or(&text);
        // A template writes the start token itself.
        let start = !usable && held.is_empty();
        let prompt = engine.tokenizer().encode(added, start)?;
        if let Some(notes) = ready.take() {
            say(&FromWorker::Ready {
                signal: governor.stats().signal.into(),
                notes,
                token_bytes: pool.shape().token_bytes(),
                prompt_tokens: prompt.len(),
            })?;
        }
        let sampling = SamplingConfig {
            max_tokens: left,
            seed: args.seed,
            // A small model left to talk for long falls into a loop, trimmed
            // or not; the text is to show what trims do.
            repeat_last: 1024,
            ..SamplingConfig::default()
        };
        let (mut answer, mut told, mut broken) = (String::new(), None::<Instant>, None);
        let stats = engine.generate_in(session, &prompt, &sampling, &mut |piece| {
            answer.push_str(piece.text);
            let mut lines = Vec::new();
            while let Some(trim) = governor.next_trim() {
                lines.push(FromWorker::Trim(Trim::from(&trim)));
            }
            if told.is_none_or(|t| t.elapsed() > KV_EVERY) {
                told = Some(Instant::now());
                lines.push(FromWorker::Kv(kv(pool)));
            }
            lines.push(FromWorker::Text(piece.text.into()));
            match lines.iter().try_for_each(say) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    broken = Some(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(e) = broken {
            return Err(e);
        }
        time += stats.decode;
        tokens += stats.tokens as u64;
        left = left.saturating_sub(stats.tokens.max(1));
        let rate = if time.is_zero() {
            0.0
        } else {
            f64_of(tokens) / time.as_secs_f64()
        };
        if left == 0 || session.tokens().len() + 64 > engine.context() {
            return Ok((tokens, rate));
        }
        held = text + &answer;
        messages.push(Message::new(Role::Assistant, answer));
        messages.push(Message::new(Role::User, *more));
        say(&FromWorker::Text("\n\n".into()))?;
    }
    unreachable!("the questions repeat without end")
}

/// A conversation as paragraphs, for a model without a chat template.
fn plain(messages: &[Message]) -> String {
    let mut text = String::new();
    for (i, m) in messages.iter().enumerate() {
        text.push_str(if i > 0 { "\n\n" } else { "" });
        text.push_str(&m.content);
    }
    text + "\n\n"
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn f64_of(n: u64) -> f64 {
    n as f64
}

fn kv(pool: &KvPool) -> Kv {
    let a = pool.account();
    Kv {
        reserved: a.reserved,
        resident: a.resident,
        returned: a.returned,
        floor: a.floor,
        tokens: a.live_tokens,
    }
}

fn say(message: &FromWorker) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    std::io::stdout()
        .lock()
        .write_all(&line)
        .context("the supervisor is gone")
}
