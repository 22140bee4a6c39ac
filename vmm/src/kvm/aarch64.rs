//! KVM on aarch64: vCPUs with what the host's processor can lend them, the GIC, registers, and the probe that tells a KVM that
//! runs guests from one that does not.
//!
//! Register values come from `tatami-arch`; here they are only put where KVM has them.

mod calls;
mod gic;
mod state;

use std::os::fd::OwnedFd;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
    KVM_ARM_VCPU_SVE, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use tatami_arch::aarch64::{Aarch64, Registers, layout};
use tatami_arch::{Machine, Space};
use tatami_devices::virtio::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::{Exit, Kvm, KvmError, Vcpu, failed};
use crate::memory;

pub(crate) use super::no_messages::Messages;
pub(crate) use calls::{
    FILTERED, OLD_CALLS, OLD_TRANSFERS, RESUME_REQUESTS, SAVE_REQUESTS, VCPU_REQUESTS, call_arguments,
};
pub(super) use gic::InterruptController;
pub(crate) use state::{MachineState, VcpuState};

/// Reads the kind of kernel that this architecture boots.
pub(crate) use linux_loader::loader::PE as KernelFile;

/// What KVM must have here beyond what it must have everywhere.
pub(super) const REQUIRED: [(Cap, &str); 4] = [
    (Cap::OneReg, "access to single registers"),
    (Cap::DeviceCtrl, "devices of its own"),
    (Cap::ArmPsci02, "PSCI 0.2"),
    (Cap::MpState, "vCPU states"),
];

/// Guests must not read devices' registers as memory: they map them as a device's, uncached, and would miss what lies in our caches.
pub(super) const READABLE_REGISTERS: bool = false;

// Registers in `struct kvm_regs`, by their offset in 32-bit words (Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG).
const X0: u64 = core_register(0);
const PC: u64 = core_register(0x100);
const PSTATE: u64 = core_register(0x108);

const fn core_register(offset: u64) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4)
}

/// Creates the vCPUs, the first ready to run and the others for the guest to start through PSCI, and then the interrupt controller,
/// which must know how many there are.
pub(super) fn create_vcpus(
    vm: &VmFd,
    _: &GuestMemory,
    count: u8,
) -> Result<(Vec<VcpuFd>, InterruptController), KvmError> {
    let vcpus: Vec<_> = (0..count)
        .map(|id| {
            let vcpu = vm.create_vcpu(id.into()).map_err(failed("create a vCPU"))?;
            initialise(vm, &vcpu, id)?;
            Ok(vcpu)
        })
        .collect::<Result<_, KvmError>>()?;
    let interrupts = InterruptController::new(vm, count)?;
    Ok((vcpus, interrupts))
}

/// Makes a vCPU of the host's own kind, with everything that KVM can give it.
fn initialise(vm: &VmFd, vcpu: &VcpuFd, id: u8) -> Result<(), KvmError> {
    let mut kind = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut kind).map_err(failed("tell which processor this is"))?;
    let sve = vm.check_extension(Cap::ArmSve);
    // The two halves of pointer authentication come together or not at all.
    let pointers = vm.check_extension(Cap::ArmPtrAuthAddress) && vm.check_extension(Cap::ArmPtrAuthGeneric);
    let wanted = [
        (KVM_ARM_VCPU_PSCI_0_2, true),
        (KVM_ARM_VCPU_POWER_OFF, id > 0),
        (KVM_ARM_VCPU_SVE, sve),
        (KVM_ARM_VCPU_PTRAUTH_ADDRESS, pointers),
        (KVM_ARM_VCPU_PTRAUTH_GENERIC, pointers),
    ];
    for (feature, _) in wanted.into_iter().filter(|(_, wanted)| *wanted) {
        kind.features[0] |= 1 << feature;
    }
    vcpu.vcpu_init(&kind).map_err(failed("initialise a vCPU"))?;
    if sve {
        vcpu.vcpu_finalize(&(KVM_ARM_VCPU_SVE as i32)).map_err(failed("give a vCPU its vector registers"))?;
    }
    Ok(())
}

