//! What is left of a device whose back end is gone: rings of which every request fails, those too that the back end took along.
//!
//! A driver waits for its requests for ever (Linux, for one), so somebody must answer them. Which ones were taken and never given
//! back is nowhere written down, and is told from what both rings still hold; a driver that is answered one that it does not
//! wait for gives the queue up, which is no worse than waiting.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::{Address, Bytes, GuestAddress};

use super::super::{ActiveQueue, Chain, Fault, GuestMemory, Progress, Ring, RingError, Segment, ring};
use super::service::Surroundings;

/// The status of a disk's request that failed (virtio 1.2, 5.2.6).
const FAILED: u8 = 1;
/// Bytes of the header of a FUSE request, up to its number, and of an answer's.
const FUSE_NUMBERED: usize = 16;

/// Answers a request that nobody carries out; says how many bytes it wrote.
pub(super) type Failing = fn(&GuestMemory, &Chain) -> u32;

/// A ring that fails what comes.
#[derive(Debug)]
pub(super) struct Orphan {
    ring: Ring,
    failing: Failing,
}

impl Orphan {
    /// Takes queue number `index` over from whoever served it until now, and fails what is in it.
    ///
    /// # Errors
    /// When the driver broke a rule of the ring.
    pub(super) fn adopt(index: u16, mut active: ActiveQueue, around: &Surroundings) -> Result<Self, Fault> {
        let Surroundings { memory, interrupt, failing, .. } = around;
        let unreachable = |source| Fault::Ring(RingError::Unreachable { queue: index, source });
        let size = active.queue.size();
        let available = active.queue.avail_idx(memory, Ordering::Acquire).map_err(unreachable)?.0;
        let used = active.queue.used_idx(memory, Ordering::Acquire).map_err(unreachable)?.0;
        let ahead = available.wrapping_sub(used);
        if ahead > size {
            return Err(RingError::TooManyAvailable { queue: index, ahead, size }.into());
        }
        let heads = Window { active: &active, memory, available, used }.missing(usize::from(ahead));
        let heads = heads.map_err(|source| unreachable(virtio_queue::Error::GuestMemory(source)))?;
        active.queue.set_next_avail(available);
        active.queue.set_next_used(used);
        let mut ring = Ring::new(index, active, memory.clone(), Arc::clone(interrupt));
        for head in heads {
            let chain = ring.inherit(head)?;
            let written = failing(memory, &chain);
            ring.give_back(chain, written)?;
        }
        ring.notify()?;
        let mut orphan = Orphan { ring, failing: *failing };
        // Whatever came meanwhile, and from now on there are kicks.
        orphan.serve()?;
        Ok(orphan)
    }

    /// Fails what has come since the last kick.
    ///
    /// # Errors
    /// When the driver broke a rule of the ring.
    pub(super) fn serve(&mut self) -> Result<(), Fault> {
        // Empty is as good.
        let _ = self.ring.kick().read();
        let (memory, failing) = (self.ring.memory().clone(), self.failing);
        if self.ring.drain(|chain| Ok(failing(&memory, chain)))? == Progress::More {
            self.ring.kick().write(1)?;
        }
        Ok(())
    }

    /// Its ring.
    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The queue as it stands.
    pub(super) fn into_active(self) -> ActiveQueue {
        self.ring.into_active()
    }
}

/// Fails a disk's request by its status, which is its last byte.
pub(super) fn fail_disk_request(memory: &GuestMemory, chain: &Chain) -> u32 {
    match chain.writable().last() {
        Some(last) => {
            let address = last.address.unchecked_add(u64::from(last.len.saturating_sub(1)));
            ring::write(memory, &[Segment { address, len: 1 }], &[FAILED]) as u32
        }
        None => 0,
    }
}

/// Fails a FUSE request: an answer's header alone, of length, error and the request's number. What expects none gets none.
pub(super) fn fail_file_request(memory: &GuestMemory, chain: &Chain) -> u32 {
    let mut request = [0; FUSE_NUMBERED];
    if ring::read(memory, chain.readable(), &mut request) < FUSE_NUMBERED || chain.writable().is_empty() {
        return 0;
    }
    let mut answer = [0; FUSE_NUMBERED];
    answer[..4].copy_from_slice(&(FUSE_NUMBERED as u32).to_le_bytes());
    answer[4..8].copy_from_slice(&(-libc::EIO).to_le_bytes());
    answer[8..].copy_from_slice(&request[8..]);
    ring::write(memory, chain.writable(), &answer) as u32
}

/// The last entries of both rings, as many as the ring is long, up to these indices.
struct Window<'a> {
    active: &'a ActiveQueue,
    memory: &'a GuestMemory,
    available: u16,
    used: u16,
}

impl Window<'_> {
    /// The heads of the `count` chains that were made available and not given back: of those seen in the available ring, the ones
    /// whose last return lies furthest before they were last made available, or that never returned.
    fn missing(&self, count: usize) -> Result<Vec<u16>, vm_memory::GuestMemoryError> {
        let size = self.active.queue.size();
        let mut returned = vec![None; usize::from(size)];
        let mut offered = vec![None; usize::from(size)];
        // Backwards from the index, so the first one seen of a head is its last.
        for back in 1..=size {
            let head = self.used_head(self.used.wrapping_sub(back) % size)?;
            if let Some(place) = usize::try_from(head).ok().and_then(|head| returned.get_mut(head)) {
                // Measured from the same index as below.
                let distance = i32::from(self.available.wrapping_sub(self.used)) + i32::from(back);
                place.get_or_insert(distance);
            }
            let head = self.available_head(self.available.wrapping_sub(back) % size)?;
            if let Some(place) = offered.get_mut(usize::from(head)) {
                place.get_or_insert(i32::from(back));
            }
        }
        let mut lags: Vec<(Reverse<i32>, u16)> = (0..size)
            .filter_map(|head| {
                let offered = offered[usize::from(head)]?;
                let lag = returned[usize::from(head)].map_or(i32::MAX, |returned: i32| returned - offered);
                Some((Reverse(lag), head))
            })
            .collect();
        lags.sort_unstable();
        Ok(lags.into_iter().take(count).map(|(_, head)| head).collect())
    }

    fn used_head(&self, slot: u16) -> Result<u32, vm_memory::GuestMemoryError> {
        let place = GuestAddress(self.active.queue.used_ring()).unchecked_add(4 + 8 * u64::from(slot));
        self.memory.read_obj(place).map(u32::from_le)
    }

    fn available_head(&self, slot: u16) -> Result<u16, vm_memory::GuestMemoryError> {
        let place = GuestAddress(self.active.queue.avail_ring()).unchecked_add(4 + 2 * u64::from(slot));
        self.memory.read_obj(place).map(u16::from_le)
    }
}
