//! Walls of folder trees in the kernel's format, and of this kernel.

use super::*;
use std::{fs, path::Path};

/// A level below `dir`, with the files given.
fn level(dir: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("cgroup.procs"), "").unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
}

fn v2(dir: &Path, max: &str, high: &str, current: u64) {
    level(
        dir,
        &[
            ("memory.max", max),
            ("memory.high", high),
            ("memory.current", &current.to_string()),
            (
                "memory.events.local",
                "low 0\nhigh 3\nmax 5\noom 9\noom_kill 9\n",
            ),
            (
                "memory.stat",
                "anon 50\nfile 900\nfile_dirty 2\nfile_writeback 1\ninactive_file 10\nactive_file 20\nworkingset_refault_anon 1\nworkingset_refault_file 4\nworkingset_restore_file 0\n",
            ),
        ],
    );
}

fn open(path: &Path, version: Version) -> Walls {
    Walls::open(&MemoryCgroup {
        path: path.to_path_buf(),
        version,
    })
}

#[test]
fn a_hit_of_a_level_above_binds_though_ours_has_the_lower_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (above, ours) = (dir.path().join("a"), dir.path().join("a/b"));
    v2(&above, "1000000\n", "max\n", 999_990);
    v2(&ours, "800000\n", "max\n", 700_000);
    let mut walls = open(&ours, Version::V2);
    assert_eq!(walls.len(), 2);
    let calm = walls.read(Depth::All);
    assert_eq!(calm.binding.unwrap().hits, Some(0));
    // The least room: of the one above, less its headroom.
    assert_eq!(calm.room, Some(Bytes(0)));
    fs::write(above.join("memory.events.local"), "high 3\nmax 6\n").unwrap();
    let hit = walls.read(Depth::Near).binding.unwrap();
    assert_eq!((hit.up, hit.hits, hit.limit.0), (1, Some(1), 1_000_000));
    assert_eq!(hit.file, Some(Bytes(27)));
    assert_eq!(
        (hit.anonymous, hit.restored),
        (Some(Bytes(50)), Some(Bytes(0)))
    );
    assert_eq!(walls.read(Depth::Near).binding.unwrap().hits, Some(0));
}

#[test]
fn a_limit_that_is_set_later_and_memory_high_are_seen_by_the_next_reading() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    v2(&ours, "max\n", "max\n", 700_000);
    let mut walls = open(&ours, Version::V2);
    assert_eq!(walls.read(Depth::All), WallsReading::default());
    fs::write(ours.join("memory.high"), "700100\n").unwrap();
    assert_eq!(walls.read(Depth::All).binding.unwrap().limit.0, 700_100);
    fs::write(ours.join("memory.max"), "600000\n").unwrap();
    let r = walls.read(Depth::All);
    // Below what is used.
    assert_eq!(r.room, Some(Bytes::ZERO));
    assert!(r.binding.unwrap().missing().0 > 100_000);
    fs::write(ours.join("memory.max"), "0\n").unwrap();
    let r = walls.read(Depth::All).binding.unwrap();
    assert_eq!(
        (r.limit.0, r.headroom().0, r.missing().0),
        (0, 0, 700_000 - 27)
    );
}

#[test]
fn files_that_vanish_or_hold_nonsense_make_a_number_absent_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    let texts = [
        "",
        "max",
        "nonsense\n",
        "-5\n",
        "99999999999999999999999\n",
        "\u{0}\u{0}",
    ];
    for text in texts {
        for file in [
            "memory.max",
            "memory.current",
            "memory.events.local",
            "memory.stat",
        ] {
            v2(&ours, "1000\n", "max\n", 500);
            let mut walls = open(&ours, Version::V2);
            fs::write(ours.join(file), text).unwrap();
            let r = walls.read(Depth::All);
            if let Some(b) = r.binding {
                let _ = (b.missing(), b.room(), b.was_hit());
            }
        }
    }
    for file in ["memory.high", "memory.events.local", "memory.stat"] {
        v2(&ours, "1000\n", "max\n", 500);
        fs::remove_file(ours.join(file)).unwrap();
        let mut walls = open(&ours, Version::V2);
        assert_eq!(walls.read(Depth::All).binding.unwrap().usage.0, 500);
    }
    // Gone altogether: descriptors of a removed cgroup fail to read.
    fs::remove_dir_all(&ours).unwrap();
    assert!(open(&ours, Version::V2).is_empty());
}

#[test]
fn a_level_without_the_controller_is_passed_over_and_twenty_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut path = dir.path().to_path_buf();
    for i in 0..20u64 {
        path.push(i.to_string());
        if i == 7 {
            level(&path, &[]);
        } else {
            v2(&path, &format!("{}\n", 1_000_000 - i), "max\n", 1000);
        }
    }
    let mut walls = open(&path, Version::V2);
    assert_eq!(walls.len(), 19);
    let up: Vec<u32> = walls.each().iter().map(|l| l.up).collect();
    let want: Vec<u32> = (0..20).filter(|up| *up != 12).collect();
    assert_eq!(up, want);
    assert_eq!(walls.read(Depth::All).binding.unwrap().up, 0);
}

