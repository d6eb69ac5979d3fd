//! Many requests over one pool, with the real model: what each says does not
//! depend on the others, and what one loses is not another's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{
    engine::{
        Engine, EngineConfig, Finish, SamplingConfig,
        batch::{Ask, Batch, BatchConfig, Client, Failure, Look, Outcome, Progress, StreamEvent},
    },
    kv::{Profile, Step, Steps},
    units::Bytes,
};
use std::{
    sync::mpsc::{Receiver, Sender, channel},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const HOLMES: &str = include_str!("../data/holmes.txt");
const PREEMPT: Steps = Steps::NONE.with(Step::Preempt);

struct Listener {
    events: Sender<StreamEvent>,
    gone: Arc<AtomicBool>,
    /// Runs in the middle of a step, with each piece.
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
        self.gone.load(Relaxed)
    }
}

/// One request as its client sees it.
struct Asked {
    events: Receiver<StreamEvent>,
    gone: Arc<AtomicBool>,
    tokens: Vec<u32>,
    end: Option<Result<Outcome, Failure>>,
}

impl Asked {
    fn listen(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            assert!(self.end.is_none(), "an event after the end: {event:?}");
            match event {
                StreamEvent::Prompt(_) | StreamEvent::Embedding(_) => {
                    panic!("nothing of the prompt was asked for")
                }
                StreamEvent::Started { .. } => {}
                StreamEvent::Piece { token, .. } => self.tokens.extend(token),
                StreamEvent::Done(outcome) => self.end = Some(Ok(outcome)),
                StreamEvent::Failed(failure) => self.end = Some(Err(failure)),
            }
        }
    }
}

fn batch(test: &str, parallel: usize, change: impl FnOnce(&mut EngineConfig)) -> Option<Batch> {
    let mut config = EngineConfig::new(kvpsi_tests::model(test)?);
    config.context = Some(2048);
    config.parallel = parallel;
    config.max_sequences = parallel + 2;
    change(&mut config);
    let engine = Engine::load(&config).unwrap();
    let config = BatchConfig {
        parallel,
        patience: Duration::from_millis(20),
        floor_patience: Duration::from_millis(40),
        ..BatchConfig::default()
    };
    Some(Batch::new(engine, config))
}

fn prompt(batch: &Batch, from: usize, count: usize) -> Vec<u32> {
    let all = batch.engine().tokenizer().encode(HOLMES, false).unwrap();
    all[from..from + count].to_vec()
}

fn greedy(max_tokens: usize) -> SamplingConfig {
    SamplingConfig {
        max_tokens,
        temperature: 0.0,
        repeat_penalty: 1.0,
        ignore_eos: true,
        ..SamplingConfig::default()
    }
}

fn ask(batch: &mut Batch, tokens: Vec<u32>, count: usize, deadline: Duration) -> Asked {
    ask_with(batch, tokens, count, deadline, || ())
}

fn ask_with(
    batch: &mut Batch,
    tokens: Vec<u32>,
    count: usize,
    deadline: Duration,
    with_piece: impl FnMut() + Send + 'static,
) -> Asked {
    let (sender, events) = channel();
    let gone = Arc::new(AtomicBool::new(false));
    batch.submit(Ask {
        look: None,
        id: "x".into(),
        tokens,
        sampling: greedy(count),
        constraint: None,
        arrived: Instant::now(),
        deadline: Instant::now() + deadline,
        client: Box::new(Listener {
            events: sender,
            gone: gone.clone(),
            with_piece: Box::new(with_piece),
        }),
    });
    Asked {
        events,
        gone,
        tokens: Vec::new(),
        end: None,
    }
}

const LONG: Duration = Duration::from_secs(300);

/// Steps until nothing is left to do; `at` is run after each.
fn finish(batch: &mut Batch, asked: &mut [Asked], mut at: impl FnMut(usize, &mut [Asked])) {
    for step in 0.. {
        let progress = batch.step();
        asked.iter_mut().for_each(Asked::listen);
        at(step, asked);
        match progress {
            Progress::Idle => return,
            Progress::Blocked => std::thread::sleep(Duration::from_millis(2)),
            Progress::Worked => {}
        }
        assert!(step < 20_000, "it does not come to an end");
    }
}

