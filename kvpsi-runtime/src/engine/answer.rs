//! One answer while it grows: from logits to text, and when it is over.
//!
//! Owns the sampler, the way back to text, stop texts and the answer's figures.
//! The same for one session alone and for many in a batch. Out of scope: how
//! logits are made.

use super::{
    Constraint, EngineError, Finish, GenStats, SamplingConfig, Session,
    sampling::{Sampler, TokenLogprobs},
    speculate::Drafts,
    stops::Stops,
};
use crate::model::tokenizer::{TextStream, Tokenizer};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Answer {
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    /// What it must be.
    constraint: Option<Constraint>,
    stream: TextStream,
    stops: Stops,
    started: Instant,
    first: Option<Instant>,
    /// Tokens of the session before the answer.
    before: usize,
    /// What is guessed to come next.
    pub drafts: Drafts,
    pub stats: GenStats,
}

/// What came of one position's logits.
#[derive(Debug)]
pub(super) struct Taken {
    /// None when the model ended its answer.
    pub token: Option<u32>,
    /// Text that may be shown now.
    pub text: String,
    /// Where they were asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// The answer is over.
    pub finish: Option<Finish>,
}

impl Taken {
    /// The answer is over, and has no more text.
    fn end() -> Self {
        Self {
            token: None,
            text: String::new(),
            logprobs: None,
            finish: Some(Finish::Eos),
        }
    }
}

impl Answer {
    /// To a session that has the tokens `before`, the last `waiting` of which must be
    /// computed first.
    pub fn new(
        tokenizer: &Arc<Tokenizer>,
        sampling: &SamplingConfig,
        started: Instant,
        before: &[u32],
        waiting: usize,
    ) -> Self {
        let last = before.last().copied().filter(|_| sampling.continues);
        Self {
            tokenizer: tokenizer.clone(),
            sampler: Sampler::new(sampling),
            constraint: None,
            stream: tokenizer.stream_behind(last),
            stops: Stops::new(&sampling.stops),
            started,
            first: None,
            before: before.len(),
            drafts: Drafts::default(),
            stats: GenStats {
                prompt_tokens: waiting,
                tokens: 0,
                ttft: Duration::ZERO,
                decode: Duration::ZERO,
                drafted: 0,
                accepted: 0,
                sampling: Duration::ZERO,
                finish: Finish::Stopped,
                stop: None,
            },
        }
    }

    /// The same, following a grammar from its first token on.
    pub fn following(self, constraint: Option<Constraint>) -> Self {
        Self { constraint, ..self }
    }

    /// Why there is no next token to be chosen, if there is none: `tokens` are
    /// in the session, and `context` may be.
    pub fn at_end(&self, tokens: usize, context: usize) -> Option<Finish> {
        if self.stats.tokens >= self.sampler.settings().max_tokens {
            Some(Finish::MaxTokens)
        } else if tokens >= context {
            // The token that was sampled at the last position has none.
            Some(Finish::Length)
        } else {
            None
        }
    }

    /// Tokens that may still follow the next one.
    pub fn left_after_next(&self) -> usize {
        let most = self.sampler.settings().max_tokens;
        most.saturating_sub(self.stats.tokens + 1)
    }

    /// Chooses the next token by row `row` of a step whose first row was
    /// certain and whose other ones were `drafts`, those before it right; says
    /// whether the next row is one of this text, too. If not, the rows behind
    /// this one are taken back.
    pub fn take_row(
        &mut self,
        logits: &mut [f32],
        session: &mut Session,
        row: usize,
        drafts: usize,
    ) -> Result<(Taken, bool), EngineError> {
        let computed = session.tokens.len();
        let taken = self.take(logits, &mut session.tokens);
        let right = (taken.as_ref()).is_ok_and(|t| self.drafts.judge(row, t.token));
        let ended = !taken.as_ref().is_ok_and(|t| t.finish.is_none());
        let goes_on = right && row < drafts && !ended;
        if drafts > 0 && !goes_on {
            self.settle(session, computed, row, drafts);
        }
        Ok((taken?, goes_on))
    }

    /// Of a step's drafts as many were right as make `computed` tokens: `row`.
    pub fn settle(&mut self, session: &mut Session, computed: usize, row: usize, drafts: usize) {
        self.stats.drafted += drafts;
        self.stats.accepted += row;
        session.settle(computed);
    }

    /// Chooses the next token by the logits, which are changed, and appends it
    /// to the session's.
    fn take(&mut self, logits: &mut [f32], tokens: &mut Vec<u32>) -> Result<Taken, EngineError> {
        let since = Instant::now();
        let sampled = self.sample(logits, tokens)?;
        if self.first.is_some() {
            self.stats.sampling += since.elapsed();
        }
        let first = *self.first.get_or_insert_with(|| {
            self.stats.ttft = self.started.elapsed();
            Instant::now()
        });
        self.stats.decode = first.elapsed();
        // Where the client excludes all that its grammar allows, the answer is over.
        let Some((token, logprobs)) = sampled else {
            return Ok(Taken::end());
        };
        let settings = self.sampler.settings();
        let stop = settings.stop_tokens.contains(&token);
        // The end of a grammar is an end.
        let go_on = settings.ignore_eos && self.constraint.is_none();
        let ends = self.tokenizer.ends(token) && !go_on;
        if ends || (stop && self.tokenizer.is_control(token)) {
            return Ok(Taken::end());
        }
        tokens.push(token);
        self.stats.tokens += 1;
        let (text, hit) = self.stops.push(&self.stream.push(token)?);
        self.stats.stop = hit;
        let most = self.sampler.settings().max_tokens;
        let finish = if hit.is_some() {
            Some(Finish::StopText)
        } else if self.follow(token)? || stop {
            Some(Finish::Eos)
        } else {
            (self.stats.tokens >= most).then_some(Finish::MaxTokens)
        };
        Ok(Taken {
            token: Some(token),
            text,
            logprobs,
            finish,
        })
    }

    /// A token that is allowed to come next, if there is one.
    fn sample(
        &mut self,
        logits: &mut [f32],
        tokens: &[u32],
    ) -> Result<Option<(u32, Option<TokenLogprobs>)>, EngineError> {
        let (before, ends) = (self.before, self.tokenizer.end_tokens());
        if let Some(constraint) = &mut self.constraint {
            constraint.apply(logits)?;
        }
        if self.sampler.excludes_all(logits) {
            return Ok(None);
        }
        let (token, logprobs) = self.sampler.sample(logits, tokens, before, ends)?;
        Ok(Some(match &mut self.constraint {
            Some(constraint) => (
                constraint.allowed(token)?,
                logprobs.map(TokenLogprobs::possible),
            ),
            None => (token, logprobs),
        }))
    }

    /// Whether the grammar ends with this token.
    fn follow(&mut self, token: u32) -> Result<bool, EngineError> {
        match &mut self.constraint {
            Some(constraint) => Ok(constraint.took(token)?),
            None => Ok(false),
        }
    }

    /// The text that was held back, once the answer is over.
    pub fn rest(&mut self) -> Result<String, EngineError> {
        if self.stats.stop.is_some() {
            return Ok(String::new());
        }
        let (mut text, hit) = self.stops.push(&self.stream.finish()?);
        if hit.is_none() {
            text.push_str(&self.stops.finish());
        }
        Ok(text)
    }

    /// Nothing was generated: the time until now is all there was.
    pub fn unanswered(&mut self) {
        self.stats.ttft = self.started.elapsed();
    }
}
