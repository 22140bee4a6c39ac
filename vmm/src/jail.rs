//! Shuts this process in: after [`Jail::enter`] there is nothing left to reach but what it was handed.
//!
//! Must run before the first thread starts. Knows nothing of machines; a filter on system calls comes on top, by thread.

#![allow(unsafe_code, reason = "closing descriptors that nothing in this process owns, and an option of the allocator")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What the file server needs to act for any user of the guest, and nothing else.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Why the jail could not be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot confine the VMM: {what}: {source}")]
pub(crate) struct JailError {
    what: &'static str,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> JailError {
    move |error| JailError { what, source: error.into() }
}

/// What a jailed process has left of the outside.
#[derive(Debug)]
pub(crate) struct Jail {
    /// Where the shared folder is now: `/`, unless it could not be made the root.
    pub(crate) root: PathBuf,
    /// `/proc/self/fd`, which the file server needs and cannot find any more. Nothing is above it, unless something is lacking.
    pub(crate) proc_self_fd: File,
    /// What could not be done for a user who is not root, for the log.
    pub(crate) lacking: Vec<&'static str>,
}

/// Ends this process when the thread that started it does. A parent that is gone already is noticed by its closed socket.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn die_with_parent() -> Result<(), JailError> {
    let what = "tie its life to the server's";
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed(what))
}

/// Closes whatever this process inherited by accident; standard input, output and error stay.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn close_inherited() -> Result<(), JailError> {
    // SAFETY: called first thing in the process, when nothing in it owns a descriptor beyond the standard three.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(failed("close inherited files")(io::Error::last_os_error())),
    }
}

/// Has all threads allocate from one heap. The further ones that glibc makes cost memory each, and look at files in `/proc` and
/// `/sys` when they shrink or become many, which threads may not that have no business with files.
pub(crate) fn share_one_heap() {
    // SAFETY: sets a number, before the first thread starts.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

impl Jail {
    /// Enters the jail whose root is `shared_dir`, a mount point.
    ///
    /// # Errors
    /// For root, when any step fails; for others, what fails without privileges is told in [`Jail::lacking`].
    pub(crate) fn enter(shared_dir: &Path) -> Result<Jail, JailError> {
        let privileged = rustix::process::geteuid().is_root();
        // Before /proc is gone. The descriptors of this process, through which the file server opens files again.
        let proc_self_fd = own_descriptors(privileged)?;
        limit_resources()?;
        // What the guest asks for is made as it says; what this process makes of itself is nobody else's.
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        let mut lacking = Vec::new();
        let root = if privileged {
            leave_namespaces()?;
            change_root(shared_dir)?;
            drop_capabilities()?;
            PathBuf::from("/")
        } else {
            lacking.push(
                "namespaces, a root and a cgroup of its own, and with its user's access to files: start it as root for these",
            );
            shared_dir.to_owned()
        };
        rustix::thread::set_no_new_privs(true).map_err(failed("forbid new privileges"))?;
        Ok(Jail { root, proc_self_fd, lacking })
    }
}

/// The folder of this process's open files. For root it is a mount of its own that is attached nowhere, so that `..` ends there:
/// above it are `/proc/self/root`, other processes, and `/proc/self/mem`, by which code can be changed.
fn own_descriptors(privileged: bool) -> Result<File, JailError> {
    const PATH: &str = "/proc/self/fd";
    let opened = if privileged {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(CWD, PATH, flags).map(File::from).map_err(io::Error::from)
    } else {
        File::open(PATH)
    };
    opened.map_err(failed("open /proc/self/fd"))
}

/// No core dumps, which would hold guest memory; as many descriptors as it may have, because each file the guest has open
/// is one. The number of its threads is its cgroup's to limit: the kernel counts those of a user, and root's not at all.
fn limit_resources() -> Result<(), JailError> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).map_err(failed("forbid core dumps"))?;
    crate::open_files::raise().map_err(failed("raise the number of open files"))
}

/// Mounts that come from outside only, no network, no System V objects or message queues, a host name of its own. It was started
/// as the first of its own processes.
fn leave_namespaces() -> Result<(), JailError> {
    let namespaces =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).map_err(failed("leave the namespaces"))?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(failed("make mounts slaves of the server's"))
}

/// Makes `root` the root and lets go of everything else. What the server mounts below it later arrives here.
fn change_root(root: &Path) -> Result<(), JailError> {
    rustix::process::chdir(root).map_err(failed("enter the shared folder"))?;
    // The old root comes to lie over the new one, from where it is taken away (pivot_root(2)).
    rustix::process::pivot_root(".", ".").map_err(failed("make the shared folder its root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("let go of the host's root"))?;
    rustix::process::chdir("/").map_err(failed("enter its root"))
}

fn drop_capabilities() -> Result<(), JailError> {
    let what = "give up capabilities";
    for capability in CapabilitySet::all().difference(CAPABILITIES).iter() {
        // A kernel that does not know a capability cannot give it either.
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(failed(what)(errno)),
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(failed(what))?;
    let sets = CapabilitySets { effective: CAPABILITIES, permitted: CAPABILITIES, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed(what))
}
