//! The socket device's numbers and wire types: virtio 1.2, section 5.10.
//!
//! Constants and the packet header, nothing that behaves. The header is decoded by hand because a chain may split it over
//! descriptors at any byte (virtio 1.2, 2.7.4), so it is copied out of guest memory before anyone looks at it.

/// Feature bit: stream sockets (5.10.3).
pub(super) const FEATURE_STREAM: u64 = 1 << 0;

/// Queue on which the device sends packets to the driver (5.10.2).
pub(super) const RX_QUEUE: u16 = 0;
/// Queue on which the driver sends packets to the device (5.10.2).
pub(super) const TX_QUEUE: u16 = 1;

/// Queue on which the device tells the driver what happens to it (5.10.2).
pub(super) const EVENT_QUEUE: u16 = 2;
/// The one event (5.10.6.7): streams that were open are gone, and the guest's context identifier may be another.
pub(super) const EVENT_TRANSPORT_RESET: u32 = 0;

/// Context identifier of the host (5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// The lowest context identifier that a guest may have; those below are reserved (5.10.4).
pub(super) const FIRST_GUEST_CID: u64 = 3;

/// Socket type: stream (5.10.6).
pub(super) const TYPE_STREAM: u16 = 1;

/// Flag of [`Op::SHUTDOWN`]: the sender will receive no more data (5.10.6.5).
pub(super) const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// Flag of [`Op::SHUTDOWN`]: the sender will send no more data (5.10.6.5).
pub(super) const SHUTDOWN_SEND: u32 = 1 << 1;

/// Size of the packet header in bytes (5.10.6).
pub(super) const HEADER_SIZE: usize = 44;

/// What a packet is for (5.10.6). A newtype, not an enum: the guest may write any number here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Op(pub(super) u16);

impl Op {
    /// Asks for a connection.
    pub(super) const REQUEST: Op = Op(1);
    /// Grants one.
    pub(super) const RESPONSE: Op = Op(2);
    /// Refuses or ends one at once.
    pub(super) const RST: Op = Op(3);
    /// Announces the end of one or both directions.
    pub(super) const SHUTDOWN: Op = Op(4);
    /// Carries bytes.
    pub(super) const RW: Op = Op(5);
    /// Tells the sender's buffer space.
    pub(super) const CREDIT_UPDATE: Op = Op(6);
    /// Asks for a [`Op::CREDIT_UPDATE`].
    pub(super) const CREDIT_REQUEST: Op = Op(7);
}

/// `struct virtio_vsock_hdr` (5.10.6), little-endian on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of payload after the header.
    pub(super) len: u32,
    /// Socket type.
    pub(super) kind: u16,
    pub(super) op: Op,
    pub(super) flags: u32,
    /// The sender's receive buffer space for this stream, in bytes.
    pub(super) buf_alloc: u32,
    /// How many bytes of this stream the sender has consumed so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Decodes a header.
    pub(super) fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Header {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Header {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: Op(u16_at(30)),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// Encodes the header.
    pub(super) fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_keeps_every_field_in_its_place() {
        let mut bytes = [0; HEADER_SIZE];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = at as u8;
        }
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.kind, 0x1d1c);
        assert_eq!(header.op, Op(0x1f1e));
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.to_bytes(), bytes);
    }
}
