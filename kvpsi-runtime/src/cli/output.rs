//! Files that a command writes when its work is done.
//!
//! Owns the trial at the start: a wrong path fails before the work, and nothing
//! is left of the trial, however the command ends. Out of scope: what is
//! written, and recordings, which are open all the time.

use anyhow::Context;
use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::Path,
};

/// Whether a file of that path can be written.
///
/// # Errors
/// It cannot; names the path.
pub(crate) fn writable(path: &Path) -> anyhow::Result<()> {
    tried(path).with_context(|| format!("cannot write {}", path.display()))
}

fn tried(path: &Path) -> io::Result<()> {
    match File::create_new(path) {
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            // Whoever reads a pipe would take this for all of it.
            if fs::metadata(path).is_ok_and(|m| m.is_file() || m.is_dir()) {
                File::options().append(true).open(path)?;
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_leaves_all_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        writable(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        writable(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        writable(Path::new("/dev/null")).unwrap();
        for wrong in [dir.path(), &path.join("below"), &dir.path().join("no/file")] {
            let e = format!("{:#}", writable(wrong).unwrap_err());
            assert!(e.contains(&*wrong.to_string_lossy()), "{e}");
        }
    }
}
