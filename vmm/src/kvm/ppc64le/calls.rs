//! System calls as they are here, for the filters of [`crate::seccomp`]: KVM's requests by the thread that makes them, and where the
//! arguments of a call are.

use seccompiler::TargetArch;

use super::spec;
use crate::seccomp::{Call, Test, when};

/// Whose filters these are. seccompiler does not know this architecture, but its programs for another one of 64 bits and this byte order
/// differ in nothing but the number by which the kernel knows it (`AUDIT_ARCH_PPC64LE` in `linux/audit.h`).
pub(crate) const FILTERED: (TargetArch, Option<u32>) = (TargetArch::aarch64, Some(0xc000_0015));

/// What waits for descriptors here, in place of `epoll_pwait` and `ppoll`, what moves in a file, in place of `lseek`, and what tells of a
/// file system, in place of `fstatfs`.
pub(crate) const OLD_CALLS: &[Call] = &[
    when(libc::SYS_epoll_wait, &[]),
    when(libc::SYS_poll, &[]),
    when(libc::SYS__llseek, &[]),
    when(libc::SYS_fstatfs64, &[]),
];

/// What sends and receives here, in place of `sendto` and `recvfrom` without an address.
pub(crate) const OLD_TRANSFERS: &[Call] = &[when(libc::SYS_recv, &[]), when(libc::SYS_send, &[])];

/// A vCPU's thread runs it, waits for it to be started, does what the guest's calls ask for, and says where it was when it could not
/// go on.
pub(crate) const VCPU_REQUESTS: &[Call] = &[
    request(&[Test::Is(1, spec::RUN)]),
    request(&[Test::Is(1, spec::GET_REGS)]),
    request(&[Test::Is(1, spec::SET_REGS)]),
    request(&[Test::Is(1, spec::GET_ONE_REG)]),
    request(&[Test::Is(1, spec::SET_ONE_REG)]),
    request(&[Test::Is(1, spec::PPC_CONFIGURE_V3_MMU)]),
    request(&[Test::Is(1, spec::PPC_GET_CPU_CHAR)]),
    when(libc::SYS_ppoll, &[]),
];

/// What is taken out of KVM to be saved (`state.rs`).
pub(crate) const SAVE_REQUESTS: &[Call] = &[
    request(&[Test::Is(1, spec::GET_REGS)]),
    request(&[Test::Is(1, spec::GET_SREGS)]),
    request(&[Test::Is(1, spec::GET_ONE_REG)]),
    request(&[Test::Is(1, spec::GET_DEVICE_ATTR)]),
];

/// Nothing is told to a machine that goes on.
pub(crate) const RESUME_REQUESTS: &[Call] = &[];

const fn request(tests: &'static [Test]) -> Call {
    when(libc::SYS_ioctl, tests)
}

/// The first arguments of the call that a thread was interrupted in, which begin with `r3`: the call did not happen, and so the
/// kernel has put nothing else there.
pub(crate) fn call_arguments(context: &libc::ucontext_t) -> [u64; 3] {
    let registers = &context.uc_mcontext.gp_regs;
    [registers[3], registers[4], registers[5]]
}

/// A system call's name: no list of them is at hand here, so a message has the number alone.
pub(crate) fn call_name(_: u32) -> Option<&'static str> {
    None
}
