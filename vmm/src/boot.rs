//! From a configuration and open files to a running guest, and to files again; to be read from top to bottom.
//!
//! Knows the order of things. What they are is in the modules it calls.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tatami_arch::{
    BootImageError, BootInputs, CommandLine, CommandLineError, Device, FixedSlot, Host, Machine, Region,
};
use tatami_devices::virtio::{GuestMemory, MemRegion, MemSize, RestoreError, SaveError, Threads, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Bus, BusDevice};
use crate::config::{ConfigError, RootDisk, VirtioBus, VmConfig};
use crate::kernel::{self, LoadError, LoadedKernel};
use crate::kvm::{Kvm, KvmError, Processors, Vcpu, Vm};
use crate::memory::{self, HUGE_PAGE, MemoryError, Ram};
use crate::ports::{Clock, ResetPort, SerialPort, Terminal};
use crate::snapshot::{Snapshot, SnapshotError, State};
use crate::stop::{StopReason, StopSignal};
use crate::vcpu::{self, ExitCounts, RunningVcpu};
use crate::virtio::VirtioDevices;

/// Memory that is added is used, as far as the kernel itself does not need it, for what can be moved out of it again (Linux: 3
/// times as much of it as of other memory).
const MOVABLE: &str = "memory_hotplug.online_policy=auto-movable";

/// What Linux calls the first virtio console.
const VIRTIO_CONSOLE: &str = "hvc0";

/// The first of all disks is the guest's root.
const ROOT_DISK: &str = "/dev/vda";

