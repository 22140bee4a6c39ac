//! What a machine's interrupt controllers, clock and vCPUs are at a moment: taken out of KVM, put into another machine.
//!
//! The order of the calls is KVM's (Documentation/virt/kvm/api.rst): a local APIC before the registers that arm its timer,
//! pending events last. Knows nothing of memory, devices or files.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MP_STATE_RUNNABLE, Msrs, kvm_clock_data,
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::{InterruptController, KvmError, failed, libc_error};

const IA32_TSC: u32 = 0x10;
/// A value of that one beyond what any guest reaches. Where it is set to what it would be about now, within a second, KVM has it go on from
/// what it is, so that vCPUs agree; before Linux 6.7 also where all began at 0 just now, and a guest younger than a second would
/// find itself that much younger. From far off, the first vCPU is set to what it was, and the others agree with it.
const FAR_OFF: u64 = 1 << 62;
/// Armed by its value, which counts only once the local APIC's timer is in the mode for it: restored last.
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Hyper-V's synthetic registers: not offered to the guest, and some change by themselves.
const HYPER_V: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

/// What all vCPUs share.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "fuzzing", derive(Default))]
pub(crate) struct MachineState {
    clock: kvm_clock_data,
    chips: Vec<kvm_irqchip>,
}

/// One vCPU that does not run.
#[derive(Serialize, Deserialize)]
pub(crate) struct VcpuState {
    running: kvm_mp_state,
    registers: kvm_regs,
    system: kvm_sregs,
    extended: Box<kvm_xsave>,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    local_apic: Box<kvm_lapic_state>,
    events: kvm_vcpu_events,
    model_specific: Vec<kvm_msr_entry>,
}

impl MachineState {
    pub(in crate::kvm) fn save(vm: &VmFd, _: &InterruptController) -> Result<MachineState, KvmError> {
        let mut clock = vm.get_clock().map_err(failed("read the guest's clock"))?;
        // Flags say how exact the reading is; setting takes none, and the guest's clock goes on from where it was.
        clock.flags = 0;
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].into_iter().map(|chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(failed("read an interrupt controller"))?;
            Ok(chip)
        });
        Ok(MachineState { clock, chips: chips.collect::<Result<_, KvmError>>()? })
    }

    pub(in crate::kvm) fn restore(&self, vm: &VmFd, _: &InterruptController) -> Result<(), KvmError> {
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(failed("set an interrupt controller"))?;
        }
        vm.set_clock(&self.clock).map_err(failed("set the guest's clock"))
    }
}

impl VcpuState {
    /// `indices` are those of the model-specific registers that this KVM keeps.
    pub(in crate::kvm) fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<VcpuState, KvmError> {
        Ok(VcpuState {
            // First: it settles what is about to change the rest.
            running: vcpu.get_mp_state().map_err(failed("read a vCPU's state"))?,
            registers: vcpu.get_regs().map_err(failed("read registers"))?,
            system: vcpu.get_sregs().map_err(failed("read system registers"))?,
            extended: Box::new(vcpu.get_xsave().map_err(failed("read extended registers"))?),
            extended_control: vcpu.get_xcrs().map_err(failed("read extended control registers"))?,
            debug: vcpu.get_debug_regs().map_err(failed("read debug registers"))?,
            // In this order: a timer that goes off in between is in both then. The other way round it could be in neither, where each
            // of these calls may turn a deadline that has passed into an interrupt (VMX preemption timer with APICv), and a guest
            // that misses one never sets another.
            model_specific: read_msrs(vcpu, indices)?,
            local_apic: Box::new(vcpu.get_lapic().map_err(failed("read a local APIC"))?),
            events: vcpu.get_vcpu_events().map_err(failed("read pending events"))?,
        })
    }

