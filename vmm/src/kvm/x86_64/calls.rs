//! System calls as they are here, for the filters of [`crate::seccomp`]: KVM's requests by the thread that makes them, calls that
//! later architectures do not have, and where the arguments of one are.

use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_irq_routing, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use seccompiler::TargetArch;

use crate::seccomp::{Call, Test, when};

/// Whose filters these are.
pub(crate) const FILTERED: (TargetArch, Option<u32>) = (TargetArch::x86_64, None);

/// What waits for descriptors here, in place of `epoll_pwait` and `ppoll`.
pub(crate) const OLD_CALLS: &[Call] = &[when(libc::SYS_epoll_wait, &[]), when(libc::SYS_poll, &[])];

/// Sending and receiving has no calls beside `sendto` and `recvfrom`.
pub(crate) const OLD_TRANSFERS: &[Call] = &[];

/// A vCPU's thread runs it, says where it was when it could not go on, and carries out what the guest has messages changed to.
pub(crate) const VCPU_REQUESTS: &[Call] = &[
    request(&[Test::Is(1, plain(0x80))]),
    request(&[Test::Is(1, reads::<kvm_regs>(0x81))]),
    request(&[Test::Is(1, writes::<kvm_irq_routing>(0x6a))]),
];

/// What is taken out of KVM to be saved (`state.rs`).
pub(crate) const SAVE_REQUESTS: &[Call] = &[
    request(&[Test::Is(1, reads::<kvm_clock_data>(0x7c))]),
    request(&[Test::Is(1, exchanges::<kvm_irqchip>(0x62))]),
    request(&[Test::Is(1, reads::<kvm_mp_state>(0x98))]),
    request(&[Test::Is(1, reads::<kvm_regs>(0x81))]),
    request(&[Test::Is(1, reads::<kvm_sregs>(0x83))]),
    request(&[Test::Is(1, reads::<kvm_xsave>(0xa4))]),
    request(&[Test::Is(1, reads::<kvm_xcrs>(0xa6))]),
    request(&[Test::Is(1, reads::<kvm_debugregs>(0xa1))]),
    request(&[Test::Is(1, reads::<kvm_lapic_state>(0x8e))]),
    request(&[Test::Is(1, exchanges::<kvm_msrs>(0x88))]),
    request(&[Test::Is(1, reads::<kvm_vcpu_events>(0x9f))]),
];

/// What KVM is told of a machine that goes on: that it stood still.
pub(crate) const RESUME_REQUESTS: &[Call] = &[request(&[Test::Is(1, plain(0xad))])];

const fn request(tests: &'static [Test]) -> Call {
    when(libc::SYS_ioctl, tests)
}

/// A request's number as `linux/kvm.h` makes it (`_IO`, `_IOR`, `_IOWR` of type 0xae).
const fn plain(number: u64) -> u64 {
    0xae00 | number
}

const fn reads<T>(number: u64) -> u64 {
    (2 << 30) | ((size_of::<T>() as u64) << 16) | plain(number)
}

const fn writes<T>(number: u64) -> u64 {
    (1 << 30) | ((size_of::<T>() as u64) << 16) | plain(number)
}

const fn exchanges<T>(number: u64) -> u64 {
    (1 << 30) | reads::<T>(number)
}

/// The first arguments of the call that a thread was interrupted in.
pub(crate) fn call_arguments(context: &libc::ucontext_t) -> [u64; 3] {
    let registers = &context.uc_mcontext.gregs;
    [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(|register| registers[register as usize] as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_numbers() {
        // As strace names them.
        assert_eq!(plain(0x80), 0xae80);
        assert_eq!(reads::<kvm_regs>(0x81), 0x8090_ae81);
        assert_eq!(reads::<kvm_sregs>(0x83), 0x8138_ae83);
        assert_eq!(exchanges::<kvm_msrs>(0x88), 0xc008_ae88);
        assert_eq!(writes::<kvm_irq_routing>(0x6a), 0x4008_ae6a);
    }
}
