//! The conversation of `kvpsi run`: a prompt's way into tokens, and out.
//!
//! Between two turns the conversation's cache is released when memory is short;
//! what was lost of it is recomputed while the conversation is idle. Where the
//! context is full the oldest turns are left out. What is typed cannot name a
//! control token. Out of scope: signals and flags.

use super::{
    Args,
    command::{Command, HELP},
    dialogue::Dialogue,
    turns::{Inbox, Turn},
};
use crate::cli::tell::tell;
use crate::{
    engine::{Engine, EngineError, Finish, GenStats, Recomputed, SamplingConfig, Session},
    model::{
        chat::{AnswerParser, ChatTemplate, ChatText, Conversation, Message, Part, Role},
        gguf::ModelError,
        tokenizer::TooLong,
    },
};
use anyhow::{Context, bail};
use std::{
    io::{ErrorKind, Write},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Time without pressure before a conversation that lost tokens is recomputed.
const HEAL_EVERY: Duration = Duration::from_millis(500);

/// An engine and where its text goes.
pub(super) struct Talk {
    pub(super) engine: Engine,
    pub(super) sampling: SamplingConfig,
    pub(super) out: std::io::Stdout,
    /// stdout was closed.
    pub(super) closed: bool,
    /// Memory is short, or a request waits for an answer: what can wait stops.
    pub(super) hold: Arc<AtomicBool>,
}

impl Talk {
    pub(super) fn once(&mut self, prompt: &str, args: &Args) -> anyhow::Result<()> {
        let raw = args.raw || self.engine.chat().is_none();
        if raw && !args.raw {
            tell!(
                "this model has no chat template: the text is continued as with --raw (--chat-template gives one)"
            );
        }
        let tokens = if raw {
            self.engine.tokenizer().encode(prompt, true)?
        } else {
            let mut asked = Dialogue::new(args.system.as_deref());
            asked.push(Message::new(Role::User, prompt));
            let text = self.text(&asked)?;
            let most = self.engine.context();
            self.tokens(&text, &text.text, most)?
                .map_err(|least| self.too_long(least))?
        };
        let mut session = self.engine.open()?;
        if raw {
            self.write(prompt)?;
        }
        self.answer(&mut session, &tokens)?;
        Ok(())
    }

    /// One answer a turn. The KV of earlier turns is kept: only the text that
    /// the template adds is prefilled.
    pub(super) fn chat(&mut self, inbox: &Inbox, system: Option<&str>) -> anyhow::Result<()> {
        let mut said = Dialogue::new(system);
        let mut held = Held {
            session: self.engine.open()?,
            text: String::new(),
        };
        if inbox.typed() {
            tell!("/help lists what else may be typed");
        }
        loop {
            inbox.ask();
            let Turn::Line(line) = self.next_turn(inbox, &mut held.session)? else {
                return Ok(());
            };
            if inbox.typed()
                && let Some(command) = Command::of(&line)
            {
                match obey(command, &mut said) {
                    Ok(ControlFlow::Break(())) => return Ok(()),
                    Ok(ControlFlow::Continue(())) => {}
                    Err(e) => tell!("{e:#}"),
                }
                continue;
            }
            let before = said.first_seen();
            said.push(Message::new(Role::User, line));
            let (text, tokens) = match self.prompt(&mut said, &mut held) {
                Ok(prompt) => prompt,
                // Who types can say it in another way; a pipe cannot.
                Err(e) if inbox.typed() => {
                    said.pop();
                    // What was left out for it is seen again.
                    said.see_from(before);
                    tell!("{e:#}; this turn is not kept, and /clear forgets those before");
                    continue;
                }
                Err(e) => return Err(e),
            };
            let (answer, finish) = match self.answer(&mut held.session, &tokens) {
                Err(e) if inbox.typed() && is_over_budget(&e) => {
                    said.pop();
                    said.see_from(before);
                    held = Held {
                        session: self.engine.open()?,
                        text: String::new(),
                    };
                    tell!("{e:#}; this turn is not kept, and /clear forgets those before");
                    continue;
                }
                other => other?,
            };
            if self.closed || inbox.signals.caught() != 0 {
                return Ok(());
            }
            if finish == Finish::Stopped && answer.is_empty() {
                said.pop();
                held = Held {
                    session: self.engine.open()?,
                    text: String::new(),
                };
                tell!(
                    "stopped before the answer began: this turn is not kept, and /clear forgets those before"
                );
                continue;
            }
            said.push(self.message(&answer, text.thinking()));
            held.text = text.text + &answer;
        }
    }

    /// The tokens to go on with, and the text that the session then has. Turns
    /// that have no room any more are left out.
    fn prompt(
        &mut self,
        said: &mut Dialogue,
        held: &mut Held,
    ) -> anyhow::Result<(ChatText, Vec<u32>)> {
        let context = self.engine.context();
        // An answer that is cut by the context's end would be no answer.
        let room = context - self.sampling.max_tokens.min(context / 2);
        let text = self.text(said)?;
        if let Some(added) = text.text.strip_prefix(&held.text) {
            let has = held.session.tokens().len();
            if let Ok(tokens) = self.tokens(&text, added, room.saturating_sub(has))? {
                return Ok((text, tokens));
            }
        }
        // The template rewrote what came before, or the context is full.
        let mut text = text;
        let (mut left_out, mut most) = (0, room);
        let tokens = loop {
            let least = match self.tokens(&text, &text.text, most)? {
                Ok(tokens) => break tokens,
                Err(least) => least,
            };
            if said.leave_out() {
                left_out += 1;
                // At once as much as makes it worth to compute the rest anew.
                most = context / 2;
                text = self.text(said)?;
            } else if most < context {
                most = context;
            } else {
                return Err(self.too_long(least));
            }
        };
        if left_out > 0 {
            let turns = if left_out == 1 { "turn" } else { "turns" };
            tell!(
                "the context of {context} tokens is full: the model does not see the oldest {left_out} {turns} any more"
            );
        }
        *held = Held {
            session: self.engine.open()?,
            text: String::new(),
        };
        Ok((text, tokens))
    }

    /// The next turn. Until it comes the conversation is the cache's to keep;
    /// one that lost tokens is recomputed.
    fn next_turn(&mut self, inbox: &Inbox, session: &mut Session) -> anyhow::Result<Turn> {
        let mut whole = session.park();
        loop {
            let wait = if whole { Duration::MAX } else { HEAL_EVERY };
            if let Some(turn) = inbox.wait(wait) {
                return Ok(turn);
            }
            // Calm for as long as it took to wait.
            if self.hold.swap(false, Ordering::Relaxed) {
                continue;
            }
            match self.engine.recompute(session, &self.hold)? {
                Recomputed::Whole => whole = session.park(),
                Recomputed::Done(tokens) => {
                    tell!("{tokens} tokens computed anew: nothing is missing now");
                    whole = session.park();
                }
                Recomputed::Interrupted | Recomputed::NoRoom => {}
            }
        }
    }

    fn template(&self) -> anyhow::Result<&ChatTemplate> {
        self.engine.chat().context(
            "this model has no chat template: give one by --chat-template, or continue a text by -p",
        )
    }

    fn text(&self, said: &Dialogue) -> anyhow::Result<ChatText> {
        let asked = Conversation {
            begin: Some(true),
            ..Conversation::new(said.seen())
        };
        (self.template()?.text(asked, self.engine.tokenizer())).map_err(|e| match e {
            ModelError::Template(_) => anyhow::anyhow!(
                "{e}; `kvpsi run --raw` sends a prompt without it, --chat-template takes another one"
            ),
            other => other.into(),
        })
    }

    /// Tokens of a part of a conversation's text; or of how many there are at
    /// least, where these are more than `most`.
    fn tokens(
        &self,
        text: &ChatText,
        part: &str,
        most: usize,
    ) -> anyhow::Result<Result<Vec<u32>, usize>> {
        let tokenizer = self.engine.tokenizer();
        match tokenizer.encode_guarded(part, text.mark, most)? {
            Ok(tokens) => Ok(Ok(tokens)),
            Err(TooLong::Tokens(least)) => Ok(Err(least)),
            Err(TooLong::Run(bytes)) => bail!(
                "the text has {bytes} bytes without a place where it can be cut: put spaces or line ends in"
            ),
        }
    }

    fn too_long(&self, prompt: usize) -> anyhow::Error {
        EngineError::PromptTooLong {
            prompt,
            context: self.engine.context(),
            trained: self.engine.decoder().config().context,
        }
        .into()
    }

    /// An answer as the template gets it again: thoughts and text apart.
    fn message(&self, answer: &str, thinking: bool) -> Message {
        let style = self.engine.chat().map(ChatTemplate::style);
        let Some(mut parser) = style.and_then(|s| AnswerParser::new(s, &[], thinking)) else {
            return Message::new(Role::Assistant, answer);
        };
        let mut parts = parser.push(answer);
        parts.extend(parser.finish());
        let (mut thought, mut text) = (String::new(), String::new());
        for part in parts {
            match part {
                Part::Thought(part) => thought.push_str(&part),
                Part::Text(part) => text.push_str(&part),
                Part::Call { arguments, .. } => text.push_str(&arguments),
            }
        }
        let mut message = Message::new(Role::Assistant, text);
        message.reasoning = Some(thought).filter(|t| !t.is_empty());
        message
    }

    /// Streams one answer and prints its figures.
    fn answer(
        &mut self,
        session: &mut Session,
        tokens: &[u32],
    ) -> anyhow::Result<(String, Finish)> {
        let Self {
            engine,
            sampling,
            out,
            closed,
            ..
        } = self;
        let mut answer = String::new();
        let mut broken = None;
        let stats = engine.generate_in(session, tokens, sampling, &mut |piece| {
            answer.push_str(piece.text);
            match write(out, piece.text) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    broken = Some(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        match broken.map_or_else(|| write(out, "\n"), Err) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => *closed = true,
            other => other.context("writing to stdout")?,
        }
        report(&stats);
        Ok((answer, stats.finish))
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        match write(&mut self.out, text) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => self.closed = true,
            other => other.context("writing to stdout")?,
        }
        Ok(())
    }
}

fn is_over_budget(e: &anyhow::Error) -> bool {
    matches!(e.downcast_ref(), Some(EngineError::PromptOverBudget { .. }))
}

fn write(out: &mut std::io::Stdout, text: &str) -> std::io::Result<()> {
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn report(stats: &GenStats) {
    tell!("{stats}");
}

/// A session and the text that its tokens are.
struct Held {
    session: Session,
    text: String,
}

/// Does what was asked for instead of a turn; the conversation may be over.
fn obey(command: Command, said: &mut Dialogue) -> anyhow::Result<ControlFlow<()>> {
    match command {
        Command::Help => eprintln!("{HELP}"),
        Command::Clear => {
            said.clear();
            tell!("begun anew");
        }
        Command::Save(file) => {
            let at = || format!("/save {}", file.display());
            said.save(&file).with_context(at)?;
            tell!("saved {} messages in {}", said.len(), file.display());
        }
        Command::Load(file) => {
            let at = || format!("/load {}", file.display());
            *said = Dialogue::load(&file).with_context(at)?;
            tell!("loaded {} messages of {}", said.len(), file.display());
        }
        Command::Quit => return Ok(ControlFlow::Break(())),
        Command::Wrong(why) => tell!("{why}"),
    }
    Ok(ControlFlow::Continue(()))
}
