//! Prompt-lookup speculation: what comes next is guessed from what the sequence
//! already says, and several guesses are checked in one step.
//!
//! Owns the guess (the tokens behind the longest earlier match of the last
//! ones; Saxena, "Prompt Lookup Decoding", 2023, vLLM's `ngram`), how often a
//! request's guesses are right, what a row more costs, and how many rows that
//! is worth. Invariants: a token is sampled from the logits of its own
//! position and a draft is kept only if it is that token, so the text is what
//! it would be without drafts, for every sampler, seed, grammar and penalty;
//! guesses are judged where they are not computed, too, so a request whose
//! guesses were wrong pays for none. Out of scope: rows and their memory.

use crate::model::step::MOST_ROWS;
use std::time::Duration;

/// Whether and how next tokens are guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Speculate {
    /// No guesses: a token a step
    Off,
    /// What followed the last tokens where they occurred before (vLLM's ngram, llama.cpp's lookup)
    #[default]
    Lookup,
}

/// Most drafts of a step: with the certain row all that a step has room for.
const MOST_DRAFTS: usize = MOST_ROWS - 1;
/// Tokens that must repeat before a guess is made of them.
const LEAST_MATCH: usize = 2;
/// Tokens beyond which a longer match says nothing more.
const LONGEST_MATCH: usize = 16;
/// Tokens that are looked through, the last ones: some 10 us.
const LOOK_BACK: usize = 32 * 1024;
/// The least share of a match's length in each class of [`Drafts::odds`].
const CLASSES: [usize; 4] = [LEAST_MATCH, 4, 7, 12];
/// Chance of a guess of which nothing is known, and what it weighs beside
/// those that were judged: a request's first guesses are computed where a row
/// more costs less than a quarter of a step.
const PRIOR: (f32, f32) = (0.3, 2.0);
/// Judged guesses after which the older half is forgotten.
const REMEMBERED: f32 = 48.0;
/// What drafts must promise: measuring is not exact.
const LEAST_GAIN: f64 = 1.05;

/// Guesses of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Odds {
    right: f32,
    all: f32,
}

/// The guesses of one request.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    /// What is guessed to come next.
    next: Vec<u32>,
    /// Tokens that matched before it.
    matched: usize,
    odds: [Odds; CLASSES.len()],
}

impl Drafts {
    /// Guesses what follows `tokens`; says how probable each further token is
    /// if those before it are right, `most` of them at most.
    pub fn look_up(&mut self, tokens: &[u32], most: usize) -> Vec<f32> {
        self.next.clear();
        self.matched = 0;
        let recent = &tokens[tokens.len().saturating_sub(LOOK_BACK)..];
        let Some((at, matched)) = longest_match(recent) else {
            return Vec::new();
        };
        self.matched = matched;
        for i in 0..MOST_DRAFTS {
            // A match that reaches the end repeats itself.
            let token = match recent.get(at + i) {
                Some(token) => *token,
                None => self.next[at + i - recent.len()],
            };
            self.next.push(token);
        }
        (0..most.min(MOST_DRAFTS)).map(|i| self.chance(i)).collect()
    }

    /// No guess.
    pub fn clear(&mut self) {
        self.next.clear();
    }

    /// The guess.
    pub fn next(&self) -> &[u32] {
        &self.next
    }

    /// Judges guess `i`, those before which were right, by the token that came
    /// (none: the answer ended).
    pub fn judge(&mut self, i: usize, came: Option<u32>) -> bool {
        let Some(&guessed) = self.next.get(i) else {
            return false;
        };
        let right = came == Some(guessed);
        let odds = &mut self.odds[class(self.matched + i)];
        odds.all += 1.0;
        odds.right += f32::from(u8::from(right));
        if odds.all > REMEMBERED {
            odds.all /= 2.0;
            odds.right /= 2.0;
        }
        right
    }

    /// How probable guess `i` is. What is known of shorter matches stands in
    /// for what is not known of longer ones.
    fn chance(&self, i: usize) -> f32 {
        let known = &self.odds[..=class(self.matched + i)];
        known.iter().fold(PRIOR.0, |chance, odds| {
            (odds.right + chance * PRIOR.1) / (odds.all + PRIOR.1)
        })
    }
}

fn class(matched: usize) -> usize {
    CLASSES.iter().rposition(|c| *c <= matched).unwrap_or(0)
}

/// Where what follows the longest earlier match of the end begins, and how long
/// the match is; of several the last one.
fn longest_match(tokens: &[u32]) -> Option<(usize, usize)> {
    let (end, last) = (tokens.len(), tokens.last()?);
    let mut best = None;
    let mut longest = LEAST_MATCH - 1;
    for at in (LEAST_MATCH..end)
        .rev()
        .filter(|at| tokens[at - 1] == *last)
    {
        let same = tokens[..at].iter().rev().zip(tokens.iter().rev());
        let matched = same.take(LONGEST_MATCH).take_while(|(a, b)| a == b).count();
        if matched > longest {
            (best, longest) = (Some((at, matched)), matched);
            if matched == LONGEST_MATCH {
                break;
            }
        }
    }
    best
}

