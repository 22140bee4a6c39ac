//! A vCPU: runs the guest, answers its calls as far as they concern no device, and turns the others into accesses to devices.
//!
//! A vCPU that is stopped is so here, not in KVM, which has no such state on this architecture: its thread waits until another
//! vCPU starts it.

#![allow(
    unsafe_code,
    reason = "what the kernel has put into the shared page is a union; an instruction of the processor's"
)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, SigmaskHow};
use tatami_arch::Space;
use tatami_arch::ppc64le::hypercall::{Hypercall, Status, Text};
use tatami_arch::ppc64le::rtas::{self, Call, ConfigAddress, Request};
use tatami_arch::ppc64le::{Registers, layout};
use tatami_devices::virtio::GuestMemory;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::errno::Error;
use vmm_sys_util::eventfd::EventFd;

use super::descriptors;
use super::partition::{Modes, Partition, time};
use super::{registers, spec};
use crate::kvm::Exit;

/// See the module.
pub(crate) struct VcpuFd {
    fd: descriptors::VcpuFd,
    id: u8,
    partition: Arc<Partition>,
    memory: GuestMemory,
    /// What of the guest's choice the vCPU has taken up.
    modes: Modes,
    /// A call that is answered with what a device has told by the time the vCPU goes on.
    pending: Option<Pending>,
    /// It has stopped itself by a call that KVM still takes for one that is to be answered.
    stopped: bool,
    /// What is read from devices, or written to them, on behalf of calls.
    data: [u8; 4],
    text: Text,
}

struct Pending {
    call: Call,
    buffer: u64,
    size: u8,
}

/// What came of letting the guest run once.
enum Step {
    /// Nothing that anybody else has to know.
    Again,
    Memory,
    Print,
    ReadConfig(ConfigAddress),
    WriteConfig(ConfigAddress),
    Interrupted,
    Reset,
    Failed(String),
}

impl VcpuFd {
    /// Vcpu number `id` of `partition`, with the machine's memory, in which calls have their arguments.
    pub(super) fn new(fd: descriptors::VcpuFd, id: u8, partition: Arc<Partition>, memory: GuestMemory) -> VcpuFd {
        let (modes, pending, stopped) = (Modes::default(), None, false);
        VcpuFd { fd, id, partition, memory, modes, pending, stopped, data: [0; 4], text: Text::default() }
    }

    /// What is shared with the kernel.
    pub(crate) fn get_kvm_run(&mut self) -> &mut spec::kvm_run {
        self.fd.page()
    }

    /// Lets it start with these registers as soon as it is run.
    pub(super) fn start(&self, registers: Registers) -> rtas::Status {
        self.partition.start(self.id.into(), registers)
    }

    /// Where it stands.
    pub(super) fn whereabouts(&self) -> Result<(u64, u64), Error> {
        let regs = self.fd.registers().general()?;
        Ok((regs.pc, regs.msr))
    }

    /// Its registers, while it does not run.
    pub(super) fn registers(&self) -> &descriptors::RegistersFd {
        self.fd.registers()
    }

