//! A program in a real terminal, by `script`, with what is typed into it.
//!
//! Out of scope: what the program should show.

use crate::skip;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::{Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// How long is waited for more to be shown.
const PATIENCE: Timespec = Timespec {
    tv_sec: 120,
    tv_nsec: 0,
};

/// A shell command in a terminal of 80 by 24.
pub struct Terminal {
    script: Child,
    /// Held to the end: the end of its input would end `script` too.
    stdin: ChildStdin,
    stdout: ChildStdout,
    shown: String,
    /// Bytes of what was shown that were waited for.
    seen: usize,
}

impl Terminal {
    /// Begins the command; `None` where there is no `script`: `test` is skipped.
    ///
    /// # Panics
    /// It has no pipes.
    #[must_use]
    pub fn start(test: &str, command: &str) -> Option<Self> {
        // Ctrl-C is for the command alone: a shell that it interrupts too would
        // not tell how the command ended.
        let shell = format!("trap : INT; stty rows 24 cols 80; {command}");
        let spawned = Command::new("script")
            .args(["-qec", &shell, "/dev/null"])
            .env("TERM", "xterm-256color")
            // The same shell, whatever that of the caller is.
            .env("SHELL", "/bin/sh")
            .env_remove("KVPSI_API_KEY")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut script = match spawned {
            Ok(child) => child,
            Err(e) => {
                skip(test, format!("no `script`: {e}"));
                return None;
            }
        };
        Some(Self {
            stdin: script.stdin.take().expect("it is piped"),
            stdout: script.stdout.take().expect("it is piped"),
            script,
            shown: String::new(),
            seen: 0,
        })
    }

    fn read(&mut self) -> bool {
        let mut ready = [PollFd::new(&self.stdout, PollFlags::IN)];
        let came = poll(&mut ready, Some(&PATIENCE)).expect("it can be waited for");
        assert!(came > 0, "no more than {:?}", &self.shown[self.seen..]);
        let mut piece = [0; 4096];
        let n = self.stdout.read(&mut piece).expect("it can be read");
        self.shown += &String::from_utf8_lossy(&piece[..n]);
        n > 0
    }

    /// Reads until `mark` is shown, after what was waited for before; all that
    /// was shown up to now.
    ///
    /// # Panics
    /// The command ended before, or shows nothing for two minutes.
    pub fn until(&mut self, mark: &str) -> &str {
        loop {
            if let Some(at) = self.shown[self.seen..].find(mark) {
                self.seen += at + mark.len();
                return &self.shown;
            }
            let more = self.read();
            assert!(more, "no {mark:?} in {:?}", &self.shown[self.seen..]);
        }
    }

    /// Types it.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn type_in(&mut self, keys: &str) {
        self.stdin.write_all(keys.as_bytes()).expect("it reads");
    }

    /// What types.
    pub fn keys(&mut self) -> &mut ChildStdin {
        &mut self.stdin
    }

    /// All that was shown, once the command has ended.
    ///
    /// # Panics
    /// It cannot be waited for.
    #[must_use]
    pub fn end(mut self) -> String {
        while self.read() {}
        self.script.wait().expect("it is a child");
        self.shown
    }
}
