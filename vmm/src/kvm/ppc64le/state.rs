//! What a machine's partition, interrupt controller and vCPUs are at a moment: taken out of KVM, put into another machine.
//!
//! Of a vCPU that waits for an interrupt, KVM does not say so: such a one goes on as if one had come, which guests must reckon
//! with. The guest's time base goes on from where it was, up to 33 ms further on. Knows nothing of memory, devices or files.

use std::io;

use serde::{Deserialize, Serialize};
use vmm_sys_util::errno::Error;

use super::descriptors::{RegistersFd, VmFd};
use super::partition::PartitionState;
use super::processor::{self, VcpuFd};
use super::version::Processor;
use super::{InterruptController, KvmError, failed};
use super::{registers, spec};

/// What all vCPUs share.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "fuzzing", derive(Default))]
pub(crate) struct MachineState {
    /// The guest's.
    time_base: u64,
    partition: PartitionState,
    /// Of each vCPU, what is presented to it.
    presentation: Vec<u64>,
    /// By their numbers, as KVM describes them.
    sources: Vec<(u32, u64)>,
}

/// One vCPU that does not run.
#[derive(Serialize, Deserialize)]
pub(crate) struct VcpuState {
    processor: Processor,
    general: spec::kvm_regs,
    /// KVM's names, and as many bytes as each has.
    registers: Vec<(u64, Vec<u8>)>,
}

impl MachineState {
    pub(in crate::kvm) fn save(_: &VmFd, shared: &InterruptController) -> Result<MachineState, KvmError> {
        let ahead = match shared.vcpus.first() {
            Some(vcpu) => vcpu.number(registers::TB_OFFSET).map_err(failed("read the guest's time base"))?,
            None => 0,
        };
        let presented = shared.vcpus.iter().map(|vcpu| vcpu.number(registers::ICP_STATE));
        // In one go: where this is the work of the processor's own controller, KVM looks at all when asked for the first.
        let sources = processor::sources().map(|source| Ok((source, shared.xics.source(source)?)));
        const WHAT: &str = "read the interrupt controller";
        Ok(MachineState {
            time_base: processor::time_base().wrapping_add(ahead),
            partition: shared.partition.save(),
            presentation: presented.collect::<Result<_, Error>>().map_err(failed(WHAT))?,
            sources: sources.collect::<Result<_, Error>>().map_err(failed(WHAT))?,
        })
    }

    pub(in crate::kvm) fn restore(&self, _: &VmFd, shared: &InterruptController) -> Result<(), KvmError> {
        let ahead = self.time_base.wrapping_sub(processor::time_base());
        for vcpu in &shared.vcpus {
            vcpu.set_number(registers::TB_OFFSET, ahead).map_err(failed("set the guest's time base"))?;
        }
        shared.partition.restore(&self.partition)?;
        const WHAT: &str = "set the interrupt controller";
        // First: a pending interrupt is presented at once, if the vCPU's priority lets it, and when that changes here not again.
        for (vcpu, presented) in shared.vcpus.iter().zip(&self.presentation) {
            vcpu.set_number(registers::ICP_STATE, *presented).map_err(failed(WHAT))?;
        }
        for (source, value) in &self.sources {
            shared.xics.set_source(*source, *value).map_err(failed(WHAT))?;
        }
        Ok(())
    }
}

impl VcpuState {
    pub(super) fn save(vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
        let fd = vcpu.registers();
        let read = |register| match fd.read(register) {
            Ok(value) => Some(Ok((register, value))),
            Err(error) if is_absent(error) => None,
            Err(error) => Some(Err(failed("read registers")(error))),
        };
        Ok(VcpuState {
            processor: processor_of(fd)?,
            general: fd.general().map_err(failed("read registers"))?,
            registers: registers::saved().filter_map(read).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn restore(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let fd = vcpu.registers();
        let restored = self.processor.can_be(processor_of(fd)?);
        restored.map_err(|reason| KvmError::Call { what: "restore a vCPU", source: io::Error::other(reason) })?;
        fd.set_general(&self.general).map_err(failed("set registers"))?;
        for (register, value) in &self.registers {
            let written = fd.write(*register, value);
            // What this KVM does not know, its guests cannot have used unless it is not zero.
            if let Err(error) = written
                && !(is_absent(error) && value.iter().all(|byte| *byte == 0))
            {
                log::error!("register {register:#x} cannot be set to {value:x?}");
                return Err(failed("set registers")(error));
            }
        }
        Ok(())
    }

    /// Where it is, for people.
    pub(crate) fn describe(&self) -> String {
        let spec::kvm_regs { pc, msr, lr, .. } = self.general;
        format!("at pc {pc:#x} (msr {msr:#x}, lr {lr:#x})")
    }
}

fn processor_of(vcpu: &RegistersFd) -> Result<Processor, KvmError> {
    const WHAT: &str = "tell which processor this is";
    let compatible = match vcpu.number(registers::ARCH_COMPAT) {
        Ok(version) => version as u32,
        Err(error) if is_absent(error) => 0,
        Err(error) => return Err(failed(WHAT)(error)),
    };
    Ok(Processor { version: vcpu.processor_version().map_err(failed(WHAT))?, compatible })
}

/// Whether this is how KVM says that it does not know a register, or that this processor does not have it.
fn is_absent(error: Error) -> bool {
    matches!(error.errno(), libc::EINVAL | libc::ENXIO)
}
