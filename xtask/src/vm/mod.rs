//! `cargo xtask vm`: the kernel tests on other kernels, in emulated machines.
//!
//! Owns what a run is: a machine, a variant of it, and the tests. Invariants:
//! the tests are the host's own, unchanged; every test gets a verdict; what
//! could not run is named. Needs neither hardware virtualization nor root:
//! software emulation boots these kernels in seconds.

mod archive;
pub mod kernel;
mod programs;
mod qemu;
mod table;
mod variant;

use crate::{places, say};
use anyhow::{Context, Result, bail};
use archive::Archive;
use clap::ValueEnum;
use kernel::{Arch, Kernel, Machine};
use programs::Programs;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use variant::Variant;
use xshell::{Shell, cmd};

/// Debian's packages for emulated machines; the kernels are fetched apart.
pub const DEBIAN_PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-arm",
    "e2fsprogs",
    "xz-utils",
];

/// Memory of the machine in MiB, unless told otherwise.
const MEMORY_MIB: u32 = 384;
/// The file of the archive that is unpacked last.
const LAST: &str = "/~last";
/// The disk; sparse, so it takes what is written to it.
const DISK_BYTES: u64 = 1 << 30;

/// Arguments of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine and kernel [default: all]
    #[arg(long, value_enum, value_name = "KERNEL")]
    kernel: Vec<Machine>,
    /// What is different about the machine
    #[arg(long, value_enum, default_value_t = Variant::Plain)]
    variant: Variant,
    /// Build the model for arm64 too, for `kernel_field`, `kernel_swap` and `kernel_trims`: minutes
    #[arg(long)]
    model: bool,
    /// Write docs/KERNELS.md from what the tests say here and on every machine
    #[arg(long, conflicts_with_all = ["kernel", "variant", "tests"])]
    table: bool,
    #[command(flatten)]
    run: Run,
}

/// What a boot is to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Run {
    /// Added to the kernel's command line
    #[arg(
        long,
        default_value = "",
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    append: String,
    /// Memory of the machine, in MiB
    #[arg(long, default_value_t = MEMORY_MIB, value_name = "MIB")]
    memory: u32,
    /// Print what tests say, also of those that pass
    #[arg(long)]
    show_output: bool,
    /// Print the machine's console as it comes
    #[arg(long)]
    console: bool,
    /// Only tests whose BINARY::NAME contains one of these
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
    /// What has not run then is left out, by name.
    #[arg(skip)]
    until: Option<Instant>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            append: String::new(),
            memory: MEMORY_MIB,
            show_output: false,
            console: false,
            tests: Vec::new(),
            until: None,
        }
    }
}

/// What several boots came to.
#[derive(Debug, Default)]
pub struct Account {
    /// `PLACE: WHAT` for each thing that failed.
    pub failed: Vec<String>,
    /// `NAME: REASON` for each test, or part of one, that could not run.
    pub skipped: Vec<String>,
    /// The place, and a JSON object that a test handed out there.
    pub figures: Vec<(String, String)>,
    /// Tests that ran.
    pub ran: usize,
}

/// `cargo xtask vm`.
///
/// # Errors
/// A machine cannot be had, a test failed, or a machine hung or died.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    if args.table {
        return table::write(sh, &args.run);
    }
    let machines = if args.kernel.is_empty() {
        Machine::value_variants().to_vec()
    } else {
        args.kernel.clone()
    };
    let mut account = Account::default();
    for machine in machines {
        if let Some(why) = missing(sh, machine) {
            bail!("{}: {why}", machine.name());
        }
        let place = Place::new(sh, machine, Kernel::get(sh, machine)?, args.model)?;
        place.boot(sh, args.variant, &args.run, &mut account)?;
    }
    for line in &account.skipped {
        println!("skipped: {line}");
    }
    println!(
        "{} tests ran, {} failed; skipped for want of something on that machine: {}",
        account.ran,
        account.failed.len(),
        account.skipped.len()
    );
    if account.ran == 0 && account.failed.is_empty() {
        bail!("no test of that name");
    }
    if account.failed.is_empty() {
        Ok(())
    } else {
        bail!("{}", account.failed.join("; "))
    }
}