    /// With `first`, of a machine's vCPUs none was restored before.
    pub(in crate::kvm) fn restore(&self, vcpu: &VcpuFd, first: bool) -> Result<(), KvmError> {
        vcpu.set_mp_state(self.running).map_err(failed("set a vCPU's state"))?;
        vcpu.set_regs(&self.registers).map_err(failed("set registers"))?;
        vcpu.set_sregs(&self.system).map_err(failed("set system registers"))?;
        // SAFETY: the kernel reads as many bytes as the guest's features need, which is the whole structure at most: features
        // that need more are switched on by a call that nothing here makes (arch_prctl, ARCH_REQ_XCOMP_GUEST_PERM).
        unsafe { vcpu.set_xsave(&self.extended) }.map_err(failed("set extended registers"))?;
        // Processors without XSAVE have none.
        if self.extended_control.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.extended_control).map_err(failed("set extended control registers"))?;
        }
        vcpu.set_debug_regs(&self.debug).map_err(failed("set debug registers"))?;
        vcpu.set_lapic(&self.local_apic).map_err(failed("set a local APIC"))?;
        if first {
            write_msrs(vcpu, &[kvm_msr_entry { index: IA32_TSC, data: FAR_OFF, ..Default::default() }])?;
        }
        write_msrs(vcpu, &self.model_specific)?;
        vcpu.set_vcpu_events(&self.events).map_err(failed("set pending events"))
    }
}

impl VcpuState {
    /// Where it is, what it has yet to be interrupted for, and when its timer is due, for people.
    pub(crate) fn describe(&self) -> String {
        let halted = if self.running.mp_state == KVM_MP_STATE_RUNNABLE { "at" } else { "halted at" };
        let register = |at: usize| {
            let bytes = self.local_apic.regs[at..at + 4].iter().map(|byte| *byte as u8);
            bytes.rev().fold(0, |value: u32, byte| (value << 8) | u32::from(byte))
        };
        // 256 bits in eight registers, 16 bytes apart (Intel SDM volume 3, 11.8.4).
        let vectors = |first: usize| {
            let is_set = |vector: &usize| register(first + vector / 32 * 16) & (1 << (vector % 32)) != 0;
            (0..256).filter(is_set).collect::<Vec<_>>()
        };
        let value = |index| self.model_specific.iter().find(|entry| entry.index == index).map_or(0, |entry| entry.data);
        let (now, deadline) = (value(IA32_TSC), value(IA32_TSC_DEADLINE));
        let timer = match deadline {
            0 => "unarmed".to_owned(),
            _ => format!("due in {} cycles", deadline.wrapping_sub(now) as i64),
        };
        format!(
            "{halted} rip {:#x} flags {:#x}, requested {:?}, in service {:?}, injected {}, timer {:#x} {timer}",
            self.registers.rip,
            self.registers.rflags,
            vectors(0x200),
            vectors(0x100),
            if self.events.interrupt.injected != 0 { self.events.interrupt.nr } else { 0 },
            register(0x320),
        )
    }
}

/// Reads what can be read: the list names registers of features that this vCPU was not given.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let wanted = indices.iter().copied().filter(|index| !HYPER_V.contains(index));
    let mut left: Vec<_> = wanted.map(|index| kvm_msr_entry { index, ..Default::default() }).collect();
    left.sort_by_key(|entry| entry.index == IA32_TSC_DEADLINE);
    let mut entries = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let mut batch = msrs(&left)?;
        // KVM stops at the first that it refuses, and says how many came before.
        let read = vcpu.get_msrs(&mut batch).map_err(failed("read model-specific registers"))?;
        entries.extend_from_slice(&batch.as_slice()[..read]);
        left.drain(..(read + 1).min(left.len()));
    }
    Ok(entries)
}

/// Writes them; one that cannot be written must have the value it had.
fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    const WHAT: &str = "set model-specific registers";
    let mut left = entries;
    while !left.is_empty() {
        let written = vcpu.set_msrs(&msrs(left)?).map_err(failed(WHAT))?;
        left = &left[written..];
        if let Some((refused, rest)) = left.split_first() {
            let mut present = msrs(&[kvm_msr_entry { data: 0, ..*refused }])?;
            let read = vcpu.get_msrs(&mut present).map_err(failed(WHAT))?;
            if read != 1 || present.as_slice()[0].data != refused.data {
                log::error!("model-specific register {:#x} cannot be set to {:#x}", refused.index, refused.data);
                return Err(KvmError::Call { what: WHAT, source: libc_error(libc::EINVAL) });
            }
            left = rest;
        }
    }
    Ok(())
}

fn msrs(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    Msrs::from_entries(entries)
        .map_err(|_| KvmError::Call { what: "take so many model-specific registers", source: libc_error(libc::E2BIG) })
}
