//! Prompt-lookup speculation: the text is what it is without, to the token and
//! to the last bit of its probabilities, whatever is asked for and whatever
//! becomes of the memory meanwhile.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{
    engine::{
        Constraint, Engine, EngineConfig, GenStats, Grammar, Grammars, Recomputed, SamplingConfig,
        Speculate, TokenLogprobs,
        batch::{Ask, Batch, BatchConfig, Client, Outcome, Progress, StreamEvent},
    },
    kv::{KvType, Profile, Step, Steps},
    units::Bytes,
};
use kvpsi_tests::talker;
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::AtomicBool,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

const HOLMES: &str = include_str!("../data/holmes.txt");
/// Whoever is there.
const PREEMPT: Steps = Steps::NONE.with(Step::Preempt).to_the_last();

/// Drafts are computed as soon as they promise anything: rows cost nothing.
fn engine(model: &Path, how: Speculate, change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config = EngineConfig::new(model);
    config.context = Some(1024);
    config.parallel = 4;
    config.speculate = how;
    config.row_cost = Some(0.0);
    change(&mut config);
    Engine::load(&config).unwrap()
}

fn tiny() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talker.gguf");
    talker::write(&path).unwrap();
    (folder, path)
}

/// A prompt whose end was said before.
fn repeating(engine: &Engine, from: usize) -> Vec<u32> {
    let words = &HOLMES[HOLMES.ceil_char_boundary(from * 400)..];
    let letters = |c: char| {
        let small = c.to_ascii_lowercase();
        if small.is_ascii_lowercase() {
            small
        } else {
            ' '
        }
    };
    let text: String = match engine.decoder().config().vocab {
        ..1000 => words.chars().take(160).map(letters).collect(),
        _ => words.chars().take(600).collect(),
    };
    let all = engine.tokenizer().encode(&text, false).unwrap();
    [&all[..], &all[..all.len() / 4]].concat()
}

fn sampling(max_tokens: usize) -> SamplingConfig {
    SamplingConfig {
        max_tokens,
        temperature: 0.0,
        repeat_penalty: 1.0,
        ignore_eos: true,
        ..SamplingConfig::default()
    }
}

fn generate(
    engine: &mut Engine,
    prompt: &[u32],
    s: &SamplingConfig,
) -> (Vec<u32>, String, GenStats) {
    let (mut tokens, mut text) = (vec![], String::new());
    let stats = engine.generate(prompt, s, &mut |piece| {
        tokens.extend(piece.token);
        text.push_str(piece.text);
        ControlFlow::Continue(())
    });
    (tokens, text, stats.unwrap())
}

/// Every way to choose tokens and to end.
fn ways() -> Vec<SamplingConfig> {
    let warm = SamplingConfig {
        temperature: 0.7,
        seed: 5,
        ..sampling(60)
    };
    vec![
        sampling(61),
        warm.clone(),
        SamplingConfig {
            top_k: None,
            top_p: None,
            temperature: 0.3,
            ..warm.clone()
        },
        SamplingConfig {
            min_p: Some(0.05),
            typical_p: Some(0.9),
            ..warm.clone()
        },
        SamplingConfig {
            repeat_penalty: 1.05,
            presence_penalty: 0.3,
            frequency_penalty: 0.2,
            logit_bias: vec![(40, 2.0), (41, -3.0)],
            ..sampling(60)
        },
        SamplingConfig {
            min_tokens: 20,
            stop_tokens: (240..290).collect(),
            ignore_eos: false,
            ..warm
        },
        SamplingConfig {
            stops: vec!["th".into(), "is".into(), "e".into()],
            min_tokens: 3,
            ..sampling(60)
        },
    ]
}

