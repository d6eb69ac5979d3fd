//! The rule, decision by decision.

use super::*;
use bytemuck::Zeroable;
use proptest::prelude::*;

fn event(kind: Kind, phase: Phase, ts_ns: u64) -> Event {
    Event {
        kind: kind as u16,
        phase: phase as u16,
        ts_ns,
        order: 0,
        stalled_now: 1,
        ..Event::zeroed()
    }
}

fn controller() -> Controller {
    Controller::new(Tuning::default(), Profile::Latency, 4096)
}

fn cgroup(deficit: Bytes) -> Reading {
    Reading {
        cgroup_deficit: Some(deficit),
        system_deficit: Some(Bytes::ZERO),
        room: Bytes::mib(100),
    }
}

const MS: u64 = 1_000_000;

#[test]
fn the_first_slice_is_small_and_the_next_ones_double_until_the_deficit_is_met() {
    let mut c = controller();
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 5));
    let mut wants = vec![];
    let mut left = Bytes::mib(16);
    while let Some(d) = c.decide(10, cgroup(left)) {
        wants.push(d.want.0 >> 10);
        assert_eq!(d.onset_ns, 5);
        left = left.saturating_sub(d.want);
        c.trimmed(&d, d.want, false);
    }
    assert_eq!(wants, [512, 1024, 2048, 4096, 8192, 512]);
}

#[test]
fn a_burst_that_goes_on_keeps_doubling_and_a_new_one_starts_small() {
    let mut c = controller();
    let first = |c: &mut Controller, phase, t| {
        c.observe(&event(Kind::MemcgReclaim, phase, t));
        let d = c.decide(t, cgroup(Bytes::mib(100))).unwrap();
        c.trimmed(&d, d.want, false);
        d.want.0 >> 10
    };
    assert_eq!(first(&mut c, Phase::Onset, MS), 512);
    assert_eq!(first(&mut c, Phase::Summary, 2 * MS), 1024);
    assert_eq!(first(&mut c, Phase::Summary, 3 * MS), 2048);
    assert_eq!(first(&mut c, Phase::Onset, 100 * MS), 512);
}

#[test]
fn a_stall_in_a_cgroup_below_its_limit_is_not_ours() {
    let mut c = controller();
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1));
    assert_eq!(c.decide(2, cgroup(Bytes::ZERO)), None);
    assert_eq!(c.ignored(), 1);
}

#[test]
fn a_stall_of_unknown_cause_is_ours_only_where_memory_is_short() {
    let mut c = controller();
    c.observe(&event(Kind::Memstall, Phase::Onset, 1));
    assert_eq!(c.decide(2, cgroup(Bytes::ZERO)), None);
    assert_eq!(c.ignored(), 1);
    for (reading, want) in [
        (cgroup(Bytes::mib(1)), Tuning::default().first_slice),
        (
            Reading {
                system_deficit: Some(Bytes::mib(1)),
                ..cgroup(Bytes::ZERO)
            },
            Tuning::default().first_slice,
        ),
    ] {
        let mut c = controller();
        c.observe(&event(Kind::Memstall, Phase::Onset, 1));
        assert_eq!(c.decide(2, reading).unwrap().want, want);
    }
}

#[test]
fn direct_reclaim_is_served_even_where_the_watermarks_look_fine() {
    let mut c = controller();
    c.observe(&event(Kind::DirectReclaim, Phase::Onset, 1));
    let d = c.decide(2, cgroup(Bytes::ZERO)).unwrap();
    assert_eq!(d.want, Tuning::default().first_slice);
    c.trimmed(&d, d.want, false);
    assert_eq!(c.decide(3, cgroup(Bytes::ZERO)), None);
}

