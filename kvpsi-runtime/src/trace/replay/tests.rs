//! Recordings made by hand, played.

use super::*;
use crate::control::wall::CgroupLevel;
use crate::trace::recording::{Head, Recorded};
use bytemuck::Zeroable;
use kvpsi_common::{Kind, Phase};
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn event(ts_ns: u64, kind: Kind, phase: Phase) -> Entry {
    let mut e = Event::zeroed();
    (e.ts_ns, e.kind, e.phase, e.stalled_now) = (ts_ns, kind as u16, phase as u16, 1);
    Entry::Event(Recorded::from(&e))
}

fn levels(ts_ns: u64, usage_mib: u64) -> Entry {
    Entry::Levels {
        ts_ns,
        levels: Levels {
            cgroup: Some(CgroupLevel {
                usage: Bytes::mib(usage_mib),
                limit: Bytes::mib(200),
                ..CgroupLevel::default()
            }),
            ..Levels::default()
        },
    }
}

fn recording(entries: Vec<Entry>) -> Recording {
    Recording {
        head: Head {
            page_bytes: 4096,
            ..Head::default()
        },
        entries,
        damage: None,
    }
}

fn play(r: &Recording, profile: Profile) -> Outcome {
    let setup = Setup {
        profile,
        budget: Some(Bytes::mib(64)),
        tokens_per_s: 0,
        ..Setup::default()
    };
    simulate(r, &setup, &mut |_, _| ()).unwrap()
}

/// At the limit, where a 64th of it is to stay free, and calm after.
fn burst() -> Recording {
    recording(vec![
        levels(MS, 150),
        event(10 * MS, Kind::MemcgReclaim, Phase::Onset),
        levels(10 * MS + 100, 200),
        levels(900 * MS, 150),
    ])
}

#[test]
fn what_is_missing_is_given_back_by_the_steps_of_the_profile() {
    for profile in [Profile::Latency, Profile::Balanced, Profile::Lossless] {
        let out = play(&burst(), profile);
        let by = |step: Step| out.by_step[step as usize - 1].0;
        let total: u64 = out.by_step.iter().map(|b| b.0).sum();
        assert!(
            total >= 200 << 14 || profile == Profile::Lossless,
            "{profile:?}: {out:?}"
        );
        match profile {
            Profile::Latency => {
                assert_eq!((by(Step::Pack), by(Step::Thin)), (0, 0));
                assert!(out.dropped_tokens > 0);
            }
            Profile::Balanced => {
                assert!(by(Step::Pack) > 0 && by(Step::Window) > 0, "{out:?}");
                assert_eq!(out.trims[0].trigger, "onset");
                assert_eq!(out.trims.last().unwrap().trigger, "background");
            }
            // No token; and the only conversation goes on.
            Profile::Lossless => assert_eq!((out.dropped_tokens, total), (0, 0)),
        }
        assert_eq!(out.events.delivered, 1);
        assert!(out.least.0 <= (64 << 20) - total.min(64 << 20) + (1 << 20));
    }
}

#[test]
fn the_cache_begins_and_grows_as_recorded() {
    let kv = |ts_ms: u64, mib: u64| Entry::Kv {
        ts_ns: ts_ms * MS,
        resident: Bytes::mib(mib),
        in_use: Bytes::mib(mib),
        cached: Bytes::ZERO,
        floor: Bytes::mib(1),
        budget: Bytes::mib(64),
        tokens: 0,
    };
    let mut entries = vec![kv(1, 8), kv(5, 20)];
    entries.extend(burst().entries);
    let r = recording(entries);
    let out = play(&r, Profile::Latency);
    let given: u64 = out.by_step.iter().map(|b| b.0).sum();
    assert_eq!(out.resident.0 + given, 20 << 20);
    // Had the cache been smaller, as much less would have been missing.
    assert!(given >= 200 << 13, "{out:?}");
}

#[test]
fn a_stall_of_another_cgroup_moves_nothing() {
    let r = recording(vec![
        event(10 * MS, Kind::MemcgReclaim, Phase::Onset),
        levels(10 * MS, 100),
    ]);
    let out = play(&r, Profile::Balanced);
    assert_eq!((out.trims.len(), out.ignored), (0, 1));
}

#[test]
fn the_cache_grows_back_in_calm() {
    let mut r = burst();
    r.entries.push(levels(30_000 * MS, 50));
    let setup = Setup {
        budget: Some(Bytes::mib(64)),
        tokens_per_s: 1000,
        profile: Profile::Latency,
        ..Setup::default()
    };
    let out = simulate(&r, &setup, &mut |_, _| ()).unwrap();
    assert!(
        out.least < Bytes::mib(63) && out.resident == Bytes::mib(64),
        "{out:?}"
    );
}

