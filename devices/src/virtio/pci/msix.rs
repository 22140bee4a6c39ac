//! A PCI function's interrupts: messages with a table of their own (MSI-X; PCI Local Bus 3.0, 6.8.2), or the pin while they are off.
//!
//! Knows no controller: a message is sent by writing to its vector's event descriptor, and what it consists of is told to
//! [`MessageRoutes`] beforehand. The table has a lock that no transport's is needed for, because devices raise interrupts while
//! their driver resets them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::spec::{MSIX_ENABLED, MSIX_ENTRY_BYTES, MSIX_ENTRY_MASKED, MSIX_MASKED, NO_VECTOR};
use crate::virtio::spec::{INTERRUPT_CONFIG, INTERRUPT_USED};
use crate::virtio::{Interrupt, LineInterrupt};

/// What an interrupt controller is sent: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Guest physical address.
    pub address: u64,
    /// What is written there.
    pub data: u32,
}

/// Where messages are made of events. Implemented by the VMM; called with a function's table locked, from vCPU threads.
pub trait MessageRoutes: Send + Sync {
    /// From now on, each write to the event of `vector` sends `message`, which the guest made up: it may be nonsense.
    fn route(&self, vector: u16, message: Message);
}

/// One vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    message: Message,
    masked: bool,
    /// Raised while it was masked.
    pending: bool,
}

/// What of a function's messages outlives its process; whether they are on is in the configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    entries: Vec<Entry>,
    config: u16,
    queues: Vec<u16>,
}

/// A function's interrupts.
pub(super) struct PciInterrupt {
    line: Arc<LineInterrupt>,
    /// One for each vector.
    events: Vec<EventFd>,
    /// None where there are no vectors.
    routes: Option<Box<dyn MessageRoutes>>,
    table: Mutex<Table>,
}

struct Table {
    state: MsixState,
    /// What the events were last said to send.
    routed: Vec<Option<Message>>,
    enabled: bool,
    masked: bool,
    pin_disabled: bool,
}

impl PciInterrupt {
    /// For a device of `queues` queues: with `routes`, a vector for each of them and one more; otherwise `line` alone.
    ///
    /// # Errors
    /// When event descriptors are not to be had.
    pub(super) fn new(
        line: Arc<LineInterrupt>,
        queues: usize,
        routes: Option<Box<dyn MessageRoutes>>,
    ) -> io::Result<PciInterrupt> {
        let vectors = if routes.is_some() { queues + 1 } else { 0 };
        let events = (0..vectors).map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect::<Result<_, _>>()?;
        let entry = Entry { message: Message::default(), masked: true, pending: false };
        let state = MsixState { entries: vec![entry; vectors], config: NO_VECTOR, queues: vec![NO_VECTOR; queues] };
        let table = Table { state, routed: vec![None; vectors], enabled: false, masked: false, pin_disabled: false };
        Ok(PciInterrupt { line, events, routes, table: Mutex::new(table) })
    }

    /// One event descriptor a vector: written, it sends the vector's message.
    pub(super) fn events(&self) -> &[EventFd] {
        &self.events
    }

    /// The driver wrote to the message control and the command register: `control`'s two bits, and whether the pin is left alone.
    pub(super) fn set_control(&self, control: u16, pin_disabled: bool) {
        let mut table = self.lock();
        let (enabled, masked) = (control & MSIX_ENABLED != 0, control & MSIX_MASKED != 0);
        let changed = (table.enabled, table.masked) != (enabled, masked);
        let freed = table.pin_disabled && !pin_disabled;
        (table.enabled, table.masked, table.pin_disabled) = (enabled, masked, pin_disabled);
        if changed {
            (0..self.events.len()).for_each(|vector| self.settle(&mut table, vector));
        }
        if freed && !enabled && self.line.pending() != 0 {
            self.line.signal();
        }
    }

    /// The driver has reset the device: it has no vectors, and nothing is pending.
    pub(super) fn forget_driver(&self) {
        let mut table = self.lock();
        table.state.config = NO_VECTOR;
        table.state.queues.fill(NO_VECTOR);
        table.state.entries.iter_mut().for_each(|entry| entry.pending = false);
    }

    /// The vector of configuration changes.
    pub(super) fn config_vector(&self) -> u16 {
        self.lock().state.config
    }

    /// Sets it; one that does not exist stands for none (4.1.5.1.2).
    pub(super) fn set_config_vector(&self, vector: u16) {
        let vector = self.existing(vector);
        self.lock().state.config = vector;
    }

    /// The vector of a queue; none if there is no such queue.
    pub(super) fn queue_vector(&self, queue: u32) -> u16 {
        self.lock().state.queues.get(queue as usize).copied().unwrap_or(NO_VECTOR)
    }

    /// Sets it, in the same way.
    pub(super) fn set_queue_vector(&self, queue: u32, vector: u16) {
        let vector = self.existing(vector);
        if let Some(place) = self.lock().state.queues.get_mut(queue as usize) {
            *place = vector;
        }
    }

    /// The guest reads the table: whole words or pairs of them (6.8.2); anything else reads as zero.
    pub(super) fn read_table(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        if is_words(offset, data.len()) {
            let table = self.lock();
            for (at, word) in (offset..).step_by(4).zip(data.as_chunks_mut::<4>().0) {
                *word = table.word(at).to_le_bytes();
            }
        }
    }