/// Both engines say the same; how many drafts were computed, and right.
fn same(model: &Path, kv: KvType) -> (usize, usize) {
    let [mut with, mut without] =
        [Speculate::Lookup, Speculate::Off].map(|how| engine(model, how, |c| c.kv_type = kv));
    let (mut drafted, mut accepted) = (0, 0);
    for (i, s) in ways().iter().enumerate() {
        let prompt = repeating(&with, i);
        let (want, got) = (
            generate(&mut without, &prompt, s),
            generate(&mut with, &prompt, s),
        );
        assert_eq!((&got.0, &got.1), (&want.0, &want.1), "{kv:?} {s:?}");
        assert_eq!(got.2.finish, want.2.finish);
        assert_eq!((want.2.drafted, want.2.accepted), (0, 0));
        assert!(got.2.accepted <= got.2.drafted && got.2.accepted <= got.0.len());
        drafted += got.2.drafted;
        accepted += got.2.accepted;
        let account = with.pool().account();
        assert_eq!((account.in_use, account.live_tokens), (Bytes::ZERO, 0));
    }
    (drafted, accepted)
}

#[test]
fn the_tiny_models_text_is_the_same_with_drafts_however_tokens_are_chosen() {
    let (_folder, path) = tiny();
    for kv in [KvType::F16, KvType::Q8_0, KvType::Q4_0] {
        let (drafted, accepted) = same(&path, kv);
        assert!(
            drafted > accepted && accepted > 30,
            "{accepted} of {drafted}"
        );
    }
}

#[test]
fn the_models_text_is_the_same_with_drafts_however_tokens_are_chosen() {
    let test = "the_models_text_is_the_same_with_drafts_however_tokens_are_chosen";
    let Some(path) = kvpsi_tests::model(test) else {
        return;
    };
    let (drafted, accepted) = same(&path, KvType::F16);
    assert!(
        drafted > accepted && accepted > 30,
        "{accepted} of {drafted}"
    );
}

#[test]
fn a_conversation_goes_on_the_same_behind_drafts_and_can_be_computed_anew() {
    let (_folder, path) = tiny();
    let [mut with, mut without] =
        [Speculate::Lookup, Speculate::Off].map(|how| engine(&path, how, |_| ()));
    let prompt = repeating(&with, 0);
    let say = |engine: &mut Engine, trim: bool| {
        let mut session = engine.open().unwrap();
        let (mut said, mut drafted) = (vec![], 0);
        for turn in 0..4 {
            let stats =
                engine.generate_in(&mut session, &prompt[turn..], &sampling(47), &mut |p| {
                    said.extend(p.token);
                    // A client that has enough in the middle of a step.
                    match said.len() {
                        60 => ControlFlow::Break(()),
                        _ => ControlFlow::Continue(()),
                    }
                });
            drafted += stats.unwrap().drafted;
            if trim && turn == 2 {
                let t = engine.pool().trim(Bytes(u64::MAX), Steps::WINDOW);
                assert!(t.tokens > 0, "{t:?}");
                let done = engine.recompute(&mut session, &Arc::new(AtomicBool::new(false)));
                assert!(matches!(done, Ok(Recomputed::Done(_))), "{done:?}");
            }
        }
        (said, drafted)
    };
    let (want, none) = say(&mut without, false);
    let (got, drafted) = say(&mut with, false);
    assert_eq!((&got, none), (&want, 0));
    assert!(drafted > 20, "{drafted}");
    assert_eq!(say(&mut with, true).0, want);
}

struct Listener {
    events: Sender<StreamEvent>,
    with_piece: Box<dyn FnMut() + Send>,
}

impl Client for Listener {
    fn send(&mut self, event: StreamEvent) {
        if matches!(event, StreamEvent::Piece { .. }) {
            (self.with_piece)();
        }
        let _ = self.events.send(event);
    }

    fn gone(&self) -> bool {
        false
    }
}

fn batch(model: &Path, how: Speculate) -> Batch {
    let engine = engine(model, how, |c| c.profile = Profile::Lossless);
    let config = BatchConfig {
        patience: Duration::from_millis(20),
        floor_patience: Duration::from_millis(40),
        ..BatchConfig::default()
    };
    Batch::new(engine, config)
}

fn ask(
    batch: &mut Batch,
    tokens: Vec<u32>,
    sampling: SamplingConfig,
    constraint: Option<Constraint>,
    with_piece: impl FnMut() + Send + 'static,
) -> Receiver<StreamEvent> {
    let (events, heard) = channel();
    batch.submit(Ask {
        id: "x".into(),
        tokens,
        look: None,
        sampling,
        constraint,
        arrived: Instant::now(),
        deadline: Instant::now() + Duration::from_secs(300),
        client: Box::new(Listener {
            events,
            with_piece: Box::new(with_piece),
        }),
    });
    heard
}

