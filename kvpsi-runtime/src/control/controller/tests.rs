//! The rule, decision by decision.

use super::*;
use crate::{control::wall::CgroupLevel, kv::Step};
use bytemuck::Zeroable;

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

const MS: u64 = 1_000_000;
/// 4 MiB are to stay free below it.
const LIMIT: Bytes = Bytes::mib(256);

fn system(free: u64) -> SystemLevel {
    SystemLevel {
        free: Bytes::mib(free),
        tight: Bytes::mib(100),
        high: Bytes::mib(50),
        file: Some(Bytes::ZERO),
        restored: None,
    }
}

/// A cgroup that was hit just now, full, with so much page cache.
fn full(file: Bytes) -> Levels {
    Levels {
        cgroup: Some(CgroupLevel {
            usage: LIMIT,
            limit: LIMIT,
            file: Some(file),
            hits: Some(1),
            ..CgroupLevel::default()
        }),
        system: Some(system(5000)),
        cgroup_room: None,
    }
}

/// So many bytes are missing at the cgroup's limit, or none.
fn short(missing: Bytes) -> Levels {
    shorter(missing, Bytes::ZERO)
}

/// The same after so many were given back.
fn shorter(missing: Bytes, given: Bytes) -> Levels {
    let mut levels = full(Bytes::ZERO);
    if let Some(c) = &mut levels.cgroup {
        let usage = Bytes(LIMIT.0 - (4 << 20) + missing.0);
        c.usage = usage.saturating_sub(given);
    }
    levels
}

fn gave(bytes: Bytes) -> Gave {
    Gave {
        bytes,
        ..Gave::default()
    }
}

fn ordered(bytes: Bytes) -> Gave {
    Gave {
        ordered: true,
        ..gave(bytes)
    }
}

#[test]
fn the_first_slice_is_small_and_the_next_ones_double_until_most_of_the_headroom_is_free() {
    let mut c = controller();
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 5));
    let (mut wants, mut left) = (vec![], Bytes::mib(16));
    while let Some(d) = c.decide(10, short(left)) {
        wants.push(d.want.0 >> 10);
        assert_eq!(d.onset_ns, 5);
        left = left.saturating_sub(d.want);
        c.trimmed(10, &d, gave(d.want));
    }
    // Three of the 4 MiB of headroom at once; the last is for the slow steps, which
    // this profile has not: with the next look.
    assert_eq!(wants, [512, 1024, 2048, 4096, 4096, 3584, 1024]);
    assert_eq!(left, Bytes::ZERO);
}

#[test]
fn a_burst_that_goes_on_keeps_doubling_and_a_new_one_starts_small() {
    let mut c = controller();
    let first = |c: &mut Controller, phase, t| {
        c.observe(&event(Kind::MemcgReclaim, phase, t));
        let d = c.decide(t, short(Bytes::mib(100))).unwrap();
        c.trimmed(t, &d, gave(d.want));
        d.want.0 >> 10
    };
    assert_eq!(first(&mut c, Phase::Onset, MS), 512);
    assert_eq!(first(&mut c, Phase::Summary, 2 * MS), 1024);
    assert_eq!(first(&mut c, Phase::Summary, 3 * MS), 2048);
    assert_eq!(first(&mut c, Phase::Onset, 100 * MS), 512);
}

#[test]
fn a_stall_at_none_of_our_walls_costs_nothing_though_ours_is_full() {
    let mut c = controller();
    let mut levels = full(Bytes::ZERO);
    levels.cgroup.as_mut().unwrap().hits = Some(0);
    for (n, kind) in [Kind::MemcgReclaim, Kind::Memstall, Kind::Refault]
        .into_iter()
        .enumerate()
    {
        c.observe(&event(kind, Phase::Onset, MS));
        assert_eq!(c.decide(2 * MS, levels), None);
        assert_eq!(c.verdicts().foreign, n as u64 + 1);
    }
    let mut c = controller();
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1));
    assert_eq!(c.decide(2, Levels::default()), None);
    assert_eq!(c.verdicts().no_wall, 1);
}

#[test]
fn a_hit_that_was_read_before_its_event_came_is_not_forgotten() {
    let mut c = controller();
    assert_eq!(c.decide(MS, full(Bytes::mib(100))), None);
    let mut again = short(Bytes::mib(4));
    again.cgroup.as_mut().unwrap().hits = Some(0);
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, MS));
    assert!(c.decide(2 * MS, again).is_some());
    assert_eq!(c.verdicts().ignored(), 0);
}

