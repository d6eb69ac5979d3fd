//! What holds whatever comes.

use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn deciding_always_ends_and_never_asks_beyond_what_is_missing(
        deficits in prop::collection::vec(0u64..1 << 32, 1..40),
        // Nothing, or two pages and more.
        give in prop_oneof![Just(0u64), 1u64 << 13..1 << 26],
    ) {
        let mut c = controller();
        let mut t = 0;
        for deficit in deficits {
            t += MS;
            c.observe(&event(Kind::MemcgReclaim, Phase::Summary, t));
            let (mut calls, mut given) = (0, Bytes::ZERO);
            while let Some(d) = c.decide(t, shorter(Bytes(deficit), given)) {
                prop_assert!(d.want <= Tuning::default().max_slice);
                let some = Bytes(give.min(d.want.0));
                given.0 += some.0;
                c.trimmed(t, &d, gave(some));
                calls += 1;
                prop_assert!(calls < 1_000_000);
            }
        }
    }

    /// Whatever the source and the files say, a stall at none of our walls, or
    /// one that page cache covers, costs no token.
    #[test]
    fn text_goes_only_for_harm(
        // A victim of the OOM killer is harm by itself.
        kinds in prop::collection::vec((0u16..16).prop_filter("victim", |k| *k != 10), 1..60),
        file in 17u64..200, hits in prop::option::of(0u64..3), used in 100u64..=256,
    ) {
        let mut c = controller();
        let mut levels = full(Bytes::mib(file));
        let g = levels.cgroup.as_mut().unwrap();
        (g.hits, g.usage) = (hits, Bytes::mib(used));
        for (t, kind) in (1..).zip(kinds) {
            c.observe(&Event { kind, ..event(Kind::Memstall, Phase::Summary, t * MS) });
            while let Some(d) = c.decide(t * MS, levels) {
                let lossless = !d.steps.has(Step::Window) && !d.steps.has(Step::Thin);
                prop_assert!(lossless, "{:?}", d);
                c.trimmed(t * MS, &d, Gave::default());
            }
        }
    }

    /// A hog of any speed gets what it needs, and at most its growth within the
    /// time provided for and the headroom beside.
    #[test]
    fn a_hog_gets_enough_and_little_more(demand in 2u64..100, kib_a_ms in 20u64..4000) {
        let mut c = controller();
        let (mut grown, mut given, mut t) = (0u64, 0u64, MS);
        let demand = demand << 20;
        let mut stalls = 0;
        while grown < demand || c.looks(t, || None) {
            t += MS / 2;
            let used = LIMIT.0 + grown - given.min(LIMIT.0);
            let more = (kib_a_ms << 9).min(demand - grown);
            let fits = more.min(LIMIT.0.saturating_sub(used));
            grown += fits;
            let mut levels = full(Bytes::ZERO);
            let g = levels.cgroup.as_mut().unwrap();
            if fits < more {
                stalls += 1;
                c.observe(&event(Kind::MemcgReclaim, Phase::Summary, t));
            } else {
                g.hits = Some(0);
            }
            loop {
                levels.cgroup.as_mut().unwrap().usage = Bytes(LIMIT.0 + grown - given);
                let Some(d) = c.decide(t, levels) else { break };
                given += d.want.0;
                c.trimmed(t, &d, gave(d.want));
            }
        }
        let ahead = kib_a_ms << 12;
        prop_assert!(given >= demand, "{given} of {demand}");
        prop_assert!(given <= demand + (18 << 20) + 2 * ahead, "{given} for {demand}, {stalls} stalls");
    }
}