type Said = (Vec<(Option<u32>, String, Option<TokenLogprobs>)>, Outcome);

/// Steps until all is said.
fn finish(batch: &mut Batch, asked: &[Receiver<StreamEvent>]) -> Vec<Said> {
    for step in 0.. {
        match batch.step() {
            Progress::Idle => break,
            Progress::Blocked => std::thread::sleep(Duration::from_millis(2)),
            Progress::Worked => {}
        }
        assert!(step < 20_000, "it does not come to an end");
    }
    let account = batch.engine().pool().account();
    assert_eq!((account.in_use, account.live_tokens), (Bytes::ZERO, 0));
    let said = |events: &Receiver<StreamEvent>| {
        let (mut pieces, mut end) = (vec![], None);
        for event in events.try_iter() {
            assert!(end.is_none(), "an event after the end: {event:?}");
            match event {
                StreamEvent::Piece {
                    token,
                    text,
                    logprobs,
                } => pieces.push((token, text, logprobs)),
                StreamEvent::Done(outcome) => end = Some(outcome),
                StreamEvent::Started { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        (pieces, end.unwrap())
    };
    asked.iter().map(said).collect()
}

#[test]
fn requests_of_a_batch_say_the_same_with_drafts_to_the_last_bit_of_their_probabilities() {
    let (_folder, path) = tiny();
    let said = [Speculate::Off, Speculate::Lookup].map(|how| {
        let mut b = batch(&path, how);
        let asked: Vec<_> = (0..6u8)
            .map(|i| {
                let s = SamplingConfig {
                    logprobs: Some(3),
                    temperature: 0.2 * f64::from(i % 3),
                    seed: u64::from(i),
                    ..sampling(40 + usize::from(i))
                };
                let prompt = repeating(b.engine(), usize::from(i));
                ask(&mut b, prompt, s, None, || ())
            })
            .collect();
        let said = finish(&mut b, &asked);
        let account = b.account();
        let n = |a: &std::sync::atomic::AtomicU64| {
            usize::try_from(a.load(std::sync::atomic::Ordering::Relaxed)).unwrap()
        };
        let sum = |f: fn(&GenStats) -> usize| said.iter().map(|s| f(&s.1.stats)).sum::<usize>();
        assert_eq!(n(&account.draft_tokens), sum(|s| s.drafted));
        assert_eq!(n(&account.accepted_tokens), sum(|s| s.accepted));
        assert_eq!(n(&account.accepted_tokens) > 20, how == Speculate::Lookup);
        said
    });
    for (want, got) in said[0].iter().zip(&said[1]) {
        assert_eq!(got.0, want.0);
        assert_eq!(got.1.stats.tokens, want.1.stats.tokens);
    }
}

#[test]
fn a_request_that_loses_its_memory_between_two_drafts_goes_on_with_the_same_text() {
    let (_folder, path) = tiny();
    let mut without = batch(&path, Speculate::Off);
    let prompts: Vec<_> = (0..2).map(|i| repeating(without.engine(), i)).collect();
    let plain: Vec<_> = (prompts.iter())
        .map(|p| ask(&mut without, p.clone(), sampling(50), None, || ()))
        .collect();
    let want = finish(&mut without, &plain);
    let mut with = batch(&path, Speculate::Lookup);
    let (mut drafted, mut preempted) = (0, 0);
    for at in [3, 17, 18, 19, 20, 21, 30, 49] {
        let pool = with.engine().pool();
        let mut pieces = 0;
        // In the middle of a step.
        let trim = move || {
            pieces += 1;
            if pieces == at {
                pool.trim(Bytes(u64::MAX), PREEMPT);
            }
        };
        let asked = [
            ask(&mut with, prompts[0].clone(), sampling(50), None, || ()),
            ask(&mut with, prompts[1].clone(), sampling(50), None, trim),
        ];
        let got = finish(&mut with, &asked);
        for (want, got) in want.iter().zip(&got) {
            assert_eq!(got.0, want.0, "at {at}");
        }
        preempted += got[1].1.preemptions;
        drafted += got.iter().map(|g| g.1.stats.accepted).sum::<usize>();
    }
    // One that was at its end had nothing to go on with.
    assert!(drafted > 30 && preempted >= 6, "{drafted} {preempted}");
}

#[test]
fn an_answer_that_follows_a_grammar_is_the_same_with_drafts() {
    let test = "an_answer_that_follows_a_grammar_is_the_same_with_drafts";
    let Some(path) = kvpsi_tests::model(test) else {
        return;
    };
    let schema = serde_json::json!({"type": "array", "minItems": 6, "maxItems": 6, "items": {
        "type": "object", "required": ["name", "size"], "additionalProperties": false,
        "properties": {"name": {"enum": ["river", "mountain"]}, "size": {"type": "integer"}},
    }});
    let said = [Speculate::Off, Speculate::Lookup].map(|how| {
        let mut b = batch(&path, how);
        let vocab = b.engine().decoder().config().vocab;
        let grammars = Grammars::new(&b.engine().shared_tokenizer(), vocab).unwrap();
        let grammar = Grammar::Schema(schema.clone());
        let constraint = grammars.compile(vec![grammar], None).unwrap();
        let text = r#"Sizes: [{"name": "river", "size": 7}, {"name": "mountain", "size": 7}, "#;
        let prompt = b.engine().tokenizer().encode(text, false).unwrap();
        let asked = [ask(&mut b, prompt, sampling(200), Some(constraint), || ())];
        finish(&mut b, &asked).remove(0)
    });
    assert_eq!(said[0].0, said[1].0);
    let text: String = said[1].0.iter().map(|p| p.1.as_str()).collect();
    assert!(
        serde_json::from_str::<serde_json::Value>(&text).is_ok(),
        "{text}"
    );
    assert!(said[1].1.stats.accepted > 10, "{:?}", said[1].1.stats);
}

/// Two samples of one distribution are as near as chance has them (two-sample
/// chi-squared over the tokens at some positions, about one in a thousand; seeds
/// are fixed).
#[test]
fn sampled_tokens_are_distributed_as_without_drafts() {
    const SEEDS: u64 = 400;
    const AT: [usize; 3] = [2, 5, 7];
    let (_folder, path) = tiny();
    let warm = |max_tokens: usize, seed: u64| SamplingConfig {
        temperature: 1.0,
        top_k: Some(2),
        top_p: None,
        seed,
        ..sampling(max_tokens)
    };
    let mut counts: BTreeMap<(usize, u32), [f64; 2]> = BTreeMap::new();
    let (mut drafted, mut accepted) = (0, 0);
    for (side, how) in [Speculate::Off, Speculate::Lookup].into_iter().enumerate() {
        let mut engine = engine(&path, how, |_| ());
        // Of what the model says most pairs were said before.
        let begin = repeating(&engine, 0);
        let said = generate(&mut engine, &begin, &warm(150, 7)).0;
        let prompt = [begin, said].concat();
        for seed in 0..SEEDS {
            // Not the seeds of the other side.
            let s = warm(8, seed + SEEDS * side as u64);
            let (tokens, _, stats) = generate(&mut engine, &prompt, &s);
            drafted += stats.drafted;
            accepted += stats.accepted;
            for at in AT {
                counts.entry((at, tokens[at])).or_default()[side] += 1.0;
            }
        }
    }
    assert!(
        accepted > 100 && drafted > accepted + 100,
        "{accepted} of {drafted}"
    );
    for at in AT {
        let of = counts
            .iter()
            .filter(|((a, _), n)| *a == at && n[0] + n[1] >= 20.0);
        let of: Vec<_> = of.map(|(_, n)| n).collect();
        let chi: f64 = of.iter().map(|[a, b]| (a - b).powi(2) / (a + b)).sum();
        let degrees = of.len() as f64;
        let bound = degrees + 3.1 * (2.0 * degrees).sqrt() + 4.0;
        assert!(
            chi < bound && degrees > 1.0,
            "position {at}: {chi} of {bound}"
        );
    }
}
