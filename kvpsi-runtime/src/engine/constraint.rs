//! Answers that follow a grammar: which tokens may come next.
//!
//! Owns what a grammar may be (a JSON schema, a regular expression, a choice, a
//! grammar in Lark or GBNF), its bounds, and the set of tokens that it allows at each step
//! (llguidance's). Invariants: the state follows the tokens of the answer and
//! knows no KV cache, so preemption and trims do not touch it; the next set is
//! computed on a thread of its own while the model computes the next logits;
//! what cannot be enforced is refused before the answer begins. Out of scope:
//! how a token is chosen among those that are allowed.

use super::gbnf;
use crate::model::{
    chat::decoded,
    tokenizer::{TokenBytes, Tokenizer},
};
use llguidance::{
    Matcher, ParserFactory,
    api::{GrammarWithLexer, ParserLimits, TopLevelGrammar},
};
use serde_json::{Value, json};
use std::{
    fmt::Display,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
};
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

/// Longest grammar, in bytes of its text.
pub const MOST_GRAMMAR: usize = 128 << 10;
/// Longest regular expression, in bytes.
pub const MOST_REGEX: usize = 8 << 10;
/// Most lines of a Lark grammar, which are at least as many as its rules: each may
/// name the next, and compiling follows them by recursion.
const MOST_LINES: usize = 2000;
/// Stack of the thread that compiles: what is not used takes no memory.
const STACK: usize = 256 << 20;
/// Most texts of a choice.
pub const MOST_CHOICES: usize = 4096;

/// What an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON value that a schema takes.
    Schema(Value),
    /// A text that a regular expression (Rust's syntax) matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// What a Lark grammar produces, as llguidance reads them.
    Lark(String),
    /// What a GBNF grammar produces, as llama.cpp reads them.
    Gbnf(String),
}

/// Why an answer cannot follow a grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarError(String);

impl GrammarError {
    fn new(e: impl Display) -> Self {
        let text = e.to_string();
        let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        line.truncate(line.floor_char_boundary(400));
        Self(line)
    }
}

impl Grammar {
    /// Any JSON object.
    #[must_use]
    pub fn json_object() -> Self {
        Self::Schema(json!({"type": "object"}))
    }

    fn size(&self) -> (usize, usize) {
        match self {
            Self::Schema(schema) => (schema.to_string().len(), MOST_GRAMMAR),
            Self::Regex(regex) => (regex.len(), MOST_REGEX),
            Self::Choice(all) => (all.iter().map(String::len).sum(), MOST_GRAMMAR),
            Self::Lark(text) | Self::Gbnf(text) => (text.len(), MOST_GRAMMAR),
        }
    }