proptest! {
    #[test]
    fn the_same_recording_gives_the_same_decisions_and_no_byte_twice(
        steps in prop::collection::vec((1..400u64, 100..260u64, 0..14usize, any::<bool>()), 1..60),
        profile in prop::sample::select(vec![Profile::Lossless, Profile::Balanced, Profile::Latency]),
    ) {
        let mut ts = 0;
        let mut entries = Vec::new();
        for (ms, usage, kind, onset) in steps {
            ts += ms * MS / 4;
            let phase = if onset { Phase::Onset } else { Phase::Summary };
            entries.push(event(ts, Kind::ALL[kind], phase));
            entries.push(levels(ts, usage));
        }
        let r = recording(entries);
        let a = play(&r, profile);
        prop_assert_eq!(&a, &play(&r, profile));
        let given: u64 = a.by_step.iter().map(|b| b.0).sum();
        // Nothing is appended here.
        prop_assert_eq!(a.resident.0 + given, 64 << 20);
        prop_assert_eq!(a.trims.iter().map(|t| t.bytes().0).sum::<u64>(), given);
        if profile == Profile::Lossless {
            prop_assert_eq!(a.dropped_tokens, 0);
        }
    }
}

#[test]
fn numbers_that_no_machine_has_are_refused_by_name() {
    let refused = |r: &Recording| {
        let setup = Setup::default();
        let played = simulate(r, &setup, &mut |_, _| ());
        played.expect_err("refused").to_string()
    };
    let kv = |resident| Entry::Kv {
        ts_ns: MS,
        resident: Bytes(resident),
        in_use: Bytes(resident),
        cached: Bytes::ZERO,
        floor: Bytes::ZERO,
        budget: Bytes(resident),
        tokens: 0,
    };
    for (entry, what) in [
        (kv(u64::MAX), "cache_bytes"),
        (levels(u64::MAX, 1), "time_ns"),
        (levels(MS, 1 << 40), "memory_bytes"),
        (event(u64::MAX, Kind::MemcgReclaim, Phase::Onset), "time_ns"),
    ] {
        let e = refused(&recording(vec![entry]));
        let stated = format!("corrupt recording: {what} = ");
        assert!(e.starts_with(&stated), "{e}");
    }
    let mut r = burst();
    r.head.page_bytes = u64::MAX;
    assert!(refused(&r).contains("page_bytes = "));
}

#[test]
fn a_recording_of_two_entries_a_century_apart_is_played_at_once() {
    let century = 100 * 365 * 86_400 * 1000 * MS;
    let r = recording(vec![levels(MS, 150), levels(century, 150)]);
    let mut looks = 0u64;
    simulate(&r, &Setup::default(), &mut |_, _| looks += 1).unwrap();
    assert!(looks <= 2 * (TICKS + 1), "{looks}");
}

#[test]
fn losses_without_number_are_counted_as_far_as_numbers_go() {
    let r = recording(vec![Entry::Lost(u64::MAX), Entry::Lost(2)]);
    let outcome = play(&r, Profile::Balanced);
    assert_eq!(outcome.events.dropped, u64::MAX);
}

#[test]
fn the_largest_numbers_that_are_believed_are_played() {
    let (time, cache, memory) = (1 << 62, Bytes(1 << 40), Bytes(1 << 50));
    let kv = |ts_ns, in_use| Entry::Kv {
        ts_ns,
        resident: cache,
        in_use,
        cached: cache,
        floor: Bytes::ZERO,
        budget: cache,
        tokens: u64::MAX,
    };
    let full = |ts_ns| Entry::Levels {
        ts_ns,
        levels: Levels {
            cgroup: Some(CgroupLevel {
                usage: memory,
                limit: Bytes::ZERO,
                ..CgroupLevel::default()
            }),
            ..Levels::default()
        },
    };
    let onset = |ts_ns| event(ts_ns, Kind::Memstall, Phase::Onset);
    let r = recording(vec![
        kv(0, cache),
        onset(MS),
        full(MS),
        kv(time / 2, Bytes::ZERO),
        onset(time),
        full(time),
    ]);
    for profile in [Profile::Lossless, Profile::Balanced, Profile::Latency] {
        let setup = Setup {
            profile,
            ..Setup::default()
        };
        let outcome = simulate(&r, &setup, &mut |_, _| ()).unwrap();
        assert!(!outcome.trims.is_empty());
    }
}
