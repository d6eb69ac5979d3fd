//! Whether facts from early on are still known at the end: one in a long text
//! (a needle), and several in a conversation.
//!
//! Owns the facts and how they are asked for. The answer is begun for the
//! model, up to the quotation mark: it is small, and what is measured is what
//! its cache remembers, not how it phrases things. With a whole cache it answers
//! 12 of 12 in 2048 tokens that way; and 11 of 12 questions of conversations,
//! where it says each fact once itself and 600 tokens of prose come between. Invariants: what is held down was so before the
//! question is read; every setting is asked the same questions.

use crate::settings::{Which, name, row};
use anyhow::{Context, Result, ensure};
use kvpsi::{
    eval::{Held, KvSetting},
    kv::SeqId,
    model::{
        chat::{ChatTemplate, Message, Role},
        decoder::Decoder,
        gguf::Gguf,
        tokenizer::Tokenizer,
    },
};
use kvpsi_tests::quality::TEXT;
use serde_json::json;
use std::{path::PathBuf, time::Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Tokens of the text that hides a fact
    #[arg(long, value_delimiter = ',', default_values_t = [2048])]
    contexts: Vec<usize>,
    /// Facts hidden, one in a text, for each context
    #[arg(long, default_value_t = 16)]
    samples: usize,
    /// Conversations, of four facts each
    #[arg(long, default_value_t = 2)]
    conversations: usize,
    /// Tokens of prose between the facts and the questions of a conversation
    #[arg(long, default_value_t = 600)]
    prose: usize,
    #[command(flatten)]
    which: Which,
}

/// Where something is kept, and the words that open it.
const FACTS: [(&str, &str); 12] = [
    ("lighthouse", "silver lantern"),
    ("bakery", "copper fox"),
    ("library", "winter orange"),
    ("windmill", "purple anchor"),
    ("chapel", "golden turtle"),
    ("harbour", "frozen violin"),
    ("stable", "green thunder"),
    ("brewery", "paper crown"),
    ("observatory", "velvet hammer"),
    ("greenhouse", "broken compass"),
    ("post office", "marble feather"),
    ("museum", "crimson ladder"),
];

/// What is told in a conversation: up to the words, how it is asked for, and
/// the words. Each of another kind: a model of this size takes one password
/// for another.
const TALES: [[&str; 3]; 8] = [
    [
        "The captain's ship is called",
        "What is the captain's ship called?",
        "silver lantern",
    ],
    [
        "The sign above the inn says",
        "What does the sign above the inn say?",
        "purple anchor",
    ],
    [
        "The title of the new song is",
        "What is the title of the new song?",
        "winter orange",
    ],
    [
        "The secret password of the castle is",
        "What is the secret password of the castle?",
        "golden turtle",
    ],
    [
        "The doctor's letter begins with",
        "What does the doctor's letter begin with?",
        "frozen violin",
    ],
    [
        "The village team is named",
        "What is the village team named?",
        "green thunder",
    ],
    [
        "The wizard's spell was",
        "What was the wizard's spell?",
        "paper crown",
    ],
    [
        "The thief is known as",
        "What is the thief known as?",
        "velvet hammer",
    ],
];

/// How deep a fact lies, in parts of the text.
const DEPTHS: [f64; 8] = [0.05, 0.15, 0.3, 0.4, 0.5, 0.65, 0.75, 0.9];

/// Tokens of an answer.
const ANSWER: usize = 16;

/// Facts told in a conversation.
const TOLD: usize = 4;

fn fact(place: &str, words: &str) -> String {
    format!("The secret password of the {place} is \"{words}\".")
}

fn question(place: &str) -> String {
    format!("What is the secret password of the {place}?")
}

fn begun(place: &str) -> String {
    format!("The secret password of the {place} is \"")
}

struct Model {
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    decoder: Decoder,
    /// The prose that facts hide in.
    prose: Vec<u32>,
}

