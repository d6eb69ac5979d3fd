//! What reclaim leaves of a conversation, with the real model: cached prefixes,
//! preemption, recomputation, and all of it at once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{
    engine::{Engine, EngineConfig, Recomputed, SamplingConfig, Session},
    eval::Score,
    kv::{KvType, Profile, Step, Steps, evict::Evict},
    units::Bytes,
};
use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

const HOLMES: &str = include_str!("../data/holmes.txt");
const PREEMPT: Steps = Steps::NONE.with(Step::Preempt);

fn engine(test: &str) -> Option<Engine> {
    let path = kvpsi_tests::model(test)?;
    let mut config = EngineConfig::new(path);
    config.context = Some(4096);
    Some(Engine::load(&config).unwrap())
}

fn tokens(engine: &Engine, from: usize, count: usize) -> Vec<u32> {
    let all = engine.tokenizer().encode(HOLMES, false).unwrap();
    all[from..from + count].to_vec()
}

fn sampling(max_tokens: usize) -> SamplingConfig {
    SamplingConfig {
        max_tokens,
        seed: 3,
        ..SamplingConfig::default()
    }
}

/// Generates; `at` is run before the token of that number.
fn answer(
    engine: &mut Engine,
    session: &mut Session,
    prompt: &[u32],
    count: usize,
    at: &mut dyn FnMut(usize),
) -> Vec<u32> {
    let mut out = vec![];
    let stats = engine.generate_in(session, prompt, &sampling(count), &mut |piece| {
        out.extend(piece.token);
        at(out.len());
        ControlFlow::Continue(())
    });
    assert_eq!(stats.unwrap().tokens, out.len());
    out
}

#[test]
fn a_preempted_session_goes_on_with_the_same_text() {
    let Some(mut e) = engine("a_preempted_session_goes_on_with_the_same_text") else {
        return;
    };
    let prompt = tokens(&e, 0, 300);
    let mut alone = e.open().unwrap();
    let want = answer(&mut e, &mut alone, &prompt, 60, &mut |_| ());
    drop(alone);
    // Nothing of it is to be found in the cache.
    let pool = e.pool();
    pool.trim(Bytes(u64::MAX), Steps::FREE);

    let mut older = e.open().unwrap();
    let other = tokens(&e, 1000, 100);
    answer(&mut e, &mut older, &other, 5, &mut |_| ());
    let mut younger = e.open().unwrap();
    let got = answer(&mut e, &mut younger, &prompt, 60, &mut |n| {
        if n == 7 || n == 41 {
            let t = pool.trim(Bytes(u64::MAX), PREEMPT);
            assert!(
                (t.preempted, t.tokens) == (1, 0) && t.bytes > Bytes::ZERO,
                "{t:?}"
            );
        }
    });
    assert_eq!(got, want);
    assert_eq!(younger.preemptions(), 2);
    drop(younger);
    pool.trim(Bytes(u64::MAX), Steps::FREE);

    // And while it is computed anew.
    let mut younger = e.open().unwrap();
    let mut presser = None;
    let got = answer(&mut e, &mut younger, &prompt, 60, &mut |n| {
        if n == 30 {
            let pool = pool.clone();
            presser = Some(std::thread::spawn(move || {
                for _ in 0..6 {
                    pool.trim(Bytes(u64::MAX), PREEMPT);
                    std::thread::sleep(Duration::from_millis(31));
                }
            }));
        }
    });
    presser.unwrap().join().unwrap();
    assert_eq!(got, want);
    assert!(younger.preemptions() > 0);
    assert!(older.seq().is_some_and(|s| !pool.preempted(s)));
    assert_eq!(pool.account().writes_lost, 0);
}

/// Mean loss over `text` after the session, and its last logits.
fn read(e: &mut Engine, session: &mut Session, text: &[u32]) -> (Score, Vec<f32>) {
    let (mut score, mut last) = (Score::default(), vec![]);
    e.read_in(session, text, &mut |row, logits| {
        if let Some(next) = text.get(row + 1) {
            score.add(logits, *next);
        }
        last = logits.to_vec();
    })
    .unwrap();
    (score, last)
}

