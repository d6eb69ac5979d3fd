//! How the budget comes back.

use super::*;

#[test]
fn the_budget_follows_half_of_the_room_soon_after_the_last_harm() {
    let (mut c, cap) = (controller(), Bytes::mib(100));
    c.observe(&event(Kind::MemcgReclaim, Phase::Onset, MS));
    let d = c.decide(MS, short(Bytes::mib(2))).unwrap();
    c.trimmed(MS, &d, gave(d.want));
    let room = |mib| Levels {
        cgroup: short(Bytes::ZERO)
            .cgroup
            .map(|g| CgroupLevel { hits: Some(0), ..g }),
        cgroup_room: Some(Bytes::mib(mib)),
        system: None,
    };
    let mut grow = |ms: u64, budget: u64, used: u64, mib: u64| {
        c.grow(
            ms * MS,
            Bytes::mib(budget),
            Bytes::mib(used),
            cap,
            room(mib),
        )
    };
    assert_eq!(grow(200, 40, 40, 76), None);
    assert_eq!(grow(252, 40, 40, 64), Some(Bytes::mib(70)));
    assert_eq!(grow(253, 70, 40, 76), None);
    // Less is not worth it; nor does the budget shrink.
    assert_eq!(grow(600, 70, 68, 8), None);
    assert_eq!(grow(900, 70, 50, 34), None);
    assert_eq!(grow(1200, 70, 68, 214), Some(cap));
    // The wall is near: it is watched.
    let watched = c.sleep(1200 * MS, cap, cap);
    assert!((2..=250).contains(&watched.as_millis()));
}

#[test]
fn growth_that_a_stall_answers_comes_later_next_time() {
    let (mut c, cap) = (controller(), Bytes::mib(1000));
    let room = Levels {
        cgroup_room: Some(Bytes::mib(62)),
        ..Levels::default()
    };
    let mut now = 10_000 * MS;
    let mut waited = vec![];
    for _ in 0..4 {
        c.observe(&event(Kind::MemcgReclaim, Phase::Onset, now));
        let d = c.decide(now, short(Bytes::mib(2))).unwrap();
        c.trimmed(now, &d, gave(d.want));
        let mut ms = 0;
        while (c.grow(now + ms * MS, Bytes::mib(40), Bytes::mib(40), cap, room)).is_none() {
            ms += 1;
        }
        waited.push(ms);
        now += (ms + 500) * MS;
    }
    assert_eq!(waited, [250, 500, 1000, 2000]);
}
