//! Constants and wire types of the block device (virtio 1.2, 5.2). Behaviour is elsewhere.

/// Bytes of a sector, the unit of every address, whatever the block size (5.2.4).
pub(super) const SECTOR_BYTES: u64 = 512;

/// VIRTIO_BLK_F_SIZE_MAX: `size_max` is in the configuration.
pub(in crate::virtio) const FEATURE_SIZE_MAX: u64 = 1 << 1;
/// VIRTIO_BLK_F_SEG_MAX: `seg_max` is in the configuration.
pub(in crate::virtio) const FEATURE_SEGMENTS_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_GEOMETRY: cylinders, heads and sectors are in the configuration.
pub(in crate::virtio) const FEATURE_GEOMETRY: u64 = 1 << 4;
/// VIRTIO_BLK_F_RO: every write fails.
pub(in crate::virtio) const FEATURE_READ_ONLY: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE: `blk_size` is in the configuration.
pub(in crate::virtio) const FEATURE_BLOCK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH: there is a cache, and a command to write it out.
pub(in crate::virtio) const FEATURE_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_TOPOLOGY: what sizes the disk likes is in the configuration.
pub(in crate::virtio) const FEATURE_TOPOLOGY: u64 = 1 << 10;
/// VIRTIO_BLK_F_MQ: `num_queues` is in the configuration.
pub(in crate::virtio) const FEATURE_QUEUES: u64 = 1 << 12;
/// VIRTIO_BLK_F_DISCARD.
pub(in crate::virtio) const FEATURE_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
pub(in crate::virtio) const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

/// Request types (5.2.6).
pub(super) const TYPE_READ: u32 = 0;
pub(super) const TYPE_WRITE: u32 = 1;
pub(super) const TYPE_FLUSH: u32 = 4;
pub(super) const TYPE_IDENTIFY: u32 = 8;
pub(super) const TYPE_DISCARD: u32 = 11;
pub(super) const TYPE_WRITE_ZEROES: u32 = 13;

/// Bytes of a request's header: type, reserved, sector.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of one range to discard or to zero: sector, sectors, flags.
pub(super) const RANGE_BYTES: usize = 16;
/// Flag of a range to zero: its space may be given back.
pub(super) const RANGE_UNMAP: u32 = 1;
/// Bytes of the identity that TYPE_IDENTIFY asks for; padded with NUL.
pub(super) const IDENTITY_BYTES: usize = 20;

/// How a request ended (5.2.6): its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    Error = 1,
    Unsupported = 2,
}

/// Most buffers of one request: what a ring holds, without header and status.
pub(super) const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Size of a queue: so many that 1 MiB in pages of 4 KiB, wherever they are, is one request. The guest would set memory aside for as
/// many requests, some 500 bytes each, whether the slot is used or not: it is told to make do with fewer (`virtio_blk.queue_depth`).
pub(in crate::virtio) const QUEUE_SIZE: u16 = 512;
/// Most ranges of one request to discard or to zero.
pub(super) const RANGES_MAX: u32 = 16;
/// Most sectors of one such range: 2 GiB.
pub(super) const RANGE_SECTORS_MAX: u32 = 1 << 22;

/// Sectors of a block that is written without reading it first, as a power of two.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// Bytes of the configuration space.
pub(in crate::virtio) const CONFIG_BYTES: usize = 60;

/// The configuration space (5.2.4) of a disk of `sectors` sectors and `queues` queues.
pub(super) fn config_space(sectors: u64, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &(SECTOR_BYTES as u32).to_le_bytes());
    // Topology: images lie in files and on disks of 4 KiB blocks, 2^3 sectors; no offset; the least and the best sizes of a transfer,
    // in sectors (0: no best one).
    put(24, &[PHYSICAL_BLOCK_EXPONENT, 0]);
    put(26, &(1_u16 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
    put(34, &queues.to_le_bytes());
    // Discard: sectors, ranges, alignment.
    put(36, &RANGE_SECTORS_MAX.to_le_bytes());
    put(40, &RANGES_MAX.to_le_bytes());
    put(44, &1_u32.to_le_bytes());
    // Write zeroes: sectors, ranges, may give space back.
    put(48, &RANGE_SECTORS_MAX.to_le_bytes());
    put(52, &RANGES_MAX.to_le_bytes());
    put(56, &[1]);
    space
}