    fn compiled(self) -> Result<GrammarWithLexer, GrammarError> {
        let (bytes, most) = self.size();
        if bytes > most {
            return Err(GrammarError(format!(
                "it has {bytes} bytes, and {most} are taken"
            )));
        }
        Ok(match self {
            Self::Schema(schema) => GrammarWithLexer::from_json_schema(compact(decoded(schema))),
            Self::Regex(regex) => GrammarWithLexer::from_regex(&regex),
            Self::Choice(all) if all.is_empty() || all.len() > MOST_CHOICES => {
                return Err(GrammarError(format!(
                    "a choice must have 1 to {MOST_CHOICES} texts"
                )));
            }
            Self::Choice(all) => {
                // A JSON string is a string of Lark.
                let texts: Vec<String> = all.iter().map(|t| json!(t).to_string()).collect();
                GrammarWithLexer::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Lark(text) if text.lines().count() > MOST_LINES => {
                return Err(GrammarError(format!("it has more than {MOST_LINES} lines")));
            }
            Self::Lark(text) => GrammarWithLexer::from_lark(text),
            Self::Gbnf(text) => {
                GrammarWithLexer::from_lark(gbnf::to_lark(&text).map_err(GrammarError::new)?)
            }
        })
    }
}

/// A schema whose values are written without white space but one space after
/// `,` and `:`, as models write them in one line: small models that may write
/// any amount of it never end.
fn compact(schema: Value) -> Value {
    let Value::Object(mut schema) = schema else {
        return match schema {
            Value::Bool(true) => compact(json!({})),
            other => other,
        };
    };
    schema.entry("x-guidance").or_insert_with(
        || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
    );
    Value::Object(schema)
}

/// Compiles grammars for one vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    /// One at a time: what compiling takes is bounded, and so is what it takes
    /// for all.
    turn: Mutex<()>,
    worker: Sender<Work>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// What the thread is asked for: the next set, and where it is to go.
struct Work {
    matcher: Box<Matcher>,
    back: Sender<Next>,
}

/// A matcher, and the tokens that it allows next.
type Next = (Box<Matcher>, Result<SimpleVob, GrammarError>);

impl Grammars {
    /// For a vocabulary of `vocab` tokens. Starts a thread that ends with the
    /// last of what this makes.
    ///
    /// # Errors
    /// No token ends an answer, or the thread cannot be made.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Arc<Self>, GrammarError> {
        let ends: Vec<u32> = (tokenizer.end_tokens().iter().copied())
            .filter(|id| (*id as usize) < vocab)
            .collect();
        let Some(first) = ends.first() else {
            return Err(GrammarError(
                "this model has no token that ends an answer".into(),
            ));
        };
        let count = u32::try_from(vocab).map_err(GrammarError::new)?;
        let words: Vec<Vec<u8>> = (tokenizer.token_bytes(vocab).into_iter())
            .map(|token| match token {
                TokenBytes::Text(bytes) => bytes,
                TokenBytes::Control(name) => {
                    let mut bytes = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                    bytes.extend_from_slice(name.as_bytes());
                    bytes
                }
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(count, *first), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ends)));
        let mut factory = ParserFactory::new_simple(&env).map_err(GrammarError::new)?;
        *factory.quiet().limits_mut() = ParserLimits {
            // Of 1 to 2 KiB each.
            max_lexer_states: 16_000,
            // Of which 20 000 take a millisecond: a grammar that is followed
            // character by character has many.
            step_max_items: 400_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let (worker, work) = mpsc::channel();
        std::thread::Builder::new()
            .name("kvpsi-grammar".into())
            .spawn(move || run(&work))
            .map_err(GrammarError::new)?;
        Ok(Arc::new(Self {
            factory,
            turn: Mutex::new(()),
            worker,
        }))
    }

    /// A constraint at its beginning, with the first set of tokens: the answer
    /// follows one of `grammars`. `before`: what the answer has before that (a
    /// thought, for one), as a Lark expression.
    ///
    /// # Errors
    /// A grammar is wrong, too large, or asks for what cannot be enforced.
    pub fn compile(
        &self,
        grammars: Vec<Grammar>,
        before: Option<&str>,
    ) -> Result<Constraint, GrammarError> {
        let all = grammars.into_iter().map(Grammar::compiled);
        let mut all: Vec<GrammarWithLexer> = all.collect::<Result<_, _>>()?;
        if before.is_some() || all.len() != 1 {
            let names: Vec<String> = (0..all.len()).map(|i| format!("@g{i}")).collect();
            for (i, grammar) in all.iter_mut().enumerate() {
                grammar.name = Some(format!("g{i}"));
            }
            let (first, before) = match before {
                Some(before) => ("before ", format!("before: {before}\n")),
                None => ("", String::new()),
            };
            let start = format!(
                "start: {first}answer\nanswer: {}\n{before}",
                names.join(" | ")
            );
            all.insert(0, GrammarWithLexer::from_lark(start));
        }
        let whole = TopLevelGrammar {
            grammars: all,
            max_tokens: None,
        };
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // llguidance turns a panic of its own into an error from here on.
        let parser = std::thread::scope(|scope| {
            let compiling = std::thread::Builder::new()
                .name("kvpsi-compile".into())
                .stack_size(STACK)
                .spawn_scoped(scope, || self.factory.create_parser(whole));
            let parser = compiling.map_err(GrammarError::new)?.join();
            parser
                .map_err(|_| GrammarError("it could not be compiled".into()))?
                .map_err(GrammarError::new)
        })?;
        let mut matcher = Box::new(Matcher::new(Ok(parser)));
        let mask = match matcher.compute_mask_or_eos() {
            Ok(mask) if !mask.is_zero() => mask,
            Err(e) if !e.to_string().contains("NoExtension") => return Err(GrammarError::new(e)),
            _ => return Err(GrammarError("no text follows it".into())),
        };
        Ok(Constraint {
            state: State::Here(matcher, mask),
            worker: self.worker.clone(),
        })
    }
}