/// What a step costs by its rows: a line through steps as they were measured,
/// the last ones more than those before.
#[derive(Debug, Default)]
pub(super) struct StepCosts {
    /// Not measured, but given: see [`super::EngineConfig::row_cost`].
    of_a_row: Option<f64>,
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
}

/// What a row more is thought to cost, as a share of a step of one row, before
/// it was measured or long after.
const ROW: f64 = 0.3;
/// What that thought weighs.
const ROW_WEIGHT: f64 = 0.02;
/// What is left of a measurement with the next one.
const KEEP: f64 = 0.97;
/// A step that takes so many times what it should was kept waiting.
const OUTLIER: f64 = 3.0;

impl StepCosts {
    /// Nothing is measured yet, or need be.
    pub fn new(of_a_row: Option<f64>) -> Self {
        Self {
            of_a_row,
            ..Self::default()
        }
    }

    /// A step of one row of each of its sequences and of so many drafts took
    /// so long.
    pub fn note(&mut self, rows: usize, took: Duration) {
        let rows = as_f64(rows);
        let mut seconds = took.as_secs_f64();
        if self.weight > 4.0 {
            seconds = seconds.min(OUTLIER * self.seconds_of(rows));
        }
        for (sum, more) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, rows),
            (&mut self.seconds, seconds),
            (&mut self.rows_rows, rows * rows),
            (&mut self.rows_seconds, rows * seconds),
        ] {
            *sum = *sum * KEEP + more;
        }
    }

    /// Seconds of a step of so many rows; 0 if there was none yet.
    fn seconds_of(&self, rows: f64) -> f64 {
        if self.weight == 0.0 {
            return 0.0;
        }
        let (mean, seconds) = (self.rows / self.weight, self.seconds / self.weight);
        let spread = (self.rows_rows / self.weight - mean * mean).max(0.0);
        let together = self.rows_seconds / self.weight - mean * seconds;
        let thought = ROW * seconds / (1.0 + ROW * (mean - 1.0));
        let row = (together + ROW_WEIGHT * thought) / (spread + ROW_WEIGHT);
        // A row is neither free nor dearer than a step of its own.
        let row = row.clamp(0.0, seconds / mean.max(1.0));
        seconds + row * (rows - mean)
    }

    /// What a step of so many rows costs, if one of `before` rows costs 1.
    fn ratio(&self, before: usize, rows: usize) -> f64 {
        if let Some(row) = self.of_a_row {
            let cost = |rows| 1.0 + row * (as_f64(rows) - 1.0);
            return cost(rows) / cost(before);
        }
        let base = self.seconds_of(as_f64(before));
        if base <= 0.0 {
            return 1.0 + ROW * as_f64(rows - before);
        }
        self.seconds_of(as_f64(rows)) / base
    }

    /// What a second row costs, as a share of the first.
    pub fn of_a_row(&self) -> f64 {
        self.ratio(1, 2) - 1.0
    }
}

#[expect(clippy::cast_precision_loss, reason = "some rows")]
fn as_f64(rows: usize) -> f64 {
    rows as f64
}

/// How many drafts of each sequence of a step are computed, beside a certain row
/// of each: what makes most tokens a second, if no sequence is to get fewer
/// than without. `chances`: of each sequence's guesses, as
/// [`Drafts::look_up`]; `most`: rows of the step.
pub(super) fn choose(costs: &StepCosts, chances: &[Vec<f32>], most: usize) -> Vec<usize> {
    let before = chances.len();
    let mut taken = vec![0; before];
    let mut best = (LEAST_GAIN, taken.clone());
    // Tokens of a step that are to be expected of each, and the chance that
    // its next draft is one.
    let mut expected = vec![1.0; before];
    let mut next: Vec<f64> = (chances.iter())
        .map(|c| c.first().map_or(0.0, |c| f64::from(*c)))
        .collect();
    for rows in before + 1..=most {
        let likeliest = (0..before).max_by(|a, b| next[*a].total_cmp(&next[*b]));
        let Some(i) = likeliest.filter(|i| next[*i] > 0.0) else {
            break;
        };
        expected[i] += next[i];
        taken[i] += 1;
        next[i] *= chances[i].get(taken[i]).map_or(0.0, |c| f64::from(*c));
        let cost = costs.ratio(before, rows);
        let gain = expected.iter().sum::<f64>() / as_f64(before) / cost;
        if gain > best.0 && expected.iter().all(|tokens| *tokens >= cost) {
            best = (gain, taken.clone());
        }
    }
    best.1
}

#[cfg(test)]
mod tests;
