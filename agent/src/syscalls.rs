//! The few calls that have no safe wrapper with the meaning needed here.
#![allow(
    unsafe_code,
    reason = "kill(2) with real-time signals, dispositions, fork and clone3, what a child does before execve(2), execve(2) without a shell's fallback, epoll on any fd"
)]

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// From the kernel's sched.h; libc's constant is too narrow.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Sends signal `number` to `pid`.
///
/// # Errors
/// `ESRCH` when there is no such process, `EINVAL` for a number that is no signal.
pub(crate) fn send(pid: i32, number: i32) -> io::Result<()> {
    debug_assert!(pid > 0, "zero and below address groups, which nobody here means");
    // SAFETY: kill takes two integers and touches no memory of ours.
    if unsafe { libc::kill(pid, number) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives SIGPIPE its default meaning back, which the Rust runtime took from it, so that a command starts as others start it.
pub(crate) fn restore_default_pipe() {
    // SAFETY: SIG_DFL installs no handler, so no code of ours can run in signal context.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Replaces the process's image by `file`; the strings are complete argument and environment lists.
///
/// # Errors
/// Always, if it returns at all: why the kernel refused.
pub(crate) fn execute(file: &CStr, arguments: &[CString], environment: &[CString]) -> io::Result<Infallible> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all three are NUL-terminated strings or null-terminated arrays of such, borrowed across the call.
    unsafe { libc::execve(file.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Makes `fd` non-blocking and watches it.
///
/// # Errors
/// When it is of a kind that cannot be watched, such as a regular file.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    // SAFETY: an OwnedFd moved in here stays the same open descriptor until the AsyncFd closes it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Watches `file`, whose reads do not block, for `interest`.
///
/// # Errors
/// When it is of a kind that cannot be watched.
pub(crate) fn watched_for(file: File, interest: Interest) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File moved in here stays the same open descriptor until the AsyncFd closes it.
    Ok(unsafe { AsyncFd::register_with_interest(file, interest) }?)
}

/// Forks. Zero in the child.
///
/// The caller has one thread, or the child would find locks that nobody will ever release.
///
/// # Errors
/// `EAGAIN` or `ENOMEM`.
pub(crate) fn fork() -> io::Result<i32> {
    // SAFETY: fork copies the process; with one thread, as the contract says, the copy is as sound as the original.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Forks into the control group that `cgroup` is the folder of. Zero in the child. The caller has one thread.
///
/// # Errors
/// `EAGAIN` when the group may not have more processes.
pub(crate) fn fork_into(cgroup: &OwnedFd) -> io::Result<i32> {
    // SAFETY: clone_args is plain data for which all zeroes is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM and a stack of its own, clone3 is fork; the argument lives across the call.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid as i32),
    }
}

/// Closes every descriptor but the three standard streams. Nothing of this process may use one that it had open any more.
///
/// # Errors
/// When a filter does not let it.
pub(crate) fn close_all_but_streams() -> io::Result<()> {
    // SAFETY: the caller uses none of them again; descriptors are numbers, and no memory of ours is touched.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has `command` lead a session of its own, whose terminal its standard input is.
pub(crate) fn lead_session(command: &mut Command) {
    let lead = || {
        rustix::process::setsid()?;
        Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
    };
    // SAFETY: two system calls, which may be made between fork and exec, and nothing else.
    unsafe { command.pre_exec(lead) };
}

/// Has the kernel reap this process's children.
pub(crate) fn ignore_children() {
    // SAFETY: SIG_IGN installs no handler, so no code of ours can run in signal context.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Lets this process reap its children again.
pub(crate) fn notice_children() {
    // SAFETY: SIG_DFL installs no handler, so no code of ours can run in signal context.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}