/// The programs on it expect devices in /dev before they run, and the agent is where an initrd has it.
const ON_DISK: &str = "ro devtmpfs.mount=1 init=/init";

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
    /// A saved machine.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A device of a saved machine.
    #[error("device {0} of the saved machine: {1}")]
    Device(usize, RestoreError),
    /// A device of a machine that is to be saved.
    #[error("device {0} cannot be saved: {1}")]
    Save(usize, SaveError),
    /// More devices than the machine has places.
    #[error("the machine has places for {0} devices, no more: attach fewer disks")]
    TooManyDevices(usize),
    /// A thread, a descriptor or random bytes could not be had.
    #[error("cannot start the machine: {0}")]
    Resource(#[from] io::Error),
    /// What the kernel finds in memory.
    #[error(transparent)]
    Image(#[from] BootImageError),
    /// The boot image reaches beyond memory, which its own limits forbid.
    #[error("cannot write the boot image: {0}")]
    ImageBeyondMemory(String),
}

/// What a machine is made of, beside its configuration.
pub struct Parts {
    /// An open `/dev/kvm`.
    pub kvm: OwnedFd,
    /// What the guest begins as. Its user space, if that is on a disk, is among the devices instead.
    pub origin: Origin,
    /// The file that memory is to lie in, as long as all of it ([`VmConfig::all_memory_bytes`]), if it is of that kind.
    pub memory: Option<File>,
    /// Devices, in the order in which the guest shall find them, or has found them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// What can be added to its memory, as [`spare_memory`] has it, and a device among `devices` knows.
    pub spare: Option<MemSize>,
    /// Where the guest's serial output goes; called on vCPU threads, so it must not block for long.
    pub serial: Box<dyn Write + Send>,
    /// Who starts the vCPUs' threads.
    pub threads: Arc<dyn Threads>,
}

/// The memory that can be added to a machine of this configuration, all of it unplugged; none where there is none.
pub fn spare_memory(config: &VmConfig) -> Option<MemSize> {
    let region = spare_region(config)?;
    Some(MemSize::new(MemRegion { start: region.start, size: region.size, block: HUGE_PAGE }))
}

fn spare_region(config: &VmConfig) -> Option<Region> {
    let wanted = Some(config.spare_memory_bytes()).filter(|bytes| *bytes > 0)?;
    Some(Host::spare_ram(&Host::ram(config.memory_bytes()), wanted))
}

/// What a guest begins as.
#[derive(Debug)]
pub enum Origin {
    /// A kernel, which boots.
    Kernel {
        /// The kernel, an ELF file.
        kernel: File,
        /// The initrd, or the image of the disk in its place.
        user_space: Option<File>,
    },
    /// A machine of the same configuration that was saved, and goes on.
    Snapshot {
        /// The machine.
        files: Snapshot,
        /// The image of the disk that its user space is on, as it was, if it is on one.
        root_disk: Option<File>,
    },
}

/// A machine whose parts are all in place and whose vCPUs do not run yet, or do not run just now.
pub struct BuiltVm {
    // In this order: vCPUs and the bus go before the machine, the machine before nothing else.
    vcpus: Vec<Vcpu>,
    devices: Devices,
    stop: StopSignal,
    vm: Vm,
    processors: Processors,
    config: VmConfig,
    spare: Option<MemSize>,
    counts: ExitCounts,
    threads: Arc<dyn Threads>,
    /// What of memory came from a file: offsets in it and lengths.
    stretches: Vec<(u64, u64)>,
}

/// A running guest. Dropping it stops it.
pub struct RunningVm {
    vcpus: Vec<RunningVcpu>,
    // All but the vCPUs, which are in use. The devices go with it, after the vCPUs.
    rest: BuiltVm,
}

/// What a guest begins as, once there is memory for it.
enum Beginning {
    /// A kernel and an initrd to be read.
    Load(File, Option<File>),
    /// Everything but memory.
    Restore(Box<State>),
}

/// What answers at addresses; the virtio devices among them, in the order of their places.
#[derive(Default)]
struct Devices {
    bus: Arc<Bus>,
    virtio: VirtioDevices,
}

impl BuiltVm {
    /// Builds the machine: memory, processors, devices, and the kernel where it will start, or all as it was saved.
    ///
    /// # Errors
    /// Says which part could not be had, and why.
    pub fn new(config: &VmConfig, parts: Parts) -> Result<BuiltVm, BootError> {
        config.validate()?;
        let Parts { kvm, origin, memory: file, devices, spare, serial, threads } = parts;
        vcpu::install_kick_handler()?;
        let kvm = Kvm::new(kvm)?;
        let processors = Processors::new(&kvm, config.max_vcpus)?;
        let regions = Host::ram(config.memory_bytes());
        let (closed, kind) = (spare_region(config), config.memory_kind);
        let ram = Ram { regions: &regions, closed, kind, file: file.as_ref() };
        let (memory, beginning) = match origin {
            Origin::Kernel { kernel, user_space: initrd } => (memory::create(ram)?, Beginning::Load(kernel, initrd)),
            // Its files are closed here: nothing that the guest could take over may still open them.
            Origin::Snapshot { files: snapshot, .. } => {
                let state = snapshot.read(config)?;
                (snapshot.map(&state, ram)?, Beginning::Restore(Box::new(state)))
            }
        };
        let (mut vm, vcpus) = kvm.create_vm(memory, config.max_vcpus)?;
        let stop = StopSignal::new()?;
        let devices = Devices::new(&mut vm, serial, (config.virtio_bus, devices), &stop)?;
        let (config, counts, stretches) = (config.clone(), ExitCounts::default(), Vec::new());
        let mut machine = BuiltVm { vcpus, devices, stop, vm, processors, config, spare, counts, threads, stretches };
        match beginning {
            Beginning::Load(kernel, initrd) => machine.load(kernel, initrd, &regions)?,
            Beginning::Restore(state) => {
                machine.restore(&state)?;
                machine.stretches = state.into_stretches();
            }
        }
        Ok(machine)
    }

    /// Puts kernel and initrd into memory, and the boot vCPU before the kernel's first instruction.
    fn load(&mut self, mut kernel: File, initrd: Option<File>, ram: &[Region]) -> Result<(), BootError> {
        let config = &self.config;
        let memory = self.vm.memory();
        let console = match config {
            VmConfig { virtio_console: true, .. } => Some(VIRTIO_CONSOLE),
            VmConfig { console: true, .. } => Some(Host::CONSOLE),
            _ => None,
        };
        let mut command_line = CommandLine::new::<Host>(config.vcpus, console)?;
        let places = (0..).map_while(|index| config.virtio_bus.slot(index));
        let devices: Vec<_> =
            places.zip(self.devices.virtio.kinds()).map(|(slot, kind)| Device { slot, kind }).collect();
        match config.virtio_bus {
            VirtioBus::Mmio => Host::announce(&devices, &mut command_line)?,
            VirtioBus::Pci => Host::announce_pci(&mut command_line)?,
        }
        if self.spare.is_some() {
            command_line.add(MOVABLE)?;
        }
        match &config.root_disk {
            None => {}
            Some(RootDisk::Plain) => command_line.add(&format!("root={ROOT_DISK} rootwait {ON_DISK}"))?,
            // It is made before the root is looked for, or never.
            Some(RootDisk::Verity(verity)) => {
                command_line.add(&format!("{} {ON_DISK}", verity.command_line(ROOT_DISK)))?;
            }
        }
        command_line.add(&config.command_line_extra)?;

        let LoadedKernel { entry, extent } = kernel::load_kernel(memory, &mut kernel)?;
        let initrd = match initrd {
            Some(mut file) => Some(kernel::load_initrd(memory, ram, extent, &mut file)?),
            None => None,
        };
        let image = Host::boot_image(&BootInputs {
            ram,
            max_vcpus: config.max_vcpus,
            command_line: &command_line.finish()?,
            entry,
            initrd,
            seed: seed()?,
            devices: &devices,
            variant: self.vm.variant(),
        })?;
        for blob in &image.blobs {
            write_blob(memory, blob.address, &blob.bytes)?;
        }
        for (id, vcpu) in (0..).zip(&mut self.vcpus) {
            self.processors.set_up(vcpu, id, (id == 0).then_some(&image.registers))?;
        }
        Ok(())
    }

    /// Makes everything but memory what it was.
    fn restore(&mut self, state: &State) -> Result<(), BootError> {
        self.vm.restore(&state.machine)?;
        for (id, (vcpu, saved)) in (0..).zip(self.vcpus.iter_mut().zip(&state.vcpus)) {
            self.processors.restore(vcpu, id, saved)?;
        }
        let (found, expected) = (state.virtio.devices.len(), self.devices.virtio.len());
        if found != expected {
            return Err(SnapshotError::Damaged(format!("it has {found} devices instead of {expected}")).into());
        }
        self.devices.virtio.restore(&state.virtio).map_err(|(index, error)| BootError::Device(index, error))?;
        Ok(())
    }

    /// Why the guest has stopped, if it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop.reason()
    }

    /// What the guest has needed of this process so far.
    pub fn counts(&self) -> ExitCounts {
        self.counts
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When a vCPU's thread could not be had.
    pub fn start(self) -> Result<RunningVm, BootError> {
        self.devices.virtio.resume();
        // An interrupt that was raised just before the machine was saved may be in none of its parts: a thread of the kernel's carries
        // out what is written to the event.
        self.devices.virtio.nudge();
        self.start_vcpus()
    }

    fn start_vcpus(mut self) -> Result<RunningVm, BootError> {
        for vcpu in &self.vcpus {
            vcpu.stood_still()?;
        }
        let vcpus = std::mem::take(&mut self.vcpus);
        let mut running = Vec::with_capacity(vcpus.len());
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let bus = Arc::clone(&self.devices.bus);
            running.push(RunningVcpu::start(vcpu, id as u8, bus, self.stop.clone(), self.threads.as_ref())?);
        }
        Ok(RunningVm { vcpus: running, rest: self })
    }

    /// Where everything in it stands, for who wants to know why its guest does not go on.
    pub fn describe(&self) -> String {
        let vcpus = self.vcpus.iter().enumerate().map(|(id, vcpu)| match self.processors.save(vcpu) {
            Ok(state) => format!("vcpu{id} {}", state.describe()),
            Err(error) => format!("vcpu{id}: {error}"),
        });
        vcpus.chain(self.devices.virtio.describe()).collect::<Vec<_>>().join("; ")
    }

    /// Writes the machine, which [`BuiltVm::start`] lets go on.
    ///
    /// # Errors
    /// When KVM does not give its part, or the files take no more.
    pub fn save(&self, files: &Snapshot) -> Result<(), BootError> {
        let vcpus = self.vcpus.iter().map(|vcpu| self.processors.save(vcpu)).collect::<Result<_, _>>()?;
        let virtio = self.devices.virtio.save().map_err(|(index, error)| BootError::Save(index, error))?;
        let state = State::new(self.config.clone(), self.vm.save()?, vcpus, virtio);
        let closed = self.spare.as_ref().map_or_else(Vec::new, MemSize::unplugged);
        Ok(files.write(self.vm.memory(), &closed, &self.stretches, state)?)
    }
}

