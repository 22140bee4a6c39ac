//! The threads of the VMM: every one is started here, with its name, so that there is one place to confine them by role.

use std::io;
use std::thread::{Builder, JoinHandle};

use tatami_devices::virtio::{Role, Threads};

/// Starts threads for devices and vCPUs.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmmThreads;

impl Threads for VmmThreads {
    fn spawn(&self, name: &str, role: Role, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        spawn(name, role, body)
    }
}

/// Starts a thread called `name` (at most 15 bytes, which is what the kernel keeps) that does `role`.
///
/// # Errors
/// Whatever the operating system said when it would not start one.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    role: Role,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    debug_assert!(name.len() <= 15, "{name} is too long for a thread's name");
    log::debug!("thread {name} starts as {role:?}");
    Builder::new().name(name.to_owned()).spawn(move || {
        if role == Role::Files {
            // The file server changes its working directory and umask for single calls; nobody else may see that.
            // It cannot fail: it takes no privilege, only memory for one small structure.
            if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS) {
                log::error!("the file server shares its working directory with other threads: {errno}");
            }
        }
        body()
    })
}
