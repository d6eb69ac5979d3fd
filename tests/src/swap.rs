//! Swap on compressed memory, for tests that need some.
//!
//! Owns a zram device that is made for a test and taken away after it.

use crate::skip;
use anyhow::{Context, Result};
use std::{
    ffi::CString,
    fs,
    io::{Error, Write},
};

const DEVICE: &str = "/dev/zram0";
const STATE: &str = "/sys/block/zram0/initstate";

/// Swap, for as long as it lives.
#[derive(Debug)]
pub struct Swap(());

impl Swap {
    /// Makes a zram device and swaps to it.
    ///
    /// # Errors
    /// There is no such device, it is in use, or the kernel refuses.
    pub fn make(bytes: u64) -> Result<Self> {
        fs::write("/sys/block/zram0/disksize", bytes.to_string()).context("no zram")?;
        let new = Self(());
        // mm/swapfile.c and include/linux/swap.h: version 1 at 1024, then the
        // last page and the number of bad ones; the signature ends the page.
        let page = rustix::param::page_size();
        let last = u32::try_from(bytes / page as u64 - 1).context("too large")?;
        let mut header = vec![0u8; page];
        header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
        header[1028..1032].copy_from_slice(&last.to_ne_bytes());
        header[page - 10..].copy_from_slice(b"SWAPSPACE2");
        let mut device = fs::OpenOptions::new().write(true).open(DEVICE)?;
        device.write_all(&header)?;
        device.sync_all()?;
        let path = CString::new(DEVICE)?;
        // SAFETY: a path that ends with a zero byte, and no flags.
        if unsafe { libc::swapon(path.as_ptr(), 0) } != 0 {
            return Err(Error::last_os_error()).context("swapon /dev/zram0");
        }
        Ok(new)
    }

    /// The machine's own swap where there is enough of it, else a zram device of this
    /// test's; or a skip of `test`.
    #[must_use]
    pub fn there_or_made(test: &str, bytes: u64) -> Option<Option<Self>> {
        if crate::storm::meminfo("SwapFree:") >= bytes {
            return Some(None);
        }
        if !fs::read_to_string(STATE).is_ok_and(|s| s.trim() == "0") {
            skip(
                test,
                format!("no swap, and no free {DEVICE} (modprobe zram)"),
            );
            return None;
        }
        match Self::make(bytes) {
            Ok(swap) => Some(Some(swap)),
            Err(why) => {
                skip(test, format!("{why:#}"));
                None
            }
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let path = CString::new(DEVICE).unwrap_or_default();
        // SAFETY: a path that ends with a zero byte.
        let _ = unsafe { libc::swapoff(path.as_ptr()) };
        let _ = fs::write("/sys/block/zram0/reset", "1");
    }
}