impl Model {
    fn load(a: &Args) -> Result<Self> {
        let gguf = Gguf::open(&a.model)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let (bos, eos) = tokenizer.bos_eos();
        let text = TEXT.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Self {
            chat: ChatTemplate::from_gguf(&gguf, bos, eos),
            prose: tokenizer.encode(&text, false)?,
            decoder: Decoder::load(&gguf)?,
            tokenizer,
        })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, false)?)
    }

    /// The conversation as text, up to where the model goes on.
    fn render(&self, messages: &[Message]) -> Result<String> {
        if let Some(chat) = &self.chat {
            return Ok(chat.render(messages, true)?);
        }
        let lines = messages.iter().map(|m| match m.role {
            Role::Assistant => format!("Answer: {}\n", m.content),
            _ => format!("{}\n", m.content),
        });
        Ok(lines.collect::<String>() + "Answer:")
    }

    /// Some tokens of prose, others for each `turn`.
    fn prose(&self, turn: usize, tokens: usize) -> Result<&[u32]> {
        ensure!(
            tokens <= self.prose.len(),
            "the prose has {} tokens",
            self.prose.len()
        );
        let from = (turn * 1301) % (self.prose.len() - tokens + 1);
        Ok(&self.prose[from..from + tokens])
    }

    /// The first end of a sentence from there on.
    fn sentence_end(&self, tokens: &[u32], from: usize) -> Result<usize> {
        for (i, token) in tokens.iter().enumerate().skip(from) {
            if self.tokenizer.decode(&[*token])?.ends_with('.') {
                return Ok(i + 1);
            }
        }
        Ok(from)
    }

    /// A text with a fact in it, and the question after it.
    fn needle(&self, sample: usize, context: usize) -> Result<(Vec<u32>, Vec<u32>, &'static str)> {
        let (place, words) = FACTS[(sample + sample / DEPTHS.len() * 5) % FACTS.len()];
        let depth = DEPTHS[sample % DEPTHS.len()];
        let mark = "[TEXT]";
        let asked = format!("Read this text.\n\n{mark}\n\n{}", question(place));
        let whole = self.render(&[Message::new(Role::User, asked)])?;
        let (before, after) = whole.split_once(mark).context("the chat template")?;
        let prose = self.prose(sample, context)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in the text"
        )]
        let at = self.sentence_end(prose, (context as f64 * depth) as usize)?;
        let mut text = self.encode(before)?;
        text.extend(&prose[..at]);
        text.extend(self.encode(&format!(" {}", fact(place, words)))?);
        text.extend(&prose[at..]);
        Ok((
            text,
            self.encode(&format!("{after}{}", begun(place)))?,
            words,
        ))
    }
}

/// A sequence that is fed and answers.
struct Talk<'a> {
    model: &'a Model,
    held: &'a mut Held,
    seq: SeqId,
}

impl Talk<'_> {
    fn read(&mut self, tokens: &[u32]) -> Result<()> {
        let none = tokens.len()..tokens.len();
        let decoder = &self.model.decoder;
        Ok(self
            .held
            .feed(decoder, self.seq, tokens, none, &mut |_, _| ())?)
    }

    /// Greedily, after `tokens`.
    fn answer(&mut self, tokens: &[u32]) -> Result<String> {
        let mut next = tokens.to_vec();
        let mut answer = Vec::new();
        while answer.len() < ANSWER {
            let mut best = 0;
            let last = next.len() - 1..next.len();
            let decoder = &self.model.decoder;
            self.held
                .feed(decoder, self.seq, &next, last, &mut |_, logits| {
                    let each = (0u32..).zip(logits);
                    best = each
                        .max_by(|a, b| a.1.total_cmp(b.1))
                        .map_or(0, |(token, _)| token);
                })?;
            if self.model.tokenizer.ends(best) {
                break;
            }
            answer.push(best);
            let text = self.model.tokenizer.decode(&[best])?;
            if text.contains(['"', '.', '\n']) {
                break;
            }
            next = vec![best];
        }
        Ok(self.model.tokenizer.decode(&answer)?)
    }
}

fn knows(answer: &str, words: &str) -> bool {
    let answer = answer.to_lowercase();
    words.split(' ').all(|word| answer.contains(word))
}

/// Questions asked, and answered.
#[derive(Clone, Copy, Default)]
struct Tally {
    asked: usize,
    known: usize,
}

impl Tally {
    fn add(&mut self, known: bool) {
        self.asked += 1;
        self.known += usize::from(known);
    }

    #[expect(clippy::cast_precision_loss, reason = "some dozens")]
    fn share(self) -> f64 {
        self.known as f64 / self.asked as f64
    }
}

