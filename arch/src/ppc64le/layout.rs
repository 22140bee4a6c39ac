//! Where things lie in the pseries machine's real address space; numbers only.

/// Size of the largest page that guests here use: what a device owns alone is a multiple of it.
pub const PAGE_SIZE: u64 = 64 << 10;

/// End of the memory in which everything lies that 32-bit code must reach: RTAS is such code, and so is its argument buffer, which
/// Linux allocates below 1 GiB (`RTAS_INSTANTIATE_MAX`).
pub const LOW_END: u64 = 1 << 30;
/// What is kept of the top of low memory for the device tree and RTAS.
pub const FIRMWARE_SIZE: u64 = 1 << 20;
/// RTAS's share of that, at its beginning.
pub const RTAS_SIZE: u64 = PAGE_SIZE;
/// The most bytes that the device tree can have: the rest.
pub const DEVICE_TREE_SIZE: u64 = FIRMWARE_SIZE - RTAS_SIZE;

/// The host bridge's window for device memory, above all RAM...
pub const DEVICE_WINDOW: u64 = 1 << 45 | BUS_WINDOW as u64;
/// ...and where that is on the bus: what fits into base address registers of 32 bits.
pub const BUS_WINDOW: u32 = 0x8000_0000;
/// One device's share of the window.
pub const DEVICE_SLOT_SIZE: u64 = PAGE_SIZE;
/// How much of it is the device's: the range of BAR 0.
pub const BAR_SIZE: u32 = 0x8000;
/// The first device's number on the one bus: 0 is the host bridge's...
pub const FIRST_DEVICE: u32 = 1;
/// ...and how many follow, as device numbers have five bits (PCI Local Bus 3.0, section 3.2.2.3.2).
pub const DEVICE_SLOTS: u32 = 31;

/// The name by which RTAS calls mean the host bridge: the unit address of its node, behind which there is nothing.
pub const BRIDGE_UNIT: u64 = 0x800_0000_2000_0000;

/// The name by which hypercalls mean the table that translates the addresses of functions behind it...
pub const DMA_TABLE: u32 = 0x8000_0000;
/// ...and how much it could translate.
pub const DMA_WINDOW_SIZE: u32 = 4 * PAGE_SIZE as u32;

/// The virtual terminal's unit address, by which hypercalls mean it.
pub const TERMINAL_UNIT: u32 = 0x3000_0000;
/// Its interrupt source.
pub const TERMINAL_IRQ: u32 = 0x1000;
/// The first function's interrupt source. Those below 16 mean other things to the presentation controller.
pub const FIRST_DEVICE_IRQ: u32 = 0x1001;

/// What Linux counts memory by (its sections): a smaller rest at the end it neither maps nor uses.
pub const MEMORY_SECTION: u64 = 16 << 20;

/// The piece in which Linux adds memory, as it is told (`ibm,lmb-size`).
pub const MEMORY_BLOCK: u64 = 128 << 20;

const _: () = assert!(RTAS_SIZE < FIRMWARE_SIZE && LOW_END < 1 << 32);
