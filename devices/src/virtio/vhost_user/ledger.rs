//! Which requests of a lent queue the back end has and has not given back, for the day on which it is gone.
//!
//! Nobody else writes that down, but both rings hold their last entries, as many as the ring is long, and whenever the back end
//! calls, what is new in them is entered here: one of the available ring more, one of the used ring less. A driver that is busy
//! taking buffers back suppresses calls, so more than a ringful may go by unseen. Then what is owed is told from where in the rings
//! each head stands, which may be wrong, until the queue is seen with nothing owed. A driver that is answered what it does not wait
//! for gives its queue up, which is no worse than waiting.

use std::cmp::Reverse;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::super::{GuestMemory, RingError};

/// The account of one queue.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    /// By head: how often it was made available and not given back; once, by a driver and a back end that keep the rules.
    owed: Vec<u8>,
    /// The indices up to which the rings are entered.
    available: u16,
    used: u16,
    /// Whether nothing went by unseen.
    complete: bool,
}

/// What a queue's driver waits for.
#[derive(Debug)]
pub(super) struct Owed {
    pub(super) heads: Vec<u16>,
    /// Where the rings are.
    pub(super) available: u16,
    pub(super) used: u16,
}

impl Ledger {
    /// Of a queue at which the back end begins.
    pub(super) fn new(queue: &Queue) -> Self {
        let (available, used) = (queue.next_avail(), queue.next_used());
        Ledger { owed: vec![0; queue.size().into()], available, used, complete: available == used }
    }

    /// Enters what is new. What cannot be read has whoever owns the queue next say so.
    pub(super) fn follow(&mut self, queue: &Queue, memory: &GuestMemory) {
        self.complete = self.enter(queue, memory).unwrap_or(false);
    }

    /// Closes the account of queue number `index`.
    ///
    /// # Errors
    /// When the rings are not in memory, or the driver made more available than there is room for.
    pub(super) fn settle(mut self, index: u16, queue: &Queue, memory: &GuestMemory) -> Result<Owed, RingError> {
        let unreachable = |source| RingError::Unreachable { queue: index, source };
        self.complete = self.enter(queue, memory).map_err(unreachable)?;
        let (size, ahead) = (queue.size(), self.available.wrapping_sub(self.used));
        if ahead > size {
            return Err(RingError::TooManyAvailable { queue: index, ahead, size });
        }
        let heads = match self.complete {
            true => (0..size).filter(|head| self.owed[usize::from(*head)] > 0).collect(),
            false => self.missing(queue, memory, ahead.into()).map_err(unreachable)?,
        };
        Ok(Owed { heads, available: self.available, used: self.used })
    }

    /// Enters what is new; whether the account is complete.
    fn enter(&mut self, queue: &Queue, memory: &GuestMemory) -> Result<bool, virtio_queue::Error> {
        // In this order: whatever was given back by then had been made available before.
        let used = queue.used_idx(memory, Ordering::Acquire)?.0;
        let available = queue.avail_idx(memory, Ordering::Acquire)?.0;
        let made = available.wrapping_sub(self.available);
        let given = used.wrapping_sub(self.used);
        let (from_available, from_used) = (self.available, self.used);
        (self.available, self.used) = (available, used);
        if available == used {
            self.owed.fill(0);
            return Ok(true);
        }
        if !self.complete || made > queue.size() || given > queue.size() {
            return Ok(false);
        }
        for step in 0..made {
            let head = available_head(queue, memory, from_available.wrapping_add(step))?;
            if !self.change(head.into(), 1) {
                return Ok(false);
            }
        }
        for step in 0..given {
            let head = used_head(queue, memory, from_used.wrapping_add(step))?;
            if !self.change(head, -1) {
                return Ok(false);
            }
        }
        // An entry that was overwritten while it was read was not the one meant.
        let overtaken = queue.avail_idx(memory, Ordering::Acquire)?.0.wrapping_sub(from_available) > queue.size()
            || queue.used_idx(memory, Ordering::Acquire)?.0.wrapping_sub(from_used) > queue.size();
        Ok(!overtaken)
    }

    /// Owes `head` once more, or less; whether that can be.
    fn change(&mut self, head: u32, by: i8) -> bool {
        let owed = usize::try_from(head).ok().and_then(|head| self.owed.get_mut(head));
        let Some(owed) = owed else { return false };
        let Some(new) = owed.checked_add_signed(by) else { return false };
        *owed = new;
        true
    }

