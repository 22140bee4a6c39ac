//! How a static binary finds hosts by their names.

#![allow(unsafe_code, reason = "no crate wraps glibc's call")]

use std::ffi::{c_char, c_int};
use std::sync::Once;

unsafe extern "C" {
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// Has this process look for hosts in `/etc/hosts` and by DNS, whatever `/etc/nsswitch.conf` says: both are within the C library. For any
/// other service it would load a library of the host's into this static binary, which works with the very same release of glibc only.
/// Call it before the first look-up.
pub(super) fn stay_within() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: both texts end with a NUL and live for ever; nothing of the host database has been used yet, and if it has,
        // the call says so and changes nothing.
        let refused = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
        if refused != 0 {
            log::debug!("hosts are looked for as nsswitch.conf says");
        }
    });
}
