//! Constants and wire types of the memory device (virtio 1.2, 5.15). Behaviour is elsewhere.

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: the driver does not touch blocks that are not plugged, not even to read.
pub(super) const FEATURE_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// The one queue, `guest-request` (5.15.2). Linux has one request under way at a time.
pub(super) const QUEUE_SIZES: [u16; 1] = [16];

/// Request types (5.15.6.2).
pub(super) const PLUG: u16 = 0;
/// Blocks that the driver gives up.
pub(super) const UNPLUG: u16 = 1;
/// All blocks there are.
pub(super) const UNPLUG_ALL: u16 = 2;
/// Which blocks are plugged.
pub(super) const STATE: u16 = 3;

/// Bytes of a request: type, padding to 8; address; number of blocks, padding to 8.
pub(super) const REQUEST_BYTES: usize = 24;
/// Bytes of a response: type, padding to 8; state.
pub(super) const RESPONSE_BYTES: usize = 10;

/// How a request ended (5.15.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Response {
    /// It was carried out.
    Ack = 0,
    /// More than is wanted at the moment.
    Nack = 1,
    /// Not now.
    Busy = 2,
    /// The driver has lost its way.
    Error = 3,
}

/// What [`STATE`] finds (5.15.6.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Plugged {
    /// All of them.
    All = 0,
    /// None.
    None = 1,
    /// Some.
    Some = 2,
}

/// Bytes of the configuration space.
pub(super) const CONFIG_BYTES: usize = 56;

/// The configuration space (5.15.4): block size, where the region is, how much of it may be used, is and shall be plugged.
pub(super) fn config_space(block: u64, start: u64, size: u64, plugged: u64, requested: u64) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    // Bytes 8 to 15 are a NUMA node, which counts only with a feature that is not offered. All of the region may be used.
    for (at, value) in [(0, block), (16, start), (24, size), (32, size), (40, plugged), (48, requested)] {
        space[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    space
}
