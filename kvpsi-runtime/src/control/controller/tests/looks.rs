//! When a burst is looked at again.

use super::*;

/// Looks at stalls that come each 100 us for so long, as the reactor does.
fn looks(c: &mut Controller, levels: Levels, from_ns: u64, ms: u64) -> u64 {
    let mut n = 0;
    c.nearest(levels.cgroup.map(|c| c.above_headroom()));
    for t in (from_ns..from_ns + ms * MS).step_by(100_000) {
        c.observe(&event(Kind::MemcgReclaim, Phase::Summary, t));
        if c.is_idle(t, || false) {
            continue;
        }
        n += 1;
        while let Some(d) = c.decide(t, levels) {
            c.trimmed(t, &d, Gave::default());
        }
    }
    n
}

#[test]
fn stalls_that_nothing_is_done_about_are_looked_at_each_few_milliseconds() {
    // Page cache covers them.
    let mut c = controller();
    let n = looks(&mut c, full(Bytes::mib(100)), 1000 * MS, 1000);
    assert!((125..=135).contains(&n), "{n}");
    // None of it is counted less for that.
    assert_eq!(
        c.verdicts().harmless_cgroup,
        10_000 - c.pending.map_or(0, |p| p.count)
    );
    // The less page cache, the sooner growth could use it up.
    let n = looks(&mut c, full(Bytes::mib(9)), 3000 * MS, 1000);
    assert!((250..=450).contains(&n), "{n}");
    // Near the wall none waits.
    assert_eq!(looks(&mut c, full(Bytes::mib(6)), 4500 * MS, 10), 100);
    // Nothing is left to give.
    let n = looks(&mut c, short(Bytes::mib(1)), 5000 * MS, 1000);
    assert!((125..=135).contains(&n), "{n}");
}

#[test]
fn an_onset_is_looked_at_at_once_and_so_is_a_hit_beside_a_storm_of_others() {
    let mut c = controller();
    looks(&mut c, full(Bytes::mib(100)), 1000 * MS, 100);
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, 1200 * MS));
    assert!(!c.is_idle(1200 * MS, || false));
    // Stalls at none of our walls.
    let mut foreign = full(Bytes::mib(100));
    if let Some(w) = &mut foreign.cgroup {
        w.hits = Some(0);
    }
    looks(&mut c, foreign, 2000 * MS, 100);
    c.observe(&event(Kind::MemcgReclaim, Phase::Summary, 2100 * MS));
    assert!(c.is_idle(2100 * MS, || false));
    assert!(!c.is_idle(2100 * MS, || true));
    c.observe(&event(Kind::OomVictim, Phase::Onset, 2100 * MS));
    assert!(!c.is_idle(2100 * MS, || false));
}
