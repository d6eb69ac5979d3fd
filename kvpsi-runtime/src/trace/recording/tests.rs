use super::*;
use crate::{
    control::{system::SystemLevel, wall::CgroupLevel},
    trace::Sample,
};
use proptest::prelude::*;

fn event() -> impl Strategy<Value = Recorded> {
    let longs = prop::array::uniform6(any::<u64>());
    let words = prop::array::uniform6(any::<u32>());
    (longs, words, any::<[u16; 2]>(), any::<[u8; 16]>()).prop_map(|(l, w, h, comm)| Recorded {
        ts_ns: l[0],
        stall_ns: l[1],
        count: l[2],
        pages: l[3],
        cgroup_id: l[4],
        tgid: w[0],
        tid: w[1],
        cpu: w[2],
        stalled_now: w[3],
        order: w[4].cast_signed(),
        node: w[5],
        kind: h[0],
        phase: h[1],
        comm,
        detail: l[5],
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let bytes = || any::<u64>().prop_map(Bytes);
    let maybe = || prop::option::of(bytes());
    let hits = prop::option::of(any::<u64>());
    let cgroup = (
        bytes(),
        bytes(),
        maybe(),
        maybe(),
        maybe(),
        hits,
        any::<u32>(),
    );
    let cgroup =
        cgroup.prop_map(
            |(usage, limit, file, anonymous, restored, hits, up)| CgroupLevel {
                usage,
                limit,
                file,
                anonymous,
                hits,
                restored,
                up,
                held: Bytes::ZERO,
            },
        );
    let system = (bytes(), bytes(), bytes(), maybe(), maybe());
    let system = system.prop_map(|(free, high, tight, file, restored)| SystemLevel {
        free,
        high,
        tight,
        file,
        restored,
    });
    let levels = (prop::option::of(cgroup), prop::option::of(system), maybe()).prop_map(
        |(cgroup, system, cgroup_room)| Levels {
            cgroup,
            system,
            cgroup_room,
        },
    );
    let three = || prop::option::of(prop::array::uniform3(bytes()));
    let levels1 = (three(), three()).prop_map(|(cgroup, system)| Levels1 { cgroup, system });
    let trim = (
        "[a-z_]{1,20}",
        any::<[u64; 5]>(),
        prop::collection::vec(bytes(), 6),
    );
    prop_oneof![
        4 => event().prop_map(Entry::Event),
        1 => (any::<u64>(), levels1).prop_map(|(ts_ns, levels)| Entry::Levels1 { ts_ns, levels }),
        2 => (any::<u64>(), levels).prop_map(|(ts_ns, levels)| Entry::Levels { ts_ns, levels }),
        1 => any::<[u64; 3]>().prop_map(|n| Entry::Psi(Sample {
            ts_ns: n[0], some_us: n[1], full_us: n[2],
        })),
        1 => any::<[u64; 7]>().prop_map(|n| Entry::Kv {
            ts_ns: n[0], resident: Bytes(n[1]), in_use: Bytes(n[2]), cached: Bytes(n[3]),
            floor: Bytes(n[4]), budget: Bytes(n[5]), tokens: n[6],
        }),
        1 => trim.prop_map(|(trigger, n, by_step)| Entry::Trim(Trim {
            trigger, kind: 2, onset_ns: n[0], noticed_ns: n[1], returned_ns: n[2],
            wanted: Bytes(n[3]), by_step, tokens: n[4], mass_dropped: 0.25,
        })),
        1 => any::<u64>().prop_map(Entry::Lost),
    ]
}

pub fn file(entries: &[Entry]) -> Vec<u8> {
    let mut out = prefix();
    Entry::Head(Head::default()).write(&mut out);
    entries.iter().for_each(|e| e.write(&mut out));
    out
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(entry(), 0..40)) {
        let read = Recording::parse(&file(&entries)).unwrap();
        prop_assert_eq!(read.damage, None);
        prop_assert_eq!(read.entries, entries);
    }

    #[test]
    fn events_come_back_as_they_were(r in event()) {
        prop_assert_eq!(Recorded::from(&Event::from(&r)), r);
    }

    #[test]
    fn a_file_that_ends_anywhere_is_read_up_to_its_last_whole_entry(
        entries in prop::collection::vec(entry(), 1..12), cut in any::<prop::sample::Index>(),
    ) {
        let (head, all) = (file(&[]).len(), file(&entries));
        let cut = head + cut.index(all.len() - head);
        let read = Recording::parse(&all[..cut]).unwrap();
        let n = read.entries.len();
        prop_assert_eq!(&read.entries[..], &entries[..n]);
        let whole = file(&entries[..n]).len();
        prop_assert!(whole <= cut && file(&entries[..n + 1]).len() > cut);
        match read.damage {
            Some(d) => prop_assert_eq!((d.whole, d.left), (whole, cut - whole)),
            None => prop_assert_eq!(whole, cut),
        }
    }

    #[test]
    fn a_flipped_bit_is_found_and_what_comes_before_it_is_read(
        entries in prop::collection::vec(entry(), 1..12), at in any::<prop::sample::Index>(), bit in 0..8u32,
    ) {
        let (head, mut all) = (file(&[]).len(), file(&entries));
        let at = head + at.index(all.len() - head);
        all[at] ^= 1 << bit;
        let read = Recording::parse(&all).unwrap();
        let damage = read.damage.expect("a checksum finds one bit");
        prop_assert!(damage.whole <= at);
        let n = read.entries.len();
        prop_assert_eq!(&read.entries[..], &entries[..n]);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut all = prefix();
        all.extend(bytes);
        let _ = Recording::parse(&all);
    }
}

#[test]
fn foreign_newer_and_headless_files_are_distinguished() {
    let error = |bytes: &[u8]| Recording::parse(bytes).unwrap_err().to_string();
    assert!(error(b"GGUF....").contains("no recording"));
    assert!(error(b"").contains("no recording"));
    assert!(error(b"KVPSIREC").contains("first entry"));
    let mut newer = file(&[]);
    newer[8] = 9;
    assert!(error(&newer).contains("version 9"));
    assert!(error(&prefix()).contains("there is none"));
    let mut first = prefix();
    Entry::Lost(1).write(&mut first);
    assert!(error(&first).contains("there is none"));
}