#[test]
fn slow_steps_that_are_stuck_are_not_waited_for() {
    // Bursts far apart, each of which orders anew and is over before its
    // patience is.
    let stall = |c: &mut Controller, t, owed| {
        c.owed(owed);
        c.observe(&event(Kind::DirectReclaim, Phase::Onset, t));
        let d = c.decide(t, cgroup(Bytes::ZERO)).unwrap();
        c.trimmed(&d, Bytes::ZERO, true);
        assert_eq!(c.decide(t, cgroup(Bytes::ZERO)), None);
        d.steps.has(Step::Window)
    };
    let mut c = Controller::new(Tuning::default(), Profile::Balanced, 4096);
    assert!(!stall(&mut c, MS, None));
    // It works on it.
    assert!(!stall(&mut c, 50 * MS, Some(MS)));
    assert!(!stall(&mut c, 250 * MS, Some(200 * MS)));
    // It gave nothing since.
    assert!(stall(&mut c, 400 * MS, Some(200 * MS)));
    // What it owed it gave.
    assert!(!stall(&mut c, 600 * MS, None));
}

#[test]
fn kswapd_waking_up_costs_only_slack() {
    let mut c = controller();
    c.observe(&event(Kind::KswapdWake, Phase::Mark, 1));
    let d = c.decide(2, Reading::default()).unwrap();
    assert_eq!(d.steps, Steps::SLACK);
    c.trimmed(&d, Bytes::ZERO, false);
    assert_eq!(c.decide(3, Reading::default()), None);
    // And what is cached, as far as memory is short.
    c.observe(&event(Kind::KswapdWake, Phase::Mark, 1));
    let short = Reading {
        system_deficit: Some(Bytes::mib(3)),
        ..Reading::default()
    };
    assert_eq!(c.decide(2, short).unwrap().steps, Steps::SLACK);
    let d = c.decide(3, short).unwrap();
    assert_eq!((d.steps, d.want), (Steps::FREE, Bytes::mib(3)));
    assert_eq!(c.decide(4, short), None);
}

#[test]
fn kswapd_waking_up_costs_nothing_where_it_is_not_to_count() {
    let tuning = Tuning {
        early_warning: false,
        ..Tuning::default()
    };
    let mut c = Controller::new(tuning, Profile::Latency, 4096);
    c.observe(&event(Kind::KswapdWake, Phase::Mark, 1));
    assert_eq!(c.decide(2, Reading::default()), None);
}

#[test]
fn what_costs_text_waits_for_the_slow_steps_but_not_for_long() {
    let mut c = Controller::new(Tuning::default(), Profile::Balanced, 4096);
    let reading = Reading {
        system_deficit: Some(Bytes::mib(8)),
        ..cgroup(Bytes::ZERO)
    };
    c.observe(&event(Kind::DirectReclaim, Phase::Onset, MS));
    let d = c.decide(MS, reading).unwrap();
    assert!(!d.steps.has(Step::Window) && d.steps.has(Step::Thin));
    assert_eq!(d.missing, Bytes::mib(8));
    c.trimmed(&d, Bytes::ZERO, true);
    assert_eq!(c.decide(2 * MS, reading), None);
    // Stalls go on: free blocks at once, the window not yet.
    c.observe(&event(Kind::DirectReclaim, Phase::Summary, 3 * MS));
    let d = c.decide(3 * MS, reading).unwrap();
    assert!(!d.steps.has(Step::Window));
    c.trimmed(&d, Bytes::ZERO, true);
    c.observe(&event(Kind::DirectReclaim, Phase::Summary, 7 * MS));
    let d = c.decide(7 * MS, reading).unwrap();
    assert!(d.steps.has(Step::Window));
}

#[test]
fn a_cgroup_at_its_limit_is_urgent_and_lossless_stays_lossless() {
    for (profile, window) in [(Profile::Balanced, true), (Profile::Lossless, false)] {
        let mut c = Controller::new(Tuning::default(), profile, 4096);
        c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1));
        let d = c.decide(2, cgroup(Bytes::mib(9))).unwrap();
        assert_eq!(d.steps.has(Step::Window), window);
        assert!(d.steps.has(Step::Preempt));
    }
}

