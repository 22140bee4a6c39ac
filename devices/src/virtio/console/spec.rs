//! Constants of the console device (virtio 1.2, 5.3). Behaviour is elsewhere.

/// `receiveq` (5.3.2): buffers for what the guest is to read.
pub(super) const RECEIVE: u16 = 0;
/// `transmitq`: what the guest writes.
pub(super) const TRANSMIT: u16 = 1;
/// Linux fills the first with single pages, and writes a page at a time.
pub(super) const QUEUE_SIZES: [u16; 2] = [16, 16];

/// Bytes handed on at a time, whatever a buffer holds.
pub(super) const PIECE: usize = 4096;
/// Most bytes of one buffer that are handed on; the rest is lost. A driver that writes more has lost its way.
pub(super) const BUFFER_LIMIT: u32 = 1 << 20;