/// What all vCPUs of a machine have in common: they are as KVM made them.
pub(crate) struct Processors;

impl Processors {
    /// Asks KVM whether it can have so many.
    ///
    /// # Errors
    /// When KVM allows fewer than `max_vcpus`: a host with a GICv2 has 8.
    pub(crate) fn new(kvm: &Kvm, max_vcpus: u8) -> Result<Processors, KvmError> {
        kvm.check_vcpus(max_vcpus)?;
        Ok(Processors)
    }

    /// Sets up a vCPU: the one with `boot` registers starts at once, the others wait for the guest to start them.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn set_up(&self, vcpu: &mut Vcpu, _: u8, boot: Option<&Registers>) -> Result<(), KvmError> {
        let Some(registers) = boot else { return Ok(()) };
        for (id, value) in [(X0, registers.x0), (PC, registers.pc), (PSTATE, registers.pstate)] {
            vcpu.fd.set_one_reg(id, &value.to_ne_bytes()).map_err(failed("set registers"))?;
        }
        Ok(())
    }

    /// What vCPU `vcpu` is at this moment; it must not run.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn save(&self, vcpu: &Vcpu) -> Result<VcpuState, KvmError> {
        VcpuState::save(&vcpu.fd)
    }

    /// Makes a vCPU what it was when it was saved, on a host like this one.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn restore(&self, vcpu: &mut Vcpu, _: u8, state: &VcpuState) -> Result<(), KvmError> {
        state.restore(&vcpu.fd)
    }
}

/// KVM has nothing here by which a guest could be told.
pub(super) fn stood_still(_: &VcpuFd) -> Result<(), KvmError> {
    Ok(())
}

/// See [`Vcpu::whereabouts`].
pub(super) fn whereabouts(vcpu: &VcpuFd) -> String {
    let mut pc = [0; 8];
    match vcpu.get_one_reg(PC, &mut pc) {
        Ok(_) => format!(", at pc {:#x}", u64::from_ne_bytes(pc)),
        Err(_) => String::new(),
    }
}

/// Runs a few instructions, the last of which writes to the serial line.
///
/// # Errors
/// What KVM could not create, or how the guest ended.
pub(crate) fn probe_instructions(device: OwnedFd) -> Result<Result<(), String>, KvmError> {
    const INSTRUCTIONS: [u32; 4] = [
        0x5280_0800, // mov w0, #0x40
        0x1100_0400, // add w0, w0, #1
        0xd2a1_2001, // mov x1, #0x9000000
        0x3900_0020, // strb w0, [x1]
    ];
    let kvm = Kvm::new(device)?;
    let ram = Aarch64::ram(4 << 20);
    let wanted = memory::Ram { regions: &ram, closed: None, kind: crate::config::MemoryKind::Anonymous, file: None };
    let memory = memory::create(wanted)
        .map_err(|error| KvmError::Call { what: "have 4 MiB of memory", source: std::io::Error::other(error) })?;
    let code: Vec<_> = INSTRUCTIONS.into_iter().flat_map(u32::to_le_bytes).collect();
    memory
        .write_slice(&code, GuestAddress(layout::KERNEL))
        .map_err(|error| KvmError::Call { what: "fill memory", source: std::io::Error::other(error) })?;
    let (_vm, mut vcpus) = kvm.create_vm(memory, 1)?;
    let vcpu = &mut vcpus[0];
    Processors::new(&kvm, 1)?.set_up(vcpu, 0, Some(&Registers::boot(layout::KERNEL)))?;
    Ok(match vcpu.run() {
        Exit::Write(Space::Memory, layout::SERIAL, [0x41]) => Ok(()),
        Exit::Failed(reason) => Err(format!("{reason}{}", vcpu.whereabouts())),
        other => Err(format!("it computed something else ({other:?})")),
    })
}
