//! The machine's slots for disks, and the server's orders to fill and empty them.
//!
//! Opens nothing: images come as descriptors. Does not know what is on them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tatami_devices::virtio::{Blk, DiskError, DiskPart, Slot, Threads, VirtioDevice};

use crate::config::slot_serial;
use crate::control::{Part, What};

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// A number beyond the last slot's.
    #[error("the machine has no disk slot {0}")]
    NoSlot(u8),
    /// Emptied it must be first, or the guest would see one disk turn into another.
    #[error("there is a disk in slot {0} already")]
    Filled(u8),
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

/// All slots, by number.
#[derive(Debug)]
pub(crate) struct DiskSlots(Vec<Slot>);

impl DiskSlots {
    /// So many empty slots.
    pub(crate) fn new(count: u8) -> DiskSlots {
        DiskSlots((0..count).map(|slot| Slot::empty(&slot_serial(slot))).collect())
    }

    /// A device for each.
    pub(crate) fn devices(&self, threads: &Arc<dyn Threads>) -> impl Iterator<Item = Box<dyn VirtioDevice>> {
        self.0.iter().map(|slot| Box::new(Blk::new(slot.clone(), Arc::clone(threads))) as _)
    }

    /// Does what the server says.
    ///
    /// # Errors
    /// When that cannot be; the slot is then as before.
    pub(crate) fn carry_out(&self, what: What, descriptors: Vec<OwnedFd>) -> Result<(), OrderError> {
        match what {
            What::AttachDisk(number, parts) => {
                let slot = self.slot(number)?;
                if slot.is_filled() {
                    return Err(OrderError::Filled(number));
                }
                if parts.len() != descriptors.len() {
                    return Err(OrderError::Images { described: parts.len(), sent: descriptors.len() });
                }
                let whole = |(Part { start, length, read_only }, image)| {
                    let image = File::from(image);
                    DiskPart { image, start, length, read_only }
                };
                slot.insert(parts.into_iter().zip(descriptors).map(whole).collect())?;
            }
            What::DetachDisk(number) => self.slot(number)?.eject(),
        }
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
            slots.carry_out(What::AttachDisk(1, vec![part(512)]), vec![image(512)]).unwrap();
            let twice = slots.carry_out(What::AttachDisk(1, vec![part(512)]), vec![image(512)]);
            assert!(matches!(twice, Err(OrderError::Filled(1))));
            slots.carry_out(What::AttachDisk(0, vec![part(512)]), vec![image(512)]).unwrap();
            slots.carry_out(What::DetachDisk(0), vec![]).unwrap();
            slots.carry_out(What::DetachDisk(1), vec![]).unwrap();
            slots.carry_out(What::DetachDisk(1), vec![]).unwrap();
        }
    }

    #[test]
    fn orders_that_cannot_be_leave_the_slot_empty() {
        let slots = DiskSlots::new(1);
        let error = |what, images| slots.carry_out(what, images).unwrap_err().to_string();
        assert_eq!(error(What::DetachDisk(1), vec![]), "the machine has no disk slot 1");
        assert_eq!(
            error(What::AttachDisk(0, vec![part(512)]), vec![]),
            "1 parts of a disk are described, 0 images were sent"
        );
        assert_eq!(error(What::AttachDisk(0, vec![]), vec![]), "a disk needs at least one image");
        assert_eq!(
            error(What::AttachDisk(0, vec![part(1024)]), vec![image(1000)]),
            "image 0 has 1000 bytes, fewer than the 1024 that the disk shall have of it"
        );
        slots.carry_out(What::AttachDisk(0, vec![part(512)]), vec![image(512)]).unwrap();
    }
}
