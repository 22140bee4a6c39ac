//! Time: since the kernel started, of the wall, and setting the latter.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NANOSECONDS: i64 = 1_000_000_000;

/// Microseconds since the guest kernel started its clocks.
pub(crate) fn since_boot_us() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

/// Milliseconds since the guest kernel started its clocks.
pub(crate) fn since_boot_ms() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 / 1e6
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * NANOSECONDS + now.tv_nsec
}

/// Sets the wall clock to `ns` nanoseconds since 1970.
///
/// # Errors
/// The kernel's, when the process may not.
pub(crate) fn set_ns(ns: i64) -> rustix::io::Result<()> {
    let time = Timespec { tv_sec: ns.div_euclid(NANOSECONDS), tv_nsec: ns.rem_euclid(NANOSECONDS) };
    clock_settime(ClockId::Realtime, time)
}
