//! The only module that talks to KVM: virtual machines, their memory slots and interrupt lines, and vCPUs.
//!
//! What differs between architectures is in one file each (`x86_64.rs`, `aarch64.rs`, `ppc64le.rs`), all defining the same names. Deliberately
//! knows no devices and no boot: it is told which bytes go where.

#![allow(unsafe_code, reason = "memory slots and the shared run page are raw addresses by KVM's design")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tatami_arch::{Host, Machine, Space};
use tatami_devices::virtio::mmio::REGION_BYTES;
use tatami_devices::virtio::{GuestMemory, RegisterPage};
use vm_memory::{Address, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(not(target_arch = "powerpc64"))]
mod known;
#[cfg(not(target_arch = "x86_64"))]
mod no_messages;
#[cfg(target_arch = "powerpc64")]
mod ppc64le;
// What of it needs none of its KVM is tested everywhere.
#[cfg(all(test, not(target_arch = "powerpc64")))]
#[path = "ppc64le/registers.rs"]
#[allow(dead_code, reason = "what uses it is elsewhere")]
mod ppc64le_registers;
#[cfg(all(test, not(target_arch = "powerpc64")))]
#[path = "ppc64le/spec.rs"]
#[allow(dead_code, reason = "what uses it is elsewhere")]
mod ppc64le_spec;
#[cfg(all(test, not(target_arch = "powerpc64")))]
#[path = "ppc64le/version.rs"]
mod ppc64le_version;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "aarch64")]
use aarch64 as platform;
#[cfg(not(target_arch = "powerpc64"))]
use known as interface;
#[cfg(target_arch = "x86_64")]
use x86_64 as platform;
#[cfg(target_arch = "powerpc64")]
use {ppc64le as interface, ppc64le as platform};

pub(crate) use interface::call_name;
use interface::{
    Cap, IoEventAddress, KVM_MEM_READONLY, KvmFd, NoDatamatch, VcpuFd, VmFd, kvm_userspace_memory_region, run,
};
use platform::InterruptController;
pub(crate) use platform::{
    FILTERED, KernelFile, MachineState, Messages, OLD_CALLS, OLD_TRANSFERS, Processors, RESUME_REQUESTS, SAVE_REQUESTS,
    VCPU_REQUESTS, VcpuState, call_arguments, probe_instructions,
};

/// The API version that has been the only one since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What KVM could not do.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// A system call on a KVM descriptor failed.
    #[error("KVM cannot {what}: {source}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Not KVM as Linux has it.
    #[error("/dev/kvm speaks version {0} of the KVM interface, Tatami version 12: is it KVM?")]
    Version(i32),
    /// An old kernel, or one built without something.
    #[error("this host's KVM lacks {0}: use a newer host kernel")]
    Missing(&'static str),
    /// vCPUs are limited by the kernel's configuration.
    #[error("this host's KVM allows {limit} vCPUs a sandbox, {wanted} were asked for")]
    TooManyVcpus {
        /// Asked for.
        wanted: u8,
        /// Allowed.
        limit: usize,
    },
}

/// Turns a failed call into an error that says what was tried.
fn failed(what: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> KvmError {
    move |error| KvmError::Call { what, source: error.into() }
}

/// The host's KVM.
pub(crate) struct Kvm {
    fd: KvmFd,
}

impl Kvm {
    /// Takes over an open `/dev/kvm`.
    ///
    /// # Errors
    /// When it is not KVM, or lacks something Tatami cannot do without.
    pub(crate) fn new(device: OwnedFd) -> Result<Kvm, KvmError> {
        // SAFETY: the descriptor is open and owned, and ownership passes on.
        let fd = unsafe { KvmFd::from_raw_fd(device.into_raw_fd()) };
        match fd.get_api_version() {
            API_VERSION => {}
            other => return Err(KvmError::Version(other)),
        }
        const ALWAYS: [(Cap, &str); 4] = [
            (Cap::UserMemory, "user-space memory slots"),
            (Cap::Irqfd, "irqfd"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::ImmediateExit, "immediate exits"),
        ];
        for (capability, name) in ALWAYS.into_iter().chain(platform::REQUIRED) {
            if !fd.check_extension(capability) {
                return Err(KvmError::Missing(name));
            }
        }
        Ok(Kvm { fd })
    }

    /// The most vCPUs that one machine may have.
    pub(crate) fn max_vcpus(&self) -> usize {
        self.fd.get_max_vcpus()
    }

    /// Whether one machine may have so many vCPUs.
    ///
    /// # Errors
    /// Says how many it may have.
    fn check_vcpus(&self, wanted: u8) -> Result<(), KvmError> {
        let limit = self.max_vcpus();
        if usize::from(wanted) > limit { Err(KvmError::TooManyVcpus { wanted, limit }) } else { Ok(()) }
    }

    /// Creates a machine with `memory`, which it keeps mapped for as long as it lives, and its vCPUs: which of them and the
    /// interrupt controller comes first is the architecture's affair.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn create_vm(&self, memory: GuestMemory, vcpus: u8) -> Result<(Vm, Vec<Vcpu>), KvmError> {
        let fd = self.fd.create_vm().map_err(failed("create a virtual machine"))?;
        for (slot, region) in memory.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped for as long as `memory` lives, and `Vm` keeps it alive beyond the descriptor.
            unsafe { fd.set_user_memory_region(slot) }.map_err(failed("map guest memory"))?;
        }
        let (vcpus, interrupts) = platform::create_vcpus(&fd, &memory, vcpus)?;
        let pages = (platform::READABLE_REGISTERS && self.fd.check_extension(Cap::ReadonlyMem)).then(Vec::new);
        let vm = Vm { interrupts, fd: Arc::new(fd), memory, pages };
        Ok((vm, vcpus.into_iter().map(|fd| Vcpu { fd }).collect()))
    }
}

