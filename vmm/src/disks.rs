//! The machine's slots for disks, and the server's orders to fill and empty them.
//!
//! Opens nothing: images come as descriptors. Does not know what is on them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tatami_devices::virtio::{Blk, BlkConfig, DiskError, DiskPart, Slot, Threads, VirtioDevice};

use crate::config::{ROOT_SERIAL, VmConfig, slot_serial};
use crate::control::Part;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// A number beyond the last slot's.
    #[error("the machine has no disk slot {0}")]
    NoSlot(u8),
    /// Emptied it must be first, or the guest would see one disk turn into another.
    #[error("there is a disk in slot {0} already")]
    Filled(u8),
    /// There is nothing to grow.
    #[error("there is no disk in slot {0}")]
    Empty(u8),
    /// Descriptions and images do not match.
    #[error("{described} parts of a disk are described, {sent} images were sent")]
    Images {
        /// Described.
        described: usize,
        /// Sent.
        sent: usize,
    },
    /// They make no disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A disk that the guest's own user space is on: all of `image`, to be read.
///
/// # Errors
/// When it makes no disk.
pub(crate) fn root_disk(image: File, threads: &Arc<dyn Threads>) -> Result<Box<dyn VirtioDevice>, DiskError> {
    let unknown = |source| DiskError::Size { part: 0, source };
    let length = image.metadata().map_err(unknown)?.len();
    let slot = Slot::empty(ROOT_SERIAL);
    slot.insert(vec![DiskPart { image, start: 0, length, read_only: true }])?;
    let config = BlkConfig { uring: true, ..BlkConfig::default() };
    Ok(Box::new(Blk::new(slot, config, Arc::clone(threads)).map_err(unknown)?))
}

/// All slots, by number.
#[derive(Debug)]
pub(crate) struct DiskSlots(Vec<Slot>);

impl DiskSlots {
    /// So many empty slots.
    pub(crate) fn new(count: u8) -> DiskSlots {
        DiskSlots((0..count).map(|slot| Slot::empty(&slot_serial(slot))).collect())
    }

    /// A device for each, as `config` wants them.
    ///
    /// # Errors
    /// When a limited one has no timer.
    pub(crate) fn devices(
        &self,
        config: &VmConfig,
        threads: &Arc<dyn Threads>,
    ) -> io::Result<Vec<Box<dyn VirtioDevice>>> {
        let config = BlkConfig {
            queues: config.disk_queues,
            limit: config.disk_limit,
            uring: config.disk_uring,
            unflushed: config.disk_unflushed,
        };
        let device = |slot: &Slot| Ok(Box::new(Blk::new(slot.clone(), config, Arc::clone(threads))?) as _);
        self.0.iter().map(device).collect()
    }

    /// Puts a disk of these parts into an empty slot.
    ///
    /// # Errors
    /// When that cannot be; the slot is then as before.
    pub(crate) fn attach(&self, number: u8, parts: Vec<Part>, images: Vec<OwnedFd>) -> Result<(), OrderError> {
        let slot = self.slot(number)?;
        if slot.is_filled() {
            return Err(OrderError::Filled(number));
        }
        if parts.len() != images.len() {
            return Err(OrderError::Images { described: parts.len(), sent: images.len() });
        }
        let whole = |(Part { start, length, read_only }, image)| {
            let image = File::from(image);
            DiskPart { image, start, length, read_only }
        };
        Ok(slot.insert(parts.into_iter().zip(images).map(whole).collect())?)
    }

    /// Has the disk in a slot end with so many bytes of its last image.
    ///
    /// # Errors
    /// When that cannot be; the disk is then as before.
    pub(crate) fn grow(&self, number: u8, length: u64) -> Result<(), OrderError> {
        if self.slot(number)?.grow(length)? { Ok(()) } else { Err(OrderError::Empty(number)) }
    }

    /// Empties a slot.
    ///
    /// # Errors
    /// When there is no such slot.
    pub(crate) fn detach(&self, number: u8) -> Result<(), OrderError> {
        self.slot(number)?.eject();
        Ok(())
    }

    fn slot(&self, number: u8) -> Result<&Slot, OrderError> {
        self.0.get(usize::from(number)).ok_or(OrderError::NoSlot(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(length: u64) -> OwnedFd {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file.into()
    }

    fn part(length: u64) -> Part {
        Part { start: 0, length, read_only: true }
    }

    #[test]
    fn slots_are_filled_once_and_emptied_at_will() {
        let slots = DiskSlots::new(2);
        for _ in 0..2 {
            slots.attach(1, vec![part(512)], vec![image(512)]).unwrap();
            let twice = slots.attach(1, vec![part(512)], vec![image(512)]);
            assert!(matches!(twice, Err(OrderError::Filled(1))));
            slots.attach(0, vec![part(512)], vec![image(512)]).unwrap();
            slots.detach(0).unwrap();
            slots.detach(1).unwrap();
            slots.detach(1).unwrap();
        }
    }

    #[test]
    fn a_disk_grows_and_does_not_shrink() {
        let slots = DiskSlots::new(1);
        let error = |length| slots.grow(0, length).unwrap_err().to_string();
        assert_eq!(error(512), "there is no disk in slot 0");
        slots.attach(0, vec![part(512)], vec![image(2048)]).unwrap();
        slots.grow(0, 1024).unwrap();
        slots.grow(0, 1024).unwrap();
        assert_eq!(error(512), "image 0 has 1024 bytes on the disk already, which can become more, but not 512");
        assert_eq!(error(1025), "image 0: 1025 is not a multiple of 512 bytes, as a disk's places and sizes are");
        assert_eq!(error(4096), "image 0 has 2048 bytes, fewer than the 4096 that the disk shall have of it");
        assert_eq!(error(u64::MAX - 511), "image 0 does not lie behind the one before it");
        slots.grow(0, 2048).unwrap();
    }

    #[test]
    fn orders_that_cannot_be_leave_the_slot_empty() {
        let slots = DiskSlots::new(1);
        let error = |result: Result<(), OrderError>| result.unwrap_err().to_string();
        assert_eq!(error(slots.detach(1)), "the machine has no disk slot 1");
        assert_eq!(
            error(slots.attach(0, vec![part(512)], vec![])),
            "1 parts of a disk are described, 0 images were sent"
        );
        assert_eq!(error(slots.attach(0, vec![], vec![])), "a disk needs at least one image");
        assert_eq!(
            error(slots.attach(0, vec![part(1024)], vec![image(1000)])),
            "image 0 has 1000 bytes, fewer than the 1024 that the disk shall have of it"
        );
        slots.attach(0, vec![part(512)], vec![image(512)]).unwrap();
    }
}