    /// The guest writes the table, in the same way.
    pub(super) fn write_table(&self, offset: u32, data: &[u8]) {
        if !is_words(offset, data.len()) {
            return;
        }
        let mut table = self.lock();
        for (at, word) in (offset..).step_by(4).zip(data.as_chunks::<4>().0) {
            table.set_word(at, u32::from_le_bytes(*word));
        }
        self.settle(&mut table, (offset / MSIX_ENTRY_BYTES) as usize);
    }

    /// The guest reads the pending bits.
    pub(super) fn read_pending(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        if is_words(offset, data.len()) {
            let table = self.lock();
            for (vector, entry) in table.state.entries.iter().enumerate().filter(|(_, entry)| entry.pending) {
                let byte = (vector / 8).checked_sub(offset as usize).and_then(|index| data.get_mut(index));
                if let (Some(byte), true) = (byte, entry.pending) {
                    *byte |= 1 << (vector % 8);
                }
            }
        }
    }

    pub(super) fn save(&self) -> MsixState {
        self.lock().state.clone()
    }

    /// Whether `state` can be of a function like this one.
    pub(super) fn fits(&self, state: &MsixState) -> bool {
        let own = self.lock();
        let vectors = state.queues.iter().chain([&state.config]);
        state.entries.len() == own.state.entries.len()
            && state.queues.len() == own.state.queues.len()
            && vectors.clone().all(|&vector| self.existing(vector) == vector)
    }

    /// Takes up a saved state that fits. Queues' vectors are raised once: a message that was on its way is not lost, and one too many
    /// does no harm.
    pub(super) fn restore(&self, state: &MsixState) {
        let mut table = self.lock();
        table.state.clone_from(state);
        (0..self.events.len()).for_each(|vector| self.settle(&mut table, vector));
        if table.enabled {
            for queue in 0..state.queues.len() {
                self.send(&mut table, state.queues[queue]);
            }
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.events.len() { vector } else { NO_VECTOR }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After anything about `vector` has changed: if it may be sent, it is known how, and what waited goes out.
    fn settle(&self, table: &mut Table, vector: usize) {
        let quiet = !table.enabled || table.masked;
        let Some(entry) = table.state.entries.get_mut(vector).filter(|entry| !quiet && !entry.masked) else {
            return;
        };
        if let (Some(routes), true) = (&self.routes, table.routed[vector] != Some(entry.message)) {
            routes.route(vector as u16, entry.message);
            table.routed[vector] = Some(entry.message);
        }
        if std::mem::take(&mut entry.pending) {
            // Fails only when the counter is at its end: then it is sent already.
            let _ = self.events[vector].write(1);
        }
    }

    /// Sends `vector`, or notes that it is to be sent once it may. None is no vector.
    fn send(&self, table: &mut Table, vector: u16) {
        if let Some(entry) = table.state.entries.get_mut(usize::from(vector)) {
            entry.pending = true;
            self.settle(table, usize::from(vector));
        }
    }

    /// Raises an interrupt: the message of the vector that `choose` finds, or what the pin and its status make of `bits`.
    fn raise(&self, bits: u32, choose: impl FnOnce(&MsixState) -> Option<u16>) {
        let mut table = self.lock();
        if table.enabled {
            if let Some(vector) = choose(&table.state) {
                self.send(&mut table, vector);
            }
            return;
        }
        self.line.set_pending(bits);
        if !table.pin_disabled {
            self.line.signal();
        }
    }
}

impl Interrupt for PciInterrupt {
    fn queue(&self, index: u16) {
        self.raise(INTERRUPT_USED, |state| state.queues.get(usize::from(index)).copied());
    }

    fn queue_event(&self, _index: u16) -> Option<&EventFd> {
        // Messages have events of their own, but which one is the driver's to change at any time.
        None
    }

    fn config(&self) {
        self.line.note_change();
        self.raise(INTERRUPT_CONFIG, |state| Some(state.config));
    }

    fn needs_reset(&self) {
        self.line.note_reset_needed();
        self.raise(INTERRUPT_CONFIG, |state| Some(state.config));
    }
}

impl Table {
    fn word(&self, at: u32) -> u32 {
        let Some(entry) = self.state.entries.get((at / MSIX_ENTRY_BYTES) as usize) else {
            return 0;
        };
        match at % MSIX_ENTRY_BYTES {
            0 => entry.message.address as u32,
            4 => (entry.message.address >> 32) as u32,
            8 => entry.message.data,
            _ => u32::from(entry.masked),
        }
    }

    fn set_word(&mut self, at: u32, value: u32) {
        let Some(entry) = self.state.entries.get_mut((at / MSIX_ENTRY_BYTES) as usize) else {
            return;
        };
        let Message { address, data } = &mut entry.message;
        match at % MSIX_ENTRY_BYTES {
            0 => *address = *address & !u64::from(u32::MAX) | u64::from(value),
            4 => *address = *address & u64::from(u32::MAX) | u64::from(value) << 32,
            8 => *data = value,
            _ => entry.masked = value & MSIX_ENTRY_MASKED != 0,
        }
    }
}

/// Whether an access is a word or an aligned pair of them.
fn is_words(offset: u32, len: usize) -> bool {
    matches!(len, 4 | 8) && (offset as usize).is_multiple_of(len)
}