/// A virtual machine: memory and interrupt lines.
pub(crate) struct Vm {
    interrupts: InterruptController,
    // Before `memory` and `pages`, so that it is closed before they are unmapped; whoever routes messages has gone by then.
    fd: Arc<VmFd>,
    memory: GuestMemory,
    /// Registers that the guest reads as memory, where it can.
    pages: Option<Vec<Arc<RegisterPage>>>,
}

impl Vm {
    /// Its RAM.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What of it is as this host has it.
    pub(crate) fn variant(&self) -> <Host as Machine>::Variant {
        self.interrupts.variant()
    }

    /// What its vCPUs share, memory apart; none of them may run.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn save(&self) -> Result<MachineState, KvmError> {
        MachineState::save(&self.fd, &self.interrupts)
    }

    /// Makes that what it was when it was saved.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn restore(&self, state: &MachineState) -> Result<(), KvmError> {
        state.restore(&self.fd, &self.interrupts)
    }

    /// Whether guests can read devices' registers without leaving ([`Vm::show_registers`]).
    pub(crate) fn can_show_registers(&self) -> bool {
        self.pages.is_some()
    }

    /// Has the guest read `page` at `address`; what it writes there goes the way it would without.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn show_registers(&mut self, page: &Arc<RegisterPage>, address: u64) -> Result<(), KvmError> {
        let pages = self.pages.get_or_insert_default();
        pages.push(Arc::clone(page));
        let slot = kvm_userspace_memory_region {
            slot: (self.memory.num_regions() + pages.len() - 1) as u32,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: address,
            memory_size: REGION_BYTES,
            userspace_addr: page.as_ptr() as u64,
        };
        // SAFETY: the page is mapped, and as long as the slot; it stays so beyond the descriptor, for as long as it is in `pages`.
        unsafe { self.fd.set_user_memory_region(slot) }.map_err(failed("map a device's registers"))
    }

    /// Lets each write to `event` raise interrupt line `irq` once (edge).
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn connect_interrupt(&self, event: &EventFd, irq: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, irq).map_err(failed("connect an interrupt"))
    }

    /// How messages are sent, on machines that have a place for them; asked once.
    pub(crate) fn messages(&self) -> Option<Messages> {
        Messages::new(&self.fd)
    }

    /// Turns the guest's 32-bit writes of `value` at `address`, or whatever it writes there, into writes to `event`, without leaving
    /// the kernel.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn connect_write(&self, event: &EventFd, address: u64, value: Option<u32>) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(address);
        let connected = match value {
            Some(value) => self.fd.register_ioevent(event, &address, value),
            None => self.fd.register_ioevent(event, &address, NoDatamatch),
        };
        connected.map_err(failed("connect a register"))
    }
}

/// Why a vCPU came back to user space.
#[derive(Debug)]
pub(crate) enum Exit<'a> {
    /// The guest reads; the bytes must be filled in before the vCPU goes on.
    Read(Space, u64, &'a mut [u8]),
    /// The guest writes.
    Write(Space, u64, &'a [u8]),
    /// A signal, or [`Kicker::kick`].
    Interrupted,
    /// The guest has reset the machine (on x86 by a triple fault).
    Reset,
    /// Something after which this vCPU cannot go on.
    Failed(String),
}

/// A vCPU.
pub(crate) struct Vcpu {
    fd: VcpuFd,
}

impl Vcpu {
    /// Runs the guest until it needs something.
    pub(crate) fn run(&mut self) -> Exit<'_> {
        run(&mut self.fd)
    }

    /// Where in the guest this vCPU stands, for messages about its end.
    pub(crate) fn whereabouts(&self) -> String {
        platform::whereabouts(&self.fd)
    }

    /// Tells the guest that it has stood still, so that it takes the time that passed for no lock-up of its own.
    ///
    /// # Errors
    /// Whatever KVM says.
    pub(crate) fn stood_still(&self) -> Result<(), KvmError> {
        platform::stood_still(&self.fd)
    }

    /// What ends [`Vcpu::run`] from another thread.
    pub(crate) fn kicker(&mut self) -> Kicker {
        let flag: *mut u8 = &raw mut self.fd.get_kvm_run().immediate_exit;
        // A field of a mapped page is never null; the fallback cannot be reached.
        Kicker { flag: NonNull::new(flag.cast()).unwrap_or(NonNull::dangling()) }
    }
}

/// Makes a vCPU return from the guest.
pub(crate) struct Kicker {
    flag: NonNull<AtomicU8>,
}

// SAFETY: the flag is one byte that is only ever accessed atomically by this process; the kernel merely reads it.
unsafe impl Send for Kicker {}

impl Kicker {
    /// Makes the current or the next [`Vcpu::run`] return [`Exit::Interrupted`] once a signal reaches its thread.
    ///
    /// # Safety
    /// The [`Vcpu`] that this came from must still exist.
    pub(crate) unsafe fn set(&self, exit: bool) {
        // SAFETY: the run page is mapped for as long as the vCPU exists, which the caller vouches for.
        unsafe { self.flag.as_ref() }.store(exit.into(), Ordering::SeqCst);
    }
}
