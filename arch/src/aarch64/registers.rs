//! The boot vCPU's registers on entry to an `Image` (Linux: Documentation/arch/arm64/booting.rst, section 4), and how vCPUs are
//! named.

use super::layout;

/// Everything in the boot vCPU that differs from its state after reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The kernel's entry point.
    pub pc: u64,
    /// The address of the device tree.
    pub x0: u64,
    /// The processor's state.
    pub pstate: u64,
}

/// EL1 with its own stack pointer (Arm ARM, C5.2.19 "SPSR_EL1", M).
const EL1H: u64 = 0b0101;
/// Debug exceptions, system errors, interrupts and fast interrupts masked (D, A, I, F).
const ALL_MASKED: u64 = 0b1111 << 6;

impl Registers {
    /// The registers with which a kernel whose entry point is `entry` starts.
    #[must_use]
    pub fn boot(entry: u64) -> Registers {
        Registers { pc: entry, x0: layout::DEVICE_TREE, pstate: ALL_MASKED | EL1H }
    }
}

/// The affinity (Arm ARM, MPIDR_EL1: Aff0 in bits 0 to 7, Aff1 in 8 to 15) of vCPU `id`: sixteen of them share Aff1, because that many can
/// be the target of one software-generated interrupt.
#[must_use]
pub fn affinity(id: u8) -> u32 {
    let id = u32::from(id);
    ((id >> 4) << 8) | (id & 0xf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_starts_at_el1_with_everything_masked() {
        let registers = Registers::boot(0x4020_0000);
        assert_eq!(registers, Registers { pc: 0x4020_0000, x0: 0x4000_0000, pstate: 0x3c5 });
    }

    #[test]
    fn sixteen_vcpus_are_a_group() {
        assert_eq!([0, 15, 16, 31].map(affinity), [0, 15, 0x100, 0x10f]);
    }
}