#[test]
fn a_recomputed_session_is_as_if_it_had_never_been_trimmed() {
    let Some(mut e) = engine("a_recomputed_session_is_as_if_it_had_never_been_trimmed") else {
        return;
    };
    let (prompt, after) = (tokens(&e, 0, 900), tokens(&e, 900, 128));
    let pool = e.pool();
    let mut results = vec![];
    for (steps, pack) in [
        (Steps::NONE, false),
        (Steps::WINDOW, false),
        (Steps::NONE, true),
    ] {
        let mut session = e.open().unwrap();
        let grown = answer(&mut e, &mut session, &prompt, 40, &mut |_| ());
        let before = session.tokens().len();
        if pack {
            let most = Bytes(pool.account().in_use.0 / 5);
            let all = Profile::Balanced.steps(false);
            e.ladder().fit(most, all, &mut |_| ());
        } else {
            pool.trim(Bytes::mib(9), steps);
        }
        let lost = session.lost_tokens();
        assert_eq!(lost > 0, pack || steps == Steps::WINDOW, "{lost}");
        let never = Arc::new(AtomicBool::new(false));
        let recomputed = e.recompute(&mut session, &never).unwrap();
        match lost {
            0 => assert_eq!(recomputed, Recomputed::Whole),
            _ => assert!(
                matches!(recomputed, Recomputed::Done(n) if n > 600),
                "{recomputed:?}"
            ),
        }
        assert_eq!((session.lost_tokens(), session.tokens().len()), (0, before));
        let (score, mut logits) = read(&mut e, &mut session, &after);
        // The cache has nothing worse of it either.
        assert!(session.park());
        logits.extend(read(&mut e, &mut session, &after[..9]).1);
        results.push((grown, score.perplexity(), logits));
        drop(session);
        pool.trim(Bytes(u64::MAX), Steps::FREE);
        assert_eq!(pool.account().resident, Bytes(0));
    }
    let (grown, ppl, logits) = &results[0];
    for (g, p, l) in &results[1..] {
        assert_eq!(g, grown);
        let most = l.iter().zip(logits).map(|(a, b)| (a - b).abs());
        let most = most.fold(0f32, f32::max);
        eprintln!("perplexity {p:.5} recomputed, {ppl:.5} untouched; logits differ by {most}");
        assert!(
            most <= 1e-2 && (p / ppl - 1.0).abs() < 1e-4,
            "{most} {p} {ppl}"
        );
    }
}

#[test]
fn recomputation_stops_within_a_layer_and_loses_nothing() {
    let Some(mut e) = engine("recomputation_stops_within_a_layer_and_loses_nothing") else {
        return;
    };
    let prompt = tokens(&e, 0, 1500);
    let pool = e.pool();
    let mut session = e.open().unwrap();
    answer(&mut e, &mut session, &prompt, 4, &mut |_| ());
    let stop = Arc::new(AtomicBool::new(false));
    pool.trim(Bytes::mib(12), Steps::WINDOW);
    let begun = Instant::now();
    let done = e.recompute(&mut session, &stop).unwrap();
    let whole = begun.elapsed();
    assert!(matches!(done, Recomputed::Done(n) if n > 1000), "{done:?}");

    pool.trim(Bytes(u64::MAX), Steps::FREE);
    pool.trim(Bytes::mib(12), Steps::WINDOW);
    let (live, lost) = (pool.account().live_tokens, session.lost_tokens());
    // Asked to before it begins: it ends at the first layer, not after a chunk
    // (of six, of 30 layers each).
    stop.store(true, SeqCst);
    let mut at_once = || {
        let begun = Instant::now();
        assert_eq!(
            e.recompute(&mut session, &stop).unwrap(),
            Recomputed::Interrupted
        );
        begun.elapsed()
    };
    let first_layer = (0..5).map(|_| at_once()).min().unwrap();
    assert!(first_layer < whole / 30, "{first_layer:?} of {whole:?}");
    // In the middle: what was computed is there to go on from, and cached.
    stop.store(false, SeqCst);
    let setter = stop.clone();
    let alarm = std::thread::spawn(move || {
        std::thread::sleep(whole / 2);
        setter.store(true, SeqCst);
    });
    let before = pool.account().cache_hit_tokens;
    let midway = e.recompute(&mut session, &stop).unwrap();
    alarm.join().unwrap();
    stop.store(false, SeqCst);
    if midway == Recomputed::Interrupted {
        assert_eq!(
            (session.lost_tokens(), pool.account().live_tokens),
            (lost, live)
        );
        let done = e.recompute(&mut session, &stop).unwrap();
        assert!(matches!(done, Recomputed::Done(_)), "{done:?}");
        assert!(pool.account().cache_hit_tokens > before);
    }
    assert_eq!(session.lost_tokens(), 0);
}

