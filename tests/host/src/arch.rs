//! The architectures that a test host can be of, and how QEMU is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An architecture whose KVM QEMU can emulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Arch {
    /// A PC with AMD's virtualisation.
    X86_64,
    /// Arm's virtual machine, whose processors start where a hypervisor belongs (EL2).
    Aarch64,
    /// IBM's partition (pseries), whose hypervisor lets the guest be one itself (nested HV).
    Ppc64le,
}

impl Arch {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::X86_64, Self::Aarch64, Self::Ppc64le];

    /// By the name that the kernel's build has for it.
    #[must_use]
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.name() == name)
    }

    /// That name.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::Ppc64le => "ppc64le",
        }
    }

    /// The emulator's program.
    #[must_use]
    pub(crate) fn emulator(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
            Self::Ppc64le => "qemu-system-ppc64",
        }
    }

    /// QEMU's machine.
    #[must_use]
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::X86_64 => "q35",
            Self::Aarch64 => "virt,virtualization=on,gic-version=3",
            Self::Ppc64le => "pseries,cap-nested-hv=on",
        }
    }

    /// Its processor. Nested SVM is what makes a PC a host: TCG emulates it, and KVM inside is complete.
    #[must_use]
    pub(crate) fn cpu(self) -> &'static str {
        match self {
            Self::X86_64 => "EPYC,+svm,+npt",
            Self::Aarch64 => "cortex-a76",
            Self::Ppc64le => "power9",
        }
    }

    /// How often the host must be interrupted from outside. On a busy machine QEMU's nested HV now and then loses the tick by which a
    /// partition takes its processor back from one of its own: that one then has it until anything else interrupts.
    #[must_use]
    pub(crate) fn needs_pokes(self) -> Option<Duration> {
        (self == Self::Ppc64le).then_some(Duration::from_millis(100))
    }

    /// The kernel's command line.
    #[must_use]
    pub(crate) fn command_line(self) -> &'static str {
        match self {
            Self::X86_64 => "console=ttyS0 quiet panic=-1 reboot=t mitigations=off tsc=reliable random.trust_cpu=on",
            Self::Aarch64 => "console=ttyAMA0 quiet panic=-1 mitigations=off",
            Self::Ppc64le => "console=hvc0 quiet panic=-1 mitigations=off",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Arch;

    #[test]
    fn each_is_found_by_its_name() {
        assert!(Arch::ALL.into_iter().all(|arch| Arch::named(arch.name()) == Some(arch)));
        assert_eq!(Arch::named("riscv64"), None);
    }
}
