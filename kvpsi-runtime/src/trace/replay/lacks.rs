//! What a recording does not hold, and what a replay does instead.
//!
//! Owns the list for people. Out of scope: playing.

use crate::trace::recording::{Entry, Recording};

/// A line for each thing that the rule looks at and the recording lacks.
#[must_use]
pub fn lacks(r: &Recording) -> Vec<String> {
    let (mut first, mut levels, mut hits, mut again, mut cache, mut lost) =
        (0u64, 0u64, 0u64, 0u64, false, 0u64);
    let (mut walls, mut systems, mut read) = (0u64, 0u64, 0u64);
    for entry in &r.entries {
        match entry {
            Entry::Levels1 { .. } => first += 1,
            Entry::Levels { levels: l, .. } => {
                levels += 1;
                let cgroup = l.cgroup.as_ref();
                walls += u64::from(cgroup.is_some());
                systems += u64::from(l.system.is_some());
                hits += u64::from(cgroup.is_some_and(|c| c.hits.is_some()));
                let system = l.system.filter(|s| s.file.is_some());
                let cgroup = cgroup.filter(|c| c.file.is_some());
                read += u64::from(cgroup.is_some() || system.is_some());
                let system = system.and_then(|s| s.restored);
                again += u64::from(cgroup.and_then(|c| c.restored).or(system).is_some());
            }
            Entry::Kv { .. } => cache = true,
            Entry::Lost(n) => lost = lost.saturating_add(*n),
            Entry::Head(_) | Entry::Event(_) | Entry::Psi(_) | Entry::Trim(_) => {}
        }
    }
    let mut all = Vec::new();
    let mut say = |is: bool, what: &str| {
        if is {
            all.push(what.to_owned());
        }
    };
    say(
        first + levels == 0,
        "it holds no readings of any wall: nothing is missing anywhere, and nothing is returned",
    );
    say(
        first > 0,
        "its readings are of version 1: page cache counts as memory in use, so that more is missing than was",
    );
    say(
        levels > 0 && walls + systems == 0,
        "no cgroup had a limit and the system was not read: nothing is returned",
    );
    say(
        walls > 0 && hits == 0,
        "hits of limits were not counted: a full cgroup counts as hit",
    );
    say(
        read > 0 && again == 0,
        "refaults were not counted: text goes for none of them",
    );
    say(
        !cache,
        "it holds no cache: one is assumed that is full at the beginning",
    );
    if lost > 0 {
        all.push(format!(
            "{lost} entries were lost: stalls and readings among them are not played"
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::{gauge::Levels, system::SystemLevel, wall::CgroupLevel},
        trace::recording::{Head, Levels1},
        units::Bytes,
    };

    fn of(entries: Vec<Entry>) -> String {
        let recording = Recording {
            head: Head::default(),
            entries,
            damage: None,
        };
        lacks(&recording).join("\n")
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_else() {
        let kv = Entry::Kv {
            ts_ns: 1,
            resident: Bytes(1),
            in_use: Bytes(1),
            cached: Bytes(0),
            floor: Bytes(0),
            budget: Bytes(1),
            tokens: 1,
        };
        let levels = |cgroup, system| Entry::Levels {
            ts_ns: 1,
            levels: Levels {
                cgroup,
                system,
                cgroup_room: None,
            },
        };
        let full = CgroupLevel {
            hits: Some(0),
            file: Some(Bytes(0)),
            restored: Some(Bytes(0)),
            ..CgroupLevel::default()
        };
        assert_eq!(of(vec![kv.clone(), levels(Some(full), None)]), "");
        let bare = CgroupLevel {
            file: Some(Bytes(0)),
            ..CgroupLevel::default()
        };
        let bare = levels(Some(bare), None);
        let said = of(vec![kv.clone(), bare]);
        assert!(
            said.contains("hits of limits") && said.contains("refaults"),
            "{said}"
        );
        assert!(of(vec![kv.clone(), levels(None, None)]).contains("no cgroup had a limit"));
        let system = SystemLevel {
            restored: Some(Bytes(0)),
            ..SystemLevel::default()
        };
        assert_eq!(of(vec![kv.clone(), levels(None, Some(system))]), "");
        let none = of(vec![Entry::Lost(3)]);
        assert!(
            none.contains("no readings") && none.contains("no cache") && none.contains("3 entries"),
            "{none}"
        );
        let first = Levels1 {
            cgroup: None,
            system: None,
        };
        let first = Entry::Levels1 {
            ts_ns: 1,
            levels: first,
        };
        assert!(of(vec![kv, first]).contains("version 1"));
    }
}