fn alone(batch: &mut Batch, tokens: &[u32], count: usize) -> Vec<u32> {
    let mut asked = [ask(batch, tokens.to_vec(), count, LONG)];
    finish(batch, &mut asked, |_, _| ());
    let pool = batch.engine().pool();
    pool.trim(Bytes(u64::MAX), Steps::FREE);
    std::mem::take(&mut asked[0].tokens)
}

#[test]
fn each_sequence_gives_its_text_alone_and_every_block_is_free_after() {
    let test = "each_sequence_gives_its_text_alone_and_every_block_is_free_after";
    let Some(mut b) = batch(test, 4, |_| ()) else {
        return;
    };
    // Within a chunk: how a prompt is cut changes last bits.
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| prompt(&b, i * 50, 10 + 4 * i)).collect();
    let want: Vec<Vec<u32>> = prompts.iter().map(|p| alone(&mut b, p, 24)).collect();
    let mut asked: Vec<Asked> = (prompts.iter())
        .map(|p| ask(&mut b, p.clone(), 24, LONG))
        .collect();
    let mut most = 0;
    let account = b.account();
    finish(&mut b, &mut asked, |_, _| {
        most = most.max(account.running.load(Relaxed));
    });
    assert_eq!(most, 4, "four at once, and no more");
    for (a, want) in asked.iter().zip(&want) {
        assert_eq!(&a.tokens, want);
        let outcome = a.end.clone().unwrap().unwrap();
        assert_eq!(outcome.stats.finish, Finish::MaxTokens);
    }
    let kv = b.engine().pool().account();
    assert_eq!((kv.in_use, kv.live_tokens), (Bytes::ZERO, 0));
    assert_eq!(kv.resident.0, kv.cached.0 + kv.slack.0);
}

#[test]
fn one_who_generates_waits_for_no_more_than_a_chunk_of_anothers_prompt() {
    let test = "one_who_generates_waits_for_no_more_than_a_chunk_of_anothers_prompt";
    let Some(mut b) = batch(test, 2, |_| ()) else {
        return;
    };
    let (short, long) = (prompt(&b, 0, 8), prompt(&b, 100, 400));
    let mut asked = vec![ask(&mut b, short, 60, LONG)];
    b.step();
    asked[0].listen();
    asked.push(ask(&mut b, long, 4, LONG));
    let mut before = asked[0].tokens.len();
    finish(&mut b, &mut asked, |_, asked| {
        // Every step gives it a token, until it has all.
        let now = asked[0].tokens.len();
        assert!(now == before + 1 || now == 60, "{before} -> {now}");
        before = now;
        // 400 tokens in chunks of 32 are 13 steps.
        if asked[1].tokens.is_empty() {
            assert!(now < 20, "the prompt takes {now} steps");
        }
    });
    assert!(asked.iter().all(|a| matches!(a.end, Some(Ok(_)))));
}

#[test]
fn a_client_that_disconnects_or_is_late_frees_all_it_had() {
    let Some(mut b) = batch(
        "a_client_that_disconnects_or_is_late_frees_all_it_had",
        2,
        |_| (),
    ) else {
        return;
    };
    let tokens = prompt(&b, 0, 40);
    let mut asked = vec![
        ask(&mut b, tokens.clone(), 500, LONG),
        ask(&mut b, tokens.clone(), 500, Duration::from_millis(300)),
        // In the queue.
        ask(&mut b, tokens.clone(), 5, Duration::ZERO),
        ask(&mut b, tokens, 5, LONG),
    ];
    finish(&mut b, &mut asked, |_, asked| {
        if asked[0].tokens.len() == 10 {
            asked[0].gone.store(true, Relaxed);
        }
    });
    assert!(asked[0].end.is_none() && asked[0].tokens.len() < 13);
    assert_eq!(asked[1].end, Some(Err(Failure::Deadline)));
    assert_eq!(asked[2].end, Some(Err(Failure::Deadline)));
    assert!(matches!(asked[3].end, Some(Ok(_))));
    let account = b.account();
    let n = |a: &std::sync::atomic::AtomicU64| a.load(Relaxed);
    assert_eq!(
        (
            n(&account.cancelled),
            n(&account.failed),
            n(&account.finished)
        ),
        (1, 2, 1)
    );
    assert_eq!(b.engine().pool().account().in_use, Bytes::ZERO);
}

