//! System calls that a server never makes, refused.
//!
//! Owns the list. It is one of what is refused and not of what is allowed:
//! a C library that learns a new call goes on working. Refused is what makes
//! another process or program of this one, what looks into others, what
//! changes the machine, and the interfaces that most faults of kernels were
//! found in and that nothing here needs. Memory, files, sockets, threads,
//! clocks and readings of BPF maps that are open stay.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};
use std::{collections::BTreeMap, env::consts::ARCH};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Refused whatever their arguments.
const REFUSED: &[i64] = &[
    // Programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_personality,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Ids and capabilities.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_mknodat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    // What faults were found in, and nothing here needs.
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_remap_file_pages,
    libc::SYS_vmsplice,
];

/// Commands of bpf(2) that read and write maps that are open, and say what a
/// program cost: `enum bpf_cmd` in linux/bpf.h.
const BPF_READS: [u64; 8] = [
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    3,  // BPF_MAP_DELETE_ELEM
    4,  // BPF_MAP_GET_NEXT_KEY
    15, // BPF_OBJ_GET_INFO_BY_FD
    21, // BPF_MAP_LOOKUP_AND_DELETE_ELEM
    24, // BPF_MAP_LOOKUP_BATCH
    26, // BPF_MAP_UPDATE_BATCH
];

/// Of sockets these alone.
const FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Installs the filter in every thread; says how many calls it refuses.
///
/// # Errors
/// In words: the kernel has no filters, or a thread has one of its own.
pub(super) fn apply() -> Result<usize, String> {
    let install =
        |program: &BpfProgram| seccompiler::apply_filter_all_threads(program).map_err(|e| why(&e));
    let (program, calls) = refusals().map_err(|e| e.to_string())?;
    install(&program)?;
    install(&no_clone3().map_err(|e| e.to_string())?)?;
    Ok(calls)
}

fn why(e: &seccompiler::Error) -> String {
    match e {
        seccompiler::Error::Seccomp(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
            "this kernel has no seccomp (CONFIG_SECCOMP_FILTER is off)".into()
        }
        seccompiler::Error::Seccomp(e) | seccompiler::Error::Prctl(e) => {
            format!("seccomp: {}", crate::pressure::plain(e))
        }
        e => e.to_string(),
    }
}

fn refusals() -> Result<(BpfProgram, usize), seccompiler::BackendError> {
    let mut rules: Rules = REFUSED.iter().map(|nr| (*nr, Vec::new())).collect();
    rules.insert(libc::SYS_bpf, none_of(0, &BPF_READS)?);
    let families = FAMILIES.map(|f| u64::from(f.unsigned_abs()));
    rules.insert(libc::SYS_socket, none_of(0, &families)?);
    // Threads, and no processes.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    rules.insert(
        libc::SYS_clone,
        vec![SeccompRule::new(vec![SeccompCondition::new(
            0,
            Dword,
            SeccompCmpOp::MaskedEq(thread),
            0,
        )?])?],
    );
    let calls = rules.len();
    let mut program = native_numbers();
    program.extend(compile(rules, libc::EPERM)?);
    Ok((program, calls))
}

/// clone3(2) has its flags in memory, where no filter looks. C libraries take
/// clone(2) where a kernel does not have it.
fn no_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    compile(Rules::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

/// A rule that catches every value of an argument but these.
fn none_of(argument: u8, allowed: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let differs = |v: &u64| SeccompCondition::new(argument, Dword, SeccompCmpOp::Ne, *v);
    let all = allowed.iter().map(differs).collect::<Result<_, _>>()?;
    Ok(vec![SeccompRule::new(all)?])
}

fn compile(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        ARCH.try_into()?,
    )?;
    BpfProgram::try_from(filter)
}

/// x86-64 has every call a second time, for programs with short pointers, by
/// numbers from bit 30 on (`__X32_SYSCALL_BIT`); nothing here makes those.
#[cfg(target_arch = "x86_64")]
fn native_numbers() -> BpfProgram {
    // linux/bpf_common.h; the number is the first word of `seccomp_data`.
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs()).into();
    let step = |code, jf, k| seccompiler::sock_filter { code, jt: 0, jf, k };
    vec![
        step(LOAD_WORD, 0, 0),
        step(JUMP_IF_AT_LEAST, 1, 0x4000_0000),
        step(RETURN, 0, refuse),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn native_numbers() -> BpfProgram {
    Vec::new()
}
