//! The conversation of `kvpsi run`: a prompt's way into tokens, and out.
//!
//! Between two turns the conversation's cache is released when memory is short;
//! what was lost of it is recomputed while the conversation is idle. Out of scope: of
//! signals and flags.

use super::{Args, Turn};
use crate::cli::tell::tell;
use crate::{
    engine::{Engine, Finish, GenStats, Recomputed, SamplingConfig, Session},
    model::chat::{Message, Role},
};
use anyhow::Context;
use std::{
    io::{ErrorKind, IsTerminal, Write},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
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
            let mut messages = system(args.system.as_deref());
            messages.push(Message::new(Role::User, prompt));
            let text = self.template(&messages)?;
            self.engine.tokenizer().encode(&text, false)?
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
    pub(super) fn chat(
        &mut self,
        inbox: &Receiver<Turn>,
        first: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut messages = system(first);
        let mut session = self.engine.open()?;
        // What the session holds, as text.
        let mut held = String::new();
        let people = std::io::stdin().is_terminal();
        loop {
            if people {
                eprint!("> ");
            }
            let Turn::Line(line) = self.next_turn(inbox, &mut session)? else {
                return Ok(());
            };
            messages.push(Message::new(Role::User, line));
            let text = self.template(&messages)?;
            let added = match text.strip_prefix(&held) {
                Some(added) => added,
                // The template rewrote what came before.
                None => {
                    drop(session);
                    session = self.engine.open()?;
                    &text
                }
            };
            let tokens = self.engine.tokenizer().encode(added, false)?;
            let (answer, finish) = self.answer(&mut session, &tokens)?;
            if self.closed || finish == Finish::Stopped {
                return Ok(());
            }
            held = text + &answer;
            messages.push(Message::new(Role::Assistant, answer));
        }
    }

    /// The next turn. Until it comes the conversation is the cache's to keep;
    /// one that lost tokens is recomputed.
    fn next_turn(&mut self, inbox: &Receiver<Turn>, session: &mut Session) -> anyhow::Result<Turn> {
        let mut whole = session.park();
        loop {
            let wait = if whole { Duration::MAX } else { HEAL_EVERY };
            match inbox.recv_timeout(wait) {
                Ok(turn) => return Ok(turn),
                Err(RecvTimeoutError::Disconnected) => return Ok(Turn::End),
                Err(RecvTimeoutError::Timeout) => {}
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

    fn template(&self, messages: &[Message]) -> anyhow::Result<String> {
        let chat = self
            .engine
            .chat()
            .context("this model has no chat template: give one by --chat-template, or continue a text by -p")?;
        Ok(chat.render(messages, true)?)
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

fn write(out: &mut std::io::Stdout, text: &str) -> std::io::Result<()> {
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn report(stats: &GenStats) {
    tell!("{stats}");
}

fn system(text: Option<&str>) -> Vec<Message> {
    text.map(|t| Message::new(Role::System, t))
        .into_iter()
        .collect()
}
