//! System calls as they are here, for the filters of [`crate::seccomp`]: KVM's requests by the thread that makes them, and where the
//! arguments of a call are.

use kvm_bindings::{kvm_device_attr, kvm_mp_state, kvm_one_reg, kvm_vcpu_events};
use seccompiler::TargetArch;

use crate::seccomp::{Call, Test, when};

/// Whose filters these are.
pub(crate) const FILTERED: (TargetArch, Option<u32>) = (TargetArch::aarch64, None);

/// This architecture never had the calls that later ones replaced.
pub(crate) const OLD_CALLS: &[Call] = &[];

/// Sending and receiving has no calls beside `sendto` and `recvfrom`.
pub(crate) const OLD_TRANSFERS: &[Call] = &[];

/// A vCPU's thread runs it, and says where it was when it could not go on.
pub(crate) const VCPU_REQUESTS: &[Call] =
    &[request(&[Test::Is(1, plain(0x80))]), request(&[Test::Is(1, writes::<kvm_one_reg>(0xab))])];

/// What is taken out of KVM to be saved (`state.rs`, `gic.rs`). Registers and attributes of devices are asked for by requests that hand
/// over where to put them, which to the kernel's numbering are writes.
pub(crate) const SAVE_REQUESTS: &[Call] = &[
    request(&[Test::Is(1, writes::<kvm_one_reg>(0xab))]),
    request(&[Test::Is(1, writes::<kvm_device_attr>(0xe2))]),
    // `struct kvm_reg_list` has its length, and whatever follows does not count.
    request(&[Test::Is(1, writes::<u64>(0xb0) | (2 << 30))]),
    request(&[Test::Is(1, reads::<kvm_mp_state>(0x98))]),
    request(&[Test::Is(1, reads::<kvm_vcpu_events>(0x9f))]),
];

/// Nothing is told to a machine that goes on.
pub(crate) const RESUME_REQUESTS: &[Call] = &[];

const fn request(tests: &'static [Test]) -> Call {
    when(libc::SYS_ioctl, tests)
}

/// A request's number as `linux/kvm.h` makes it (`_IO`, `_IOW`, `_IOR` of type 0xae).
const fn plain(number: u64) -> u64 {
    0xae00 | number
}

const fn writes<T>(number: u64) -> u64 {
    (1 << 30) | ((size_of::<T>() as u64) << 16) | plain(number)
}

const fn reads<T>(number: u64) -> u64 {
    (2 << 30) | ((size_of::<T>() as u64) << 16) | plain(number)
}

/// The first arguments of the call that a thread was interrupted in. The kernel has put nothing into `x0` yet: the call did not happen.
pub(crate) fn call_arguments(context: &libc::ucontext_t) -> [u64; 3] {
    let registers = &context.uc_mcontext.regs;
    [registers[0], registers[1], registers[2]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_numbers() {
        // As strace names them.
        assert_eq!(plain(0x80), 0xae80);
        assert_eq!(writes::<kvm_one_reg>(0xab), 0x4010_aeab);
        assert_eq!(writes::<kvm_device_attr>(0xe2), 0x4018_aee2);
        assert_eq!(writes::<u64>(0xb0) | (2 << 30), 0xc008_aeb0);
        assert_eq!(reads::<kvm_mp_state>(0x98), 0x8004_ae98);
        assert_eq!(reads::<kvm_vcpu_events>(0x9f), 0x8040_ae9f);
    }
}
