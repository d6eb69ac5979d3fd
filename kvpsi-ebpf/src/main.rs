//! kvpsi's eBPF programs: memory stalls, counted and coalesced in the kernel.
//!
//! One file per family of hooks; what they do with a hook is in [`stall`].
//! Base rung: raw tracepoints, scalar arguments only, no kernel struct is
//! read, no fetching atomic is used, so that the object loads without BTF and
//! on the arm64 JIT of Linux 5.15. The memstall rung ([`memstall`]) comes on top
//! where the kernel has fentry or kprobes.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod compaction;
mod exit;
mod here;
mod kswapd;
mod maps;
mod memstall;
mod oom;
mod plausible;
mod reclaim;
mod send;
mod stall;
mod task;
mod throttle;

/// The kernel takes GPL-only helpers' word from here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
