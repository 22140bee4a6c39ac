//! What a virtio device behind PCI says of itself (virtio 1.2, section 4.1.2), which the device tree has to say for it.

/// The vendor of all virtio devices.
pub(super) const VENDOR: u32 = 0x1af4;
/// Version 1.0 or later.
pub(super) const REVISION: u32 = 1;

/// The device number of a device of type `kind`, of version 1.0 or later.
pub(super) fn device(kind: u32) -> u32 {
    0x1040 + kind
}

/// Its class, subclass and programming interface (PCI Local Bus 3.0, appendix D).
pub(super) fn class(kind: u32) -> u32 {
    match kind {
        1 => 0x02_0000,
        2 | 26 => 0x01_8000,
        3 => 0x07_8000,
        19 => 0x02_8000,
        _ => 0xff_0000,
    }
}

/// The name of its node, without the address (PCI Bus Binding to IEEE 1275, section 2.5).
pub(super) fn name(kind: u32) -> String {
    format!("pci{VENDOR:x},{:x}", device(kind))
}