#[test]
fn the_slow_steps_are_asked_after_the_second_slice() {
    let mut c = Controller::new(Tuning::default(), Profile::Balanced, 4096);
    let mut left = Bytes::mib(8);
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1));
    let first = c.decide(2, cgroup(left)).unwrap();
    assert_eq!(first.missing, first.want);
    left = left.saturating_sub(first.want);
    c.trimmed(&first, first.want, false);
    let second = c.decide(3, cgroup(left)).unwrap();
    assert_eq!(second.want, Bytes::mib(1));
    assert_eq!(second.missing, left);
    c.trimmed(&second, second.want, true);
    assert_eq!(c.decide(4, cgroup(left)), None);
}

#[test]
fn nothing_left_to_give_ends_the_burst_instead_of_spinning() {
    let mut c = controller();
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1));
    let d = c.decide(2, cgroup(Bytes::mib(50))).unwrap();
    c.trimmed(&d, Bytes::ZERO, false);
    assert_eq!(c.decide(3, cgroup(Bytes::mib(50))), None);
}

#[test]
fn the_budget_grows_by_a_constant_only_after_calm() {
    let (mut c, cap) = (controller(), Bytes::mib(100));
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1));
    let d = c.decide(MS, cgroup(Bytes::mib(2))).unwrap();
    c.trimmed(&d, d.want, false);
    let mut grow = |ms: u64, mib: u64, used: u64| {
        let used = Bytes::mib(used);
        let room = cgroup(Bytes::ZERO);
        c.grow(ms * MS, Bytes::mib(mib), used, Bytes::ZERO, cap, room)
    };
    assert_eq!(grow(1000, 50, 50), None);
    assert_eq!(grow(2002, 50, 50), Some(Bytes::mib(54)));
    assert_eq!(grow(2003, 54, 54), None);
    assert_eq!(grow(2252, 98, 98), Some(cap));
    // What is not used does not grow.
    assert_eq!(grow(2600, 60, 50), None);
    assert_eq!(grow(2900, 60, 58), Some(Bytes::mib(64)));
    let tight = Reading {
        room: Bytes::mib(7),
        ..cgroup(Bytes::ZERO)
    };
    let at = Bytes::mib(64);
    assert_eq!(c.grow(4000 * MS, at, at, Bytes::ZERO, cap, tight), None);
    // What somebody waits for may grow unused, as far as there is room.
    let mut waits = |ms: u64, budget: u64, room: u64| {
        let reading = Reading {
            room: Bytes::mib(room),
            ..cgroup(Bytes::ZERO)
        };
        let (budget, wanted) = (Bytes::mib(budget), Bytes::mib(40));
        c.grow(ms * MS, budget, Bytes::mib(10), wanted, cap, reading)
    };
    assert_eq!(waits(5000, 40, 60), Some(Bytes::mib(44)));
    assert_eq!(waits(6000, 40, 37), None);
    assert_eq!(waits(7000, 60, 90), None);
    assert_eq!(c.sleep(2252 * MS, cap, cap), None);
}

proptest! {
    #[test]
    fn deciding_always_ends_and_never_asks_beyond_the_target(
        deficits in prop::collection::vec(0u64..1 << 32, 1..40),
        // Nothing, or two pages and more.
        give in prop_oneof![Just(0u64), 1u64 << 13..1 << 26],
    ) {
        let mut c = controller();
        let mut t = 0;
        for deficit in deficits {
            t += MS;
            c.observe(&event(Kind::MemcgReclaim, Phase::Summary, t));
            let mut calls = 0;
            while let Some(d) = c.decide(t, cgroup(Bytes(deficit))) {
                prop_assert!(d.want <= Tuning::default().max_slice);
                c.trimmed(&d, Bytes(give.min(d.want.0)), false);
                calls += 1;
                prop_assert!(calls < 1_000_000);
            }
        }
    }
}
