//! From a configuration and open files to a running guest; to be read from top to bottom.
//!
//! Knows the order of things. What they are is in the modules it calls.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tatami_arch::{BootInputs, CommandLine, CommandLineError, DeviceSlot, Host, Machine};
use tatami_devices::virtio::mmio::NOTIFY_OFFSET;
use tatami_devices::virtio::{GuestMemory, MmioTransport, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

use crate::bus::{Bus, BusDevice};
use crate::config::{ConfigError, VmConfig};
use crate::kernel::{self, LoadError, LoadedKernel};
use crate::kvm::{Kvm, KvmError, Processors, Vcpu, Vm};
use crate::memory::{self, MemoryError};
use crate::ports::{ResetPort, SerialPort};
use crate::stop::{StopReason, StopSignal};
use crate::vcpu::{ExitCounts, RunningVcpu};

/// Why a guest could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel or initrd.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel's command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// More devices than the machine has places.
    #[error("the machine has places for {0} devices, no more: attach fewer disks")]
    TooManyDevices(usize),
    /// A thread, a descriptor or random bytes could not be had.
    #[error("cannot start the machine: {0}")]
    Resource(#[from] io::Error),
    /// The boot image reaches beyond memory, which its own limits forbid.
    #[error("cannot write the boot image: {0}")]
    Image(String),
}

/// What a machine is made of, beside its configuration.
pub struct Parts {
    /// An open `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The kernel, an ELF file.
    pub kernel: File,
    /// The initrd.
    pub initrd: Option<File>,
    /// Devices, in the order in which the guest shall find them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Where the guest's serial output goes; called on vCPU threads, so it must not block for long.
    pub serial: Box<dyn Write + Send>,
}

/// A machine whose parts are all in place and whose vCPUs have not run yet.
pub struct BuiltVm {
    // In this order: vCPUs and the bus go before the machine, the machine before nothing else.
    vcpus: Vec<Vcpu>,
    bus: Bus,
    stop: StopSignal,
    vm: Vm,
}

/// A running guest. Dropping it stops it.
pub struct RunningVm {
    vcpus: Vec<RunningVcpu>,
    stop: StopSignal,
    // Kept for as long as vCPUs may run; on `wait` the devices go with the bus.
    bus: Arc<Bus>,
    vm: Vm,
}

impl BuiltVm {
    /// Builds the machine: memory, processors, devices, and the kernel where it will start.
    ///
    /// # Errors
    /// Says which part could not be had, and why.
    pub fn new(config: &VmConfig, mut parts: Parts) -> Result<BuiltVm, BootError> {
        config.validate()?;
        let kvm = Kvm::new(parts.kvm)?;
        let processors = Processors::new(&kvm, config.max_vcpus)?;
        let ram = Host::ram(config.memory_bytes());
        let vm = kvm.create_vm(memory::create(&ram)?)?;
        let stop = StopSignal::new()?;

        let mut command_line = CommandLine::new::<Host>(config.vcpus, config.console.then_some(Host::CONSOLE))?;
        let mut bus = Bus::default();
        add_fixed_devices(&mut bus, &vm, parts.serial, &stop)?;
        for (index, device) in parts.devices.into_iter().enumerate() {
            let slot = Host::device_slot(index).ok_or(BootError::TooManyDevices(index))?;
            add_device(&mut bus, &vm, slot, device)?;
            command_line.add_device(slot)?;
        }
        command_line.add(&config.command_line_extra)?;

        let LoadedKernel { entry, extent } = kernel::load_kernel(vm.memory(), &mut parts.kernel)?;
        let initrd = match &mut parts.initrd {
            Some(file) => Some(kernel::load_initrd(vm.memory(), &ram, extent, file)?),
            None => None,
        };
        let image = Host::boot_image(&BootInputs {
            ram: &ram,
            max_vcpus: config.max_vcpus,
            command_line: &command_line.finish()?,
            entry,
            initrd,
            seed: seed()?,
        })?;
        for blob in &image.blobs {
            write_blob(vm.memory(), blob.address, &blob.bytes)?;
        }

        let mut vcpus = Vec::with_capacity(config.max_vcpus.into());
        for id in 0..config.max_vcpus {
            let mut vcpu = vm.create_vcpu(id)?;
            processors.set_up(&mut vcpu, id, (id == 0).then_some(&image.registers))?;
            vcpus.push(vcpu);
        }
        Ok(BuiltVm { vcpus, bus, stop, vm })
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When a vCPU's thread could not be had.
    pub fn start(self) -> Result<RunningVm, BootError> {
        let BuiltVm { vcpus, bus, stop, vm } = self;
        let bus = Arc::new(bus);
        let mut running = Vec::with_capacity(vcpus.len());
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            running.push(RunningVcpu::start(vcpu, id as u8, Arc::clone(&bus), stop.clone())?);
        }
        Ok(RunningVm { vcpus: running, stop, bus, vm })
    }
}

impl RunningVm {
    /// Readable once the guest has stopped by itself.
    pub fn stopped(&self) -> &vmm_sys_util::eventfd::EventFd {
        self.stop.event()
    }

    /// Why it has stopped, once it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop.reason()
    }

    /// Guest RAM in bytes.
    pub fn memory_bytes(&self) -> u64 {
        use vm_memory::{GuestMemory as _, GuestMemoryRegion};
        self.vm.memory().iter().map(GuestMemoryRegion::len).sum()
    }

    /// Stops the vCPUs and then the devices; tells what the guest needed of this process.
    pub fn stop(self) -> ExitCounts {
        let mut counts = ExitCounts::default();
        for vcpu in self.vcpus {
            if let Some((_, needed)) = vcpu.stop() {
                counts += needed;
            }
        }
        drop(self.bus);
        counts
    }
}

/// The devices that are not virtio: a serial line, and where the machine has it, the reset command.
fn add_fixed_devices(bus: &mut Bus, vm: &Vm, out: Box<dyn Write + Send>, stop: &StopSignal) -> Result<(), BootError> {
    let (slot, irq) = Host::SERIAL;
    let (serial, interrupt) = SerialPort::new(out)?;
    vm.connect_interrupt(&interrupt, irq)?;
    bus.add(slot.space, slot.address..slot.address + slot.size, Box::new(serial));
    if let Some(slot) = Host::RESET {
        bus.add(slot.space, slot.address..slot.address + slot.size, Box::new(ResetPort::new(stop.clone())));
    }
    Ok(())
}

/// Puts a virtio device into its slot: registers on the bus, interrupt and kicks past it.
fn add_device(bus: &mut Bus, vm: &Vm, slot: DeviceSlot, device: Box<dyn VirtioDevice>) -> Result<(), BootError> {
    let transport = MmioTransport::new(device, vm.memory().clone())?;
    vm.connect_interrupt(transport.transport().interrupt().line(), slot.irq)?;
    for (index, kick) in transport.transport().kicks().iter().enumerate() {
        vm.connect_kick(kick, slot.address + NOTIFY_OFFSET, index as u32)?;
    }
    bus.add(
        tatami_arch::Space::Memory,
        slot.address..slot.address + slot.size,
        Box::new(VirtioRegisters(Mutex::new(transport))),
    );
    Ok(())
}

/// A transport on the bus.
struct VirtioRegisters(Mutex<MmioTransport>);

impl BusDevice for VirtioRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

fn write_blob(memory: &GuestMemory, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|error| BootError::Image(error.to_string()))
}

/// Entropy for the guest, from the host's generator.
fn seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    let mut len = 0;
    while len < seed.len() {
        len += rustix::rand::getrandom(&mut seed[len..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(seed)
}
