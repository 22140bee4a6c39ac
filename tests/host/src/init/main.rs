//! PID 1 of the emulated test host, and (as its child, `serve`) the server that runs commands for clients.
//!
//! PID 1 brings the machine up and then only reaps: orphans of any command come to it, while the server waits for the
//! commands it started itself. It does not know what runs here or why; it never outlives its QEMU.

mod boot;
mod command;
mod serve;
mod session;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return match serve::serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("testhost-init: the command server ended: {e:#}");
                ExitCode::FAILURE
            }
        };
    }
    if std::process::id() != 1 {
        eprintln!("testhost-init is PID 1 of the emulated test host; use tests/host/run");
        return ExitCode::FAILURE;
    }
    if let Err(e) = be_init() {
        // The client shows the console's last lines when the host ends.
        eprintln!("testhost-init: {e:#}");
    }
    // With QEMU's -no-reboot this ends QEMU, and with it the host.
    let Err(e) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("testhost-init: power off: {e}");
    ExitCode::FAILURE
}

fn be_init() -> Result<()> {
    boot::enter_root().context("from the initrd to the root file system")?;
    boot::bring_up()?;
    let server = Command::new("/proc/self/exe").arg("serve").spawn().context("starting the command server")?;
    let server = Pid::from_raw(server.id() as i32);
    loop {
        match wait() {
            Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..))) if pid == server => {
                bail!("the command server is gone: {status:?}");
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => bail!("waiting for children: {e}"),
        }
    }
}
