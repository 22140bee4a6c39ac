//! The bpf(2) calls by which a control group gets its device program.
#![allow(unsafe_code, reason = "bpf(2) has no wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::devices::Instruction;

// From the kernel's bpf.h: commands, the kind of program, where it is attached and how.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// A group of ours has one program, and two for a moment.
const MAX_PROGRAMS: usize = 16;

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
struct Attach {
    group: u32,
    program: u32,
    place: u32,
    flags: u32,
}

#[repr(C)]
struct Query {
    group: u32,
    place: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// Makes `program` the device program of the group whose folder `group` is, in place of any that it has.
///
/// # Errors
/// The kernel's: `EPERM` where programs are not allowed, `EINVAL` for one that it does not take.
pub(crate) fn govern_devices(group: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let group = group.as_fd().as_raw_fd() as u32;
    let before = attached(group)?;
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    let program = descriptor(call(PROG_LOAD, load)?);
    // With others, so that a container may govern groups of its own; all have to agree.
    attach(PROG_ATTACH, group, &program, ALLOW_MULTI)?;
    for id in before {
        let old = descriptor(call(PROG_GET_FD_BY_ID, ById { id, next: 0, flags: 0 })?);
        attach(PROG_DETACH, group, &old, 0)?;
    }
    Ok(())
}

fn attach(command: libc::c_int, group: u32, program: &OwnedFd, flags: u32) -> io::Result<()> {
    let attach = Attach { group, program: program.as_raw_fd() as u32, place: CGROUP_DEVICE, flags };
    call(command, attach).map(drop)
}

/// The ids of the group's own programs.
fn attached(group: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let query = Query {
        group,
        place: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
        padding: 0,
    };
    call(PROG_QUERY, query)?;
    // Ids are never zero.
    Ok(ids.into_iter().take_while(|id| *id != 0).collect())
}

fn call<T>(command: libc::c_int, mut request: T) -> io::Result<i32> {
    // SAFETY: the kernel reads and, in a query, writes the request, which is ours alone and lives across the call, as do the
    // arrays that it points to; those that are written were taken mutably.
    match unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut request, size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result as i32),
    }
}

fn descriptor(number: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(number) }
}
