//! kvpsi's eBPF programs: memory stalls, counted and coalesced in the kernel.
//!
//! One file per family of hooks; what they do with a hook is in [`stall`].
//! Base rung: raw tracepoints, scalar arguments only, no kernel struct is
//! read, no fetching atomic is used, so that the object loads without BTF and
//! on the arm64 JIT of Linux 5.15.
#![no_std]
#![no_main]

mod compaction;
mod kswapd;
mod maps;
mod oom;
mod reclaim;
mod stall;
mod throttle;

/// The kernel takes GPL-only helpers' word from here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