/// Computes sets until nobody is left to ask for one.
fn run(work: &Receiver<Work>) {
    for Work { mut matcher, back } in work {
        let mask = matcher.compute_mask_or_eos().map_err(GrammarError::new);
        // Whoever asked may have gone with its request.
        let _ = back.send((matcher, mask));
    }
}

/// One answer's way through its grammar.
pub struct Constraint {
    state: State,
    worker: Sender<Work>,
}

enum State {
    Here(Box<Matcher>, SimpleVob),
    Away(Receiver<Next>),
    Failed(GrammarError),
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Constraint {
    /// The same grammar for another answer; before the first token.
    #[must_use]
    pub fn another(&self) -> Self {
        let state = match &self.state {
            State::Here(matcher, mask) => State::Here(Box::new(matcher.deep_clone()), mask.clone()),
            State::Away(_) => State::Failed(GrammarError("the answer has begun".into())),
            State::Failed(e) => State::Failed(e.clone()),
        };
        Self {
            state,
            worker: self.worker.clone(),
        }
    }

    /// Takes the logits of all tokens that may not come next away. Waits for
    /// the set, if it is not there yet.
    ///
    /// # Errors
    /// The grammar became too complex, or nothing may come next.
    pub fn apply(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let mask = self.mask()?;
        let words = mask.as_slice();
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            match *word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        let covered = words.len() * 32;
        if let Some(rest) = logits.get_mut(covered..) {
            rest.fill(f32::NEG_INFINITY);
        }
        Ok(())
    }

    /// The token that was chosen, or another one where it may not come.
    ///
    /// # Errors
    /// As [`Constraint::apply`].
    pub fn allowed(&mut self, chosen: u32) -> Result<u32, GrammarError> {
        let mask = self.mask()?;
        if mask.is_allowed(chosen) {
            return Ok(chosen);
        }
        let first = mask.first_bit_set().and_then(|t| u32::try_from(t).ok());
        first.ok_or_else(|| GrammarError("nothing may come next".into()))
    }

    /// Goes on by a token; true when nothing may come after it. The next set
    /// is computed meanwhile.
    ///
    /// # Errors
    /// The grammar does not take the token, or became too complex.
    pub fn took(&mut self, token: u32) -> Result<bool, GrammarError> {
        let broken = GrammarError("its state was lost".into());
        let state = std::mem::replace(&mut self.state, State::Failed(broken));
        let State::Here(mut matcher, _) = state else {
            self.state = state;
            return Err(GrammarError("a token before its set".into()));
        };
        matcher.consume_token(token).map_err(GrammarError::new)?;
        if matcher.is_stopped() {
            if !matcher.stop_reason().is_ok() {
                return Err(GrammarError(format!(
                    "it became too complex for this answer ({})",
                    matcher.stop_reason()
                )));
            }
            let ends = matcher.compute_mask_or_eos().map_err(GrammarError::new)?;
            self.state = State::Here(matcher, ends);
            return Ok(true);
        }
        let (back, next) = mpsc::channel();
        let work = Work { matcher, back };
        self.state = match self.worker.send(work) {
            Ok(()) => State::Away(next),
            Err(_) => State::Failed(GrammarError("its thread has ended".into())),
        };
        Ok(false)
    }

    fn mask(&mut self) -> Result<&SimpleVob, GrammarError> {
        if let State::Away(next) = &self.state {
            self.state = match next.recv() {
                Ok((matcher, Ok(mask))) => State::Here(matcher, mask),
                Ok((_, Err(e))) => State::Failed(e),
                Err(_) => State::Failed(GrammarError("its thread has ended".into())),
            };
        }
        match &self.state {
            State::Here(_, mask) => Ok(mask),
            State::Failed(e) => Err(e.clone()),
            State::Away(_) => Err(GrammarError("its set did not come".into())),
        }
    }
}
