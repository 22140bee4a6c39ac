//! What the vCPUs of a machine share and calls of the guest change: which of them run, how interrupts are taken, the time, what the
//! processor is like.
//!
//! Knows hypercalls as `tatami-arch` has them, and answers those that concern no device.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use tatami_arch::ppc64le::Registers;
use tatami_arch::ppc64le::hypercall::{Mode, ProcessTable, Status};
use tatami_arch::ppc64le::rtas::{self, CPU_RUNNING, CPU_STOPPED};
use vmm_sys_util::errno::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::descriptors::VmFd;
use super::spec;
use super::{KvmError, failed};

/// See the module.
pub(super) struct Partition {
    vm: VmFd,
    seats: Vec<Seat>,
    modes: Mutex<Modes>,
    /// What KVM was last told, and does not tell again.
    translation: Mutex<Option<Translation>>,
}

/// What of it outlives the process.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct PartitionState {
    modes: Modes,
    translation: Option<Translation>,
    seats: Vec<SeatState>,
}

/// The guest's process table, as KVM has it.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Translation {
    flags: u64,
    table: u64,
}

/// Whether a vCPU runs.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SeatState {
    Stopped,
    Starting { pc: u64, msr: u64, gpr3: u64, gpr5: u64 },
    Running,
}

/// Bits of the logical partitioning control register that the guest has chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Modes {
    /// Which they are.
    pub(super) mask: u64,
    /// What they are.
    pub(super) bits: u64,
}

/// A vCPU, as the others see it.
struct Seat {
    state: Mutex<State>,
    /// Readable once a stopped vCPU has been started.
    started: EventFd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Stopped,
    /// To run from there, which its own thread has not noticed yet.
    Starting(Registers),
    Running,
}

impl Partition {
    /// A machine of `vcpus`, all of which wait to be started.
    pub(super) fn new(vm: VmFd, vcpus: u8) -> io::Result<Partition> {
        let seat = || {
            let started = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            Ok(Seat { state: Mutex::new(State::Stopped), started })
        };
        let seats = (0..vcpus).map(|_| seat()).collect::<io::Result<_>>()?;
        Ok(Partition { vm, seats, modes: Mutex::default(), translation: Mutex::default() })
    }

    /// What it is at this moment; no vCPU may run.
    pub(super) fn save(&self) -> PartitionState {
        let seats = self.seats.iter().map(|seat| match *seat.state() {
            State::Stopped => SeatState::Stopped,
            State::Starting(Registers { pc, msr, gpr3, gpr5 }) => SeatState::Starting { pc, msr, gpr3, gpr5 },
            State::Running => SeatState::Running,
        });
        let translation = *self.translation.lock().unwrap_or_else(PoisonError::into_inner);
        PartitionState { modes: self.modes(), translation, seats: seats.collect() }
    }

    /// Makes it what it was when it had as many vCPUs, none of which has run here.
    pub(super) fn restore(&self, state: &PartitionState) -> Result<(), KvmError> {
        for (seat, saved) in self.seats.iter().zip(&state.seats) {
            *seat.state() = match *saved {
                SeatState::Stopped => State::Stopped,
                SeatState::Starting { pc, msr, gpr3, gpr5 } => State::Starting(Registers { pc, msr, gpr3, gpr5 }),
                SeatState::Running => State::Running,
            };
        }
        // The vCPUs take it up as they come.
        *self.modes.lock().unwrap_or_else(PoisonError::into_inner) = state.modes;
        state
            .translation
            .map_or(Ok(()), |translation| self.translate(translation))
            .map_err(failed("set the process table"))
    }

    /// `start-cpu`, and how the first is started.
    pub(super) fn start(&self, cpu: u32, registers: Registers) -> rtas::Status {
        let Some(seat) = self.seat(cpu) else { return rtas::Status::ParameterError };
        let mut state = seat.state();
        if *state != State::Stopped {
            return rtas::Status::HardwareError;
        }
        // Its counter is far from full: it is emptied whenever the vCPU starts.
        let _ = seat.started.write(1);
        *state = State::Starting(registers);
        rtas::Status::Success
    }

    /// `query-cpu-stopped-state`.
    pub(super) fn query(&self, cpu: u32) -> Option<u32> {
        let state = *self.seat(cpu)?.state();
        Some(if state == State::Stopped { CPU_STOPPED } else { CPU_RUNNING })
    }

    /// `stop-self`.
    pub(super) fn stop(&self, cpu: u8) {
        if let Some(seat) = self.seat(cpu.into()) {
            *seat.state() = State::Stopped;
        }
    }

    /// The registers of a vCPU that has been started and has not run since; it runs from now on.
    pub(super) fn take_start(&self, cpu: u8) -> Option<Registers> {
        let seat = self.seat(cpu.into())?;
        let mut state = seat.state();
        let State::Starting(registers) = *state else { return None };
        let _ = seat.started.read();
        *state = State::Running;
        Some(registers)
    }

    /// Whether a vCPU waits to be started, and what tells that it has been.
    pub(super) fn waits(&self, cpu: u8) -> Option<&EventFd> {
        let seat = self.seat(cpu.into())?;
        (*seat.state() == State::Stopped).then_some(&seat.started)
    }

    /// `H_SET_MODE`. The caller takes it up before its next instruction, the others when they come back.
    pub(super) fn set_mode(&self, mode: Mode) {
        let (mask, bits) = mode.partitioning();
        let mut modes = self.modes.lock().unwrap_or_else(PoisonError::into_inner);
        *modes = Modes { mask: modes.mask | mask, bits: modes.bits & !mask | bits };
    }

    /// What of that register has been chosen so far.
    pub(super) fn modes(&self) -> Modes {
        *self.modes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `H_REGISTER_PROC_TBL`.
    pub(super) fn set_translation(&self, table: ProcessTable) -> Status {
        let invalidates = if table.invalidates { spec::PPC_MMUV3_GTSE } else { 0 };
        match self.translate(Translation { flags: spec::PPC_MMUV3_RADIX | invalidates, table: table.entry }) {
            Ok(()) => Status::Success,
            Err(_) => Status::Parameter,
        }
    }

    fn translate(&self, translation: Translation) -> Result<(), Error> {
        let mut current = self.translation.lock().unwrap_or_else(PoisonError::into_inner);
        let Translation { flags, table } = translation;
        self.vm.configure_mmu(&spec::kvm_ppc_mmuv3_cfg { flags, process_table: table })?;
        *current = Some(translation);
        Ok(())
    }

    /// `H_GET_CPU_CHARACTERISTICS`: of what is known, what is so.
    pub(super) fn characteristics(&self) -> Option<[u64; 2]> {
        let known = self.vm.get_cpu_char().ok()?;
        Some([known.character & known.character_mask, known.behaviour & known.behaviour_mask])
    }

    fn seat(&self, cpu: u32) -> Option<&Seat> {
        self.seats.get(usize::try_from(cpu).ok()?)
    }
}

impl Seat {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Modes {
    /// The register, with the bits that have been chosen.
    pub(super) fn applied_to(self, register: u64) -> u64 {
        register & !self.mask | self.bits
    }
}

/// `get-time-of-day`.
pub(super) fn time() -> [u32; 7] {
    rtas::time_of_day(UNIX_EPOCH.elapsed().unwrap_or_default())
}
