//! Files and network, held down by Landlock.
//!
//! Owns the list of what every process of ours reads later. Best effort: each
//! kernel holds back what it knows of, and what it does not is said. Paths
//! are opened when the rule is made, so what takes their place later is not
//! covered.

use super::{Confinement, Holds, Part, threads};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, RestrictSelfAttr, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};
use std::{
    env,
    path::{Path, PathBuf},
};

/// Newest rights that we have read about; a kernel that has fewer gives what
/// it has.
const ABI_KNOWN: ABI = ABI::V10;

/// Read at any time: pressure and threads; limits of the cgroup; processors
/// and huge pages; libraries, which a name service may load late; names of
/// hosts; the time zone. Of /etc these alone, for the superuser without
/// capabilities owns the rest. Some are not everywhere.
const READ: [&str; 16] = [
    "/proc",
    "/sys/fs/cgroup",
    "/sys/devices/system",
    "/sys/kernel/mm",
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
    "/etc/localtime",
    "/etc/ld.so.cache",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
];

const DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/urandom"];

/// The port of name servers.
const DNS: u16 = 53;

/// Since which version of the interface a kernel holds something back, by
/// <https://docs.kernel.org/userspace-api/landlock.html>.
const SINCE: [(ABI, &str); 6] = [
    (ABI::V3, "truncation of files"),
    (ABI::V4, "TCP"),
    (ABI::V5, "device controls"),
    (ABI::V6, "signals and abstract sockets"),
    (ABI::V9, "named sockets"),
    (ABI::V10, "UDP"),
];

/// Restricts this thread and those that it starts.
pub(super) fn restrict(c: &Confinement) -> Part {
    match tried(c) {
        Ok(part) => part,
        Err(e) => Part::new(Holds::No, e.to_string()),
    }
}

fn tried(c: &Confinement) -> Result<Part, landlock::RulesetError> {
    let write = make_bitflags!(AccessFs::{
        ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile
    });
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let socket = make_bitflags!(AccessFs::{ReadDir | MakeSock | RemoveFile});
    let device = make_bitflags!(AccessFs::{ReadFile | WriteFile});
    let notify = Notify::of_environment();
    let program = env::current_exe();
    let always = READ.iter().map(Path::new).chain(program.as_deref().ok());
    let siblings = threads::count().unwrap_or(1) > 1;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_KNOWN))?
        .handle_access(AccessNet::from_all(ABI_KNOWN))?
        .scope(notify.scopes())?
        .create()?
        .add_rules(path_beneath_rules(always, read))?
        .add_rules(path_beneath_rules(DEVICES, device))?
        .add_rules(path_beneath_rules(&c.read, read))?
        .add_rules(path_beneath_rules(&c.write, write))?
        .add_rules(path_beneath_rules(&c.sockets, socket))?
        .add_rules(path_beneath_rules(notify.path(), AccessFs::ResolveUnix))?
        .add_rules(ports(c).map(Ok::<_, landlock::RulesetError>))?
        .all_threads(siblings)?
        .restrict_self()?;
    let mut missing = Vec::new();
    let abi = match status.landlock {
        LandlockStatus::NotEnabled => {
            return Ok(Part::new(
                Holds::No,
                "this kernel has Landlock and does not use it (it is missing in lsm=)",
            ));
        }
        LandlockStatus::NotImplemented => {
            return Ok(Part::new(
                Holds::No,
                "this kernel has no Landlock (Linux 5.13 and newer may)",
            ));
        }
        LandlockStatus::Available { effective_abi, .. } => effective_abi,
    };
    if status.ruleset == RulesetStatus::NotEnforced {
        return Ok(Part::new(
            Holds::No,
            "this kernel's Landlock took none of the rules",
        ));
    }
    let unknown: Vec<&str> = SINCE
        .iter()
        .filter(|(since, _)| abi < *since)
        .map(|(_, what)| *what)
        .collect();
    if !unknown.is_empty() {
        missing.push(format!(
            "this kernel's (ABI {}) does not hold back {}",
            abi as i32,
            unknown.join(", ")
        ));
    }
    if siblings && !status.all_threads {
        missing.push("threads that were there before are free".into());
    }
    let absent: Vec<String> = c
        .read
        .iter()
        .chain(&c.write)
        .chain(&c.sockets)
        .filter(|p| !p.exists())
        .map(|p| p.display().to_string())
        .collect();
    if !absent.is_empty() {
        missing.push(format!("not there, and so closed: {}", absent.join(", ")));
    }
    let port = c
        .port
        .map_or("no TCP port".into(), |p| format!("TCP port {p}"));
    let connect = c
        .connect
        .map_or(String::new(), |p| format!(", TCP port {p} to connect to"));
    let what = format!(
        "files: {} to read, {} to write, and what every process needs; network: {port} to listen on{connect}",
        c.read.len(),
        c.write.len()
    );
    Ok(if missing.is_empty() {
        Part::new(Holds::Full, what)
    } else {
        Part::new(Holds::Partly, format!("{what}; {}", missing.join("; ")))
    })
}

/// What the network is held down to.
fn ports(c: &Confinement) -> impl Iterator<Item = NetPort> {
    let listen = c.port.map(|port| NetPort::new(port, AccessNet::BindTcp));
    let connect = c
        .connect
        .map(|port| NetPort::new(port, AccessNet::ConnectTcp));
    // A query is sent from a port that the kernel chooses (0); an answer that
    // is too long for it comes by TCP.
    let names = c.resolve.then(|| {
        [
            NetPort::new(DNS, AccessNet::ConnectSendUdp),
            NetPort::new(0, AccessNet::BindUdp),
            NetPort::new(DNS, AccessNet::ConnectTcp),
        ]
    });
    (listen.into_iter().chain(connect)).chain(names.into_iter().flatten())
}

/// Where a service manager wants to be told (sd_notify(3)): a path, or an
/// abstract name, which no rule can let through alone.
struct Notify(Option<PathBuf>);

impl Notify {
    fn of_environment() -> Self {
        Self(env::var_os("NOTIFY_SOCKET").map(PathBuf::from))
    }

    fn is_abstract(&self) -> bool {
        let first = self.0.as_ref().map(|p| p.as_os_str().as_encoded_bytes());
        first.is_some_and(|p| p.starts_with(b"@"))
    }

    fn scopes(&self) -> BitFlags<Scope> {
        if self.is_abstract() {
            Scope::Signal.into()
        } else {
            Scope::from_all(ABI_KNOWN)
        }
    }

    fn path(&self) -> Option<&Path> {
        self.0.as_deref().filter(|_| !self.is_abstract())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abstract_socket_of_a_service_manager_stays_in_reach() {
        let of = |name: &str| Notify(Some(name.into()));
        assert_eq!(of("@/run/notify").scopes(), Scope::Signal);
        assert_eq!(of("@/run/notify").path(), None);
        let named = of("/run/systemd/notify");
        assert_eq!(named.scopes(), Scope::from_all(ABI_KNOWN));
        assert_eq!(named.path(), Some(Path::new("/run/systemd/notify")));
        assert_eq!(Notify(None).path(), None);
    }
}
