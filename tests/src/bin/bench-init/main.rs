//! The /init of the boot and device benchmarks: says through the kernel's log that user space has begun, or measures what
//! `BENCH=` on the kernel's command line names, and restarts the machine. With arguments, a program that measures the same from
//! within a container: `files CASE`, `net HOST`.
//!
//! The kernel's own early console carries the lines, so that no driver is probed for the benchmark's sake.

mod disk;
mod files;
mod sockets;

use std::fs::OpenOptions;
use std::io::Write;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["files", case] => println!("{}", files::measure_one(case)?),
        ["net", host] => println!("{}", sockets::tcp_to(host.parse()?)?),
        [] => return init(),
        _ => bail!("usage: bench-init [files CASE | net HOST]"),
    }
    Ok(())
}

fn init() -> Result<()> {
    // The kernel's log is character device 1:11 (Linux, devices.txt); nothing is mounted yet.
    mknod("/kmsg", SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(1, 11))?;
    let mut log = OpenOptions::new().write(true).open("/kmsg")?;
    // What the kernel does not know on its command line is in its first process's environment.
    let figures = match std::env::var("BENCH").as_deref() {
        Ok("disk") => Some(disk::measure()),
        Ok("files") => Some(files::measure()),
        Ok("vsock") => Some(sockets::vsock()),
        Ok("net") => Some(sockets::tcp()),
        _ => None,
    };
    let line = match figures {
        Some(Ok(figures)) => format!("figures {figures}"),
        Some(Err(error)) => format!("failed: {error:#}"),
        None => "user space".to_owned(),
    };
    // Level 0 passes every `quiet`.
    log.write_all(format!("<0>bench: {line}\n").as_bytes())?;
    reboot(RebootMode::RB_AUTOBOOT)?;
    Ok(())
}
