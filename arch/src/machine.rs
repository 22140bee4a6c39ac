//! The seam between architectures: what each must be able to say about itself.
//!
//! Knows no architecture. All addresses are guest-physical, all sizes are in bytes.

use std::fmt::Debug;

use crate::kernel::KernelFormat;
use crate::{CommandLine, CommandLineError};

/// A range of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// How many bytes; never zero.
    pub size: u64,
}

impl Region {
    /// The first address past the region.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.size
    }
}

/// Something that was placed in guest memory: the kernel, the initrd.
pub type Extent = Region;

/// Where a device answers, and how it interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlot {
    /// First byte of its registers.
    pub address: u64,
    /// Bytes of address space that it owns.
    pub size: u64,
    /// Interrupt line, numbered as KVM's global system interrupts are.
    pub irq: u32,
}

/// A virtio device in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where it is.
    pub slot: DeviceSlot,
    /// What it is (virtio 1.2, section 5, "Device Types").
    pub kind: u32,
}

/// An address space in which devices answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Physical memory that no RAM is behind.
    Memory,
    /// x86's ports.
    Ports,
    /// The configuration of PCI functions that is reached by calls, by the address that memory-mapped access would have (PCI Express 3.0,
    /// section 7.2.2).
    Configuration,
    /// A terminal that is reached by calls: each is one access to address 0, of some characters.
    Terminal,
}

/// A device that is not virtio and has its place by tradition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedSlot {
    /// Where it answers.
    pub space: Space,
    /// Its first address there.
    pub address: u64,
    /// How many addresses it has.
    pub size: u64,
}

/// Bytes that must be in guest memory before the first instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Where the first byte goes.
    pub address: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// What the boot image depends on.
#[derive(Clone, Debug)]
pub struct BootInputs<'a, V> {
    /// RAM, as [`Machine::ram`] laid it out.
    pub ram: &'a [Region],
    /// vCPUs that the guest is told of; those beyond the ones it starts by itself stay offline.
    pub max_vcpus: u8,
    /// The kernel's command line, complete, without a terminating zero.
    pub command_line: &'a str,
    /// The kernel's entry point.
    pub entry: u64,
    /// The initrd, if there is one, where [`Machine::place_initrd`] put it.
    pub initrd: Option<Extent>,
    /// Entropy for the guest's random number generator, fresh for each boot.
    pub seed: [u8; 32],
    /// The virtio devices, in the order in which the guest shall find them.
    pub devices: &'a [Device],
    /// What of the machine is as the host has it.
    pub variant: V,
}

/// Memory contents and registers with which the first vCPU starts.
#[derive(Clone, Debug)]
pub struct BootImage<R> {
    /// Tables and texts, none overlapping another.
    pub blobs: Vec<Blob>,
    /// What the boot vCPU's registers hold.
    pub registers: R,
}

/// A machine that this project knows how to build.
pub trait Machine {
    /// The boot vCPU's registers.
    type Registers: Clone + Debug;
    /// In what machines of this kind differ because hosts do, for the tables that tell the guest; nothing where they do not.
    type Variant: Clone + Debug + Default;

    /// What the kernel's build calls the architecture.
    const NAME: &'static str;
    /// The kernels that it boots.
    const KERNEL: KernelFormat;
    /// The most vCPUs that the machine's tables can describe.
    const MAX_VCPUS: u8;
    /// The 16550 serial line and its interrupt, where the machine has one.
    const SERIAL: Option<(FixedSlot, u32)>;
    /// The terminal that is reached by calls, where the machine has one.
    const TERMINAL: Option<FixedSlot>;
    /// What Linux calls the serial line, or what is in its place, for `console=`.
    const CONSOLE: &'static str;
    /// The pl031 that tells the guest the time of day as it starts, where the machine has one.
    const CLOCK: Option<FixedSlot>;
    /// The keyboard controller through which the guest resets, where the machine has one.
    const RESET: Option<FixedSlot>;
    /// Where the configuration of a PCI bus is reached, on machines whose virtio devices can be behind one instead.
    const PCI: Option<FixedSlot>;
    /// The least RAM that its boot image fits in.
    const MIN_MEMORY: u64;

    /// Lays out `bytes` of RAM (at least [`Self::MIN_MEMORY`], a multiple of 1 MiB), lowest region first.
    fn ram(bytes: u64) -> Vec<Region>;

    /// Where at least `bytes` (not zero) of RAM can appear later, beyond what was laid out: as much as Linux can add in whole pieces.
    fn spare_ram(ram: &[Region], bytes: u64) -> Region;

    /// The place of device `index`; `None` beyond the last.
    fn device_slot(index: usize) -> Option<DeviceSlot>;

    /// The same behind the PCI bus, below 4 GiB; `None` everywhere where there is none.
    fn pci_slot(index: usize) -> Option<DeviceSlot>;

    /// Kernel parameters that this machine always needs, beyond those common to all.
    fn command_line() -> &'static str;

    /// Says on the command line how the PCI bus is found, where that has to be said.
    ///
    /// # Errors
    /// When the line would be too long.
    fn announce_pci(line: &mut CommandLine) -> Result<(), CommandLineError>;

    /// Makes virtio devices known on the command line, where the guest is not told of them in [`Self::boot_image`].
    ///
    /// # Errors
    /// When the line would be too long.
    fn announce(devices: &[Device], line: &mut CommandLine) -> Result<(), CommandLineError>;

    /// Chooses the address of an initrd of `size` bytes, out of the way of the `kernel`.
    ///
    /// # Errors
    /// When RAM that the kernel can reach has no room for it.
    fn place_initrd(ram: &[Region], kernel: Extent, size: u64) -> Result<Extent, PlacementError>;

    /// Computes what must be in memory and registers for the kernel to start.
    ///
    /// # Errors
    /// When the command line is longer than the kernel would read, or a table has no room.
    fn boot_image(inputs: &BootInputs<'_, Self::Variant>) -> Result<BootImage<Self::Registers>, BootImageError>;
}

/// What must be in memory cannot be computed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootImageError {
    /// The kernel's command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// A device tree that cannot be written.
    #[error("the device tree cannot be made: {0}")]
    DeviceTree(String),
    /// A device tree larger than the kernel maps.
    #[error("the device tree has {found} bytes, the kernel takes {limit}: attach fewer devices")]
    DeviceTreeTooLarge {
        /// What it has.
        found: usize,
        /// What there is room for.
        limit: usize,
    },
}

/// Something is larger than the RAM it should go into.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// No gap for the initrd.
    #[error(
        "the initrd of {} does not fit into memory beside the kernel ({} free): give the sandbox more memory",
        mebibytes(*.size), mebibytes(*.free)
    )]
    InitrdTooLarge {
        /// Bytes of the initrd.
        size: u64,
        /// Bytes between the kernel's end and the end of reachable RAM.
        free: u64,
    },
}

/// `bytes` as people read it, rounded up so that what does not fit never looks as if it did.
fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
