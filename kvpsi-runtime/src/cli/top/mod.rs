//! `kvpsi top`: a running kvpsi in a terminal, over its HTTP socket.
//!
//! Owns the flags, the terminal and the threads: one draws and reads nothing
//! but its inbox; keys, looks, orders and signals each have one that may wait.
//! So a key works while the network does not. The terminal is given back
//! however it ends. `state` is what is known, `draw` the screen.

pub(super) mod client;
mod draw;
mod once;
mod plot;
#[cfg(test)]
mod sample;
mod state;
mod tables;
mod words;

use crate::cli::signals;
use anyhow::{Context, bail};
use client::{Answer, Client, ClientError, Looker, Order, Outcome};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use state::{View, Wish};
use std::{
    io::{IsTerminal, Write},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};

/// The screen is drawn at least so often: it shows for how long no server has answered.
const TICK: Duration = Duration::from_secs(1);

/// Arguments of `kvpsi top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvpsi top                                     the kvpsi on this machine
  kvpsi top --url http://robot:8080             another one; KVPSI_API_KEY holds its key
  kvpsi top --once                              the figures as text, for a script

Keys: q quits, space holds the picture, w 1, 5 or 10 minutes, p the next profile, o trimming on or
off, t trims by hand, + and - how much, ? help.")]
pub struct Args {
    /// Where it listens
    #[arg(long, env = "KVPSI_URL", default_value = client::USUAL, value_parser = client::address)]
    url: String,
    /// Its API key; other users of this machine see what stands on a command line
    #[arg(long, value_name = "KEY", env = "KVPSI_API_KEY", hide_env_values = true, value_parser = client::key)]
    api_key: Option<String>,
    /// Its admin key, to trim and to change settings; serves for the API key, too
    #[arg(long, value_name = "KEY", env = "KVPSI_ADMIN_KEY", hide_env_values = true, value_parser = client::key)]
    admin_key: Option<String>,
    /// Time between two looks, ms
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    interval: u64,
    /// Print one summary and end; needs no terminal
    #[arg(long)]
    once: bool,
}

/// What the drawing thread waits for.
#[derive(Debug)]
enum Message {
    Terminal(Event),
    Looked(Result<Box<Answer>, ClientError>),
    Ordered(Order, Result<Outcome, ClientError>),
    Signal(i32),
    /// A thread ended, which none does by itself.
    Ended(String),
}

/// Says so when its thread ends, by a panic too.
struct Farewell(Sender<Message>, &'static str);

impl Drop for Farewell {
    fn drop(&mut self) {
        // The receiver is gone: then all of it has ended.
        let _ = self
            .0
            .send(Message::Ended(format!("its {} thread ended", self.1)));
    }
}

/// Runs the command. Does not return when a signal ended it: the exit code is
/// then 128 and the signal's number.
///
/// # Errors
/// There is no terminal, or it broke; with `--once` also when no server answers.
pub fn run(args: Args) -> anyhow::Result<()> {
    let client = Client::new(args.url, args.admin_key.or(args.api_key));
    if args.once {
        let url = client.url().to_owned();
        let answer = Looker::new(client).look()?;
        let text = once::summary(&url, answer);
        let mut out = std::io::stdout().lock();
        return match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("stdout"),
        };
    }
    if !std::io::stdout().is_terminal() {
        bail!("stdout is no terminal: `kvpsi top --once` prints the figures as text");
    }
    let (sender, inbox) = mpsc::channel();
    end_by_signal(sender.clone())?;
    let mut terminal = ratatui::try_init()
        .context("the terminal cannot be used; `kvpsi top --once` prints the figures as text")?;
    let ended = start(client, args.interval, sender)
        .and_then(|(view, orders)| watch(&mut terminal, view, &inbox, &orders));
    // Shows the cursor again.
    drop(terminal);
    ratatui::restore();
    match ended? {
        None => Ok(()),
        Some(signal) => std::process::exit(128 + signal),
    }
}