#[test]
fn a_second_turn_prefills_only_what_is_new() {
    let Some(mut e) = engine("a_second_turn_prefills_only_what_is_new") else {
        return;
    };
    let (prompt, more) = (tokens(&e, 0, 2000), tokens(&e, 5000, 12));
    let mut session = e.open().unwrap();
    let mut ttft = vec![];
    for text in [&prompt, &more] {
        let sink = &mut |_: kvpsi::engine::Piece<'_>| ControlFlow::Continue(());
        let stats = e
            .generate_in(&mut session, text, &sampling(8), sink)
            .unwrap();
        assert!(session.park() && session.seq().is_none());
        ttft.push((stats.prompt_tokens, stats.ttft));
    }
    eprintln!("first turn {:?}, second {:?}", ttft[0], ttft[1]);
    assert!(ttft[1].0 < 12 + 8 + 32, "{ttft:?}");
    assert!(ttft[1].1 * 10 <= ttft[0].1, "{ttft:?}");
    // All of it is cached, and the first real memory to go.
    let a = e.pool().account();
    assert_eq!((a.in_use, a.live_tokens), (Bytes(0), 0));
    let t = e.pool().trim(Bytes(u64::MAX), Steps::FREE);
    assert_eq!((t.of(Step::Cached), t.tokens), (a.cached, 0));
    // And computed anew when it is asked for again.
    let sink = &mut |_: kvpsi::engine::Piece<'_>| ControlFlow::Continue(());
    let stats = e
        .generate_in(&mut session, &more, &sampling(8), sink)
        .unwrap();
    assert!(stats.prompt_tokens > 2000);
}

#[test]
fn two_sessions_share_the_blocks_of_a_common_beginning() {
    let Some(mut e) = engine("two_sessions_share_the_blocks_of_a_common_beginning") else {
        return;
    };
    let common = tokens(&e, 0, 640);
    let mut a = e.open().unwrap();
    answer(&mut e, &mut a, &common, 3, &mut |_| ());
    let before = e.pool().account();
    let mut b = e.open().unwrap();
    let prompt = [common, tokens(&e, 3000, 40)].concat();
    let with = answer(&mut e, &mut b, &prompt, 20, &mut |_| ());
    let after = e.pool().account();
    let more = after.in_use.0 - before.in_use.0;
    assert!(more <= 3 * e.pool().shape().block_bytes().0, "{more}");
    assert_eq!(after.cache_hit_tokens - before.cache_hit_tokens, 640);
    drop((a, b));
    e.pool().trim(Bytes(u64::MAX), Steps::FREE);
    let mut alone = e.open().unwrap();
    assert_eq!(
        answer(&mut e, &mut alone, &prompt, 20, &mut |_| ()).len(),
        with.len()
    );
}

#[test]
fn a_lossless_profile_drops_no_token_and_a_floor_is_kept() {
    let name = "a_lossless_profile_drops_no_token_and_a_floor_is_kept";
    let Some(path) = kvpsi_tests::model(name) else {
        return;
    };
    for (profile, floor) in [(Profile::Lossless, 0), (Profile::Balanced, 1200)] {
        let mut config = EngineConfig::new(&path);
        config.context = Some(4096);
        config.profile = profile;
        config.evict = Evict::Keydiff;
        config.floor_tokens = floor;
        let mut e = Engine::load(&config).unwrap();
        // As the reactor sets it: a floor may exceed it.
        e.pool().set_budget(Bytes::mib(12));
        let mut session = e.open().unwrap();
        let prompt = tokens(&e, 0, 1500);
        answer(&mut e, &mut session, &prompt, 8, &mut |_| ());
        let live = e.pool().account().live_tokens;
        e.pool().trim(Bytes(u64::MAX), profile.steps(true));
        match profile {
            Profile::Lossless => assert_eq!((session.lost_tokens(), live), (0, 1507)),
            _ => assert!(e.pool().account().live_tokens >= 1200 && session.lost_tokens() > 0),
        }
    }
    let mut config = EngineConfig::new(&path);
    config.context = Some(512);
    config.floor_tokens = 600;
    let e = Engine::load(&config).unwrap_err().to_string();
    assert!(e.contains("--kv-floor 600") && e.contains("512"), "{e}");
}

