//! `NAME[:GROUP]` or `UID[:GID]` to ids, as the C library's databases have
//! them. Out of scope: changing them.

use crate::pressure::privilege::Ids;
use nix::unistd::{self, Gid, Uid, getgrouplist};
use std::{ffi::CString, fmt, str::FromStr};
use thiserror::Error;

/// A user to work for, looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    text: String,
    ids: Ids,
}

/// Why a user cannot be had; a line each.
#[derive(Debug, Error)]
pub enum UserError {
    /// Not in the database.
    #[error("there is no user {0} (make it with `useradd --system {0}`, or name UID:GID)")]
    NoUser(String),
    /// Not in the database.
    #[error("there is no group {0} (make it with `groupadd --system {0}`, or name a GID)")]
    NoGroup(String),
    /// A number that no user has, so that its group is not known.
    #[error("no user has the id {0}: name the group too ({0}:GID)")]
    NoGid(u32),
    /// Not `NAME[:GROUP]`.
    #[error("{0:?} is not NAME[:GROUP] or UID[:GID]")]
    Form(String),
    /// The database cannot be read.
    #[error("{name} cannot be looked up: {why}")]
    Lookup {
        /// User or group.
        name: String,
        /// As the system says it.
        why: nix::errno::Errno,
    },
}

impl User {
    /// What a thread is to be.
    #[must_use]
    pub fn ids(&self) -> &Ids {
        &self.ids
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.text, self.ids.uid, self.ids.gid)
    }
}

impl FromStr for User {
    type Err = UserError;

    /// A user that is known has the groups that it is a member of (a GPU's
    /// devices are often open to one); with `UID:GID` nothing is looked up,
    /// and GID is the only one.
    fn from_str(text: &str) -> Result<Self, UserError> {
        let (name, group) = match text.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (text, None),
        };
        let odd = |c: char| c.is_whitespace() || c.is_control();
        if name.is_empty() || group == Some("") || text.contains(odd) {
            return Err(UserError::Form(text.to_owned()));
        }
        let gid = group.map(gid_of).transpose()?;
        let ids = match (number(name, text)?, gid) {
            (Some(uid), Some(gid)) => alone(uid, gid),
            (Some(uid), None) => {
                let found = unistd::User::from_uid(Uid::from_raw(uid)).map_err(lookup(name))?;
                known(&found.ok_or(UserError::NoGid(uid))?, None)?
            }
            (None, gid) => {
                let found = unistd::User::from_name(name).map_err(lookup(name))?;
                known(&found.ok_or_else(|| UserError::NoUser(name.into()))?, gid)?
            }
        };
        Ok(Self {
            text: text.to_owned(),
            ids,
        })
    }
}

fn alone(uid: u32, gid: u32) -> Ids {
    Ids {
        uid,
        gid,
        groups: vec![gid],
    }
}

fn known(user: &unistd::User, gid: Option<u32>) -> Result<Ids, UserError> {
    let gid = gid.unwrap_or(user.gid.as_raw());
    let mut ids = alone(user.uid.as_raw(), gid);
    // A name from the database has no NUL.
    if let Ok(name) = CString::new(user.name.as_str()) {
        let groups = getgrouplist(&name, Gid::from_raw(gid)).map_err(lookup(&user.name))?;
        ids.groups = groups.into_iter().map(Gid::as_raw).collect();
    }
    Ok(ids)
}

fn gid_of(group: &str) -> Result<u32, UserError> {
    if let Some(gid) = number(group, group)? {
        return Ok(gid);
    }
    let found = unistd::Group::from_name(group).map_err(lookup(group))?;
    Ok(found
        .ok_or_else(|| UserError::NoGroup(group.into()))?
        .gid
        .as_raw())
}

/// An id, if `word` is all digits. The last one means "as it is" to the
/// kernel and belongs to no user.
fn number(word: &str, whole: &str) -> Result<Option<u32>, UserError> {
    if !word.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let id = word.parse().ok().filter(|id| *id != u32::MAX);
    id.map(Some)
        .ok_or_else(|| UserError::Form(whole.to_owned()))
}

fn lookup(name: &str) -> impl FnOnce(nix::errno::Errno) -> UserError {
    let name = name.to_owned();
    move |why| UserError::Lookup { name, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Result<Ids, String> {
        text.parse::<User>()
            .map(|u| u.ids)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn numbers_are_taken_as_they_are_and_names_are_looked_up() {
        assert_eq!(ids("12345:54321"), Ok(alone(12345, 54321)));
        // Of every system, by these numbers.
        assert_eq!(ids("root").map(|i| (i.uid, i.gid)), Ok((0, 0)));
        assert_eq!(ids("0").map(|i| (i.uid, i.gid)), Ok((0, 0)));
        let other = ids("root:12345").unwrap();
        assert_eq!((other.uid, other.gid), (0, 12345));
        assert!(other.groups.contains(&12345));
        assert_eq!(ids("0:root"), Ok(alone(0, 0)));
        let shown = "12345:54321".parse::<User>().unwrap().to_string();
        assert_eq!(shown, "12345:54321 (12345:54321)");
    }

    #[test]
    fn who_is_not_there_is_refused_with_what_to_do() {
        for (text, part) in [
            ("no-such-user-here", "useradd"),
            ("root:no-such-group-here", "groupadd"),
            ("4123456789", "4123456789:GID"),
            ("", "NAME[:GROUP]"),
            (":0", "NAME[:GROUP]"),
            ("root:", "NAME[:GROUP]"),
            ("4294967295:0", "NAME[:GROUP]"),
            ("0:4294967295", "NAME[:GROUP]"),
            ("99999999999:0", "NAME[:GROUP]"),
            ("root\0x", "root\\0x"),
        ] {
            let e = ids(text).expect_err(text);
            assert!(e.contains(part), "{text:?}: {e}");
        }
    }
}
