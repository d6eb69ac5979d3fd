//! The text that is predicted, from a Debian package into the cache folder.
//!
//! Owns which one: thirty chapters of the King James Bible, public domain, as
//! the package's own program prints them. Invariants: the file at its final
//! path is whole; nothing is installed. Out of scope: hosts; apt-get knows
//! where packages come from.

use crate::model::Work;
use crate::{places, say};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use xshell::{Shell, cmd};

const PACKAGES: [&str; 2] = ["bible-kjv", "bible-kjv-text"];
const RANGE: &str = "gen1:1-gen30:43";
/// Bytes of the range as it is printed.
const BYTES: u64 = 114_800;

fn path() -> PathBuf {
    places::cache().join("texts/kjv-genesis.txt")
}

/// The text is in the cache already.
fn fetched() -> bool {
    fs::metadata(path()).is_ok_and(|m| m.len() == BYTES)
}

/// The path of the text, fetched if it must be.
///
/// # Errors
/// There is no apt-get, or it cannot fetch the packages.
pub fn get(sh: &Shell) -> Result<PathBuf> {
    let path = path();
    if fetched() {
        return Ok(path);
    }
    ensure!(
        places::in_path("apt-get").is_some() && places::in_path("dpkg-deb").is_some(),
        "no apt-get here, which has the text"
    );
    let folder = path.parent().context("the text has no folder")?;
    let work = Work::new(folder)?;
    let [program, text] = PACKAGES;
    say(format_args!(
        "$ apt-get download {program} {text} (2.5 MB, once)"
    ));
    let unpacked = work.path().join("unpacked");
    {
        let _there = sh.push_dir(work.path());
        cmd!(sh, "apt-get -qq download {program} {text}")
            .quiet()
            .ignore_stdout()
            .run()
            .context("apt-get could not fetch the text; `apt-get update` may help")?;
    }
    for entry in fs::read_dir(work.path())? {
        let deb = entry?.path();
        if deb.extension().is_some_and(|e| e == "deb") {
            cmd!(sh, "dpkg-deb -x {deb} {unpacked}").quiet().run()?;
        }
    }
    let bible = unpacked.join("usr/bin/bible");
    // The program wants the slash.
    let data = format!("{}/usr/lib/", unpacked.display());
    let printed = cmd!(sh, "{bible} -p {data} {RANGE}")
        .quiet()
        .output()
        .context("the package's program does not run here")?
        .stdout;
    ensure!(
        printed.len() as u64 == BYTES,
        "{program} printed {} bytes and not {BYTES}: another version",
        printed.len()
    );
    let part = work.path().join("text");
    fs::write(&part, printed)?;
    fs::rename(&part, &path).with_context(|| format!("cannot write {}", path.display()))?;
    say(format_args!("fetched {}", path.display()));
    Ok(path)
}

/// Fetches it where that works: it is for a bench alone.
pub fn fetch_if_possible(sh: &Shell) {
    if !fetched()
        && let Err(e) = get(sh)
    {
        say(format_args!(
            "going on without the text of `bench quality`: {e:#}"
        ));
    }
}
