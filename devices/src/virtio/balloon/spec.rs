//! Constants and wire types of the traditional memory balloon (virtio 1.2, 5.5). Behaviour is elsewhere.

/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the driver may take pages back when it runs out of memory.
pub(super) const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_PAGE_POISON: the driver says which bytes it expects in free pages.
pub(super) const FEATURE_PAGE_POISON: u64 = 1 << 4;
/// VIRTIO_BALLOON_F_PAGE_REPORTING: the driver says which pages are free.
pub(super) const FEATURE_PAGE_REPORTING: u64 = 1 << 5;

/// Queues (5.5.2). Those of features that are not offered are left out, and what follows moves up: so Linux counts.
pub(super) const INFLATE: u16 = 0;
/// Pages that the driver takes back.
pub(super) const DEFLATE: u16 = 1;
/// Pages that the driver does not use at the moment.
pub(super) const REPORTING: u16 = 2;
/// Linux reports 32 stretches at once, and wants a queue for as many.
pub(super) const QUEUE_SIZES: [u16; 3] = [32, 32, 32];

/// A page of the balloon, whatever the guest's pages are (5.5.6).
pub(super) const PAGE_BYTES: u64 = 4096;
/// Bytes of a page's number.
pub(super) const NUMBER_BYTES: usize = 4;
/// Most bytes of page numbers in one buffer; the specification has no limit, Linux sends 1 KiB.
pub(super) const NUMBERS_LIMIT: u32 = 64 << 10;

/// Configuration (5.5.4): how many pages the device wants.
pub(super) const CONFIG_WANTED: usize = 0;
/// How many the driver has given; the driver writes it.
pub(super) const CONFIG_ACTUAL: usize = 4;
/// What free pages are filled with; the driver writes it.
pub(super) const CONFIG_POISON: usize = 12;
/// Bytes of the configuration space.
pub(super) const CONFIG_BYTES: usize = 16;