#[test]
fn what_page_cache_covers_harms_nobody() {
    let mut c = controller();
    for t in 1..1000 {
        c.observe(&event(Kind::MemcgReclaim, Phase::Summary, t * MS));
        assert_eq!(c.decide(t * MS, full(Bytes::mib(20))), None);
    }
    assert_eq!(c.verdicts().harmless(), 999);
    // It may run out between two of the kernel's events.
    assert!(!c.looks(1006 * MS, || None) && c.looks(1007 * MS, || None));
    assert!(!c.looks(1010 * MS, || Some(16 << 20)));
}

/// A reading somewhat below the limit has no memory.stat, and one of another level
/// has another usage: neither is growth of what reclaim cannot take.
#[test]
fn what_was_not_read_did_not_grow() {
    let mut c = controller();
    for t in 1..400 {
        let mut levels = full(Bytes::mib(150));
        let cgroup = levels.cgroup.as_mut().unwrap();
        cgroup.usage = Bytes(LIMIT.0 - (5 << 20));
        match t % 3 {
            0 => cgroup.file = None,
            1 => (cgroup.up, cgroup.file) = (1, Some(Bytes::mib(20))),
            _ => {}
        }
        c.observe(&event(Kind::MemcgReclaim, Phase::Summary, 2 * t * MS));
        assert_eq!(c.decide(2 * t * MS, levels), None, "reading {t}");
    }
}

#[test]
fn refaults_beyond_the_allowance_of_a_second_are_harm_and_no_more_is_given_than_they_were() {
    let mut c = controller();
    // 8 MiB a second are none; 1 MiB is read again each ms.
    let mut levels = full(Bytes::mib(100));
    levels.cgroup.as_mut().unwrap().restored = Some(Bytes::mib(1));
    let (mut given, mut first) = (0, None);
    for t in 1..=30 {
        c.observe(&event(Kind::MemcgReclaim, Phase::Summary, t * MS));
        let mut now = levels;
        while let Some(d) = c.decide(t * MS, now) {
            first = first.or(Some(t));
            given += d.want.0;
            c.trimmed(t * MS, &d, gave(d.want));
            now = full(Bytes::mib(100));
        }
    }
    assert_eq!(first, Some(9));
    assert!((19 << 20..=22 << 20).contains(&given), "{given}");
}

#[test]
fn a_working_set_that_comes_back_is_harm_though_no_event_says_so() {
    let mut c = controller();
    let mut levels = Levels {
        system: Some(system(110)),
        ..Levels::default()
    };
    let (mut given, mut first) = (0, None);
    // 25 MiB a second are none; page cache would cover what is missing.
    for t in 1..=40 {
        let s = levels.system.as_mut().unwrap();
        (s.file, s.restored) = (Some(Bytes::mib(500)), Some(Bytes::mib(1)));
        while let Some(d) = c.decide(t * MS, levels) {
            assert!(d.harm && d.trigger.kind() == Some(Kind::Refault));
            first = first.or(Some(t));
            given += d.want.0;
            c.trimmed(t * MS, &d, gave(d.want));
            levels.system.as_mut().unwrap().restored = Some(Bytes::ZERO);
        }
    }
    assert_eq!(first, Some(26));
    assert!((12 << 20..=15 << 20).contains(&given), "{given}");
}

#[test]
fn stalls_that_take_too_much_of_a_second_are_harm() {
    let first = |share: u64| {
        let tuning = Tuning {
            stall_time: Duration::from_millis(700),
            ..Tuning::default()
        };
        let mut c = Controller::new(tuning, Profile::Latency, 4096);
        (1..5000u64).find(|t| {
            c.observe(&Event {
                stall_ns: MS * share / 100,
                ..event(Kind::MemcgReclaim, Phase::Summary, t * MS)
            });
            c.decide(t * MS, full(Bytes::mib(100))).is_some()
        })
    };
    assert_eq!(first(50), None);
    assert!(first(100).is_some_and(|ms| (700..1500).contains(&ms)));
}

#[test]
fn no_kind_hides_another() {
    for kinds in [
        [Kind::MemcgReclaim, Kind::Compaction],
        [Kind::Compaction, Kind::MemcgReclaim],
        [Kind::Memstall, Kind::MemcgReclaim],
    ] {
        let mut c = controller();
        for kind in kinds {
            c.observe(&event(kind, Phase::Onset, MS));
        }
        let d = c.decide(MS, short(Bytes::mib(4))).unwrap();
        assert_eq!(d.trigger, Trigger::Onset(Kind::MemcgReclaim));
    }
    // And one that says little does not hide that everybody reclaims.
    let mut c = controller();
    c.observe(&event(Kind::DirectReclaim, Phase::Onset, MS));
    c.observe(&event(Kind::Compaction, Phase::Onset, MS));
    let levels = Levels {
        system: Some(system(90)),
        ..Levels::default()
    };
    let d = c.decide(MS, levels).unwrap();
    assert_eq!(d.trigger, Trigger::Onset(Kind::DirectReclaim));
}