/// What `cargo xtask test` boots, and the tests whose outcome depends on the
/// kernel and not on how fast it is. `--table` goes to every place.
const IN_TESTS: [(Machine, Variant, &[&str]); 3] = [
    (
        Machine::X86_64,
        Variant::Plain,
        &[
            "a_storm",
            "each_rung",
            "every_source",
            "kernel_trims",
            "memory_high_that_is_set_later",
        ],
    ),
    (
        Machine::Aarch64,
        Variant::Jetson,
        &["a_storm", "every_source"],
    ),
    (Machine::X86_64Newer, Variant::Plain, &["each_rung"]),
];

/// What emulated machines may take of `cargo xtask test`, with building what
/// runs there: nothing is begun later. Idle, two cores take less than half.
const TIME_IN_TESTS: Duration = Duration::from_secs(7 * 60);

/// And what a test may take of it: a prompt of 373 tokens alone takes 92 s.
const TIME_OF_A_TEST: Duration = Duration::from_secs(240);

/// The machines that `cargo xtask test` boots. One that cannot be had, and
/// what there is no time for, is skipped by name.
///
/// # Errors
/// What is to run there does not build, or an emulator does not start.
pub fn all(sh: &Shell, until: Option<Instant>) -> Result<Account> {
    let mut account = Account::default();
    let time_is_up = Instant::now() + TIME_IN_TESTS;
    let until = until.map_or(time_is_up, |u| u.min(time_is_up));
    for (machine, variant, tests) in IN_TESTS {
        let name = machine.name();
        if Instant::now() > until {
            let line = format!("kernel tests on {name} {}: {TIME_IS_UP}", variant.name());
            account.skipped.push(line);
            continue;
        }
        let kernel = match missing(sh, machine) {
            None => Kernel::get(sh, machine).map_err(|e| format!("{e:#}")),
            Some(why) => Err(why),
        };
        match kernel {
            Ok(kernel) => {
                let run = Run {
                    tests: tests.iter().map(ToString::to_string).collect(),
                    until: Some(until),
                    ..Run::default()
                };
                Place::new(sh, machine, kernel, false)?.boot(sh, variant, &run, &mut account)?;
            }
            Err(why) => account
                .skipped
                .push(format!("kernel tests on {name}: {why}")),
        }
    }
    Ok(account)
}

const TIME_IS_UP: &str = "no time left for it here; `cargo xtask vm` runs it";

/// Why a machine cannot be had here, if so.
pub fn missing(sh: &Shell, machine: Machine) -> Option<String> {
    if places::in_path(machine.qemu()).is_none() {
        return Some(format!(
            "no {}; `cargo xtask setup --cross` installs it ({})",
            machine.qemu(),
            machine.package()
        ));
    }
    if places::in_path("mke2fs").is_none() && !Path::new("/usr/sbin/mke2fs").exists() {
        return Some("no mke2fs (Debian's e2fsprogs)".into());
    }
    match machine.arch() {
        Arch::X86_64 => None,
        Arch::Aarch64 => crate::cross::missing(sh, false),
    }
}

/// A folder that goes when it is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A machine, its kernel, and what is to run there.
struct Place {
    machine: Machine,
    programs: Programs,
    kernel: Kernel,
}

impl Place {
    fn new(sh: &Shell, machine: Machine, kernel: Kernel, model: bool) -> Result<Self> {
        Ok(Self {
            machine,
            programs: Programs::build(sh, machine.arch(), model)?,
            kernel,
        })
    }

