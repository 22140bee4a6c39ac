//! The /init of the boot benchmark: says through the kernel's log that user space has begun, and restarts the machine.
//!
//! The kernel's own early console carries the line, so that no driver is probed for the benchmark's sake.

use std::fs::OpenOptions;
use std::io::Write;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

fn main() -> anyhow::Result<()> {
    // The kernel's log is character device 1:11 (Linux, devices.txt); nothing is mounted yet.
    mknod("/kmsg", SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(1, 11))?;
    // Level 0 passes every `quiet`.
    OpenOptions::new().write(true).open("/kmsg")?.write_all(b"<0>bench: user space\n")?;
    reboot(RebootMode::RB_AUTOBOOT)?;
    Ok(())
}
