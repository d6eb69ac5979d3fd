//! What can be different about a machine.
//!
//! Owns how each difference is made: by the kernel's command line, by modules,
//! or by words of the plan that vm-init carries out.

/// A variant of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// The kernel as it is
    Plain,
    /// No BTF, kprobes or tracefs in sight: a stock Jetson's kernel has none
    Jetson,
    /// The same, and PSI is off
    JetsonNoPsi,
    /// PSI is off
    NoPsi,
    /// The tests run in a memory cgroup with a limit, as in a container
    Cgroup,
    /// Swap on compressed memory
    Zram,
}

impl Variant {
    /// As `--variant` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Jetson => "jetson",
            Self::JetsonNoPsi => "jetson-no-psi",
            Self::NoPsi => "no-psi",
            Self::Cgroup => "cgroup",
            Self::Zram => "zram",
        }
    }

    /// For the kernel's command line; the last word on a matter counts.
    pub const fn append(self) -> &'static str {
        match self {
            Self::NoPsi | Self::JetsonNoPsi => "psi=0",
            _ => "",
        }
    }

    /// Modules that it takes.
    pub const fn modules(self) -> &'static [&'static str] {
        match self {
            // zram asks for its compressor by name when it is set up.
            Self::Zram => &["lzo_rle", "zram"],
            _ => &[],
        }
    }

    /// Words of the plan.
    pub const fn plan(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::NoPsi => &[],
            Self::Jetson | Self::JetsonNoPsi => &["hide-btf", "hide-kprobes"],
            // 192 MiB.
            Self::Cgroup => &["limit 201326592"],
            // 256 MiB.
            Self::Zram => &["zram 268435456"],
        }
    }
}
