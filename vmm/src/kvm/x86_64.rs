//! KVM on x86_64: the PC's interrupt controllers, CPUID, registers, and the probe that tells a real KVM from one that
//! emulates.
//!
//! Register values and CPUID leaves come from `tatami-arch`; here they are only put into KVM's structures.

mod calls;
mod messages;
mod state;

use std::os::fd::OwnedFd;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_dtable, kvm_fpu,
    kvm_lapic_state, kvm_msr_entry, kvm_segment,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use tatami_arch::x86_64::{Registers, Segment, TableRegister, X86_64, cpuid, layout};
use tatami_arch::{BootInputs, Machine, Space};
use tatami_devices::virtio::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::{Exit, Kvm, KvmError, Vcpu, failed};
use crate::memory;

pub(crate) use calls::{
    FILTERED, OLD_CALLS, OLD_TRANSFERS, RESUME_REQUESTS, SAVE_REQUESTS, VCPU_REQUESTS, call_arguments,
};
pub(crate) use messages::Messages;
pub(crate) use state::{MachineState, VcpuState};

/// Reads the kind of kernel that this architecture boots.
pub(crate) use linux_loader::loader::Elf as KernelFile;

/// What KVM must have here beyond what it must have everywhere.
pub(super) const REQUIRED: [(Cap, &str); 4] = [
    (Cap::Irqchip, "an interrupt controller of its own"),
    (Cap::ExtCpuid, "extended CPUID"),
    (Cap::SetTssAddr, "a settable task state address"),
    (Cap::MpState, "vCPU states"),
];

/// Guests may read devices' registers as memory: whatever type they map it with, processors keep it coherent with ours.
pub(super) const READABLE_REGISTERS: bool = true;

/// What KVM has for the machine's interrupt controllers: nothing that would have to be held.
pub(super) struct InterruptController;

impl InterruptController {
    /// They are the same on every host.
    pub(super) fn variant(&self) {}
}

/// Gives the machine its PICs, I/O APIC and, with its vCPUs, local APICs. There is no timer chip: the guest has the local APIC's
/// timer, and kvm-clock tells it how fast that runs.
pub(super) fn create_vcpus(
    vm: &VmFd,
    _: &GuestMemory,
    count: u8,
) -> Result<(Vec<VcpuFd>, InterruptController), KvmError> {
    vm.set_tss_address(layout::TSS as usize).map_err(failed("set the task state address"))?;
    vm.set_identity_map_address(layout::IDENTITY_MAP).map_err(failed("set the identity map"))?;
    vm.create_irq_chip().map_err(failed("create the interrupt controller"))?;
    let vcpus = (0..count).map(|id| vm.create_vcpu(id.into()).map_err(failed("create a vCPU")));
    Ok((vcpus.collect::<Result<_, _>>()?, InterruptController))
}

/// What all vCPUs of a machine have in common.
pub(crate) struct Processors {
    supported: Vec<cpuid::Leaf>,
    topology: cpuid::Topology,
    /// The model-specific registers that are part of a vCPU's state.
    saved_msrs: Vec<u32>,
}

