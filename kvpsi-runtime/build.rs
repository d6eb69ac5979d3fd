//! Finds the eBPF object that `cargo xtask build-ebpf` leaves, to embed it.
//!
//! Looks at `KVPSI_BPF_OBJECT`, else at `bpf/kvpsi.bpf.o` in the target
//! directory. Without one the library is built without eBPF and says so.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rustc-check-cfg=cfg(kvpsi_bpf_object)");
    println!("cargo:rerun-if-env-changed=KVPSI_BPF_OBJECT");
    let given = env::var_os("KVPSI_BPF_OBJECT").map(PathBuf::from);
    let Some(object) = given.or_else(default_object) else {
        return;
    };
    // Also while it is absent: then cargo looks again at each build.
    println!("cargo:rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo:rustc-cfg=kvpsi_bpf_object");
        println!("cargo:rustc-env=KVPSI_BPF_OBJECT_PATH={}", object.display());
    }
}

/// `bpf/kvpsi.bpf.o` beside the profile directories: OUT_DIR is
/// TARGET/[TRIPLE/]PROFILE/build/PACKAGE/out.
fn default_object() -> Option<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR")?);
    let above = out.ancestors().nth(4)?;
    let target = match above.file_name() == env::var_os("TARGET").as_deref() {
        true => above.parent()?,
        false => above,
    };
    Some(target.join("bpf").join("kvpsi.bpf.o"))
}
