//! Where things are: the workspace, its target folder, the cache.
//!
//! Owns every path that two tasks must agree on. Out of scope: creating them.

use std::env;
use std::path::{Path, PathBuf};

/// The workspace root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Cargo's target folder for user space. Cargo takes the first of its two
/// variables that is there.
pub fn target() -> PathBuf {
    let set = TARGET_VARIABLES.iter().find_map(env::var_os);
    set.map_or_else(|| root().join("target"), |d| root().join(d))
}

/// What cargo reads its target folder from, but for configuration files.
const TARGET_VARIABLES: [&str; 2] = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"];

/// The eBPF object, where the runtime's build script looks for it.
pub fn ebpf_object() -> PathBuf {
    target().join("bpf/kvpsi.bpf.o")
}

/// kvpsi's cache folder: shared by every clone, kept over `cargo clean`.
pub fn cache() -> PathBuf {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_CACHE_HOME")
        .filter(|p| p.is_absolute())
        .or_else(|| set("HOME").map(|h| h.join(".cache")))
        .unwrap_or_else(|| root().join("target/cache"))
        .join("kvpsi")
}

/// The first file named `program` in PATH.
pub fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}