impl Processors {
    /// Asks KVM what vCPUs can be here.
    ///
    /// # Errors
    /// When KVM does not say, or allows fewer than `max_vcpus`.
    pub(crate) fn new(kvm: &Kvm, max_vcpus: u8) -> Result<Processors, KvmError> {
        kvm.check_vcpus(max_vcpus)?;
        let leaves = kvm.fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("list CPUID leaves"))?;
        let tsc_deadline = kvm.fd.check_extension(Cap::TscDeadlineTimer);
        let saved_msrs = kvm.fd.get_msr_index_list().map_err(failed("list model-specific registers"))?;
        Ok(Processors {
            saved_msrs: saved_msrs.as_slice().to_vec(),
            supported: leaves.as_slice().iter().map(leaf).collect(),
            topology: cpuid::Topology { max_vcpus, tsc_deadline },
        })
    }

    /// Sets up vCPU `id`: the one with `boot` registers starts at once, the others wait for the guest to start them.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn set_up(&self, vcpu: &mut Vcpu, id: u8, boot: Option<&Registers>) -> Result<(), KvmError> {
        let fd = &vcpu.fd;
        self.set_cpuid(fd, id)?;
        set_msrs(fd)?;
        set_local_interrupts(fd)?;
        let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
        fd.set_fpu(&fpu).map_err(failed("set floating point registers"))?;
        match boot {
            Some(registers) => set_registers(fd, registers),
            None => Ok(()),
        }
    }

    /// What vCPU `vcpu` is at this moment; it must not run.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn save(&self, vcpu: &Vcpu) -> Result<VcpuState, KvmError> {
        VcpuState::save(&vcpu.fd, &self.saved_msrs)
    }

    /// Makes vCPU `id` what it was when it was saved, on a host like this one.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn restore(&self, vcpu: &mut Vcpu, id: u8, state: &VcpuState) -> Result<(), KvmError> {
        self.set_cpuid(&vcpu.fd, id)?;
        state.restore(&vcpu.fd, id == 0)
    }

    fn set_cpuid(&self, vcpu: &VcpuFd, id: u8) -> Result<(), KvmError> {
        let leaves: Vec<_> = cpuid::leaves(&self.supported, self.topology, id).iter().map(entry).collect();
        let leaves = CpuId::from_entries(&leaves)
            .map_err(|_| KvmError::Call { what: "take so many CPUID leaves", source: libc_error(libc::E2BIG) })?;
        vcpu.set_cpuid2(&leaves).map_err(failed("set CPUID leaves"))
    }
}

/// Sets the mark in the vCPU's paravirtual clock that its guest's watchdogs look at (Linux: PVCLOCK_GUEST_STOPPED).
pub(super) fn stood_still(vcpu: &VcpuFd) -> Result<(), KvmError> {
    match vcpu.kvmclock_ctrl() {
        Ok(()) => Ok(()),
        // The guest uses no such clock, or not yet.
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        Err(error) => Err(failed("mark a clock")(error)),
    }
}

fn libc_error(number: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(number)
}

fn leaf(entry: &kvm_cpuid_entry2) -> cpuid::Leaf {
    cpuid::Leaf {
        function: entry.function,
        index: entry.index,
        indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

fn entry(leaf: &cpuid::Leaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: if leaf.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..Default::default()
    }
}

/// Model-specific registers that firmware would have set (Intel SDM volume 4).
fn set_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    const ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;
    let entries = [(IA32_MISC_ENABLE, FAST_STRINGS), (IA32_MTRR_DEF_TYPE, ENABLED_WRITE_BACK)]
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let what = "set model-specific registers";
    let msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Call { what, source: libc_error(libc::E2BIG) })?;
    match vcpu.set_msrs(&msrs).map_err(failed(what))? {
        set if set == entries.len() => Ok(()),
        _ => Err(KvmError::Call { what, source: libc_error(libc::EINVAL) }),
    }
}

/// Local interrupt pins as firmware leaves them, and the MP table says: 0 to the PICs, 1 non-maskable.
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), KvmError> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const EXT_INT: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;
    let mut lapic = vcpu.get_lapic().map_err(failed("read a local APIC"))?;
    put_register(&mut lapic, LINT0, EXT_INT);
    put_register(&mut lapic, LINT1, NMI);
    vcpu.set_lapic(&lapic).map_err(failed("set a local APIC"))
}

fn put_register(lapic: &mut kvm_lapic_state, at: usize, value: u32) {
    for (byte, value) in lapic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *byte = value as _;
    }
}

