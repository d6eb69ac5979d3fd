//! Sandboxing of a serving process, once its eBPF programs are attached.
//!
//! Owns the order: [`Confinement::fence`] (Landlock, before there are
//! threads, for it holds the calling thread and those that it starts), then
//! [`Fenced::leave`] (another user, no capability, no new privileges, a
//! filter of system calls), and last a look at every thread in /proc.
//! Invariants: nothing is believed that the kernel was not asked for; what a
//! kernel lacks is a line of the [`Report`] and no failure; a thread that
//! keeps a capability or its user is one. Out of scope: what the process
//! listens to and what it serves.

mod landlock;
mod seccomp;
pub(crate) mod threads;
mod user;

pub use user::User;

use crate::pressure::privilege;
use serde::Serialize;
use std::{fmt, io, path::PathBuf};
use thiserror::Error;

/// What the sandbox restricts. Name everything that is opened later.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// Whom to work for; `None`: as before.
    pub user: Option<User>,
    /// Files and folders to read, beside what every process needs.
    pub read: Vec<PathBuf>,
    /// Folders to write in, and files to write.
    pub write: Vec<PathBuf>,
    /// Folders in which a Unix socket is made.
    pub sockets: Vec<PathBuf>,
    /// TCP port to listen on; `None`: on none.
    pub port: Option<u16>,
    /// TCP port to connect to; `None`: to none.
    pub connect: Option<u16>,
    /// Look up names of hosts by DNS.
    pub resolve: bool,
    /// Hold files and network down to the above, by Landlock.
    pub landlock: bool,
    /// Refuse system calls that a server never makes, by seccomp.
    pub seccomp: bool,
}

/// Why a process is not confined.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The user asked for, or that capabilities go, was refused.
    #[error("{0}{hint}", hint = hint(.0))]
    Privilege(#[from] io::Error),
    /// A thread has more than it should.
    #[error("thread {name} ({tid}) {what}")]
    Thread {
        /// Its name.
        name: String,
        /// Its id.
        tid: u32,
        /// What it still has.
        what: String,
    },
}

/// setuid and its kind are the superuser's.
fn hint(e: &io::Error) -> &'static str {
    if e.to_string().starts_with("set") {
        " (--user wants root, or CAP_SETUID and CAP_SETGID)"
    } else {
        ""
    }
}

/// How much of something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// All that was asked for.
    Full,
    /// Some of it; the note says what is missing.
    Partly,
    /// Nothing; the note says why.
    No,
    /// It was not asked for.
    Unasked,
}

/// One restriction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// How much of it holds.
    pub holds: Holds,
    /// What it is, or what is missing and why.
    pub note: String,
}

impl Part {
    fn new(holds: Holds, note: impl Into<String>) -> Self {
        Self {
            holds,
            note: note.into(),
        }
    }

    fn unasked() -> Self {
        Self::new(Holds::Unasked, "not asked for")
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.holds {
            Holds::Full | Holds::Unasked => write!(f, "{}", self.note),
            Holds::Partly => write!(f, "in part: {}", self.note),
            Holds::No => write!(f, "no: {}", self.note),
        }
    }
}

/// What holds now, as found in /proc where that can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whom the process works for.
    pub user: Part,
    /// Capabilities, of every thread.
    pub capabilities: Part,
    /// Whether a program run later could gain any.
    pub no_new_privs: Part,
    /// Files and network.
    pub landlock: Part,
    /// System calls.
    pub seccomp: Part,
}

impl Report {
    /// The parts, with their names.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, &Part); 5] {
        [
            ("user", &self.user),
            ("capabilities", &self.capabilities),
            ("no_new_privs", &self.no_new_privs),
            ("landlock", &self.landlock),
            ("seccomp", &self.seccomp),
        ]
    }
}

/// A line each.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, part)) in self.parts().into_iter().enumerate() {
            let end = if n == 0 { "" } else { "\n" };
            write!(f, "{end}{name}: {part}")?;
        }
        Ok(())
    }
}

/// A process that Landlock holds already, as far as it does.
#[must_use = "the capabilities are still there"]
#[derive(Debug)]
pub struct Fenced<'a> {
    confinement: &'a Confinement,
    landlock: Part,
}

impl Confinement {
    /// For threads that leave by themselves
    /// ([`crate::control::GovernorConfig::ids`]).
    #[must_use]
    pub fn ids(&self) -> Option<&privilege::Ids> {
        self.user.as_ref().map(User::ids)
    }

    /// The first step: files and network. Comes after the programs are
    /// attached and before other threads are started.
    pub fn fence(&self) -> Fenced<'_> {
        let landlock = if self.landlock {
            landlock::restrict(self)
        } else {
            Part::unasked()
        };
        Fenced {
            confinement: self,
            landlock,
        }
    }

    /// All steps at once. Threads that are there already must have left by
    /// [`privilege::leave`]; Landlock does not hold them before Linux 7.0.
    ///
    /// # Errors
    /// As [`Fenced::leave`].
    pub fn confine(&self) -> Result<Report, ConfineError> {
        self.fence().leave()
    }
}

impl Fenced<'_> {
    /// The second step: user, capabilities and system calls, and the look at
    /// every thread.
    ///
    /// # Errors
    /// The user or the loss of capabilities was refused, or a thread has not
    /// left. The process may be restricted in part only: it should end.
    pub fn leave(self) -> Result<Report, ConfineError> {
        let c = self.confinement;
        privilege::leave(c.ids())?;
        let filter = c.seccomp.then(seccomp::apply);
        let seen = threads::look(c.ids())?;
        Ok(Report {
            user: c
                .user
                .as_ref()
                .map_or_else(Part::unasked, |u| Part::new(Holds::Full, u.to_string())),
            capabilities: seen.capabilities(),
            no_new_privs: seen.no_new_privs(),
            landlock: self.landlock,
            seccomp: match filter {
                None => Part::unasked(),
                Some(Ok(calls)) => seen.seccomp(calls),
                Some(Err(e)) => Part::new(Holds::No, e),
            },
        })
    }
}