#[test]
fn swap_leaves_less_of_the_limit_of_both() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    let files = [
        ("memory.limit_in_bytes", "1000000"),
        ("memory.usage_in_bytes", "700000"),
        ("memory.failcnt", "1"),
        ("memory.memsw.limit_in_bytes", "1100000"),
        ("memory.memsw.usage_in_bytes", "1000000"),
        ("memory.memsw.failcnt", "4"),
    ];
    level(&ours, &files);
    let mut walls = open(&ours, Version::V1);
    // 300,000 are swapped, so memory may have 800,000.
    assert_eq!(walls.read(Depth::All).binding.unwrap().limit.0, 800_000);
    fs::write(ours.join("memory.memsw.failcnt"), "5").unwrap();
    assert_eq!(walls.read(Depth::All).binding.unwrap().hits, Some(1));
    level(&ours, &[("memory.memsw.limit_in_bytes", "0")]);
    assert_eq!(walls.read(Depth::All).binding.unwrap().limit.0, 0);
    // One of the two alone says nothing.
    level(&ours, &[("memory.memsw.limit_in_bytes", "1100000")]);
    for text in ["", "nonsense"] {
        level(&ours, &[("memory.memsw.usage_in_bytes", text)]);
        assert_eq!(walls.read(Depth::All).binding.unwrap().limit.0, 1_000_000);
    }
}

#[test]
fn v1_has_no_more_restored_pages_than_the_whole_system() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, vmstat) = (dir.path().join("ours"), dir.path().join("vmstat"));
    let again = |pages: u64, restored: u64| {
        let stat = format!("total_active_file 1\ntotal_workingset_refault_file {pages}\n");
        level(
            &ours,
            &[
                ("memory.limit_in_bytes", "1000000"),
                ("memory.usage_in_bytes", "999999"),
                ("memory.failcnt", "1"),
                ("memory.stat", &stat),
            ],
        );
        let text = format!("nr_active_file 1\nworkingset_restore_file {restored}\n");
        fs::write(&vmstat, text).unwrap();
    };
    again(10, 5);
    let cgroup = MemoryCgroup {
        path: ours.clone(),
        version: Version::V1,
    };
    let mut walls = Walls::open_beside(&cgroup, fs::File::open(&vmstat).ok());
    for (pages, restored, want) in [(10, 5, 0), (100, 5, 0), (200, 8, 3), (201, 900, 1)] {
        again(pages, restored);
        let read = walls.read(Depth::Near).binding.unwrap();
        assert_eq!(read.restored, Some(bytes(want)), "{pages} {restored}");
    }
}

/// A level whose page cache nobody looked at for an hour tells of an hour's refaults:
/// they say nothing of now.
#[test]
fn refaults_of_long_ago_are_none_of_this_moment() {
    const MS: u64 = 1_000_000;
    let hour = monotonic_ns() + 3_600_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let (above, ours) = (dir.path().join("a"), dir.path().join("a/b"));
    let again = |pages: u64| {
        let stat = format!("inactive_file 9\nworkingset_restore_file {pages}\n");
        fs::write(above.join("memory.stat"), stat).unwrap();
    };
    let hits = |n: u64| {
        let events = format!("high 0\nmax {n}\n");
        fs::write(above.join("memory.events.local"), events).unwrap();
    };
    v2(&above, "1000000\n", "max\n", 500_000);
    v2(&ours, "800000\n", "max\n", 790_000);
    hits(0);
    again(0);
    let mut walls = open(&ours, Version::V2);
    assert_eq!(
        walls
            .read_at(monotonic_ns(), Depth::Near)
            .binding
            .unwrap()
            .up,
        0
    );
    again(90_000);
    walls.read_at(hour, Depth::Near);
    let hit = |walls: &mut Walls, n: u64, at: u64| {
        hits(n);
        let level = walls.read_at(at, Depth::Near).binding.unwrap();
        assert_eq!(level.up, 1);
        level.restored
    };
    assert_eq!(hit(&mut walls, 1, hour + MS), None);
    again(90_005);
    assert_eq!(hit(&mut walls, 2, hour + 2 * MS), Some(bytes(5)));
}

#[test]
fn the_cgroups_of_this_process_are_read() {
    let Ok(cgroup) = MemoryCgroup::of_self() else {
        return;
    };
    let mut walls = Walls::open(&cgroup);
    assert!(!walls.is_empty());
    for level in walls.each() {
        assert!(
            level.usage > Bytes::ZERO && level.file.is_some(),
            "{level:?}"
        );
    }
}

/// Two models decode below one limit; one of them always looks first.
#[test]
fn of_two_that_share_a_wall_the_larger_gives_until_they_are_alike() {
    let mib = 1 << 20;
    let (limit, others) = (300 * mib, 235 * mib);
    let mut caches = [20 * mib, 40 * mib];
    for _ in 0..20_000 {
        for who in 0..2 {
            caches[1 - who] += 512;
            let level = CgroupLevel {
                usage: Bytes(others + caches[0] + caches[1]),
                limit: Bytes(limit),
                held: Bytes(caches[who]),
                ..CgroupLevel::default()
            };
            // A trim takes whole blocks.
            caches[who] -= level.missing().0.div_ceil(64 << 10) * (64 << 10);
        }
    }
    let [a, b] = caches.map(|c| c / mib);
    assert!(a.abs_diff(b) <= 2, "{caches:?}");
    assert!(a + b > 55, "{caches:?}");
}