#[test]
fn one_that_lost_all_its_memory_goes_on_with_the_same_text() {
    let test = "one_that_lost_all_its_memory_goes_on_with_the_same_text";
    let Some(mut b) = batch(test, 2, |c| c.profile = Profile::Lossless) else {
        return;
    };
    let (first, second) = (prompt(&b, 0, 30), prompt(&b, 300, 90));
    let want = [alone(&mut b, &first, 40), alone(&mut b, &second, 40)];
    let pool = b.engine().pool();
    // The first as alone; the second's prompt goes beside it, in chunks.
    let mut asked = vec![ask(&mut b, first, 40, LONG), ask(&mut b, second, 40, LONG)];
    let mut preempted = 0;
    finish(&mut b, &mut asked, |step, _| {
        if step == 2 || step == 20 {
            let t = pool.trim(Bytes(u64::MAX), PREEMPT);
            preempted += t.preempted;
        }
    });
    assert_eq!(preempted, 2);
    assert_eq!(asked[0].tokens, want[0]);
    let [a, b] = [0, 1].map(|i| asked[i].end.clone().unwrap().unwrap());
    assert_eq!((a.preemptions, b.preemptions), (0, 2));
    assert_eq!((b.loss.tokens, b.stats.tokens), (0, 40));
}

#[test]
fn one_that_lost_its_memory_before_its_last_token_ends_once() {
    let test = "one_that_lost_its_memory_before_its_last_token_ends_once";
    let Some(mut b) = batch(test, 2, |_| ()) else {
        return;
    };
    const COUNT: usize = 6;
    let (first, second) = (prompt(&b, 0, 30), prompt(&b, 300, 20));
    let want = alone(&mut b, &second, COUNT);
    let pool = b.engine().pool();
    let said = Arc::new(AtomicUsize::new(0));
    let (counts, sees) = (said.clone(), said.clone());
    let of_first = pool.clone();
    let mut asked = vec![
        // Its token of a step is sent before the other's: what that is to be
        // taken from is computed, and then lost.
        ask_with(&mut b, first, 40, LONG, move || {
            if sees.load(Relaxed) == COUNT - 1 {
                of_first.trim(Bytes(u64::MAX), PREEMPT);
            }
        }),
        ask_with(&mut b, second, COUNT, LONG, move || {
            counts.fetch_add(1, Relaxed);
        }),
    ];
    finish(&mut b, &mut asked, |_, _| ());
    let outcome = asked[1].end.clone().unwrap().unwrap();
    assert!(outcome.preemptions >= 1);
    assert_eq!(asked[1].tokens, want);
    let account = b.account();
    let ends = [&account.failed, &account.finished].map(|n| n.load(Relaxed));
    assert_eq!(ends, [0, 3], "each request has one end");
    assert_eq!(pool.account().in_use, Bytes::ZERO);
}

#[test]
fn one_that_is_alone_goes_on_though_the_budget_stays_spent() {
    let test = "one_that_is_alone_goes_on_though_the_budget_stays_spent";
    let Some(mut b) = batch(test, 2, |_| ()) else {
        return;
    };
    let pool = b.engine().pool();
    let mut asked: Vec<Asked> = (0..2)
        .map(|i| {
            let tokens = prompt(&b, 100 * i, 60);
            ask(&mut b, tokens, 20, LONG)
        })
        .collect();
    finish(&mut b, &mut asked, |step, _| {
        if step > 3 {
            // A neighbour that never comes to rest.
            if step % 7 == 0 {
                pool.trim(Bytes(u64::MAX), PREEMPT);
            }
            pool.set_budget(Bytes::ZERO);
        }
    });
    let outcomes = asked.iter().map(|a| a.end.clone().unwrap().unwrap());
    assert!(outcomes.map(|o| o.preemptions).sum::<u64>() > 0);
    assert_eq!(pool.account().in_use, Bytes::ZERO);
}

