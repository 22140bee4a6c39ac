//! Constants of PCI Local Bus 3.0, section 6, as far as functions of the simplest kind need them: where things are in configuration
//! space, and bits in them.
//!
//! What a virtio function has beyond that is in `virtio/pci/spec.rs`.

/// Bytes of configuration space that are reachable on every bus (6.1).
pub const CONFIG_BYTES: usize = 256;
/// Bytes of configuration space as memory-mapped access has them; nothing is behind those beyond [`CONFIG_BYTES`] here.
pub const EXTENDED_CONFIG_BYTES: u16 = 4096;
/// Devices that fit on a bus (3.2.2.3.2).
pub const DEVICES_PER_BUS: usize = 32;

/// Vendor (6.2.1), two bytes; the device's number among that vendor's follows.
pub const VENDOR: usize = 0x00;
/// Device (6.2.1), two bytes.
pub const DEVICE: usize = 0x02;
/// Command (6.2.2), two bytes.
pub const COMMAND: usize = 0x04;
/// Status (6.2.3), two bytes.
pub const STATUS: usize = 0x06;
/// Revision (6.2.1); the three bytes of the class follow.
pub const REVISION: usize = 0x08;
/// The first base address register (6.2.5), four bytes.
pub const BAR0: usize = 0x10;
/// Subsystem vendor and subsystem (6.2.4), two bytes each.
pub const SUBSYSTEM: usize = 0x2c;
/// Where the list of capabilities begins (6.7).
pub const CAPABILITIES: usize = 0x34;
/// Interrupt line (6.2.4): the driver's own note.
pub const INTERRUPT_LINE: usize = 0x3c;
/// Interrupt pin (6.2.4): 0 for none, 1 for INTA.
pub const INTERRUPT_PIN: usize = 0x3d;
/// The first byte that the standard header leaves free (6.1).
pub const HEADER_END: usize = 0x40;

/// Command: the function answers at its memory addresses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may act on memory by itself.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command: the function leaves its interrupt pin alone.
pub const COMMAND_NO_PIN: u16 = 1 << 10;
/// Status: there is a list of capabilities.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Class (appendix D): host bridge.
pub const CLASS_HOST_BRIDGE: u32 = 0x06_0000;

/// Capability (appendix H): the vendor's own.
pub const CAPABILITY_VENDOR: u8 = 0x09;
/// Capability (appendix H): MSI-X.
pub const CAPABILITY_MSIX: u8 = 0x11;
