//! Flags of `kvpsi serve` that say who may ask: the one who runs it, names of
//! this host, and pages of other sites.
//!
//! Owns the admin socket's file: made for its owner alone, and removed at the
//! end. Out of scope: the checks.

use anyhow::{Context, bail};
use rustix::fs::Mode;
use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;

/// Flags of who may ask.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// What must be sent as `Authorization: Bearer KEY` to trim, to change settings and to watch
    /// stalls; opens all else, too
    #[arg(
        long,
        value_name = "KEY",
        hide_env_values = true,
        env = "KVPSI_ADMIN_KEY"
    )]
    admin_key: Option<String>,
    /// A file whose first line is the admin key
    #[arg(long, value_name = "FILE", conflicts_with = "admin_key")]
    admin_key_file: Option<PathBuf>,
    /// A Unix socket, for the user of this process alone, by which all may be asked without a key
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// A name that clients call this host by, beside addresses and localhost; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub allowed_host: Vec<String>,
    /// An origin whose pages may use the server, as http://app.example:3000; `*` is any; may be
    /// repeated
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub cors_origin: Vec<String>,
}

/// An origin as browsers send it: a scheme, a host, perhaps a port.
fn origin(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text == "*" || text == "null" {
        return Ok(text.into());
    }
    match text.split_once("://") {
        Some((scheme, host))
            if !scheme.is_empty()
                && !host.is_empty()
                && text.bytes().all(|b| b.is_ascii_graphic())
                && !host.contains(['/', '?', '#', '@']) =>
        {
            Ok(text.to_ascii_lowercase())
        }
        _ => Err(
            "an origin is a scheme and a host, as http://app.example:3000, without a path".into(),
        ),
    }
}

impl Args {
    /// The admin key.
    pub(super) fn key(&self) -> anyhow::Result<Option<String>> {
        secret(
            "admin key",
            self.admin_key.as_deref(),
            ("--admin-key-file", self.admin_key_file.as_deref()),
        )
    }

    /// Whether there is an admin socket.
    pub(super) fn has_socket(&self) -> bool {
        self.admin_socket.is_some()
    }

    /// Where it is.
    pub(super) fn socket_path(&self) -> Option<&Path> {
        self.admin_socket.as_deref()
    }

    /// Removes a socket that was left behind: before the sandbox, which lets nobody
    /// connect to one to see whether somebody listens.
    ///
    /// # Errors
    /// Another program listens there, or it is no socket.
    pub(super) fn clear_socket(&self) -> anyhow::Result<()> {
        self.admin_socket.as_deref().map_or(Ok(()), clear)
    }

    /// Makes the admin socket.
    pub(super) fn listen(&self) -> anyhow::Result<Option<Socket>> {
        self.admin_socket.as_deref().map(Socket::bind).transpose()
    }
}

/// The admin socket; its file is removed on drop.
#[derive(Debug)]
pub(super) struct Socket {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
}

fn clear(path: &Path) -> anyhow::Result<()> {
    let what = || format!("--admin-socket {}", path.display());
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            bail!("{}: there is a file that is no socket", what());
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            bail!("{}: another program listens there", what());
        }
        // One that was left behind.
        Ok(_) => std::fs::remove_file(path).with_context(what),
        Err(_) => Ok(()),
    }
}

impl Socket {
    fn bind(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("--admin-socket {}", path.display());
        // Nobody may connect before the mode is set.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let made = std::os::unix::net::UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = made.with_context(what)?;
        let new = Self {
            listener,
            path: path.into(),
        };
        let mode = std::fs::metadata(path).with_context(what)?.permissions();
        if mode.mode() & 0o077 != 0 {
            bail!(
                "{}: its mode is {:o} and must be 600",
                what(),
                mode.mode() & 0o777
            );
        }
        new.listener.set_nonblocking(true).with_context(what)?;
        Ok(new)
    }

    /// The socket, for the server.
    pub(super) fn listener(&self) -> anyhow::Result<UnixListener> {
        let own = self.listener.try_clone().context("the admin socket")?;
        UnixListener::from_std(own).context("the admin socket")
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::debug!("{}: {e}", self.path.display());
        }
    }
}

/// A key by itself, or the first line of a file.
pub(super) fn secret(
    what: &str,
    given: Option<&str>,
    (flag, file): (&str, Option<&Path>),
) -> anyhow::Result<Option<String>> {
    let key = match (given, file) {
        (Some(key), _) => key.to_owned(),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("{flag} {}", path.display()))?;
            text.lines().next().unwrap_or_default().trim().to_owned()
        }
        (None, None) => return Ok(None),
    };
    if key.is_empty() || key.contains(|c: char| !c.is_ascii_graphic()) {
        bail!("the {what} must be printable ASCII without spaces, and not empty");
    }
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_socket_is_its_owners_and_is_made_anew_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        let first = Socket::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let e = clear(&path).unwrap_err().to_string();
        assert!(e.contains("another program"), "{e}");
        // As after a crash: the file is there, and nobody listens.
        drop(first);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        clear(&path).unwrap();
        drop(Socket::bind(&path).unwrap());
        std::fs::write(&path, "text").unwrap();
        let e = clear(&path).unwrap_err().to_string();
        assert!(e.contains("no socket"), "{e}");
    }

    #[test]
    fn an_origin_has_no_path() {
        assert_eq!(
            origin("HTTP://App.example:3000").unwrap(),
            "http://app.example:3000"
        );
        assert_eq!(origin("*").unwrap(), "*");
        for bad in ["app.example", "http://", "http://a/b", "http://a b", "://x"] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }
}