pub fn run(a: &Args) -> Result<()> {
    let model = Model::load(a)?;
    let settings = a.which.settings();
    for context in &a.contexts {
        let ask = |held: &mut Held, sample| needle(&model, held, sample, *context);
        let room = context + 256;
        let what = ("needle", *context);
        each(&model, &settings, what, room, a.samples, &ask)?;
    }
    let ask = |held: &mut Held, talk| conversation(&model, held, talk, a.prose);
    let room = a.prose + 1024;
    let what = ("turns", a.prose);
    each(&model, &settings, what, room, a.conversations, &ask)
}

type Ask<'a> = &'a dyn Fn(&mut Held, usize) -> Result<Tally>;

/// One row for each setting.
fn each(
    model: &Model,
    settings: &[KvSetting],
    (what, context): (&str, usize),
    room: usize,
    times: usize,
    ask: Ask<'_>,
) -> Result<()> {
    let mut full = None;
    for setting in settings.iter().filter(|_| times > 0) {
        let began = Instant::now();
        let mut held = Held::new(&model.decoder, room, *setting)?;
        let mut all = Tally::default();
        for i in 0..times {
            let some = ask(&mut held, i)?;
            all.asked += some.asked;
            all.known += some.known;
        }
        let full = *full.get_or_insert(all.share());
        let measured = json!({
            "what": what, "context": context, "asked": all.asked, "known": all.known,
            "answered": all.share(), "answered_full": full, "share": held.share,
            "seconds": began.elapsed().as_secs_f64(),
        });
        println!("{}", row(setting, measured));
        eprintln!(
            "  {:<26} {what} in {context} tokens: {} of {} answered",
            name(setting),
            all.known,
            all.asked
        );
    }
    Ok(())
}

fn needle(model: &Model, held: &mut Held, sample: usize, context: usize) -> Result<Tally> {
    let (text, asked, words) = model.needle(sample, context)?;
    let seq = held.pool.open()?;
    let mut talk = Talk { model, held, seq };
    let answer = talk.read(&text).and_then(|()| talk.answer(&asked));
    held.pool.close(seq);
    let mut tally = Tally::default();
    let answer = answer?;
    told(words, &answer);
    tally.add(knows(&answer, words));
    Ok(tally)
}

/// Facts in the first turns, then prose, then a question a turn.
fn conversation(model: &Model, held: &mut Held, talk: usize, prose: usize) -> Result<Tally> {
    let seq = held.pool.open()?;
    let tally = converse(&mut Talk { model, held, seq }, talk, prose);
    held.pool.close(seq);
    tally
}

fn converse(talk: &mut Talk<'_>, number: usize, prose: usize) -> Result<Tally> {
    const PART: usize = 250;
    let model = talk.model;
    let facts = (0..TOLD).map(|i| TALES[(number * 3 + i) % TALES.len()]);
    let mut messages = Vec::new();
    let mut say = |role, text: String| messages.push(Message::new(role, text));
    for [begun, _, words] in facts.clone() {
        say(Role::User, format!("{begun} \"{words}\"."));
        // Said twice, as such models do when they are told something.
        let kept = format!("I will remember it. {begun} \"{words}\".");
        say(Role::Assistant, kept);
    }
    let tokens = model.prose(number + 7, prose)?;
    for part in tokens.chunks(PART) {
        let text = model.tokenizer.decode(part)?;
        say(Role::User, format!("Listen to this:{text}"));
        say(Role::Assistant, "Go on.".into());
    }
    let mut tally = Tally::default();
    let mut so_far = String::new();
    for [begun, question, words] in facts {
        let begun = format!("{begun} \"");
        messages.push(Message::new(Role::User, question));
        let text = model.render(&messages)?;
        let new = text
            .strip_prefix(&so_far)
            .context("the chat template changes what was said before")?;
        let at = new.rfind(question).context("the chat template")?;
        let (before, asked) = new.split_at(at);
        talk.read(&model.encode(before)?)?;
        let answer = talk.answer(&model.encode(&format!("{asked}{begun}"))?)?;
        told(words, &answer);
        tally.add(knows(&answer, words));
        let answer = format!("{begun}{answer}");
        so_far = format!("{text}{answer}");
        messages.push(Message::new(Role::Assistant, answer));
    }
    Ok(tally)
}

/// The answers, for inspection.
fn told(words: &str, answer: &str) {
    if std::env::var_os("KVPSI_BENCH_ANSWERS").is_some() {
        eprintln!("    {words:?}: {answer:?}");
    }
}
