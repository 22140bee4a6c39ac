//! Constants of virtio 1.2 that every device or transport shares: feature bits, device status, the split ring's flags and sizes.
//!
//! Registers of one transport and wire types of one device are in that transport's and that device's own files.

/// VIRTIO_F_VERSION_1 (6): the driver knows virtio 1.0 or later. Required here.
pub const FEATURE_VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_INDIRECT_DESC (6): the driver may use indirect descriptor tables.
pub const FEATURE_INDIRECT_DESCRIPTORS: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (6): both sides say at which index they want to hear from the other.
pub const FEATURE_EVENT_INDEX: u64 = 1 << 29;
/// The bits that the transport offers on behalf of every device.
pub const TRANSPORT_FEATURES: u64 = FEATURE_VERSION_1 | FEATURE_INDIRECT_DESCRIPTORS | FEATURE_EVENT_INDEX;

/// Device status (2.1): the driver has noticed the device.
pub const STATUS_ACKNOWLEDGE: u8 = 1;
/// Device status (2.1): the driver knows how to drive the device.
pub const STATUS_DRIVER: u8 = 2;
/// Device status (2.1): the driver is set up; the device is live.
pub const STATUS_DRIVER_OK: u8 = 4;
/// Device status (2.1): features are settled.
pub const STATUS_FEATURES_OK: u8 = 8;
/// Device status (2.1): the device has met something it cannot go on from.
pub const STATUS_NEEDS_RESET: u8 = 64;
/// Device status (2.1): the driver has given up.
pub const STATUS_FAILED: u8 = 128;

/// Interrupt status (4.2.2, 4.1.4.5): the device used buffers.
pub const INTERRUPT_USED: u32 = 1;
/// Interrupt status (4.2.2, 4.1.4.5): the configuration changed, or DEVICE_NEEDS_RESET was set.
pub const INTERRUPT_CONFIG: u32 = 2;

/// The largest queue that the specification allows (2.7), in descriptors.
pub const QUEUE_SIZE_MAX: u16 = 32768;

/// VIRTQ_DESC_F_NEXT (2.7.5): the chain goes on at `next`.
pub const DESCRIPTOR_NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE (2.7.5): the device writes this buffer.
pub const DESCRIPTOR_WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT (2.7.5): the buffer holds a table of descriptors.
pub const DESCRIPTOR_INDIRECT: u16 = 4;
/// Bytes of one descriptor (2.7.5).
pub const DESCRIPTOR_BYTES: u64 = 16;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6): the driver does not want to hear of used buffers.
pub const AVAIL_NO_INTERRUPT: u16 = 1;

/// Alignment (2.7) of the descriptor table, the available ring and the used ring, in bytes.
pub const RING_ALIGNMENTS: [u64; 3] = [16, 2, 4];

/// Bytes (2.7) of descriptor table, available ring and used ring of a queue of `size` descriptors, event fields included.
pub const fn ring_bytes(size: u16) -> [u64; 3] {
    let size = size as u64;
    [DESCRIPTOR_BYTES * size, 6 + 2 * size, 6 + 8 * size]
}