fn set_registers(vcpu: &VcpuFd, registers: &Registers) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read system registers"))?;
    sregs.cs = segment(registers.code);
    let data = segment(registers.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(registers.task);
    sregs.gdt = table(registers.gdt);
    sregs.idt = table(registers.idt);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (registers.cr0, registers.cr3, registers.cr4, registers.efer);
    vcpu.set_sregs(&sregs).map_err(failed("set system registers"))?;
    let mut regs = vcpu.get_regs().map_err(failed("read registers"))?;
    (regs.rip, regs.rsi, regs.rflags) = (registers.rip, registers.rsi, registers.rflags);
    vcpu.set_regs(&regs).map_err(failed("set registers"))
}

fn segment(segment: Segment) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: segment.selector,
        type_: segment.kind,
        present: 1,
        dpl: 0,
        db: segment.big.into(),
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

fn table(register: TableRegister) -> kvm_dtable {
    kvm_dtable { base: register.base, limit: register.limit, padding: [0; 3] }
}

/// See [`Vcpu::whereabouts`].
pub(super) fn whereabouts(vcpu: &VcpuFd) -> String {
    match vcpu.get_regs() {
        Ok(regs) => format!(", at rip {:#x}", regs.rip),
        Err(_) => String::new(),
    }
}

/// Runs a few 64-bit instructions that every stock kernel needs in a machine of two pages, among them `lock cmpxchg16b`, which
/// a KVM without hardware support cannot emulate.
///
/// # Errors
/// What KVM could not create, or how the guest ended.
pub(crate) fn probe_instructions(device: OwnedFd) -> Result<Result<(), String>, KvmError> {
    const CODE: u64 = 0x10_0000;
    const PORT: u16 = 0x10;
    #[rustfmt::skip]
    const INSTRUCTIONS: [u8; 29] = [
        0xbf, 0x00, 0x20, 0x10, 0x00,       // mov edi, 0x102000
        0x31, 0xc0,                         // xor eax, eax
        0x31, 0xd2,                         // xor edx, edx
        0xbb, 0x01, 0x00, 0x00, 0x00,       // mov ebx, 1
        0x31, 0xc9,                         // xor ecx, ecx
        0xf0, 0x48, 0x0f, 0xc7, 0x0f,       // lock cmpxchg16b [rdi]
        0x75, 0x04,                         // jne over the next two, with al = 0
        0x8a, 0x07,                         // mov al, [rdi]
        0x0c, 0x40,                         // or al, 0x40
        0xe6, PORT as u8,                   // out PORT, al
    ];
    let kvm = Kvm::new(device)?;
    let ram = X86_64::ram(4 << 20);
    let wanted = memory::Ram { regions: &ram, closed: None, kind: crate::config::MemoryKind::Anonymous, file: None };
    let memory = memory::create(wanted)
        .map_err(|error| KvmError::Call { what: "have 4 MiB of memory", source: std::io::Error::other(error) })?;
    let image = X86_64::boot_image(&BootInputs {
        ram: &ram,
        max_vcpus: 1,
        command_line: "",
        entry: CODE,
        initrd: None,
        seed: [0; 32],
        devices: &[],
        variant: (),
    });
    let image = image.map_err(|error| KvmError::Call { what: "boot", source: std::io::Error::other(error) })?;
    let code = [(CODE, &INSTRUCTIONS[..])];
    let blobs = image.blobs.iter().map(|blob| (blob.address, blob.bytes.as_slice()));
    for (address, bytes) in blobs.chain(code) {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|error| KvmError::Call { what: "fill memory", source: std::io::Error::other(error) })?;
    }
    let (_vm, mut vcpus) = kvm.create_vm(memory, 1)?;
    let vcpu = &mut vcpus[0];
    Processors::new(&kvm, 1)?.set_up(vcpu, 0, Some(&image.registers))?;
    Ok(match vcpu.run() {
        Exit::Write(Space::Ports, port, [0x41]) if port == u64::from(PORT) => Ok(()),
        Exit::Failed(reason) => Err(format!("{reason}{}", vcpu.whereabouts())),
        other => Err(format!("it computed something else ({other:?})")),
    })
}
