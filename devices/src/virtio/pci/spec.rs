//! virtio over PCI (virtio 1.2, 4.1): numbers, capabilities and registers; and MSI-X's table (PCI Local Bus 3.0, 6.8.2).
//!
//! Where the structures lie within the device's memory is for the device to say, and said here as well.

use crate::virtio::DeviceKind;

/// The vendor of all virtio devices (4.1.2).
pub const VENDOR: u16 = 0x1af4;
/// What a device of version 1.0 or later adds to its type for a device number (4.1.2.1).
pub const DEVICE_BASE: u16 = 0x1040;
/// Version 1.0 or later (4.1.2.1).
pub const REVISION: u8 = 1;

/// The kinds of vendor capabilities (4.1.4), by `cfg_type`.
pub const COMMON_CFG: u8 = 1;
/// Where queues are notified.
pub const NOTIFY_CFG: u8 = 2;
/// The interrupt status.
pub const ISR_CFG: u8 = 3;
/// The device's own configuration.
pub const DEVICE_CFG: u8 = 4;
/// A window to all of them in configuration space.
pub const PCI_CFG: u8 = 5;

/// Bytes of memory that a device answers at, in one range.
pub const BAR_BYTES: u32 = 0x8000;
/// Where each structure begins in it, and how long it is. No two share 4 KiB.
pub const COMMON: (u32, u32) = (0x0000, 0x40);
/// The interrupt status, one byte.
pub const ISR: (u32, u32) = (0x1000, 1);
/// The device's own configuration, zeros behind its end.
pub const DEVICE_CONFIG: (u32, u32) = (0x2000, 0x1000);
/// The queues' notification registers, four bytes each.
pub const NOTIFY: (u32, u32) = (0x3000, 0x1000);
/// MSI-X's table.
pub const MSIX_TABLE: (u32, u32) = (0x4000, 0x1000);
/// MSI-X's pending bits.
pub const MSIX_PENDING: (u32, u32) = (0x5000, 0x1000);

/// Bytes between two queues' notification registers (`notify_off_multiplier`, 4.1.4.4).
pub const NOTIFY_STRIDE: u32 = 4;

/// No vector (VIRTIO_MSI_NO_VECTOR, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// The common configuration (4.1.4.3).
pub mod common {
    /// Which 32 bits of the device's features are looked at.
    pub const DEVICE_FEATURE_SELECT: u32 = 0x00;
    /// Those.
    pub const DEVICE_FEATURE: u32 = 0x04;
    /// Which 32 bits of its features the driver writes.
    pub const DRIVER_FEATURE_SELECT: u32 = 0x08;
    /// Those.
    pub const DRIVER_FEATURE: u32 = 0x0c;
    /// The vector of configuration changes.
    pub const CONFIG_VECTOR: u32 = 0x10;
    /// How many queues there are.
    pub const NUM_QUEUES: u32 = 0x12;
    /// Device status.
    pub const DEVICE_STATUS: u32 = 0x14;
    /// Differs whenever the configuration may differ.
    pub const CONFIG_GENERATION: u32 = 0x15;
    /// The queue that the following mean.
    pub const QUEUE_SELECT: u32 = 0x16;
    /// Its size.
    pub const QUEUE_SIZE: u32 = 0x18;
    /// Its vector.
    pub const QUEUE_VECTOR: u32 = 0x1a;
    /// It is set up.
    pub const QUEUE_ENABLE: u32 = 0x1c;
    /// Where it is notified, in strides.
    pub const QUEUE_NOTIFY_OFF: u32 = 0x1e;
    /// Its three areas, each with a low and a high half.
    pub const QUEUE_AREAS: u32 = 0x20;
    /// The first byte past them.
    pub const QUEUE_AREAS_END: u32 = 0x38;
}

/// MSI-X's message control (6.8.2.3), which also holds the size of the table: messages are sent.
pub const MSIX_ENABLED: u16 = 1 << 15;
/// MSI-X's message control: every vector is masked.
pub const MSIX_MASKED: u16 = 1 << 14;
/// Bytes of an entry of MSI-X's table (6.8.2): address, upper address, data, control.
pub const MSIX_ENTRY_BYTES: u32 = 16;
/// An entry's control (6.8.2.9): it is masked.
pub const MSIX_ENTRY_MASKED: u32 = 1;
/// The most entries that fit into a table here.
pub const MSIX_ENTRIES_MAX: usize = (MSIX_TABLE.1 / MSIX_ENTRY_BYTES) as usize;

/// The class of a device (PCI Local Bus 3.0, appendix D): what a person sees who lists them; drivers go by the device number.
pub const fn class(kind: DeviceKind) -> u32 {
    match kind {
        DeviceKind::Net => 0x02_0000,
        DeviceKind::Block | DeviceKind::Fs => 0x01_8000,
        DeviceKind::Console => 0x07_8000,
        DeviceKind::Vsock => 0x02_8000,
        DeviceKind::Entropy | DeviceKind::Balloon | DeviceKind::Memory => 0xff_0000,
    }
}
