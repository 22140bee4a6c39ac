//! Tells the server which thread made a system call that it may not, and ends the process.
//!
//! Runs as a signal's handler in a thread that may hold any lock: takes no memory, and makes two calls that every role may make.

#![allow(unsafe_code, reason = "a signal's handler, and what the kernel tells it")]

use std::cell::Cell;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use crate::control::{Forbidden, THREAD_NAME_BYTES, send_forbidden};
use crate::kvm::call_arguments;

thread_local! {
    static NAME: Cell<[u8; THREAD_NAME_BYTES]> = const { Cell::new(*b"main\0\0\0\0\0\0\0\0\0\0\0\0") };
}

static CONTROL: AtomicI32 = AtomicI32::new(-1);

/// Has the calls that filters refuse reported over `control`.
///
/// # Errors
/// When the kernel takes no handler.
pub(crate) fn install(control: RawFd) -> io::Result<()> {
    CONTROL.store(control, Ordering::Relaxed);
    // SAFETY: all zeros are a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = report;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler does only what one may.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the calling thread is called in a report.
pub(crate) fn name_thread(name: &str) {
    let mut bytes = [0; THREAD_NAME_BYTES];
    let length = name.len().min(THREAD_NAME_BYTES);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    NAME.set(bytes);
}

extern "C" fn report(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    /// Where the kernel puts the number: behind signal, errno, code and a hole of 4 bytes each, and the address of the call
    /// (`struct siginfo`, member `_sigsys`, of every 64-bit architecture).
    const NUMBER_AT: usize = 24;
    // SAFETY: the kernel hands over a whole `siginfo_t` of this signal, and a `ucontext_t`, both of this handler alone.
    let (call, arguments) = unsafe {
        let number = info.cast::<u8>().add(NUMBER_AT).cast::<u32>().read_unaligned();
        (number, call_arguments(&*context.cast::<libc::ucontext_t>()))
    };
    let forbidden = Forbidden { thread: NAME.get(), call, arguments };
    // SAFETY: the socket stays open for as long as the process lives.
    let control = unsafe { BorrowedFd::borrow_raw(CONTROL.load(Ordering::Relaxed)) };
    send_forbidden(control, &forbidden);
    // No role may make this call, and with the signal blocked, as it is in its handler, it means death by that signal. So the
    // server sees what happened even if it could not be told.
    // SAFETY: it is not carried out, and would do nothing without its magic numbers.
    unsafe { libc::syscall(libc::SYS_reboot, 0, 0, 0, 0) };
    // SAFETY: ends the process.
    unsafe { libc::_exit(1) }
}
