//! `cargo xtask run`: from whatever is there to a running kvpsi.
//!
//! Invariant: kvpsi replaces this process, so its exit code, its signals and
//! its terminal are its own.

use crate::{ebpf, model, places, say, setup};
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use xshell::{Shell, cmd};

/// # Errors
/// If something could not be installed, built or fetched; else it does not return.
pub fn run(sh: &Shell, model: Option<&Path>, args: &[String]) -> Result<()> {
    setup::on_the_way(sh)?;
    ebpf::build_if_possible(sh)?;
    cmd!(sh, "cargo build --release --package kvpsi-runtime")
        .quiet()
        .run()
        .context("kvpsi did not build")?;
    let model = model::get(sh, model)?;

    let kvpsi = places::target().join("release/kvpsi");
    let demo = ["demo".to_owned()];
    let args = if args.is_empty() { &demo } else { args };
    let mut command = match sudo_for(sh, args) {
        Some(sudo) => {
            say("the demo needs root for BPF and a memory cgroup: starting it by sudo");
            let mut command = Command::new(&sudo[0]);
            command.args(&sudo[1..]).arg("env");
            // sudo drops the environment.
            command.arg(format!("KVPSI_MODEL={}", model.display()));
            command.arg(&kvpsi);
            command
        }
        None => Command::new(&kvpsi),
    };
    let failed = command.env("KVPSI_MODEL", &model).args(args).exec();
    Err(failed).with_context(|| format!("cannot start {}", kvpsi.display()))
}

fn sudo_for(sh: &Shell, args: &[String]) -> Option<Vec<String>> {
    if args.first().is_none_or(|a| a != "demo") || setup::root(sh) {
        return None;
    }
    setup::sudo(sh)
}
