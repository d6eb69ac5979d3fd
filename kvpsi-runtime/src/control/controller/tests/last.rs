//! When the last sequence goes, too: before the kernel kills.

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
