//! The machine's slots for networks, and the server's orders to fill and empty them.
//!
//! Opens nothing: taps and sockets come as descriptors. Knows no addresses but those by which the guest finds its interfaces.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tatami_devices::virtio::{Net, NicError, NicKind as Kind, NicShape, NicSlot, Threads, VirtioDevice};

use crate::config::{NicConfig, NicKind, nic_address};

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// A number beyond the last slot's.
    #[error("the machine has no network slot {0}")]
    NoSlot(u8),
    /// What came does not fit.
    #[error(transparent)]
    Nic(#[from] NicError),
}

/// All slots, by number.
#[derive(Debug)]
pub(crate) struct NicSlots(Vec<NicSlot>);

impl NicSlots {
    /// Empty slots of these kinds.
    ///
    /// # Errors
    /// When event descriptors are not to be had.
    pub(crate) fn new(nics: &[NicConfig]) -> io::Result<NicSlots> {
        (0..).zip(nics).map(|(slot, nic)| NicSlot::empty(shape(slot, nic))).collect::<Result<_, _>>().map(NicSlots)
    }

    /// A device for each.
    pub(crate) fn devices(&self, threads: &Arc<dyn Threads>) -> impl Iterator<Item = Box<dyn VirtioDevice>> {
        (0..).zip(&self.0).map(|(number, slot)| Box::new(Net::new(slot.clone(), number, Arc::clone(threads))) as _)
    }

    /// Plugs something in.
    ///
    /// # Errors
    /// When that cannot be; the slot is then as before.
    pub(crate) fn plug(&self, number: u8, ends: Vec<OwnedFd>) -> Result<(), OrderError> {
        Ok(self.slot(number)?.plug(ends)?)
    }

    /// Empties a slot.
    ///
    /// # Errors
    /// When there is no such slot.
    pub(crate) fn pull(&self, number: u8) -> Result<(), OrderError> {
        self.slot(number)?.pull();
        Ok(())
    }

    /// How many frames did not reach the guest, and how many of the guest's reached nobody, over all slots.
    pub(crate) fn lost(&self) -> (u64, u64) {
        self.0.iter().map(NicSlot::lost).fold((0, 0), |sum, lost| (sum.0 + lost.0, sum.1 + lost.1))
    }

    fn slot(&self, number: u8) -> Result<&NicSlot, OrderError> {
        self.0.get(usize::from(number)).ok_or(OrderError::NoSlot(number))
    }
}

fn shape(slot: u8, nic: &NicConfig) -> NicShape {
    let kind = match nic.kind {
        NicKind::Tap { cuts_udp } => Kind::Tap { cuts_udp },
        NicKind::Stream => Kind::Stream,
    };
    NicShape { address: nic_address(slot), kind, pairs: nic.queue_pairs.into(), mtu: nic.mtu, limits: nic.limits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use tatami_devices::virtio::NicLimits;

    #[test]
    fn slots_are_filled_with_what_fits_and_emptied_at_will() {
        let one = NicConfig { kind: NicKind::Stream, queue_pairs: 1, mtu: None, limits: NicLimits::NONE };
        let two = NicConfig { kind: NicKind::Tap { cuts_udp: false }, queue_pairs: 2, ..one };
        let slots = NicSlots::new(&[one, two]).unwrap();
        let end = || OwnedFd::from(UnixStream::pair().unwrap().0);
        let error = |result: Result<(), OrderError>| result.unwrap_err().to_string();
        assert_eq!(error(slots.plug(2, vec![end()])), "the machine has no network slot 2");
        assert_eq!(error(slots.plug(1, vec![end()])), "1 queues of a tap for 2 pairs of queues");
        assert_eq!(error(slots.plug(0, vec![])), "0 queues of a tap for 1 pairs of queues");
        assert!(!slots.0[0].is_up());
        for _ in 0..2 {
            slots.plug(0, vec![end()]).unwrap();
            slots.plug(1, vec![end(), end()]).unwrap();
            assert!(slots.0[0].is_up() && slots.0[1].is_up());
            slots.pull(0).unwrap();
            slots.pull(0).unwrap();
            assert!(!slots.0[0].is_up());
        }
        assert_eq!(slots.lost(), (0, 0));
    }
}
