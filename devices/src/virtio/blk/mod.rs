//! virtio-blk (virtio 1.2, 5.2): slots, into which disks come and from which they go while the guest runs.
//!
//! Knows no image formats (probing them has disclosed host files elsewhere) and opens nothing: it is given files.
//!
//! VIRTIO_BLK_F_RO is never offered: it is negotiated when the guest boots, for the device's whole life, and only what comes
//! into the slot later can be read-only. So the guest is told by whoever tells it of the disk, and a write fails whatever the
//! guest was told. VIRTIO_BLK_F_CONFIG_WCE is not offered either: there is a cache for those who know to flush it (5.2.5.2), and for
//! others each write lasts before it is answered.

mod bounce;
mod disk;
mod flight;
mod request;
mod service;
mod slot;
pub(super) mod spec;
mod uring;

use std::io;
use std::sync::Arc;

use self::disk::Last;
pub use self::disk::{DiskError, DiskPart};
use self::service::{Equipment, Service};
pub use self::slot::Slot;
use self::spec::{
    FEATURE_BLOCK_SIZE, FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_QUEUES, FEATURE_SEGMENTS_MAX, FEATURE_TOPOLOGY,
    FEATURE_WRITE_ZEROES, QUEUE_SIZE, config_space,
};
use self::uring::Uring;
pub use self::uring::uring_works;
use super::device::read_space;
use super::{
    ActivateError, Activation, ActiveQueue, DeviceKind, RateLimit, Ring, Role, Threads, Throttle, VirtioDevice, Worker,
};

/// The most queues of one device.
pub const BLK_QUEUES_MAX: u8 = 8;

/// How a block device works; what is in it is its [`Slot`]'s.
#[derive(Clone, Copy, Debug)]
pub struct BlkConfig {
    /// Queues, of which a driver uses one a vCPU: at least 1, at most [`BLK_QUEUES_MAX`]. The guest sets memory aside for each.
    pub queues: u8,
    /// How fast it may be, all queues together.
    pub limit: RateLimit,
    /// Many requests at once through the kernel's io_uring, where that is to be had. Otherwise one after another.
    pub uring: bool,
    /// What the guest wants to last is not waited for: it is lost if the host fails before its kernel has written it by itself.
    pub unflushed: bool,
}

impl Default for BlkConfig {
    /// One queue, no limit, io_uring, and what shall last lasts.
    fn default() -> Self {
        BlkConfig { queues: 1, limit: RateLimit::default(), uring: true, unflushed: false }
    }
}

/// A block device: a slot and the thread that serves it.
pub struct Blk {
    slot: Slot,
    config: BlkConfig,
    queue_sizes: Vec<u16>,
    threads: Arc<dyn Threads>,
    /// Here while no thread has it.
    equipment: Option<Equipment>,
    worker: Option<Worker<Service>>,
}

impl std::fmt::Debug for Blk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blk").field("slot", &self.slot).field("active", &self.worker.is_some()).finish()
    }
}

impl Blk {
    /// A device for what is or will be in `slot`. Sets its io_uring up, so that none of its threads needs to be able to.
    ///
    /// # Errors
    /// When it shall be limited and no timer is to be had.
    pub fn new(slot: Slot, config: BlkConfig, threads: Arc<dyn Threads>) -> io::Result<Self> {
        let queues = usize::from(config.queues.clamp(1, BLK_QUEUES_MAX));
        let queue_sizes = vec![QUEUE_SIZE; queues];
        let uring = config.uring.then(|| Uring::new(u32::from(QUEUE_SIZE) * queues as u32)).flatten();
        let equipment = Some(Equipment { uring, throttle: Throttle::new(config.limit)? });
        Ok(Blk { slot, config, queue_sizes, threads, equipment, worker: None })
    }

    /// Ends the thread, and takes back what the next one needs.
    fn halt(&mut self) -> Vec<Option<Ring>> {
        let Some(work) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        let (rings, equipment) = work.into_parts();
        self.equipment = Some(equipment);
        rings
    }
}

impl VirtioDevice for Blk {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let queues = if self.queue_sizes.len() > 1 { FEATURE_QUEUES } else { 0 };
        FEATURE_SEGMENTS_MAX
            | FEATURE_BLOCK_SIZE
            | FEATURE_TOPOLOGY
            | FEATURE_FLUSH
            | FEATURE_DISCARD
            | FEATURE_WRITE_ZEROES
            | queues
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config_space(self.slot.show(), self.queue_sizes.len() as u16);
        read_space(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        if !matches!(queues.first(), Some(Some(_))) {
            return Err(ActivateError::MissingQueue(0));
        }
        let (mut rings, mut kicks) = (Vec::new(), Vec::new());
        for (index, queue) in (0..).zip(queues) {
            let ring = queue.map(|queue| Ring::new(index, queue, memory.clone(), Arc::clone(&interrupt)));
            if let Some(ring) = &ring {
                kicks.push((index, ring.kick().try_clone()?));
            }
            rings.push(ring);
        }
        let equipment = match self.equipment.take() {
            Some(equipment) => equipment,
            // A thread that could not be started has taken it along.
            None => Equipment { uring: None, throttle: Throttle::new(self.config.limit)? },
        };
        let last = match features & FEATURE_FLUSH != 0 {
            _ if self.config.unflushed => Last::Never,
            true => Last::Flushed,
            false => Last::Always,
        };
        let work = Service::new(self.slot.clone(), last, memory, rings, equipment);
        let (threads, listener) = (self.threads.as_ref(), Arc::clone(&interrupt));
        self.worker = Some(Worker::spawn(threads, "virtio-blk", Role::Io, kicks, interrupt, work)?);
        self.slot.listen(listener);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        self.halt().into_iter().map(|ring| ring.map(Ring::into_active)).collect()
    }

    fn reset(&mut self) {
        self.halt();
        self.slot.forget();
    }
}

#[cfg(test)]
mod tests;
