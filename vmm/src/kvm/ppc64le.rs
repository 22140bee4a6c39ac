//! KVM on ppc64le: requests and structures of its own, vCPUs that answer the guest's hypercalls, the interrupt controller XICS, and
//! the probe that tells a KVM that runs guests from one that does not.
//!
//! Register values and what calls mean come from `tatami-arch`.

mod calls;
mod descriptors;
mod image;
mod partition;
mod processor;
mod registers;
mod spec;
mod state;
mod version;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tatami_arch::ppc64le::rtas::{SERVICES, Status};
use tatami_arch::ppc64le::{Ppc64le, Registers, Variant, layout};
use tatami_arch::{Machine, Space};
use tatami_devices::virtio::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use self::descriptors::{RegistersFd, XicsFd};
use self::partition::Partition;
use super::{Exit, Kvm, KvmError, Vcpu, failed};
use crate::memory;

pub(crate) use super::no_messages::Messages;
pub(crate) use calls::{
    FILTERED, OLD_CALLS, OLD_TRANSFERS, RESUME_REQUESTS, SAVE_REQUESTS, VCPU_REQUESTS, call_arguments, call_name,
};
pub(super) use descriptors::{IoEventAddress, Kvm as KvmFd, NoDatamatch, VmFd};
pub(crate) use image::Vmlinux as KernelFile;
pub(super) use processor::VcpuFd;
pub(super) use spec::{Cap, KVM_MEM_READONLY, kvm_userspace_memory_region};
pub(crate) use state::{MachineState, VcpuState};

/// What KVM must have here beyond what it must have everywhere.
pub(super) const REQUIRED: [(Cap, &str); 6] = [
    (Cap::PpcMmuRadix, "guests with radix translation (KVM-HV on POWER9 or later)"),
    (Cap::PpcPapr, "guests that are partitions"),
    (Cap::PpcRtas, "RTAS services of its own"),
    (Cap::IrqXics, "the interrupt controller XICS"),
    (Cap::DeviceCtrl, "devices of its own"),
    (Cap::OneReg, "access to single registers"),
];

/// Guests read no registers as memory: their pages are of 64 KiB, the registers' of 4.
pub(super) const READABLE_REGISTERS: bool = false;

/// The interrupt controller, what else vCPUs share, and what the host has told.
pub(super) struct InterruptController {
    /// Its vCPUs are connected to it for as long as it is open.
    xics: XicsFd,
    partition: Arc<Partition>,
    vcpus: Vec<RegistersFd>,
    variant: Variant,
}

impl InterruptController {
    /// What of the machine is as the host has it.
    pub(super) fn variant(&self) -> Variant {
        self.variant.clone()
    }
}

/// Creates the interrupt controller with its sources, and vCPUs that are connected to it and wait to be started.
pub(super) fn create_vcpus(
    vm: &VmFd,
    memory: &GuestMemory,
    count: u8,
) -> Result<(Vec<VcpuFd>, InterruptController), KvmError> {
    let xics = vm.create_xics().map_err(failed("create the interrupt controller"))?;
    for source in processor::sources() {
        // To the first vCPU, with the priority that is none, until the guest says otherwise.
        let value = spec::XICS_MASKED | (0xff << spec::XICS_PRIORITY_SHIFT);
        xics.set_source(source, value).map_err(failed("create an interrupt source"))?;
    }
    for (service, name) in SERVICES.iter().filter(|(service, _)| service.is_interrupt_controllers()) {
        vm.define_rtas_token(name, service.token().into()).map_err(failed("answer RTAS calls"))?;
    }
    let partition = Partition::new(vm.clone(), count)
        .map_err(|source| KvmError::Call { what: "have event descriptors for vCPUs", source })?;
    let partition = Arc::new(partition);
    let vcpus = (0..count).map(|id| {
        let fd = vm.create_vcpu(id.into()).map_err(failed("create a vCPU"))?;
        fd.enable_papr().map_err(failed("make a vCPU a partition's"))?;
        fd.connect(&xics, id.into()).map_err(failed("connect a vCPU to the interrupt controller"))?;
        Ok(VcpuFd::new(fd, id, Arc::clone(&partition), memory.clone()))
    });
    let vcpus = vcpus.collect::<Result<Vec<_>, KvmError>>()?;
    let radix = vm.get_rmmu_info().map_err(failed("tell which pages there are"))?;
    let page_encodings = radix.ap_encodings.into_iter().filter(|encoding| *encoding != 0).collect();
    let registers = vcpus.iter().map(|vcpu| vcpu.registers().clone()).collect();
    let variant = Variant { page_encodings, ..Variant::default() };
    Ok((vcpus, InterruptController { xics, partition, vcpus: registers, variant }))
}

