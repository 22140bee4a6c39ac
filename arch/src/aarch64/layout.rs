//! Where things lie in the machine's physical address space, and how its interrupts are numbered; numbers only.
//!
//! Devices are below 1 GiB, memory above: a guest has it in one piece, and its kernel's window of 32 GiB begins with it.

/// Size of the smallest page, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// The interrupt controller's distributor...
pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
/// ...of a GICv3, in bytes...
pub const GICV3_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// ...and of a GICv2.
pub const GICV2_DISTRIBUTOR_SIZE: u64 = 0x1000;
/// A GICv2's interface to each processor.
pub const GICV2_CPU_INTERFACE: u64 = 0x0801_0000;
/// Its size in bytes.
pub const GICV2_CPU_INTERFACE_SIZE: u64 = 0x2000;
/// A GICv3's redistributors, one after the other.
pub const GIC_REDISTRIBUTORS: u64 = 0x0810_0000;
/// The size of each, in bytes: a frame for the processor, and one for its private interrupts.
pub const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// The serial line's eight registers.
pub const SERIAL: u64 = 0x0900_0000;
/// The clock that tells the time of day.
pub const CLOCK: u64 = 0x0901_0000;
/// The first device's registers.
pub const DEVICE_WINDOW: u64 = 0x0a00_0000;
/// One device's share of the window.
pub const DEVICE_SLOT_SIZE: u64 = PAGE_SIZE;

/// Where RAM begins; the device tree is the first thing in it.
pub const RAM: u64 = 0x4000_0000;
/// Where the device tree is.
pub const DEVICE_TREE: u64 = RAM;
/// The most bytes of it that the kernel maps, and the alignment of what follows.
pub const DEVICE_TREE_LIMIT: u64 = 2 << 20;
/// Where the kernel goes: right behind.
pub const KERNEL: u64 = RAM + DEVICE_TREE_LIMIT;
/// Kernel and initrd lie within so many bytes, counted from a multiple of 1 GiB (Documentation/arch/arm64/booting.rst, section 3).
pub const REACH: u64 = 32 << 30;

/// Interrupts of the GIC that belong to single processors; lines for devices ("shared peripheral interrupts") follow, numbered
/// from 0 here and in the device tree.
pub const PRIVATE_INTERRUPTS: u32 = 32;
/// Interrupts in all; a multiple of 32, by the GIC's design.
pub const INTERRUPTS: u32 = 128;
/// The serial line's interrupt.
pub const SERIAL_IRQ: u32 = 0;
/// The first interrupt line for devices.
pub const FIRST_DEVICE_IRQ: u32 = 1;
/// The last one.
pub const LAST_IRQ: u32 = INTERRUPTS - PRIVATE_INTERRUPTS - 1;

/// The piece in which Linux adds memory (a section, with pages of 4 KiB).
pub const MEMORY_BLOCK: u64 = 128 << 20;