    fn boot(&self, sh: &Shell, variant: Variant, run: &Run, account: &mut Account) -> Result<()> {
        let name = self.machine.name();
        let place = format!("{name} {}", variant.name());
        let all = places::target().join("vm");
        sweep(&all);
        let folder = all.join(format!("{name}.{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let scratch = Scratch(folder);
        let initrd = scratch.0.join("initrd");
        let archive = self.archive(sh, variant, run, &scratch.0)?.bytes()?;
        fs::write(&initrd, archive)
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        let disk = scratch.0.join("disk");
        make_disk(sh, &disk)?;
        say(format_args!("booting {} ({place})", self.kernel.release));
        let outcome = qemu::Boot {
            machine: self.machine,
            kernel: &self.kernel.image(),
            initrd: &initrd,
            disk: &disk,
            append: format!("{} {}", variant.append(), run.append).trim(),
            memory_mib: run.memory,
            console: run.console,
            until: run.until,
        }
        .run(&mut |v| tell(&place, v, run.show_output))?;
        for v in &outcome.verdicts {
            account.ran += 1;
            if let Some(why) = &v.failure {
                account.failed.push(format!("{place}: {}: {why}", v.test));
            }
            let skipped = v.skipped.iter().map(|s| format!("{place}: {s}"));
            account.skipped.extend(skipped);
        }
        let left_out = outcome.left_out.iter();
        let left_out = left_out.map(|t| format!("{place}: {t}: {TIME_IS_UP}"));
        account.skipped.extend(left_out);
        if let Some(why) = outcome.broken {
            println!("{place}: {why}");
            let first = why.lines().next().unwrap_or_default();
            account.failed.push(format!("{place}: {first}"));
        }
        if run.tests.is_empty() {
            let out = self.programs.left_out();
            account.skipped.extend(out.map(|s| format!("{place}: {s}")));
        }
        let figures = outcome.figures.into_iter();
        account.figures.extend(figures.map(|f| (place.clone(), f)));
        Ok(())
    }

    /// The machine's first root: programs, modules, and the plan for vm-init.
    fn archive(&self, sh: &Shell, variant: Variant, run: &Run, folder: &Path) -> Result<Archive> {
        let mut archive = Archive::default();
        self.programs.pack(sh, &mut archive, folder)?;
        for dir in ["/proc", "/sys", "/dev", "/run", "/tmp", "/bin", "/etc"] {
            archive.folder(Path::new(dir));
        }
        // Unpacked after everything else: names are in their order.
        archive.text(Path::new(LAST), "");
        let mut plan = vec![format!("last {LAST}")];
        let names: Vec<&str> = ["virtio_pci", "virtio_blk"]
            .into_iter()
            .chain(variant.modules().iter().copied())
            .collect();
        for file in self.kernel.modules(&names)? {
            let path = Path::new("/modules").join(file.file_name().context("a module has a name")?);
            archive.program(&path, &file)?;
            plan.push(format!("module {}", path.display()));
        }
        plan.push(format!("disk {}", self.programs.scratch.display()));
        plan.extend(variant.plan().iter().map(ToString::to_string));
        plan.push(format!("env KVPSI_VM={}", variant.name()));
        if run.until.is_some() {
            plan.push(format!("time {}", TIME_OF_A_TEST.as_secs()));
        }
        plan.extend(run.tests.iter().map(|t| format!("only {t}")));
        for (name, file) in self.programs.tests() {
            plan.push(format!("test {name} {}", file.display()));
        }
        archive.text(Path::new("/plan"), plan.join("\n"));
        Ok(archive)
    }
}

/// Removes what a process that was killed left behind: its folder ends with its
/// id.
fn sweep(all: &Path) {
    for left in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = left.file_name();
        let pid = name.to_str().and_then(|n| n.rsplit_once('.'));
        if pid.is_some_and(|(_, pid)| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(left.path());
        }
    }
}

fn tell(place: &str, v: &qemu::Verdict, output: bool) {
    let verdict = match &v.failure {
        Some(why) => format!("FAILED ({why})"),
        None if v.skipped.is_empty() => "ok".into(),
        None => "ok, or skipped in part".into(),
    };
    if v.failure.is_some() || output {
        for line in &v.output {
            println!("    {line}");
        }
    }
    println!("{place}: {:>7} ms  {}  {verdict}", v.ms, v.test);
}

fn make_disk(sh: &Shell, disk: &Path) -> Result<()> {
    let file =
        fs::File::create(disk).with_context(|| format!("cannot write {}", disk.display()))?;
    file.set_len(DISK_BYTES)?;
    let mke2fs = places::in_path("mke2fs").unwrap_or_else(|| "/usr/sbin/mke2fs".into());
    // Without a journal: it lives as long as the machine does.
    cmd!(sh, "{mke2fs} -q -F -t ext4 -O ^has_journal -m 0 {disk}")
        .quiet()
        .run()
        .context("cannot make the machine's disk")
}