impl RunningVm {
    /// Readable once the guest has stopped by itself.
    pub fn stopped(&self) -> &EventFd {
        self.rest.stop.event()
    }

    /// Why it has stopped, once it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.rest.stop.reason()
    }

    /// Guest RAM in bytes.
    pub fn memory_bytes(&self) -> u64 {
        use vm_memory::{GuestMemory as _, GuestMemoryRegion};
        self.rest.vm.memory().iter().map(GuestMemoryRegion::len).sum()
    }

    /// Has vCPUs and devices stand still, between two instructions and two requests.
    ///
    /// # Errors
    /// When a vCPU's thread has died.
    pub fn pause(self) -> Result<BuiltVm, BootError> {
        let machine = self.stop_vcpus()?;
        machine.devices.virtio.pause();
        Ok(machine)
    }

    /// Says where everything in it stands, for which only vCPUs stand still, for a moment: a device may be waiting for its host. What
    /// devices or drivers had missed till then, they look for again.
    ///
    /// # Errors
    /// When a vCPU's thread has died, or is not to be had again.
    pub fn describe(self) -> Result<(RunningVm, String), BootError> {
        let machine = self.stop_vcpus()?;
        let text = machine.describe();
        machine.devices.virtio.nudge();
        Ok((machine.start_vcpus()?, text))
    }

    fn stop_vcpus(self) -> Result<BuiltVm, BootError> {
        let RunningVm { vcpus, rest: mut machine } = self;
        for vcpu in vcpus {
            let (vcpu, needed) = vcpu.stop().ok_or_else(|| io::Error::other("a vCPU's thread panicked"))?;
            machine.counts += needed;
            machine.vcpus.push(vcpu);
        }
        Ok(machine)
    }

    /// Stops the vCPUs and then the devices; tells what the guest needed of this process.
    pub fn stop(self) -> ExitCounts {
        let mut counts = self.rest.counts;
        for vcpu in self.vcpus {
            if let Some((_, needed)) = vcpu.stop() {
                counts += needed;
            }
        }
        counts
    }
}

