//! Where the turns of a conversation come from: a terminal, or lines of a pipe.
//!
//! Owns stdin and the signals. In a terminal a line is asked for, edited, and
//! kept for the up key; a pasted text is one turn however many lines it has;
//! Ctrl-C ends the answer that comes, not the conversation. A pipe's lines are
//! turns in their order, and a signal ends the conversation. A second signal
//! ends the process at once, as the first does while the model is read.
//! Invariant: the terminal is left as it was found. Out of scope: what is done with a turn.

use crate::{
    cli::{signals, tell::tell},
    model::weights::Weights,
};
use anyhow::Context;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::{Behavior, Config, Editor, error::ReadlineError, history::MemHistory};
use std::{
    io::{BufRead, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::Duration,
};
use tokio::signal::unix::SignalKind;

/// SIGINTs that one answer may get and only ends by; the next one ends all.
const PATIENCE: u32 = 2;

/// What the conversation waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Line(String),
    /// stdin ended, broke, or a signal came.
    End,
}

/// What signals do, and which came.
pub(super) struct Signals {
    /// The model is being read: there is nothing yet that a signal could let end.
    reading: AtomicBool,
    /// What may be written meanwhile.
    weights: Option<Weights>,
    /// Ends the running answer.
    stop: Arc<AtomicBool>,
    /// The signal that ended the conversation; 0 before.
    caught: AtomicI32,
    /// A terminal is talked to, and it is the model's turn: SIGINT is for the answer.
    answering: AtomicBool,
    /// SIGINTs that came for this answer.
    presses: AtomicU32,
    /// The terminal of stdin, as it was.
    terminal: Option<Termios>,
}

impl Signals {
    /// From now on SIGINT, SIGTERM and SIGHUP are handled: while the model is read they
    /// end the process, afterwards `turns` gets the end.
    pub fn catch(
        stop: Arc<AtomicBool>,
        turns: Sender<Turn>,
        weights: Option<Weights>,
    ) -> anyhow::Result<Arc<Self>> {
        let this = Arc::new(Self {
            reading: AtomicBool::new(true),
            weights,
            stop,
            caught: AtomicI32::new(0),
            answering: AtomicBool::new(false),
            presses: AtomicU32::new(0),
            terminal: tcgetattr(std::io::stdin()).ok(),
        });
        let seen = this.clone();
        signals::on_each(move |number| seen.came(number, &turns))?;
        Ok(this)
    }

    /// The model was read.
    pub fn ready(&self) {
        self.reading.store(false, Ordering::Relaxed);
    }

    fn came(&self, number: i32, turns: &Sender<Turn>) {
        if self.reading.load(Ordering::Relaxed) {
            signals::end(number, self.weights.as_ref());
        }
        let key = number == SignalKind::interrupt().as_raw_value();
        if key
            && self.answering.load(Ordering::Relaxed)
            && self.presses.fetch_add(1, Ordering::Relaxed) < PATIENCE
        {
            self.stop.store(true, Ordering::Relaxed);
            return;
        }
        if self.caught.swap(number, Ordering::Relaxed) != 0 {
            self.restore_terminal();
            std::process::exit(128 + number);
        }
        self.stop.store(true, Ordering::Relaxed);
        // No reader outside a conversation.
        let _ = turns.send(Turn::End);
    }

    /// The signal that ended the conversation; 0 before.
    pub fn caught(&self) -> i32 {
        self.caught.load(Ordering::Relaxed)
    }

    /// The last answer is over: its signals were for it alone.
    fn answered(&self) {
        self.presses.store(0, Ordering::Relaxed);
        if self.caught() == 0 {
            self.stop.store(false, Ordering::Relaxed);
        }
    }

    /// Gives the terminal back as it was: a line may still be edited in it.
    pub fn restore_terminal(&self) {
        if let Some(was) = &self.terminal {
            let stdin = std::io::stdin();
            let now = tcgetattr(&stdin);
            if now.is_ok_and(|now| now.local_modes == was.local_modes) {
                return;
            }
            // Nothing is left to do where it fails: the process ends.
            let _ = tcsetattr(&stdin, OptionalActions::Drain, was);
            let _ = std::io::stderr().write_all(b"\x1b[?2004l\n");
        }
    }
}

