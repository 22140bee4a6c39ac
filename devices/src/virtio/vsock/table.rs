//! The bounded table of everything that has a socket on the host: clients that still greet, streams, and leftovers of streams.
//!
//! Storage and indexes only; what happens to a slot is the muxer's business.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::outbox::Outbox;
use super::slot::{Patience, Side, Slot};

/// How many sockets one device serves at most.
pub(super) const CAPACITY: usize = 1024;

/// Names a slot; less than [`CAPACITY`].
pub(super) type SlotId = u32;

/// The two ports that name a stream; the two contexts are always host and guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// The slots, found by number, ports or deadline.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<SlotId>,
    by_ports: HashMap<Ports, SlotId>,
    deadlines: BTreeSet<(Instant, SlotId)>,
}

impl Table {
    /// Whether no further slot can be had.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == CAPACITY
    }

    /// Puts a socket into a free slot. Must not be full, and the ports of a stream must be free.
    pub(super) fn insert(&mut self, stream: UnixStream, side: Side) -> SlotId {
        let slot = Slot {
            stream,
            side,
            outbox: Outbox::default(),
            readable: false,
            hung_up: false,
            shut_write: false,
            shut_read: false,
            queued: false,
            touched: false,
            watched: None,
            patience: None,
        };
        let id = self.free.pop().unwrap_or(self.slots.len() as SlotId);
        if let Side::Stream(ports, _) = &slot.side {
            self.by_ports.insert(*ports, id);
        }
        if id as usize == self.slots.len() {
            debug_assert!(self.slots.len() < CAPACITY);
            self.slots.push(Some(slot));
        } else {
            self.slots[id as usize] = Some(slot);
        }
        id
    }

    /// The slot called `id`.
    pub(super) fn get(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    /// The stream between `ports`.
    pub(super) fn find(&self, ports: Ports) -> Option<SlotId> {
        self.by_ports.get(&ports).copied()
    }

    /// Makes slot `id` into a `side`; says what it was.
    pub(super) fn become_side(&mut self, id: SlotId, side: Side) -> Option<Side> {
        let slot = self.slots.get_mut(id as usize)?.as_mut()?;
        if let Side::Stream(ports, _) = &slot.side {
            self.by_ports.remove(ports);
        }
        if let Side::Stream(ports, _) = &side {
            self.by_ports.insert(*ports, id);
        }
        Some(std::mem::replace(&mut slot.side, side))
    }

    /// Takes slot `id` out.
    pub(super) fn remove(&mut self, id: SlotId) -> Option<Slot> {
        let slot = self.slots.get_mut(id as usize)?.take()?;
        if let Side::Stream(ports, _) = &slot.side {
            self.by_ports.remove(ports);
        }
        if let Some((_, deadline)) = slot.patience {
            self.deadlines.remove(&(deadline, id));
        }
        self.free.push(id);
        Some(slot)
    }

    /// Makes slot `id` wait for what `patience` says, counted from `now`; a wait that is under way is not prolonged.
    pub(super) fn wait(&mut self, id: SlotId, patience: Option<Patience>, now: Instant) {
        let Some(slot) = self.slots.get_mut(id as usize).and_then(Option::as_mut) else { return };
        if slot.patience.map(|(patience, _)| patience) == patience {
            return;
        }
        if let Some((_, deadline)) = slot.patience {
            self.deadlines.remove(&(deadline, id));
        }
        slot.patience = patience.map(|patience| (patience, now + patience.length()));
        if let Some((_, deadline)) = slot.patience {
            self.deadlines.insert((deadline, id));
        }
    }

    /// Slot `id` got what it waited for; should it wait again, that is a new wait.
    pub(super) fn wait_no_more(&mut self, id: SlotId) {
        let Some(slot) = self.slots.get_mut(id as usize).and_then(Option::as_mut) else { return };
        if let Some((_, deadline)) = slot.patience.take() {
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Takes out one slot whose deadline has passed. It counts as waiting, without a deadline, until it waits for something else.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<SlotId> {
        let first = *self.deadlines.first()?;
        if first.0 > now {
            return None;
        }
        self.deadlines.remove(&first);
        Some(first.1)
    }

    /// The slots in use.
    pub(super) fn ids(&self) -> Vec<SlotId> {
        (0..self.slots.len() as SlotId).filter(|id| self.slots[*id as usize].is_some()).collect()
    }
}