impl Devices {
    /// Puts all devices in their places, those that are virtio on the bus that goes with them.
    fn new(
        vm: &mut Vm,
        serial: Box<dyn Write + Send>,
        (kind, devices): (VirtioBus, Vec<Box<dyn VirtioDevice>>),
        stop: &StopSignal,
    ) -> Result<Devices, BootError> {
        let mut bus = Bus::default();
        add_fixed_devices(&mut bus, vm, serial, stop)?;
        let virtio = VirtioDevices::place(&mut bus, vm, kind, devices)?;
        Ok(Devices { bus: Arc::new(bus), virtio })
    }
}

/// The devices that are not virtio: a serial line or a terminal, and where the machine has them, a clock and the reset command.
fn add_fixed_devices(bus: &mut Bus, vm: &Vm, out: Box<dyn Write + Send>, stop: &StopSignal) -> Result<(), BootError> {
    let mut add = |slot: FixedSlot, device: Box<dyn BusDevice>| {
        bus.add(slot.space, slot.address..slot.address + slot.size, device)
    };
    if let Some((slot, irq)) = Host::SERIAL {
        let (serial, interrupt) = SerialPort::new(out)?;
        vm.connect_interrupt(&interrupt, irq)?;
        add(slot, Box::new(serial));
    } else if let Some(slot) = Host::TERMINAL {
        add(slot, Box::new(Terminal::new(out)));
    }
    if let Some(slot) = Host::CLOCK {
        add(slot, Box::<Clock>::default());
    }
    if let Some(slot) = Host::RESET {
        add(slot, Box::new(ResetPort::new(stop.clone())));
    }
    Ok(())
}

fn write_blob(memory: &GuestMemory, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|error| BootError::ImageBeyondMemory(error.to_string()))
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