    /// The heads of the `count` chains that were made available and not given back, as far as it can be told from the last entries
    /// of both rings: of those seen in the available ring, the ones whose last return lies furthest before they were last made
    /// available, or that never returned.
    fn missing(&self, queue: &Queue, memory: &GuestMemory, count: usize) -> Result<Vec<u16>, virtio_queue::Error> {
        let size = queue.size();
        let mut returned = vec![None; usize::from(size)];
        let mut offered = vec![None; usize::from(size)];
        // Backwards from the index, so the first one seen of a head is its last.
        for back in 1..=size {
            let head = used_head(queue, memory, self.used.wrapping_sub(back))?;
            if let Some(place) = usize::try_from(head).ok().and_then(|head| returned.get_mut(head)) {
                // Measured from the same index as below.
                let distance = i32::from(self.available.wrapping_sub(self.used)) + i32::from(back);
                place.get_or_insert(distance);
            }
            let head = available_head(queue, memory, self.available.wrapping_sub(back))?;
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
}

/// The head of the used ring's entry number `entry`, counted without end.
fn used_head(queue: &Queue, memory: &GuestMemory, entry: u16) -> Result<u32, virtio_queue::Error> {
    let place = GuestAddress(queue.used_ring()).unchecked_add(4 + 8 * u64::from(entry % queue.size()));
    memory.read_obj(place).map(u32::from_le).map_err(virtio_queue::Error::GuestMemory)
}

/// The same of the available ring.
fn available_head(queue: &Queue, memory: &GuestMemory, entry: u16) -> Result<u16, virtio_queue::Error> {
    let place = GuestAddress(queue.avail_ring()).unchecked_add(4 + 2 * u64::from(entry % queue.size()));
    memory.read_obj(place).map(u16::from_le).map_err(virtio_queue::Error::GuestMemory)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Rings, memory};
    use super::*;

    const RINGS_AT: u64 = 0x1000;

    /// A ring with a driver, a back end and a ledger, and what is owed in truth.
    #[derive(Clone)]
    struct Model {
        ledger: Ledger,
        /// In the order in which they were made available.
        owed: Vec<u16>,
        /// Entries of either ring since the ledger was brought up to date.
        unseen: [u16; 2],
        complete: bool,
        offered: Vec<u16>,
        returned: Vec<u16>,
    }

    struct Table {
        memory: GuestMemory,
        rings: Rings,
        queue: Queue,
        begin: u16,
    }

    impl Table {
        fn new(size: u16, begin: u16) -> Table {
            let memory = memory();
            let rings = Rings::at(&memory, RINGS_AT, size);
            let mut queue = Queue::new(size).unwrap();
            queue.set_desc_table_address(Some(rings.table as u32), Some(0));
            queue.set_avail_ring_address(Some(rings.available as u32), Some(0));
            queue.set_used_ring_address(Some(rings.used as u32), Some(0));
            queue.set_ready(true);
            queue.set_next_avail(begin);
            queue.set_next_used(begin);
            Table { memory, rings, queue, begin }
        }

        /// Has memory look as `model` says.
        fn lay(&self, model: &Model) {
            let put = |address: u64, bytes: &[u8]| self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
            for (count, head) in (0..).zip(&model.offered) {
                let slot = self.begin.wrapping_add(count) % self.queue.size();
                put(self.rings.available + 4 + 2 * u64::from(slot), &head.to_le_bytes());
            }
            for (count, head) in (0..).zip(&model.returned) {
                let slot = self.begin.wrapping_add(count) % self.queue.size();
                put(self.rings.used + 4 + 8 * u64::from(slot), &u32::from(*head).to_le_bytes());
            }
            put(self.rings.available + 2, &self.begin.wrapping_add(model.offered.len() as u16).to_le_bytes());
            put(self.rings.used + 2, &self.begin.wrapping_add(model.returned.len() as u16).to_le_bytes());
        }

        /// Tries whatever can happen next, up to `depth` times in a row, and closes the account after each; counts the accounts.
        fn explore(&self, model: &Model, depth: usize) -> u32 {
            self.lay(model);
            let all_seen = model.unseen.iter().all(|unseen| *unseen <= self.queue.size());
            let owed = model.ledger.clone().settle(0, &self.queue, &self.memory).unwrap();
            let mut heads = owed.heads;
            // One that was made available long ago may be found in neither ring.
            assert!(heads.len() <= model.owed.len());
            if model.owed.is_empty() || (model.complete && all_seen) {
                let mut truth = model.owed.clone();
                truth.sort_unstable();
                heads.sort_unstable();
                assert_eq!(heads, truth, "offered {:?}, returned {:?}", model.offered, model.returned);
            }
            if depth == 0 {
                return 1;
            }
            let mut count = 1;
            for head in (0..self.queue.size()).filter(|head| !model.owed.contains(head)) {
                let mut next = model.clone();
                next.owed.push(head);
                next.offered.push(head);
                next.unseen[0] += 1;
                count += self.explore(&next, depth - 1);
            }
            for place in 0..model.owed.len() {
                let mut next = model.clone();
                next.returned.push(next.owed.remove(place));
                next.unseen[1] += 1;
                count += self.explore(&next, depth - 1);
            }
            if model.unseen != [0, 0] {
                let mut next = model.clone();
                self.lay(&next);
                next.ledger.follow(&self.queue, &self.memory);
                next.complete = next.owed.is_empty() || (model.complete && all_seen);
                next.unseen = [0, 0];
                count += self.explore(&next, depth - 1);
            }
            count
        }
    }

    #[test]
    fn whatever_driver_and_back_end_do_in_turn_the_account_is_right() {
        // Small rings, of which every history of some length is tried; where the indices begin, they wrap on the way.
        for (size, depth) in [(2, 11), (4, 7)] {
            let table = Table::new(size, 0_u16.wrapping_sub(3));
            let ledger = Ledger::new(&table.queue);
            let model = Model {
                ledger,
                owed: Vec::new(),
                unseen: [0, 0],
                complete: true,
                offered: Vec::new(),
                returned: Vec::new(),
            };
            let accounts = table.explore(&model, depth);
            assert!(accounts > 10_000, "{accounts}");
        }
    }
}