#[test]
fn a_request_waits_for_memory_and_fails_only_when_not_even_its_floor_is_there() {
    let test = "a_request_waits_for_memory_and_fails_only_when_not_even_its_floor_is_there";
    // Where tokens are dropped and not written in fewer bits.
    let token = 30 * 3 * 64 * 2 * 2;
    // A floor is 32 sinks, 256 recent tokens, and the block that is written.
    let Some(mut b) = batch(test, 2, |c| {
        c.profile = Profile::Latency;
        c.obtainable = || Bytes::ZERO;
    }) else {
        return;
    };
    let tokens = prompt(&b, 0, 600);
    let pool = b.engine().pool();
    assert_eq!(pool.shape().token_bytes().0, token);
    pool.set_budget(Bytes(token * 200));
    let mut asked = [ask(&mut b, tokens.clone(), 4, LONG)];
    let began = Instant::now();
    finish(&mut b, &mut asked, |_, _| ());
    assert!(began.elapsed() >= Duration::from_millis(40), "it waited");
    assert!(
        matches!(asked[0].end, Some(Err(Failure::NoMemory { .. }))),
        "{:?}",
        asked[0].end
    );
    assert!(
        pool.wanted() > Bytes::ZERO,
        "and it was said how much is wanted"
    );

    // What a user gave is never more: it is said at once.
    pool.set_limit(Bytes(token * 200));
    let mut asked = [ask(&mut b, tokens.clone(), 4, LONG)];
    finish(&mut b, &mut asked, |_, _| ());
    assert!(
        matches!(asked[0].end, Some(Err(Failure::OverBudget { .. }))),
        "{:?}",
        asked[0].end
    );

    // Less than the prompt, more than the floor: it goes on, and loses some.
    pool.set_limit(Bytes(token * 400));
    pool.set_budget(Bytes(token * 400));
    let began = Instant::now();
    let mut asked = [ask(&mut b, tokens, 4, LONG)];
    finish(&mut b, &mut asked, |_, _| ());
    let outcome = asked[0].end.clone().unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(20), "it waited");
    assert!(
        outcome.loss.tokens > 0 && outcome.loss.mass > 0.0,
        "{outcome:?}"
    );
    let a = pool.account();
    assert!(
        a.resident.0 <= pool.budget().0 + pool.shape().block_bytes().0 * 2,
        "{a:?}"
    );
}

#[test]
fn the_beginning_that_two_prompts_share_is_computed_once() {
    let test = "the_beginning_that_two_prompts_share_is_computed_once";
    let Some(mut b) = batch(test, 2, |_| ()) else {
        return;
    };
    let shared = prompt(&b, 0, 200);
    let mut asked = [ask(&mut b, shared.clone(), 4, LONG)];
    finish(&mut b, &mut asked, |_, _| ());
    let more = [shared, prompt(&b, 900, 20)].concat();
    let mut asked = [ask(&mut b, more, 4, LONG)];
    finish(&mut b, &mut asked, |_, _| ());
    assert_eq!(asked[0].end.clone().unwrap().unwrap().cached_tokens, 192);
}

/// What was seen of a chunk whose memory was taken meanwhile means nothing.
#[test]
fn a_prompt_that_is_looked_at_gives_the_same_when_it_loses_its_memory() {
    let Some(mut batch) = batch("look", 1, |_| ()) else {
        return;
    };
    let tokens = prompt(&batch, 0, 700);
    let pool = batch.engine().pool();
    let mut embed = |losses: usize| {
        let (sender, events) = channel();
        batch.submit(Ask {
            look: Some(Look::Embedding),
            id: "x".into(),
            tokens: tokens.clone(),
            sampling: greedy(1),
            constraint: None,
            arrived: Instant::now(),
            deadline: Instant::now() + Duration::from_secs(60),
            client: Box::new(Listener {
                events: sender,
                gone: Arc::default(),
                with_piece: Box::new(|| ()),
            }),
        });
        let (mut steps, mut lost) = (0, 0);
        while batch.step() != Progress::Idle {
            steps += 1;
            // After its first chunk, and again after the next one.
            if lost < losses && steps % 2 == 1 {
                lost += 1;
                let t = pool.trim(Bytes(u64::MAX), PREEMPT.to_the_last());
                assert_eq!(t.preempted, 1);
                pool.set_budget(pool.capacity());
            }
        }
        let all: Vec<StreamEvent> = events.try_iter().collect();
        let [
            StreamEvent::Started { .. },
            StreamEvent::Embedding(embedding),
            StreamEvent::Done(outcome),
        ] = all.as_slice()
        else {
            panic!("{all:?}");
        };
        assert_eq!(outcome.preemptions, losses as u64);
        embedding.clone()
    };
    let whole = embed(0);
    assert_eq!(embed(1), whole);
    assert_eq!(embed(2), whole);
}