/// Starts the threads that look, order and read keys.
fn start(
    client: Client,
    interval: u64,
    sender: Sender<Message>,
) -> anyhow::Result<(View, Sender<Order>)> {
    let view = View::new(client.url().to_owned());
    let (orders, ordered) = mpsc::channel::<Order>();
    let every = Duration::from_millis(interval);
    let mut looker = Looker::new(client.clone());
    spawn("looking", sender.clone(), move |sender| {
        loop {
            let begun = Instant::now();
            let looked = looker.look().map(Box::new);
            if sender.send(Message::Looked(looked)).is_err() {
                return;
            }
            thread::sleep(every.saturating_sub(begun.elapsed()));
        }
    })?;
    spawn("ordering", sender.clone(), move |sender| {
        for order in ordered {
            let outcome = client.order(order);
            if sender.send(Message::Ordered(order, outcome)).is_err() {
                return;
            }
        }
    })?;
    spawn("keyboard", sender, move |sender| {
        loop {
            let message = match event::read() {
                Ok(event) => Message::Terminal(event),
                Err(e) => Message::Ended(format!("the terminal cannot be read: {e}")),
            };
            let over = matches!(message, Message::Ended(_));
            if sender.send(message).is_err() || over {
                return;
            }
        }
    })?;
    Ok((view, orders))
}

/// A thread that is missed when it ends. It is not joined: it may be in a
/// request when all is over.
fn spawn(
    name: &'static str,
    sender: Sender<Message>,
    work: impl FnOnce(&Sender<Message>) + Send + 'static,
) -> anyhow::Result<()> {
    let farewell = Farewell(sender, name);
    thread::Builder::new()
        .name(name.into())
        .spawn(move || work(&farewell.0))
        .with_context(|| format!("cannot start the {name} thread"))?;
    Ok(())
}

/// A signal ends the loop; a second one, should the loop hang in writing to a
/// terminal that takes nothing, the process.
fn end_by_signal(sender: Sender<Message>) -> anyhow::Result<()> {
    let runtime = signals::one_thread()?;
    let guard = runtime.enter();
    let listen = |kind| signal(kind).context("listening for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut quit = listen(SignalKind::quit())?;
    drop(guard);
    spawn("signal", sender, move |sender| {
        runtime.block_on(async {
            let mut first = true;
            loop {
                let kind = tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                    _ = hangup.recv() => SignalKind::hangup(),
                    _ = quit.recv() => SignalKind::quit(),
                };
                let number = kind.as_raw_value();
                if !first || sender.send(Message::Signal(number)).is_err() {
                    ratatui::restore();
                    std::process::exit(128 + number);
                }
                first = false;
            }
        });
    })
}

/// Draws until a key or a signal ends it; returns the signal's number.
fn watch(
    terminal: &mut DefaultTerminal,
    mut view: View,
    inbox: &Receiver<Message>,
    orders: &Sender<Order>,
) -> anyhow::Result<Option<i32>> {
    loop {
        terminal
            .draw(|frame| draw::screen(frame, &view))
            .context("the terminal cannot be written")?;
        let first = match inbox.recv_timeout(TICK) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => bail!("all of its threads ended"),
        };
        // Whatever came meanwhile is one picture.
        for message in first.into_iter().chain(inbox.try_iter()) {
            match message {
                Message::Terminal(Event::Key(key)) => match view.key(key) {
                    Wish::Draw => {}
                    Wish::Quit => return Ok(None),
                    Wish::Order(order) => {
                        orders.send(order).context("the ordering thread ended")?
                    }
                },
                // A new size is drawn like anything else.
                Message::Terminal(_) => {}
                Message::Looked(looked) => view.looked(looked.map(|answer| *answer)),
                Message::Ordered(order, outcome) => view.ordered(order, outcome),
                Message::Signal(number) => return Ok(Some(number)),
                Message::Ended(why) => bail!("{why}"),
            }
        }
    }
}