    /// Runs the guest until it needs something that is not here.
    pub(super) fn run(&mut self) -> Exit<'_> {
        let step = loop {
            match self.step() {
                Ok(Step::Again) => {}
                Ok(step) => break step,
                Err(error) => break failure(error),
            }
        };
        match step {
            // The loop has been through these.
            Step::Again | Step::Interrupted => Exit::Interrupted,
            Step::Reset => Exit::Reset,
            Step::Failed(reason) => Exit::Failed(reason),
            Step::Print => Exit::Write(Space::Terminal, 0, self.text.as_bytes()),
            Step::ReadConfig(address) => {
                Exit::Read(Space::Configuration, ecam(address), &mut self.data[..address.size.into()])
            }
            Step::WriteConfig(address) => {
                Exit::Write(Space::Configuration, ecam(address), &self.data[..address.size.into()])
            }
            Step::Memory => {
                // SAFETY: the exit reason said that this member is the valid one.
                let mmio = unsafe { &mut self.fd.page().details.mmio };
                let data = &mut mmio.data[..(mmio.len as usize).min(8)];
                match mmio.is_write {
                    0 => Exit::Read(Space::Memory, mmio.phys_addr, data),
                    _ => Exit::Write(Space::Memory, mmio.phys_addr, data),
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, Error> {
        if let Some(Pending { call, buffer, size }) = self.pending.take() {
            let mut value = [0; 4];
            value[..size.into()].copy_from_slice(&self.data[..size.into()]);
            self.answer(&call, buffer, rtas::Status::Success, &[u32::from_le_bytes(value)]);
        }
        let partition = Arc::clone(&self.partition);
        if let Some(started) = partition.waits(self.id) {
            return self.wait(started);
        }
        if let Some(registers) = partition.take_start(self.id) {
            self.take_up(registers)?;
        }
        let modes = partition.modes();
        if modes != self.modes {
            let register = self.registers().number(registers::LPCR)?;
            self.registers().set_number(registers::LPCR, modes.applied_to(register))?;
            self.modes = modes;
        }
        self.fd.run()?;
        let page = self.fd.page();
        Ok(match page.exit_reason {
            spec::EXIT_MMIO => Step::Memory,
            spec::EXIT_PAPR_HCALL => self.hypercall(),
            spec::EXIT_INTR => Step::Interrupted,
            spec::EXIT_SHUTDOWN | spec::EXIT_SYSTEM_EVENT => Step::Reset,
            spec::EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says that this member is the valid one.
                let reason = unsafe { page.details.hardware_entry_failure_reason };
                Step::Failed(format!("the processor refused to enter the guest (reason {reason:#x})"))
            }
            spec::EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                let suberror = unsafe { page.details.suberror };
                Step::Failed(format!("KVM internal error, suberror {suberror}"))
            }
            other => Step::Failed(format!("KVM stopped with reason {other}, which nothing here asked for")),
        })
    }

    /// Waits to be started, or to be interrupted.
    fn wait(&mut self, started: &EventFd) -> Result<Step, Error> {
        // A signal counts only together with the flag, and must not come between looking at that and waiting.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(errno)?;
        let flag = &raw const self.fd.page().immediate_exit;
        // SAFETY: a byte of a page that is mapped for as long as `self.fd` lives; other threads write it.
        let interrupted = unsafe { ptr::read_volatile(flag) } != 0;
        let waited = match interrupted {
            true => Err(nix::errno::Errno::EINTR),
            false => {
                // SAFETY: the partition, which has it, outlives the call.
                let started = unsafe { BorrowedFd::borrow_raw(started.as_raw_fd()) };
                ppoll(&mut [PollFd::new(started, PollFlags::POLLIN)], None, Some(before))
            }
        };
        before.thread_set_mask().map_err(errno)?;
        match waited {
            Ok(_) => Ok(Step::Again),
            Err(nix::errno::Errno::EINTR) => Ok(Step::Interrupted),
            Err(error) => Err(errno(error)),
        }
    }

    fn take_up(&mut self, registers: Registers) -> Result<(), Error> {
        let mut regs = self.registers().general()?;
        (regs.pc, regs.msr) = (registers.pc, registers.msr);
        (regs.gpr[3], regs.gpr[5]) = (registers.gpr3, registers.gpr5);
        if std::mem::take(&mut self.stopped) {
            // As the vCPU runs again, that call's results come into r3 and what follows.
            // SAFETY: the vCPU has not run since it made the call, so that this member is the valid one.
            let call = unsafe { &mut self.fd.page().details.papr_hcall };
            (call.ret, call.args[1]) = (registers.gpr3, registers.gpr5);
        }
        self.registers().set_general(&regs)
    }

    fn hypercall(&mut self) -> Step {
        // SAFETY: the exit reason says that this member is the valid one.
        let call = unsafe { self.fd.page().details.papr_hcall };
        let (mut status, mut step, mut results) = (Status::Success, Step::Again, [None; 2]);
        match Hypercall::read(call.nr, &call.args) {
            Ok(Hypercall::Rtas { buffer }) => step = self.rtas(buffer),
            Ok(Hypercall::Put(text)) => {
                self.text = text;
                step = Step::Print;
            }
            // Nobody types.
            Ok(Hypercall::Get) => results[0] = Some(0),
            Ok(Hypercall::ClearTranslations) => {}
            Ok(Hypercall::SetMode(mode)) => self.partition.set_mode(mode),
            Ok(Hypercall::Translation(table)) => status = self.partition.set_translation(table),
            Ok(Hypercall::CpuCharacteristics) => match self.partition.characteristics() {
                Some(told) => results = told.map(Some),
                None => status = Status::Function,
            },
            Err(refused) => status = refused,
        }
        // SAFETY: as above; nothing has run since.
        let answer = unsafe { &mut self.fd.page().details.papr_hcall };
        answer.ret = status as i64 as u64;
        for (register, result) in answer.args.iter_mut().zip(results) {
            *register = result.unwrap_or(*register);
        }
        step
    }

    fn rtas(&mut self, buffer: u64) -> Step {
        // A buffer at the end of memory may be shorter.
        let mut bytes = [0; rtas::BUFFER_SIZE];
        let read = self.memory.read(&mut bytes, GuestAddress(buffer)).unwrap_or(0);
        let Some(call) = Call::read(&bytes[..read]) else { return Step::Again };
        let (status, results) = match call.request() {
            Err(status) => (status, Vec::new()),
            Ok(Request::TimeOfDay) => (rtas::Status::Success, time().to_vec()),
            Ok(Request::StartCpu { cpu, address, argument }) => {
                (self.partition.start(cpu, Registers::started(address.into(), argument.into())), Vec::new())
            }
            Ok(Request::CpuState { cpu }) => match self.partition.query(cpu) {
                Some(state) => (rtas::Status::Success, vec![state]),
                None => (rtas::Status::ParameterError, Vec::new()),
            },
            Ok(Request::StopSelf) => {
                self.partition.stop(self.id);
                self.stopped = true;
                return Step::Again;
            }
            Ok(Request::PowerOff | Request::Reboot) => return Step::Reset,
            Ok(Request::ReadConfig(address)) => {
                self.pending = Some(Pending { call, buffer, size: address.size });
                return Step::ReadConfig(address);
            }
            Ok(Request::WriteConfig(address, value)) => {
                self.data = value.to_le_bytes();
                self.answer(&call, buffer, rtas::Status::Success, &[]);
                return Step::WriteConfig(address);
            }
        };
        self.answer(&call, buffer, status, &results);
        Step::Again
    }

    fn answer(&self, call: &Call, buffer: u64, status: rtas::Status, results: &[u32]) {
        let (offset, bytes) = call.answer(status, results);
        // Where there is no memory for it, the guest has asked for no answer.
        let _ = self.memory.write_slice(&bytes, GuestAddress(buffer.saturating_add(offset as u64)));
    }
}

/// Where a function's configuration is among all (PCI Express 3.0, section 7.2.2).
fn ecam(address: ConfigAddress) -> u64 {
    let ConfigAddress { bus, device, function, register, .. } = address;
    u64::from(bus) << 20 | u64::from(device) << 15 | u64::from(function) << 12 | u64::from(register)
}

fn failure(error: Error) -> Step {
    match error.errno() {
        libc::EINTR | libc::EAGAIN => Step::Interrupted,
        libc::EFAULT => Step::Failed("guest memory could not be had (is the host out of memory?)".to_owned()),
        _ => Step::Failed(format!("KVM failed: {error}")),
    }
}

fn errno(error: nix::errno::Errno) -> Error {
    Error::new(error as i32)
}

/// The host's time base.
pub(super) fn time_base() -> u64 {
    let now: u64;
    // SAFETY: reads a register that every program may read.
    unsafe { std::arch::asm!("mftb {}", out(reg) now, options(nomem, nostack, preserves_flags)) };
    now
}

/// Where a device's interrupt source may be; the interrupt controller is told of each before the guest starts.
pub(super) fn sources() -> impl Iterator<Item = u32> {
    let devices = layout::FIRST_DEVICE_IRQ..layout::FIRST_DEVICE_IRQ + layout::DEVICE_SLOTS;
    std::iter::once(layout::TERMINAL_IRQ).chain(devices)
}
