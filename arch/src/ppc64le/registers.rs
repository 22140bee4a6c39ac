//! vCPUs' registers when they start: the kernel's first instruction, and a secondary's after RTAS's `start-cpu`.

/// 64-bit mode (Power ISA 3.0B, book III, section 4.2.1).
const MSR_SF: u64 = 1 << 63;
/// Machine checks are taken.
const MSR_ME: u64 = 1 << 12;

/// Everything in a vCPU that differs from its state after creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The next instruction.
    pub pc: u64,
    /// The machine state: 64 bits, real addresses, big endian. Kernels of either byte order begin with code that both understand.
    pub msr: u64,
    /// The device tree of the boot vCPU; of another, what `start-cpu` was given.
    pub gpr3: u64,
    /// Zero says that there is no Open Firmware to call (Power Architecture Platform Requirements, "ePAPR" entry; Linux: booting.rst).
    pub gpr5: u64,
}

impl Registers {
    /// Those of a vCPU that starts at `address` and is given `argument`: the boot vCPU where the kernel begins, with the device tree's
    /// address, others as `start-cpu` has it (LoPAR, section 7.3.8.1).
    #[must_use]
    pub fn started(address: u64, argument: u64) -> Registers {
        Registers { pc: address, msr: MSR_SF | MSR_ME, gpr3: argument, gpr5: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_starts_in_64_bit_real_mode() {
        let expected = Registers { pc: 0x60, msr: 0x8000_0000_0000_1000, gpr3: 3, gpr5: 0 };
        assert_eq!(Registers::started(0x60, 3), expected);
    }
}
