//! The process that a pod's containers share namespaces with where none of them is there from the first to the last: it waits, and takes
//! in the orphans of a shared pid namespace.
#![allow(unsafe_code, reason = "how signals are taken is told by a call without a safe wrapper")]

use std::fs::{self, File};
use std::io;

use rustix::mount::mount_bind;

/// Where a container finds this program: what the guest began with lies below its root, out of sight.
const PROGRAM: &str = "/run/tatami/agent";

/// Has containers find the program.
///
/// # Errors
/// The kernel's.
pub(crate) fn offer() -> io::Result<()> {
    fs::create_dir_all("/run/tatami")?;
    File::create(PROGRAM)?;
    Ok(mount_bind("/proc/self/exe", PROGRAM)?)
}

/// Waits until it is killed.
pub fn hold() -> ! {
    // Children whose end nobody wants to hear of leave nothing behind.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    loop {
        // SAFETY: it only waits.
        unsafe { libc::pause() };
    }
}