#[test]
fn a_trim_that_found_everything_locked_is_tried_again() {
    let mut c = controller();
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, MS));
    let d = c.decide(MS, short(Bytes::mib(4))).unwrap();
    let locked = Gave {
        contended: true,
        ..Gave::default()
    };
    c.trimmed(MS, &d, locked);
    // Not at once: whoever has the lock needs the CPU.
    assert_eq!(c.decide(MS + 1, short(Bytes::mib(4))), None);
    assert_eq!(
        c.sleep(MS, Bytes::mib(1), Bytes::mib(1)),
        Tuning::default().look
    );
    let again = c.decide(2 * MS, short(Bytes::mib(4))).unwrap();
    assert!(again.want > Bytes::ZERO && again.steps.has(Step::Window));
    c.trimmed(2 * MS, &again, gave(again.want));
}

#[test]
fn what_is_on_its_way_is_not_asked_for_again() {
    let mut c = controller();
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, MS));
    let d = c.decide(MS, short(Bytes::mib(4))).unwrap();
    let late = Gave {
        deferred: Bytes::mib(4),
        ..Gave::default()
    };
    c.trimmed(MS, &d, late);
    c.retired(2 * MS, Bytes::mib(4));
    assert_eq!(c.decide(2 * MS, short(Bytes::mib(4))), None);
    // It came, and is still missing.
    c.retired(8 * MS, Bytes::ZERO);
    assert!(c.decide(8 * MS, short(Bytes::mib(4))).is_some());
}

#[test]
fn the_wall_is_looked_at_again_without_an_event_and_growth_is_provided_for() {
    let mut c = controller();
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, MS));
    let give = |c: &mut Controller, t, missing: Bytes| {
        let mut given = Bytes::ZERO;
        while let Some(d) = c.decide(t, shorter(missing, given)) {
            given.0 += d.want.0;
            c.trimmed(t, &d, gave(d.want));
        }
        given
    };
    assert_eq!(give(&mut c, MS, Bytes::mib(2)), Bytes::mib(2));
    assert!(c.looks(2 * MS, || None));
    // It took the 2 MiB within 2 ms: 1.5 will come within 1.5.
    assert_eq!(give(&mut c, 3 * MS, Bytes::mib(2)), Bytes(7 << 19));
    assert!(c.looks(12 * MS, || None));
    assert_eq!(give(&mut c, 14 * MS, Bytes::ZERO), Bytes::ZERO);
    // The burst is over, and the wall is near.
    assert!(!c.looks(15 * MS, || None) && c.looks(16 * MS, || None));
    assert!(give(&mut c, 40 * MS, Bytes::mib(1)) >= Bytes::mib(1));
}

#[test]
fn direct_reclaim_costs_what_is_lossless_where_page_cache_covers_the_rest() {
    let mut c = controller();
    let mut level = system(90);
    level.file = Some(Bytes::mib(1000));
    let levels = Levels {
        system: Some(level),
        ..Levels::default()
    };
    c.observe(&event(Kind::DirectReclaim, Phase::Onset, MS));
    let d = c.decide(MS, levels).unwrap();
    assert_eq!(d.steps, Steps::FREE);
    c.trimmed(MS, &d, Gave::default());
    assert_eq!(c.decide(MS, levels), None);
    // And text where it does not.
    level.file = Some(Bytes::mib(2));
    let levels = Levels {
        system: Some(level),
        ..Levels::default()
    };
    c.observe(&event(Kind::DirectReclaim, Phase::Onset, 2 * MS));
    let d = c.decide(2 * MS, levels).unwrap();
    assert_eq!(
        (d.missing, d.steps.has(Step::Window)),
        (Bytes::mib(8), true)
    );
}

