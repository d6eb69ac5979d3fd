//! Finding the memory cgroup: texts of the kernel, and folder trees in its
//! format where this host has no such mount.

use super::*;

fn mount(point: &str, root: &str) -> Mount {
    Mount {
        point: point.into(),
        root: root.into(),
    }
}

#[test]
fn both_hierarchies_are_found_in_mountinfo() {
    let text = "25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        26 25 0:23 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        27 25 0:24 / /sys/fs/cgroup/my\\040v2 rw - cgroup2 cgroup2 rw\n";
    let (v2, v1) = parse_mountinfo(text);
    assert_eq!(v2, Some(mount("/sys/fs/cgroup/my v2", "/")));
    assert_eq!(v1, Some(mount("/sys/fs/cgroup/memory", "/docker/ab")));
}

#[test]
fn garbage_in_mountinfo_is_passed_over() {
    assert_eq!(
        parse_mountinfo("\n - \na - cgroup\nx y z - cgroup2 a b\n"),
        (None, None)
    );
}

#[test]
fn own_path_tells_v1_controllers_from_v2() {
    let text = "4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/d\n";
    assert_eq!(own_path(text, "memory").as_deref(), Some("/a/b"));
    assert_eq!(own_path(text, "cpuacct").as_deref(), Some("/c"));
    assert_eq!(own_path(text, "").as_deref(), Some("/d"));
    assert_eq!(own_path("nonsense", ""), None);
}

/// A tree of cgroups below `top`: what a mount shows.
fn tree(top: &Path, levels: &[&str]) {
    for level in [""].iter().chain(levels) {
        let dir = top.join(level);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.procs"), "").unwrap();
    }
}

#[test]
fn the_directory_follows_from_the_mounts_root_and_the_process_path() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path();
    tree(top, &["inner", "inner/deep", "a", "a/b"]);
    let at = |root: &str, path: &str| {
        let m = mount(top.to_str().unwrap(), root);
        m.directory(path).strip_prefix(top).unwrap().to_path_buf()
    };
    // A host.
    assert_eq!(at("/", "/a/b"), Path::new("a/b"));
    assert_eq!(at("/", "/"), Path::new(""));
    // Docker on v1: the mount's root is the container's cgroup.
    assert_eq!(at("/docker/ab", "/docker/ab"), Path::new(""));
    assert_eq!(
        at("/docker/ab", "/docker/ab/inner/deep"),
        Path::new("inner/deep")
    );
    assert_eq!(at("/docker/ab", "/docker/abc/a"), Path::new(""));
    // A cgroup namespace: paths begin at its root, or lie outside of it.
    assert_eq!(at("/", "/../elsewhere"), Path::new(""));
    assert_eq!(at("/..", "/a"), Path::new("a"));
    // Not mounted here at all.
    assert_eq!(at("/", "/gone"), Path::new(""));
}

#[test]
fn v2_without_the_memory_controller_leaves_memory_to_v1() {
    let dir = tempfile::tempdir().unwrap();
    let (v1, v2) = (dir.path().join("memory"), dir.path().join("unified"));
    tree(&v1, &["x"]);
    tree(&v2, &["y"]);
    let text = format!(
        "1 0 0:1 / {} rw - cgroup cgroup rw,memory\n2 0 0:2 / {} rw - cgroup2 cgroup2 rw\n",
        v1.display(),
        v2.display()
    );
    let processes = "4:memory:/x\n0::/y\n";
    for (controllers, version, path) in [
        ("cpu io\n", Version::V1, v1.join("x")),
        ("cpu memory\n", Version::V2, v2.join("y")),
    ] {
        fs::write(v2.join("cgroup.controllers"), controllers).unwrap();
        let found = Hierarchies::of(&text).memory_of(processes).unwrap();
        assert_eq!(found, MemoryCgroup { path, version });
    }
    assert!(Hierarchies::of("").memory_of(processes).is_err());
}

#[test]
fn levels_go_up_to_the_root_of_what_is_visible() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("memory");
    tree(&top, &["a", "a/b", "a/b/c"]);
    let c = MemoryCgroup {
        path: top.join("a/b/c"),
        version: Version::V1,
    };
    let all: Vec<PathBuf> = c.levels().map(|l| l.path).collect();
    assert_eq!(all, ["a/b/c", "a/b", "a", ""].map(|p| top.join(p)));
}
