//! Constants and wire types of the network device (virtio 1.2, 5.1), and the tap's names for the same things (`linux/if_tun.h`).

/// VIRTIO_NET_F_CSUM (5.1.3): the driver may leave a checksum to the device.
pub(super) const FEATURE_CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM (5.1.3): the driver takes frames whose checksum is not complete.
pub(super) const FEATURE_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS (5.1.3): the driver may change its mind about the GUEST_ ones.
pub(super) const FEATURE_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// VIRTIO_NET_F_MTU (5.1.3): the device says what the driver should have as its largest packet.
pub(super) const FEATURE_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC (5.1.3): the device has a hardware address.
pub(super) const FEATURE_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_GUEST_TSO4 (5.1.3): the driver takes TCP over IPv4 in pieces larger than a frame.
pub(super) const FEATURE_GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6 (5.1.3): the same over IPv6.
pub(super) const FEATURE_GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_GUEST_ECN (5.1.3): such pieces may have ECN's bits.
pub(super) const FEATURE_GUEST_ECN: u64 = 1 << 9;
/// VIRTIO_NET_F_HOST_TSO4 (5.1.3): the device takes TCP over IPv4 in pieces larger than a frame.
pub(super) const FEATURE_HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6 (5.1.3): the same over IPv6.
pub(super) const FEATURE_HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_HOST_ECN (5.1.3): such pieces may have ECN's bits.
pub(super) const FEATURE_HOST_ECN: u64 = 1 << 13;
/// VIRTIO_NET_F_MRG_RXBUF (5.1.3): the driver takes a frame in several buffers.
pub(super) const FEATURE_MERGE: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS (5.1.3): the configuration has a link status.
pub(super) const FEATURE_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_F_CTRL_VQ (5.1.3): there is a control queue.
pub(super) const FEATURE_CONTROL: u64 = 1 << 17;
/// VIRTIO_NET_F_MQ (5.1.3): there are several pairs of queues.
pub(super) const FEATURE_MQ: u64 = 1 << 22;
/// VIRTIO_NET_F_GUEST_USO4 (5.1.3, from 1.3 on): the driver takes UDP over IPv4 in pieces larger than a frame.
pub(super) const FEATURE_GUEST_USO4: u64 = 1 << 54;
/// VIRTIO_NET_F_GUEST_USO6: the same over IPv6.
pub(super) const FEATURE_GUEST_USO6: u64 = 1 << 55;
/// VIRTIO_NET_F_HOST_USO: the device takes UDP in pieces larger than a frame.
pub(super) const FEATURE_HOST_USO: u64 = 1 << 56;

/// The features that say what the driver takes; those that VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET may name (5.1.6.5.6).
pub(super) const GUEST_OFFLOADS: u64 = FEATURE_GUEST_CSUM
    | FEATURE_GUEST_TSO4
    | FEATURE_GUEST_TSO6
    | FEATURE_GUEST_ECN
    | FEATURE_GUEST_USO4
    | FEATURE_GUEST_USO6;

/// Descriptors of a receive or transmit queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Bytes of a header (5.1.6): `struct virtio_net_hdr_v1`.
pub(super) const HEADER_BYTES: usize = 12;
/// Where num_buffers is in it.
pub(super) const NUM_BUFFERS_AT: u32 = 10;
/// The largest frame that a driver can be given or can give, header included: 65550 bytes (5.1.6.3.1) behind the header.
pub(super) const FRAME_MAX: usize = 65550 + HEADER_BYTES;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM (5.1.6).
pub(super) const FLAG_NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_NONE (5.1.6).
pub(super) const GSO_NONE: u8 = 0;
/// VIRTIO_NET_HDR_GSO_TCPV4 (5.1.6).
pub(super) const GSO_TCPV4: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV6 (5.1.6).
pub(super) const GSO_TCPV6: u8 = 4;
/// VIRTIO_NET_HDR_GSO_UDP_L4 (5.1.6, from 1.3 on).
pub(super) const GSO_UDP_L4: u8 = 5;
/// VIRTIO_NET_HDR_GSO_ECN (5.1.6).
pub(super) const GSO_ECN: u8 = 0x80;

/// VIRTIO_NET_S_LINK_UP (5.1.4).
pub(super) const STATUS_LINK_UP: u16 = 1;

/// VIRTIO_NET_CTRL_MQ (5.1.6.5.5).
pub(super) const CLASS_MQ: u8 = 4;
/// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET (5.1.6.5.5).
pub(super) const MQ_PAIRS_SET: u8 = 0;
/// VIRTIO_NET_CTRL_GUEST_OFFLOADS (5.1.6.5.6).
pub(super) const CLASS_GUEST_OFFLOADS: u8 = 5;
/// VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET (5.1.6.5.6).
pub(super) const GUEST_OFFLOADS_SET: u8 = 0;
/// VIRTIO_NET_OK (5.1.6.5).
pub(super) const CONTROL_OK: u8 = 0;
/// VIRTIO_NET_ERR (5.1.6.5).
pub(super) const CONTROL_ERROR: u8 = 1;

/// TUN_F_CSUM: whoever reads the tap takes frames whose checksum is not complete.
pub(super) const TUN_CSUM: u32 = 0x01;
/// TUN_F_TSO4.
pub(super) const TUN_TSO4: u32 = 0x02;
/// TUN_F_TSO6.
pub(super) const TUN_TSO6: u32 = 0x04;
/// TUN_F_TSO_ECN.
pub(super) const TUN_ECN: u32 = 0x08;
/// TUN_F_USO4.
pub(super) const TUN_USO4: u32 = 0x20;
/// TUN_F_USO6.
pub(super) const TUN_USO6: u32 = 0x40;

/// Bytes of the configuration space (5.1.4) as far as it exists here: address, status, pairs, MTU.
pub(super) const CONFIG_BYTES: usize = 12;

/// The configuration space (5.1.4).
pub(super) fn config_space(address: [u8; 6], up: bool, pairs: u16, mtu: u16) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    space[..6].copy_from_slice(&address);
    space[6..8].copy_from_slice(&(if up { STATUS_LINK_UP } else { 0 }).to_le_bytes());
    space[8..10].copy_from_slice(&pairs.to_le_bytes());
    space[10..].copy_from_slice(&mtu.to_le_bytes());
    space
}
