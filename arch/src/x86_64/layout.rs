//! Where things lie in the PC's physical address space; numbers only.

/// Size of a page, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// The boot vCPU's segment descriptors.
pub const GDT: u64 = 0x500;
/// The random seed, as a `setup_data` node.
pub const SEED: u64 = 0x6000;
/// The kernel's `boot_params`, one page.
pub const BOOT_PARAMS: u64 = 0x7000;
/// The first of the three page tables that the kernel starts with.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// End of the memory below 1 MiB that is RAM to the guest.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The MP table: in what was the BIOS area, the last and largest of the places where Linux looks for it.
pub const MP_TABLE: u64 = 0xf_0000;
/// Start of ordinary RAM.
pub const HIGH_RAM: u64 = 0x10_0000;

/// The hole below 4 GiB that belongs to devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// The end of that hole, where RAM goes on.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// The first device's registers.
pub const DEVICE_WINDOW: u64 = 0xd000_0000;
/// One device's share of the window.
pub const DEVICE_SLOT_SIZE: u64 = PAGE_SIZE;
/// The memory of the first device behind PCI.
pub const PCI_WINDOW: u64 = 0xd800_0000;
/// One such device's share, which is the whole of its only range.
pub const PCI_SLOT_SIZE: u64 = 0x8000;
/// Devices that fit behind the host bridge.
pub const PCI_SLOTS: u64 = 31;
/// The I/O APIC, where the PC has always had it.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that Intel's virtualisation needs for real mode without paging.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that it needs for real mode's task state.
pub const TSS: u64 = 0xfffb_d000;

/// The first interrupt line for devices; those below belong to the PC (4 is the serial line).
pub const FIRST_DEVICE_IRQ: u32 = 5;
/// The I/O APIC's last line.
pub const LAST_IRQ: u32 = 23;

/// The first serial line's eight ports.
pub const SERIAL_PORT: u64 = 0x3f8;
/// The first serial line's interrupt.
pub const SERIAL_IRQ: u32 = 4;
/// PCI's address register; the data register follows.
pub const PCI_PORTS: u64 = 0xcf8;
/// The keyboard controller's data port; its command port, through which Linux resets the machine, is four further.
pub const I8042_PORT: u64 = 0x60;

/// The piece in which Linux adds memory, on a machine with less than 64 GiB (`memory_block_size_bytes`)...
pub const MEMORY_BLOCK: u64 = 128 << 20;
/// ...and on the largest.
pub const LARGEST_MEMORY_BLOCK: u64 = 2 << 30;
