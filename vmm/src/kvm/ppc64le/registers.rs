//! Registers that have numbers of KVM's (Linux: arch/powerpc/include/uapi/asm/kvm.h, `KVM_REG_PPC_…`), as far as they are a vCPU's
//! state; what they hold is the Power ISA's (3.0B and 3.1, book III).
//!
//! KVM lists them nowhere here, so this list says which there are. Which of them a host's KVM and processor have is for
//! whoever asks. Plain data that compiles, and is tested, everywhere.

/// The logical partitioning control register.
pub(crate) const LPCR: u64 = doubleword(0xb5);
/// What a guest's time base is ahead of the host's. Set to a multiple of 2^24, upwards.
pub(crate) const TB_OFFSET: u64 = doubleword(0x9c);
/// The version of the architecture that the guest is shown, where it is not the processor's own.
pub(crate) const ARCH_COMPAT: u64 = word(0xb7);
/// A vCPU's interrupt presentation controller: priority, what is presented, and the priority of calls from other vCPUs.
pub(crate) const ICP_STATE: u64 = doubleword(0x8c);

/// The state of a vCPU beyond its general registers, in the order in which it is set. The decrementer comes after the offset of the time base,
/// by which KVM measures it.
pub(crate) fn saved() -> impl Iterator<Item = u64> {
    let vectors = (0x20..0x40).map(doubleword).chain((0x40..0x80).map(quadword));
    SINGLE.into_iter().chain(vectors)
}

/// How many bytes a register has.
pub(crate) const fn bytes(register: u64) -> usize {
    1 << ((register >> 52) & 0xf)
}

/// Those that are no part of an array. What only POWER8 has is left out, as are transactions, which no guest is offered.
const SINGLE: [u64; 52] = [
    // Facility status: before those of floating point, which some kernels take it for (6.7 to 6.10).
    doubleword(0xa3),
    // Data stream, processor utilisation, scaled; data address and status of storage interrupts.
    doubleword(0x09),
    doubleword(0x0a),
    doubleword(0x0b),
    doubleword(0x0c),
    word(0x0d),
    // Authority masks, of data, user and instructions.
    doubleword(0x0e),
    doubleword(0x0f),
    doubleword(0x9f),
    // Performance monitor: control, sampled addresses and events, counters.
    doubleword(0x10),
    doubleword(0x11),
    doubleword(0x12),
    doubleword(0x13),
    doubleword(0xc1),
    doubleword(0x15),
    doubleword(0x16),
    doubleword(0x17),
    doubleword(0xc2),
    doubleword(0xc3),
    word(0x18),
    word(0x19),
    word(0x1a),
    word(0x1b),
    word(0x1c),
    word(0x1d),
    // Status of floating point and vectors, and which vectors are in use.
    doubleword(0x80),
    word(0x81),
    word(0xb4),
    // Problem state priority boost, event-based branches (handler, return, status), target address.
    word(0xa4),
    doubleword(0xa5),
    doubleword(0xa6),
    doubleword(0xa7),
    doubleword(0xa8),
    // A doorbell that has been rung; watchpoints and a breakpoint.
    doubleword(0xa9),
    doubleword(0xaa),
    doubleword(0xab),
    doubleword(0xc4),
    doubleword(0xc5),
    doubleword(0xac),
    // Instruction count, virtual time base, process, priority, thread, stop status.
    doubleword(0xad),
    doubleword(0xae),
    doubleword(0xb2),
    doubleword(0xb6),
    doubleword(0xbc),
    doubleword(0xbd),
    // When the decrementer interrupts, in the guest's time base.
    doubleword(0xbe),
    // Of POWER10: dynamic execution control, keys of hashes.
    doubleword(0xc6),
    doubleword(0xc7),
    doubleword(0xc8),
    // Areas that the guest has registered: the first before the others, which there are only with it. Shadow of segments, dispatch log.
    doubleword(0x82),
    quadword(0x83),
    quadword(0x84),
];

const fn word(number: u64) -> u64 {
    register(2, number)
}

const fn doubleword(number: u64) -> u64 {
    register(3, number)
}

const fn quadword(number: u64) -> u64 {
    register(4, number)
}

const fn register(size: u64, number: u64) -> u64 {
    const POWER: u64 = 1 << 60;
    POWER | (size << 52) | number
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn registers_have_their_numbers() {
        // As a C program prints them that a compiler for powerpc64le made with the kernel's headers.
        assert_eq!(TB_OFFSET, 0x1030_0000_0000_009c);
        assert_eq!(ICP_STATE, 0x1030_0000_0000_008c);
        assert_eq!(ARCH_COMPAT, 0x1020_0000_0000_00b7);
        let saved: Vec<_> = saved().collect();
        for number in [0x1030_0000_0000_00be, 0x1040_0000_0000_0083, 0x1020_0000_0000_0081, 0x1040_0000_0000_0040] {
            assert!(saved.contains(&number), "{number:#x}");
        }
    }

    #[test]
    fn each_is_saved_once_and_has_a_size() {
        let all: BTreeSet<_> = saved().collect();
        assert_eq!(all.len(), saved().count());
        assert_eq!(all.len(), SINGLE.len() + 3 * 32);
        assert!(all.iter().all(|register| [4, 8, 16].contains(&bytes(*register))));
        // What the machine sets for all vCPUs at once.
        assert!([LPCR, TB_OFFSET, ICP_STATE, ARCH_COMPAT].iter().all(|register| !all.contains(register)));
    }
}
