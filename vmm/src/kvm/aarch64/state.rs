//! What a machine's interrupt controller and vCPUs are at a moment: taken out of KVM, put into another machine.
//!
//! KVM lists a vCPU's registers itself, so nothing here knows which there are. The guest's counter is among them: it goes on from
//! where it was. Knows nothing of memory, devices or files.

use kvm_bindings::{RegList, kvm_mp_state, kvm_vcpu_events};
use kvm_ioctls::{VcpuFd, VmFd, reg_size};
use serde::{Deserialize, Serialize};

use super::gic::{GicState, InterruptController};
use super::{KvmError, failed};

/// What all vCPUs share.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "fuzzing", derive(Default))]
pub(crate) struct MachineState {
    interrupts: GicState,
}

/// One vCPU that does not run.
#[derive(Serialize, Deserialize)]
pub(crate) struct VcpuState {
    running: kvm_mp_state,
    /// KVM's names, and as many bytes as each has.
    registers: Vec<(u64, Vec<u8>)>,
    error: Option<SystemError>,
}

/// A system error that the vCPU has still to take.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct SystemError {
    /// Its syndrome, where KVM can tell.
    syndrome: Option<u64>,
}

impl MachineState {
    pub(in crate::kvm) fn save(_: &VmFd, interrupts: &InterruptController) -> Result<MachineState, KvmError> {
        Ok(MachineState { interrupts: interrupts.save()? })
    }

    pub(in crate::kvm) fn restore(&self, _: &VmFd, interrupts: &InterruptController) -> Result<(), KvmError> {
        interrupts.restore(&self.interrupts)
    }
}

impl VcpuState {
    pub(super) fn save(vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
        let running = vcpu.get_mp_state().map_err(failed("read a vCPU's state"))?;
        let registers = register_names(vcpu)?.into_iter().map(|id| Ok((id, read(vcpu, id)?)));
        let registers = registers.collect::<Result<_, KvmError>>()?;
        let events = vcpu.get_vcpu_events().map_err(failed("read pending events"))?.exception;
        let syndrome = (events.serror_has_esr != 0).then_some(events.serror_esr);
        let error = (events.serror_pending != 0).then_some(SystemError { syndrome });
        Ok(VcpuState { running, registers, error })
    }

    pub(super) fn restore(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        for (id, value) in &self.registers {
            let written = vcpu.set_one_reg(*id, value);
            // Some only say what the processor is. A host on which that is the same can go on.
            if let Err(error) = written
                && read(vcpu, *id)? != *value
            {
                log::error!("register {id:#x} cannot be set to {value:x?}");
                return Err(failed("set registers")(error));
            }
        }
        if let Some(SystemError { syndrome }) = self.error {
            let mut events = kvm_vcpu_events::default();
            events.exception.serror_pending = 1;
            events.exception.serror_has_esr = syndrome.is_some().into();
            events.exception.serror_esr = syndrome.unwrap_or(0);
            vcpu.set_vcpu_events(&events).map_err(failed("set pending events"))?;
        }
        vcpu.set_mp_state(self.running).map_err(failed("set a vCPU's state"))
    }
}

impl VcpuState {
    /// Whether it waits for an interrupt, and where, for people.
    pub(crate) fn describe(&self) -> String {
        let halted = if self.running.mp_state == kvm_bindings::KVM_MP_STATE_RUNNABLE { "at" } else { "stopped at" };
        match self.registers.iter().find(|(id, _)| *id == super::PC).map(|(_, value)| value.as_slice().try_into()) {
            Some(Ok(pc)) => format!("{halted} pc {:#x}", u64::from_le_bytes(pc)),
            _ => halted.to_owned(),
        }
    }
}

fn register_names(vcpu: &VcpuFd) -> Result<Vec<u64>, KvmError> {
    /// The most that the list can be made for; processors have some 300.
    const ROOM: usize = 500;
    const WHAT: &str = "list registers";
    let too_many = |_| KvmError::Call { what: WHAT, source: std::io::Error::from_raw_os_error(libc::E2BIG) };
    let mut list = RegList::new(ROOM).map_err(too_many)?;
    vcpu.get_reg_list(&mut list).map_err(failed(WHAT))?;
    Ok(list.as_slice().to_vec())
}

fn read(vcpu: &VcpuFd, id: u64) -> Result<Vec<u8>, KvmError> {
    let mut value = vec![0; reg_size(id)];
    vcpu.get_one_reg(id, &mut value).map_err(failed("read registers"))?;
    Ok(value)
}
