//! What libcontainer wants of the crate `prctl`, which is four calls of prctl(2).
//!
//! The crate itself declares the C library's function with five arguments where it has one and then any number. Most machines do not
//! mind. On powerpc64le a caller leaves room in its frame for a function's arguments only if there may be any number of them, and such a
//! function stores them there: without that room it overwrites what its caller will return to. Knows nothing else of the crate.

#![allow(unsafe_code, reason = "a system call that takes a string's address")]

use std::ffi::{CString, c_int, c_ulong};
use std::io;

/// Whether others of its user may trace the process and look into it (`PR_SET_DUMPABLE`).
///
/// # Errors
/// The number of what the kernel says.
pub fn set_dumpable(dumpable: bool) -> Result<(), i32> {
    control(libc::PR_SET_DUMPABLE, dumpable.into())
}

/// Whether a program gives the process privileges that it did not have (`PR_SET_NO_NEW_PRIVS`); they cannot be had back.
///
/// # Errors
/// The number of what the kernel says.
pub fn set_no_new_privileges(none: bool) -> Result<(), i32> {
    control(libc::PR_SET_NO_NEW_PRIVS, none.into())
}

/// Whether the thread keeps its permitted capabilities when it is no longer root's (`PR_SET_KEEPCAPS`).
///
/// # Errors
/// The number of what the kernel says.
pub fn set_keep_capabilities(keep: bool) -> Result<(), i32> {
    control(libc::PR_SET_KEEPCAPS, keep.into())
}

/// Names the thread; the kernel takes 15 bytes of it (`PR_SET_NAME`).
///
/// # Errors
/// `EINVAL` for a name with a NUL in it.
pub fn set_name(name: &str) -> Result<(), i32> {
    let name = CString::new(name).map_err(|_| libc::EINVAL)?;
    control(libc::PR_SET_NAME, name.as_ptr().addr() as c_ulong)
}

/// The first argument's meaning is `option`'s; the others must be zero for all that are used here.
fn control(option: c_int, argument: c_ulong) -> Result<(), i32> {
    const UNUSED: c_ulong = 0;
    // SAFETY: of the options above only the name's is an address, of a string that its caller keeps until the call is over.
    match unsafe { libc::prctl(option, argument, UNUSED, UNUSED, UNUSED) } {
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(option: c_int) -> c_int {
        const UNUSED: c_ulong = 0;
        // SAFETY: asked with options that come back with a number and take no address.
        unsafe { libc::prctl(option, UNUSED, UNUSED, UNUSED, UNUSED) }
    }

    #[test]
    fn the_thread_is_named() {
        set_name("a name of more than fifteen").unwrap();
        let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        assert_eq!(name, "a name of more \n");
        assert_eq!(set_name("a\0b"), Err(libc::EINVAL));
    }

    #[test]
    fn what_is_set_is_so() {
        set_keep_capabilities(true).unwrap();
        assert_eq!(state(libc::PR_GET_KEEPCAPS), 1);
        set_keep_capabilities(false).unwrap();
        assert_eq!(state(libc::PR_GET_KEEPCAPS), 0);
        set_dumpable(true).unwrap();
        assert_eq!(state(libc::PR_GET_DUMPABLE), 1);
    }

    #[test]
    fn privileges_that_were_given_up_stay_so() {
        set_no_new_privileges(true).unwrap();
        assert_eq!(state(libc::PR_GET_NO_NEW_PRIVS), 1);
        assert_eq!(set_no_new_privileges(false), Err(libc::EINVAL));
    }
}
