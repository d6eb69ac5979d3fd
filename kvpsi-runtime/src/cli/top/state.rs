//! What `kvpsi top` knows and what it is set to.
//!
//! Owns the merge of answers, the rates that are worked out of them, and what a
//! key does. Out of scope: terminals and sockets: keys and answers come
//! in, orders go out.

use super::{
    client::{Answer, ClientError, Order, Outcome},
    words::count,
};
use crate::{
    kv::Profile,
    server::view::{Control, Psi, SAMPLE_MS, SAMPLES, Sample, Status, TRIMS, Trim, TrimOrder},
    units::Bytes,
};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// What came of an order is shown for so long.
const SAID: Duration = Duration::from_secs(6);
/// Over so long a time shares are taken, s.
const SHARE_S: f64 = 10.0;
/// Minutes that can be shown.
const WINDOWS: [u64; 3] = [1, 5, 10];
/// Most that is trimmed by one key, MiB.
const MOST_MIB: u64 = 1 << 20;

/// What is known of the instance.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// None before the first answer.
    pub status: Option<Status>,
    /// Oldest first.
    pub samples: VecDeque<Sample>,
    /// Oldest first.
    pub trims: Vec<Trim>,
    /// The instance's clock, ms.
    pub now_ms: u64,
    /// PSI's totals at uptimes in seconds, of the last [`SHARE_S`].
    psi: VecDeque<(f64, Psi)>,
}

/// What is worked out of the last samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Share of the last seconds in which a task stalled.
    pub stalled: f64,
    /// The same as PSI has it.
    pub some: f64,
    /// PSI's `full`; none before two answers.
    pub full: Option<f64>,
    /// Tokens generated a second.
    pub tokens: f64,
}

impl Data {
    /// Takes an answer in. Samples and trims that are known already are not
    /// taken twice.
    pub fn take(&mut self, answer: Answer) {
        if answer.anew {
            *self = Self::default();
        }
        let last = self.samples.back().map(|s| s.t_ms);
        let new = |s: &Sample| last.is_none_or(|last| s.t_ms > last);
        self.samples
            .extend(answer.history.samples.into_iter().filter(new));
        let many = self.samples.len().saturating_sub(SAMPLES);
        self.samples.drain(..many);
        for trim in answer.history.trims {
            if !self.trims.contains(&trim) {
                self.trims.push(trim);
            }
        }
        self.trims.sort_by_key(|t| t.t_ms);
        let many = self.trims.len().saturating_sub(TRIMS);
        self.trims.drain(..many);
        self.now_ms = answer.history.now_ms;
        if let Some(psi) = answer.status.psi {
            let now = answer.status.uptime_s;
            self.psi.push_back((now, psi));
            while self.psi.len() > 2 && self.psi[0].0 < now - SHARE_S {
                self.psi.pop_front();
            }
        }
        self.status = Some(answer.status);
    }

    /// The samples of the last `ms`.
    pub fn last(&self, ms: u64) -> impl Iterator<Item = &Sample> + Clone {
        let from = self.now_ms.saturating_sub(ms);
        self.samples.iter().filter(move |s| s.t_ms > from)
    }

    /// Of the last seconds.
    pub fn rates(&self) -> Rates {
        // A sample is of the time before it.
        let mean = |ms: u64, of: fn(&Sample) -> u64| {
            let (n, sum) = self.last(ms).fold((0_u64, 0_u64), |(n, sum), s| {
                (n + 1, sum.saturating_add(of(s)))
            });
            ratio(sum, n.saturating_mul(SAMPLE_MS))
        };
        let psi = |of: fn(&Psi) -> u64| {
            let ((a, first), (b, last)) = (self.psi.front()?, self.psi.back()?);
            let us = of(last).saturating_sub(of(first));
            (b > a).then(|| ratio(us, 1_000_000) / (b - a))
        };
        // Of the same time as `full`, which is never more.
        let some = psi(|p| p.some_us);
        Rates {
            stalled: mean(10_000, |s| s.stall_us) / 1000.0,
            some: some.unwrap_or_else(|| mean(10_000, |s| s.psi_some_us) / 1000.0),
            full: psi(|p| p.full_us),
            tokens: mean(2_000, |s| s.tokens) * 1000.0,
        }
    }
}

/// `a / b`; 0 of nothing.
#[expect(clippy::cast_precision_loss, reason = "rates are shown to one decimal")]
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// Whether the instance answers.
#[derive(Clone, Debug)]
pub enum Link {
    /// No answer yet.
    Connecting,
    /// It does.
    Up,
    /// It does not.
    Down {
        /// Since when.
        since: Instant,
        /// No server answers; false: one does and refuses.
        unreachable: bool,
        /// As the error has it.
        why: String,
    },
}

/// What a key asks of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing but to draw again.
    Draw,
    /// To end.
    Quit,
    /// To send this.
    Order(Order),
}