/// The turns of one conversation.
pub(super) struct Inbox {
    turns: Receiver<Turn>,
    /// To whom a line is asked for, where somebody types it.
    ask: Option<Sender<()>>,
    pub signals: Arc<Signals>,
}

impl Inbox {
    /// Reads stdin from now on. `hold` is set when there is a turn: what can
    /// wait stops.
    pub fn open(
        turns: Receiver<Turn>,
        to: Sender<Turn>,
        signals: Arc<Signals>,
        hold: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let ask = if std::io::stdin().is_terminal() {
            let editor = editor().context("reading from the terminal")?;
            let (ask, asked) = mpsc::channel();
            let signals = signals.clone();
            let typed = move || type_turns(editor, &asked, &to, &signals, &hold);
            std::thread::Builder::new()
                .name("terminal".into())
                .spawn(typed)?;
            Some(ask)
        } else {
            let read = move || read_turns(&to, &hold);
            std::thread::Builder::new()
                .name("stdin".into())
                .spawn(read)?;
            None
        };
        Ok(Self {
            turns,
            ask,
            signals,
        })
    }

    /// Somebody types the turns.
    pub fn typed(&self) -> bool {
        self.ask.is_some()
    }

    /// Asks for a turn, where somebody types it.
    pub fn ask(&self) {
        if let Some(ask) = &self.ask {
            // Where nobody reads any more the end is in `turns`.
            let _ = ask.send(());
        }
    }

    /// The next turn, if it comes within `wait`.
    pub fn wait(&self, wait: Duration) -> Option<Turn> {
        match self.turns.recv_timeout(wait) {
            Ok(turn) => Some(turn),
            Err(RecvTimeoutError::Disconnected) => Some(Turn::End),
            Err(RecvTimeoutError::Timeout) => None,
        }
    }
}

/// Lines of a pipe.
fn read_turns(turns: &Sender<Turn>, hold: &AtomicBool) {
    for line in std::io::stdin().lock().lines() {
        match line {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                if turns.send(Turn::Line(line)).is_err() {
                    return;
                }
                // After the line is there: who holds on looks for it.
                hold.store(true, Ordering::Relaxed);
            }
            Err(e) => {
                tell!("stdin: {e}");
                break;
            }
        }
    }
    // The conversation may be over already.
    let _ = turns.send(Turn::End);
}

type LineEditor = Editor<(), MemHistory>;

fn editor() -> rustyline::Result<LineEditor> {
    // An answer that goes into a file is not mixed with what is typed.
    let behavior = match std::io::stdout().is_terminal() {
        true => Behavior::Stdio,
        false => Behavior::PreferTerm,
    };
    let config = Config::builder().behavior(behavior).build();
    let history = MemHistory::with_config(&config);
    Editor::with_history(config, history)
}

/// Lines that somebody types, each when it is asked for.
fn type_turns(
    mut editor: LineEditor,
    asked: &Receiver<()>,
    turns: &Sender<Turn>,
    signals: &Signals,
    hold: &AtomicBool,
) {
    while asked.recv().is_ok() {
        let Some(line) = type_line(&mut editor, signals) else {
            break;
        };
        if turns.send(Turn::Line(line)).is_err() {
            return;
        }
        hold.store(true, Ordering::Relaxed);
    }
    let _ = turns.send(Turn::End);
}

/// `None` at the end.
fn type_line(editor: &mut LineEditor, signals: &Signals) -> Option<String> {
    let mut interrupted = false;
    loop {
        signals.answering.store(false, Ordering::Relaxed);
        let typed = editor.readline("> ");
        // What stopped the last answer does not stop the next one.
        signals.answered();
        signals.answering.store(true, Ordering::Relaxed);
        match typed {
            Ok(line) if line.trim().is_empty() => interrupted = false,
            Ok(line) => {
                let line = line.trim_end_matches('\n').to_owned();
                // A history that cannot take it is no reason not to answer.
                let _ = editor.add_history_entry(line.as_str());
                return Some(line);
            }
            Err(ReadlineError::Interrupted) if interrupted => return None,
            Err(ReadlineError::Interrupted) => {
                interrupted = true;
                tell!("Ctrl-C once more ends the conversation, as Ctrl-D does");
            }
            Err(ReadlineError::Eof) => return None,
            Err(ReadlineError::Signal(_)) => {}
            Err(e) => {
                tell!("reading from the terminal: {e}");
                return None;
            }
        }
    }
}