#[test]
fn a_budget_that_a_user_sets_holds_where_no_token_may_be_dropped() {
    let name = "a_budget_that_a_user_sets_holds_where_no_token_may_be_dropped";
    let Some(path) = kvpsi_tests::model(name) else {
        return;
    };
    let mut config = EngineConfig::new(&path);
    config.context = Some(4096);
    config.kv_budget = Some(Bytes::mib(8));
    config.profile = Profile::Lossless;
    let mut e = Engine::load(&config).unwrap();
    let mut session = e.open().unwrap();
    let mut said = |_: kvpsi::engine::Piece<'_>| ControlFlow::Continue(());
    // A prompt that it never holds is an error, an answer that grows beyond it ends.
    let prompt = tokens(&e, 0, 600);
    let error = e.generate_in(&mut session, &prompt, &sampling(4), &mut said);
    let error = error.unwrap_err().to_string();
    let says = ["600 tokens", "allows 8.0 MiB", "--kv-budget 14 or more"];
    assert!(says.iter().all(|s| error.contains(s)), "{error}");
    assert!(e.pool().account().resident <= Bytes::mib(8));
    drop(session);
    let mut session = e.open().unwrap();
    let prompt = tokens(&e, 0, 340);
    let stats = e.generate_in(&mut session, &prompt, &sampling(60), &mut said);
    assert_eq!(stats.unwrap().finish, kvpsi::engine::Finish::Exhausted);
    assert!(e.pool().account().resident <= Bytes::mib(8));
    assert_eq!(session.lost_tokens(), 0);
    drop(session);
    assert!(e.pool().account().resident <= Bytes::mib(8));
}

/// Pressure at any time: while prompts are read, tokens made, sessions recomputed
/// and ended.
#[test]
fn pressure_at_any_time_leaves_every_page_counted() {
    let Some(mut e) = engine("pressure_at_any_time_leaves_every_page_counted") else {
        return;
    };
    let (pool, ladder) = (e.pool(), e.ladder());
    let stop = Arc::new(AtomicBool::new(false));
    let hold = Arc::new(AtomicBool::new(false));
    let texts: Vec<_> = (0..4).map(|i| tokens(&e, i * 700, 500)).collect();
    let presser = std::thread::spawn({
        let (pool, stop, hold) = (pool.clone(), stop.clone(), hold.clone());
        move || {
            let (mut n, mut given) = (0u64, 0);
            while !stop.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(23));
                n += 1;
                // A whole sequence twice only: to compute it again takes seconds
                // on a busy machine, and it must come to an end.
                let steps = if n == 100 || n == 300 {
                    Steps::ALL
                } else {
                    Steps::WINDOW
                };
                given += pool.trim(Bytes::mib(3), steps).bytes.0;
                hold.store(true, SeqCst);
            }
            given
        }
    });
    let packer = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut n = 0u64;
            while !stop.load(SeqCst) {
                let all = Profile::Balanced.steps(false);
                n += u64::from(ladder.step(Bytes::mib(1), all).is_some());
                std::thread::sleep(Duration::from_millis(7));
            }
            n
        }
    });
    let until = Instant::now() + Duration::from_secs(15);
    let (mut kept, mut recomputed) = (Vec::new(), 0);
    while Instant::now() < until {
        let mut session = e.open().unwrap();
        let text = &texts[kept.len() % texts.len()];
        answer(&mut e, &mut session, text, 20, &mut |_| ());
        hold.store(false, SeqCst);
        recomputed += usize::from(matches!(
            e.recompute(&mut session, &hold).unwrap(),
            Recomputed::Done(_)
        ));
        kept.push(session);
        if kept.len() > 3 {
            drop(kept.remove(0));
        }
    }
    stop.store(true, SeqCst);
    let (given, slow) = (presser.join().unwrap(), packer.join().unwrap());
    eprintln!("{given} bytes trimmed, {slow} slow steps, {recomputed} sessions recomputed");
    assert!(given > 0 && slow > 0);
    drop(kept);
    pool.trim(Bytes(u64::MAX), Steps::FREE);
    let a = pool.account();
    assert_eq!((a.resident, a.live_tokens, a.writes_lost), (Bytes(0), 0, 0));
}

/// The encodings that a pool may be packed down to are named by the command.
#[test]
fn every_encoding_can_be_the_first_one() {
    let Some(path) = kvpsi_tests::model("every_encoding_can_be_the_first_one") else {
        return;
    };
    for kind in KvType::ALL {
        let mut config = EngineConfig::new(&path);
        config.context = Some(512);
        config.kv_type = kind;
        let mut e = Engine::load(&config).unwrap();
        let mut session = e.open().unwrap();
        let prompt = tokens(&e, 0, 200);
        assert!(!answer(&mut e, &mut session, &prompt, 16, &mut |_| ()).is_empty());
    }
}