/// All of it.
#[derive(Debug)]
pub struct View {
    /// Where the instance is.
    pub url: String,
    /// Whether it answers.
    pub link: Link,
    /// Minutes that the plots show.
    pub minutes: u64,
    /// What a trim by hand asks for, MiB.
    pub amount_mib: u64,
    /// True: the keys are explained.
    pub help: bool,
    live: Data,
    paused: Option<Data>,
    said: Option<(Instant, String, bool)>,
    /// The profile that was asked for and is not in a status yet.
    asked: Option<Profile>,
}

impl View {
    /// Nothing is known yet.
    pub fn new(url: String) -> Self {
        Self {
            url,
            link: Link::Connecting,
            minutes: WINDOWS[1],
            amount_mib: 4,
            help: false,
            live: Data::default(),
            paused: None,
            said: None,
            asked: None,
        }
    }

    /// What is to be shown.
    pub fn data(&self) -> &Data {
        self.paused.as_ref().unwrap_or(&self.live)
    }

    /// True: what is shown stands still.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// What came of the last order, if it is news; true: it failed.
    pub fn said(&self) -> Option<(&str, bool)> {
        let (at, text, failed) = self.said.as_ref()?;
        (at.elapsed() < SAID).then_some((text, *failed))
    }

    fn say(&mut self, text: String, failed: bool) {
        self.said = Some((Instant::now(), text, failed));
    }

    /// A look ended.
    pub fn looked(&mut self, answer: Result<Answer, ClientError>) {
        match answer {
            Ok(answer) => {
                self.link = Link::Up;
                self.live.take(answer);
            }
            Err(e) => {
                let since = match self.link {
                    Link::Down { since, .. } => since,
                    _ => Instant::now(),
                };
                self.link = Link::Down {
                    since,
                    unreachable: matches!(e, ClientError::Gone { .. }),
                    why: e.brief(),
                };
            }
        }
    }

    /// An order ended.
    pub fn ordered(&mut self, order: Order, outcome: Result<Outcome, ClientError>) {
        self.asked = None;
        match outcome {
            Ok(Outcome::Status(status)) => {
                let text = match order {
                    Order::Control(Control {
                        profile: Some(_), ..
                    }) => format!("the profile is {}", status.profile.name()),
                    _ if status.trimming => "trimming is on".into(),
                    _ => "trimming is off: kvpsi only watches".into(),
                };
                self.live.status = Some(*status);
                self.say(text, false);
            }
            Ok(Outcome::Trim(done)) if done.bytes == Bytes::ZERO => {
                self.say("by hand: nothing could be returned".into(), false);
            }
            Ok(Outcome::Trim(done)) => {
                let tokens = count(done.tokens);
                self.say(
                    format!("by hand: {} returned, {tokens} tokens lost", done.bytes),
                    false,
                );
            }
            Err(e) => self.say(format!("not done: {}", e.brief()), true),
        }
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent) -> Wish {
        if key.kind == KeyEventKind::Release {
            return Wish::Draw;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Wish::Quit,
            _ if control => return Wish::Draw,
            _ if self.help => self.help = false,
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char(' ') => {
                self.paused = match self.paused {
                    Some(_) => None,
                    None => Some(self.live.clone()),
                };
            }
            KeyCode::Char('w') => {
                let next = WINDOWS.iter().find(|w| **w > self.minutes);
                self.minutes = *next.unwrap_or(&WINDOWS[0]);
            }
            KeyCode::Char('+' | '=') => self.amount_mib = (self.amount_mib * 2).min(MOST_MIB),
            KeyCode::Char('-') => self.amount_mib = (self.amount_mib / 2).max(1),
            KeyCode::Char('p' | 'o' | 't') => return self.order(key.code),
            _ => {}
        }
        Wish::Draw
    }

    fn order(&mut self, key: KeyCode) -> Wish {
        let Some(status) = self.live.status.as_ref() else {
            self.say("nothing is ordered: no kvpsi answers yet".into(), true);
            return Wish::Draw;
        };
        Wish::Order(match key {
            KeyCode::Char('p') => {
                let profile = after(self.asked.unwrap_or(status.profile));
                self.asked = Some(profile);
                Order::Control(Control {
                    profile: Some(profile),
                    trimming: None,
                })
            }
            KeyCode::Char('o') => Order::Control(Control {
                profile: None,
                trimming: Some(!status.trimming),
            }),
            _ => Order::Trim(TrimOrder {
                bytes: Bytes::mib(self.amount_mib),
            }),
        })
    }
}

/// The profile that `p` chooses next.
const fn after(profile: Profile) -> Profile {
    match profile {
        Profile::Lossless => Profile::Balanced,
        Profile::Balanced => Profile::Latency,
        Profile::Latency => Profile::Lossless,
    }
}

#[cfg(test)]
mod tests;