/// What all vCPUs of a machine have in common: they are as KVM made them.
pub(crate) struct Processors;

impl Processors {
    /// Asks KVM whether it can have so many.
    ///
    /// # Errors
    /// When KVM allows fewer than `max_vcpus`.
    pub(crate) fn new(kvm: &Kvm, max_vcpus: u8) -> Result<Processors, KvmError> {
        kvm.check_vcpus(max_vcpus)?;
        Ok(Processors)
    }

    /// Sets up a vCPU: the one with `boot` registers starts at once, the others wait for the guest to start them.
    ///
    /// # Errors
    /// When it runs already.
    pub(crate) fn set_up(&self, vcpu: &mut Vcpu, _: u8, boot: Option<&Registers>) -> Result<(), KvmError> {
        match boot.map(|registers| vcpu.fd.start(*registers)) {
            None | Some(Status::Success) => Ok(()),
            Some(_) => {
                let source = std::io::Error::from_raw_os_error(libc::EBUSY);
                Err(KvmError::Call { what: "start the first vCPU", source })
            }
        }
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
    /// When the processor is another one, or whatever KVM says.
    pub(crate) fn restore(&self, vcpu: &mut Vcpu, _: u8, state: &VcpuState) -> Result<(), KvmError> {
        state.restore(&vcpu.fd)
    }
}

/// Runs the guest until it needs something.
pub(super) fn run(vcpu: &mut VcpuFd) -> Exit<'_> {
    vcpu.run()
}

/// KVM has nothing here by which a guest could be told.
pub(super) fn stood_still(_: &VcpuFd) -> Result<(), KvmError> {
    Ok(())
}

/// See [`Vcpu::whereabouts`].
pub(super) fn whereabouts(vcpu: &VcpuFd) -> String {
    match vcpu.whereabouts() {
        Ok((pc, msr)) => format!(", at pc {pc:#x} (msr {msr:#x})"),
        Err(_) => String::new(),
    }
}

/// Runs a few instructions, the last of which writes to the first device.
///
/// # Errors
/// What KVM could not create, or how the guest ended.
pub(crate) fn probe_instructions(device: OwnedFd) -> Result<Result<(), String>, KvmError> {
    const _: () = assert!(layout::DEVICE_WINDOW == 0x4001 << 31);
    const INSTRUCTIONS: [u32; 5] = [
        0x3860_4001, // li   r3, 0x4001
        0x7863_f824, // sldi r3, r3, 31
        0x3880_0040, // li   r4, 0x40
        0x3884_0001, // addi r4, r4, 1
        0x9883_0000, // stb  r4, 0(r3)
    ];
    let kvm = Kvm::new(device)?;
    let ram = Ppc64le::ram(4 << 20);
    let wanted = memory::Ram { regions: &ram, closed: None, kind: crate::config::MemoryKind::Anonymous, file: None };
    let memory = memory::create(wanted)
        .map_err(|error| KvmError::Call { what: "have 4 MiB of memory", source: std::io::Error::other(error) })?;
    let code: Vec<_> = INSTRUCTIONS.into_iter().flat_map(u32::to_be_bytes).collect();
    memory
        .write_slice(&code, GuestAddress(0))
        .map_err(|error| KvmError::Call { what: "fill memory", source: std::io::Error::other(error) })?;
    let (_vm, mut vcpus) = kvm.create_vm(memory, 1)?;
    let vcpu = &mut vcpus[0];
    Processors::new(&kvm, 1)?.set_up(vcpu, 0, Some(&Registers::started(0, 0)))?;
    Ok(match vcpu.run() {
        Exit::Write(Space::Memory, layout::DEVICE_WINDOW, [0x41]) => Ok(()),
        Exit::Failed(reason) => Err(format!("{reason}{}", vcpu.whereabouts())),
        other => Err(format!("it computed something else ({other:?})")),
    })
}
