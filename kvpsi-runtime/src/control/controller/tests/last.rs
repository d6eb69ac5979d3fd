//! When the last sequence goes, too: before the kernel kills; and when nothing is left.

use super::*;

#[test]
fn the_last_sequence_goes_only_where_nearly_all_headroom_is_gone() {
    let mut c = controller();
    let headroom = full(Bytes::ZERO).cgroup.unwrap().headroom();
    for (missing, last) in [(headroom.0 / 2, false), (headroom.0 / 4 * 3, true)] {
        c.observe(&event(Kind::MemcgReclaim, Phase::Onset, MS));
        let mut levels = short(Bytes(missing));
        levels.cgroup.as_mut().unwrap().anonymous = Some(LIMIT);
        let d = c.decide(MS, levels).unwrap();
        let all = Profile::Latency.steps(true);
        let steps = if last { all.to_the_last() } else { all };
        assert_eq!(d.steps, steps, "{missing} missing");
        c.trimmed(MS, &d, Gave::default());
        // Dirty pages: reclaim waits for them, and nobody is killed.
        levels.cgroup.as_mut().unwrap().anonymous = Some(Bytes(LIMIT.0 / 2));
        c.observe(&event(Kind::MemcgReclaim, Phase::Summary, MS));
        let d = c.decide(MS, levels).unwrap();
        assert_eq!(d.steps, all);
        c.trimmed(MS, &d, Gave::default());
    }
}

/// Beside busy neighbours the thread that holds the guard is descheduled.
#[test]
fn what_a_guard_keeps_for_too_long_does_not_count_before_the_kernel_kills() {
    let mut c = controller();
    let mut levels = short(Bytes::mib(4));
    levels.cgroup.as_mut().unwrap().anonymous = Some(LIMIT);
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 10 * MS));
    let d = c.decide(10 * MS, levels).unwrap();
    assert!(d.steps.has(Step::Window));
    let deferred = Gave {
        deferred: Bytes::mib(8),
        ..Gave::default()
    };
    c.trimmed(10 * MS, &d, deferred);
    for (us, held) in [(10_100, true), (10_900, true), (11_200, false)] {
        c.retired(us * 1000, Bytes::mib(8));
        c.observe(&event(Kind::MemcgReclaim, Phase::Summary, us * 1000));
        let preempt = Steps::FREE.with(Step::Preempt).to_the_last();
        let d = c.decide(us * 1000, levels).map(|d| d.steps);
        assert_eq!(d, (!held).then_some(preempt), "{us} us");
    }
}

#[test]
fn nothing_left_to_give_ends_the_burst_instead_of_spinning() {
    let mut c = controller();
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1));
    let d = c.decide(2, short(Bytes::mib(50))).unwrap();
    c.trimmed(2, &d, Gave::default());
    let mut levels = short(Bytes::mib(50));
    levels.cgroup.as_mut().unwrap().hits = Some(0);
    assert_eq!(c.decide(3, levels), None);
    // Nor is the wall read each half a millisecond, for as long as that lasts.
    let mut looks = 0;
    for t in 0..4000 {
        let now = 3 + t * MS / 2;
        if c.looks(now, || Some(-(50 << 20))) {
            looks += 1;
            while let Some(d) = c.decide(now, levels) {
                c.trimmed(now, &d, Gave::default());
            }
        }
    }
    assert!((2..20).contains(&looks), "{looks} looks in two seconds");
}

/// Nor does a working set that comes back where nothing is left to give, or where trims
/// are paused.
#[test]
fn refaults_that_nothing_answers_do_not_spin() {
    for profile in [Profile::Latency, Profile::Balanced, Profile::Lossless] {
        let mut c = Controller::new(Tuning::default(), profile, 4096);
        let mut levels = Levels {
            system: Some(system(200)),
            ..Levels::default()
        };
        let restored = |levels: &mut Levels, mib| {
            levels.system.as_mut().unwrap().restored = Some(Bytes::mib(mib));
        };
        restored(&mut levels, 0);
        c.take_in(10_000 * MS, &levels);
        let mut decisions = 0;
        for t in 0..1000u64 {
            let now = 10_000 * MS + (t + 1) * MS;
            restored(&mut levels, if t == 0 { 800 } else { 0 });
            while let Some(d) = c.decide(now, levels) {
                restored(&mut levels, 0);
                c.trimmed(now, &d, Gave::default());
                decisions += 1;
                assert!(decisions < 200, "{profile:?}, after {t} ms");
            }
        }
        assert!(decisions > 1, "{profile:?}");
    }
}