#[test]
fn slow_steps_that_are_stuck_are_not_waited_for() {
    // Bursts far apart, each of which orders anew and is over before its
    // patience is.
    let levels = Levels {
        system: Some(system(90)),
        ..Levels::default()
    };
    let stall = |c: &mut Controller, t, owed: Option<u64>| {
        c.owed(owed.map_or(Bytes::ZERO, |_| Bytes::mib(1)), owed);
        c.observe(&event(Kind::DirectReclaim, Phase::Onset, t));
        let d = c.decide(t, levels).unwrap();
        c.trimmed(t, &d, ordered(Bytes::ZERO));
        assert_eq!(c.decide(t, levels), None);
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
    let d = c.decide(2, Levels::default()).unwrap();
    assert_eq!(d.steps, Steps::SLACK);
    c.trimmed(2, &d, Gave::default());
    assert_eq!(c.decide(3, Levels::default()), None);
    // And what is cached, as far as memory is short.
    c.observe(&event(Kind::KswapdWake, Phase::Mark, 1));
    let short = Levels {
        system: Some(system(97)),
        ..Levels::default()
    };
    assert_eq!(c.decide(2, short).unwrap().steps, Steps::SLACK);
    let d = c.decide(3, short).unwrap();
    assert_eq!((d.steps, d.want), (Steps::FREE, Bytes::mib(3)));
    assert_eq!(c.decide(4, short), None);
    // Nothing where files alone cover it.
    let mut files = short;
    if let Some(s) = &mut files.system {
        s.file = Some(s.tight);
    }
    c.observe(&event(Kind::KswapdWake, Phase::Mark, 5));
    assert_eq!(c.decide(5, files), None);
    assert_eq!(c.decide(6, short), None);
}

#[test]
fn kswapd_waking_up_costs_nothing_where_it_is_not_to_count() {
    let tuning = Tuning {
        early_warning: false,
        ..Tuning::default()
    };
    let mut c = Controller::new(tuning, Profile::Latency, 4096);
    c.observe(&event(Kind::KswapdWake, Phase::Mark, 1));
    assert_eq!(c.decide(2, Levels::default()), None);
}

#[test]
fn what_costs_text_waits_for_the_slow_steps_but_not_for_long() {
    let mut c = Controller::new(Tuning::default(), Profile::Balanced, 4096);
    let levels = Levels {
        system: Some(system(92)),
        ..Levels::default()
    };
    c.observe(&event(Kind::DirectReclaim, Phase::Onset, MS));
    let d = c.decide(MS, levels).unwrap();
    assert!(!d.steps.has(Step::Window) && d.steps.has(Step::Thin));
    assert_eq!(d.missing, Bytes::mib(8));
    c.trimmed(MS, &d, ordered(Bytes::ZERO));
    assert_eq!(c.decide(2 * MS, levels), None);
    // Stalls go on: free blocks at once, the window not yet.
    c.observe(&event(Kind::DirectReclaim, Phase::Summary, 3 * MS));
    let d = c.decide(3 * MS, levels).unwrap();
    assert!(!d.steps.has(Step::Window));
    c.trimmed(3 * MS, &d, ordered(Bytes::ZERO));
    c.observe(&event(Kind::DirectReclaim, Phase::Summary, 7 * MS));
    let d = c.decide(7 * MS, levels).unwrap();
    assert!(d.steps.has(Step::Window));
    // What the slow steps owe is not asked for twice.
    c.trimmed(7 * MS, &d, ordered(Bytes::ZERO));
    c.owed(Bytes::mib(8), Some(7 * MS));
    c.observe(&event(Kind::DirectReclaim, Phase::Summary, 8 * MS));
    assert_eq!(c.decide(8 * MS, levels), None);
}

#[test]
fn a_cgroup_at_its_limit_is_urgent_and_lossless_stays_lossless() {
    for (profile, window) in [(Profile::Balanced, true), (Profile::Lossless, false)] {
        let mut c = Controller::new(Tuning::default(), profile, 4096);
        c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1));
        let d = c.decide(2, short(Bytes::mib(9))).unwrap();
        assert_eq!(d.steps.has(Step::Window), window);
        assert!(d.steps.has(Step::Preempt));
    }
}

#[test]
fn the_slow_steps_are_asked_after_the_second_slice() {
    let mut c = Controller::new(Tuning::default(), Profile::Balanced, 4096);
    let mut left = Bytes::mib(2);
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1));
    let first = c.decide(2, short(left)).unwrap();
    assert_eq!(first.missing, first.want);
    left = left.saturating_sub(first.want);
    c.trimmed(2, &first, gave(first.want));
    // Three quarters of the headroom at once, the rest by those.
    let second = c.decide(3, short(left)).unwrap();
    assert_eq!((second.want, second.missing), (Bytes(512 << 10), left));
    left = left.saturating_sub(second.want);
    c.trimmed(3, &second, ordered(second.want));
    c.owed(left, Some(3));
    assert_eq!(c.decide(4, short(left)), None);
}

#[test]
fn free_blocks_go_once_for_each_burst_and_before_page_cache_is_looked_at() {
    let mut c = controller();
    assert_eq!(c.return_cushion(MS, || true), None);
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, MS));
    // Somebody else's limit.
    assert_eq!(c.return_cushion(MS, || false), None);
    let d = c.return_cushion(MS, || true).unwrap();
    assert_eq!((d.steps, d.harm, d.onset_ns), (Steps::SLACK, false, MS));
    c.trimmed(MS, &d, gave(d.want));
    assert_eq!(c.return_cushion(2 * MS, || true), None);
    // The stall itself is still to be judged: it did no harm.
    assert_eq!(c.decide(2 * MS, full(Bytes::mib(100))), None);
    assert_eq!(c.verdicts().harmless(), 1);
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 50 * MS));
    assert!(c.return_cushion(50 * MS, || true).is_some());
}

mod budget;
mod last;
mod looks;
mod properties;
