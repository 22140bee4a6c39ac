//! What libcontainer wants of the crate `nc`, which is one system call: setting how a process is scheduled (sched_setattr(2)).
//!
//! The crate itself has system calls in assembly for each architecture, and none for powerpc64le. Knows nothing else of it.

#![allow(unsafe_code, reason = "a system call that takes a structure's address")]
#![allow(non_camel_case_types, reason = "their name")]

use std::io;

/// `struct sched_attr` of `linux/sched/types.h`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct sched_attr_t {
    /// Bytes of the structure.
    pub size: u32,
    /// `SCHED_OTHER` and others.
    pub sched_policy: u32,
    /// `SCHED_FLAG_…`.
    pub sched_flags: u64,
    /// For `SCHED_OTHER` and `SCHED_BATCH`.
    pub sched_nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`.
    pub sched_priority: u32,
    /// For `SCHED_DEADLINE`, in nanoseconds.
    pub sched_runtime: u64,
    /// The same.
    pub sched_deadline: u64,
    /// The same.
    pub sched_period: u64,
    /// The least utilisation to reckon with.
    pub sched_util_min: u32,
    /// The most.
    pub sched_util_max: u32,
}

/// Has process `pid`, or with 0 the calling one, scheduled as `attributes` say; `flags` is 0.
///
/// # Safety
/// There is nothing to heed; it is unsafe because theirs is.
///
/// # Errors
/// What the kernel says.
pub unsafe fn sched_setattr(pid: i32, attributes: &sched_attr_t, flags: u32) -> io::Result<()> {
    // SAFETY: the kernel reads a structure of the size that it begins with, which the caller has in full.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const *attributes, flags) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(attributes: sched_attr_t) -> io::Result<()> {
        // SAFETY: see there.
        unsafe { sched_setattr(0, &attributes, 0) }
    }

    #[test]
    fn the_kernel_takes_the_structure() {
        let size = size_of::<sched_attr_t>() as u32;
        assert_eq!(size, 56);
        // What anybody may become, if only this thread.
        let sched_policy = libc::SCHED_IDLE as u32;
        set(sched_attr_t { size, sched_policy, ..Default::default() }).unwrap();
        // SAFETY: asks about the calling thread.
        assert_eq!(unsafe { libc::sched_getscheduler(0) }, libc::SCHED_IDLE);
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        let size = size_of::<sched_attr_t>() as u32;
        let error = set(sched_attr_t { size, sched_policy: 77, ..Default::default() }).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
