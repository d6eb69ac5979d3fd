//! The system around the tests: mounts, modules, disk, and the end.

use anyhow::{Context, Result, bail};
use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, init_module, reboot},
};
use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    time::{Duration, Instant},
};

/// Where the disk is mounted.
pub const DISK: &str = "/disk";

fn put(kind: &str, at: &str) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("{at}: cannot make"))?;
    mount(kind, at, kind, MountFlags::empty(), None)
        .with_context(|| format!("{at}: cannot mount {kind}"))
}

/// What a Linux system has, as far as tests look.
pub fn mount_system() -> Result<()> {
    put("proc", "/proc")?;
    put("sysfs", "/sys")?;
    // Mounted by the kernel already where it was told to.
    let _ = put("devtmpfs", "/dev");
    put("cgroup2", "/sys/fs/cgroup")?;
    put("tracefs", "/sys/kernel/tracing")?;
    put("bpf", "/sys/fs/bpf")?;
    put("tmpfs", "/run")?;
    // Not mounted over: the root is memory too, and has the programs of a clone below
    // /tmp there.
    fs::create_dir_all("/tmp")?;
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777))?;
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")
        .context("no memory controller")?;
    Ok(())
}

/// The kernel's name and architecture.
pub fn release() -> Result<String> {
    let name = rustix::system::uname();
    Ok(format!(
        "{} {}",
        name.release().to_str()?,
        name.machine().to_str()?
    ))
}

pub fn load_module(file: &Path) -> Result<()> {
    let image = fs::read(file).context("cannot read")?;
    Ok(init_module(&image, c"")?)
}

/// Mounts the disk, and lets `folder` point there.
pub fn mount_disk(folder: &Path) -> Result<()> {
    let device = Path::new("/dev/vda");
    // The driver has been loaded, the device comes a moment later.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !device.exists() {
        if Instant::now() > deadline {
            bail!("no /dev/vda");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::create_dir_all(DISK)?;
    mount(device, DISK, "ext4", MountFlags::empty(), None).context("cannot mount /dev/vda")?;
    let tmp = format!("{DISK}/tmp");
    fs::create_dir_all(&tmp)?;
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777))?;
    fs::create_dir_all("/var")?;
    symlink(&tmp, "/var/tmp")?;
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above)?;
    }
    Ok(symlink(&tmp, folder)?)
}

/// Puts an empty folder over each of these.
pub fn hide(folders: &[&str]) -> Result<()> {
    for f in folders.iter().filter(|f| Path::new(f).is_dir()) {
        put("tmpfs", f)?;
    }
    Ok(())
}

/// Ends the machine. Without it the kernel would panic, as it should.
pub fn off() {
    let _ = std::io::stdout().flush();
    rustix::fs::sync();
    let _ = reboot(RebootCommand::Restart);
}
