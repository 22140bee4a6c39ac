//! What is in a block device, which the VMM changes while the guest looks on.
//!
//! Knows no requests and no queues.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, DiskError, DiskPart};
use crate::virtio::Interrupt;

/// What is in a block device. Clones are the same slot; it can be filled and emptied while the guest runs.
#[derive(Clone)]
pub struct Slot(Arc<Inner>);

struct Inner {
    serial: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    disk: Option<Arc<Disk>>,
    /// Whom to tell that the capacity has changed; none while no driver is there.
    interrupt: Option<Arc<dyn Interrupt>>,
    /// The capacity that a driver has read last, in sectors.
    shown: Option<u64>,
}

impl State {
    fn sectors(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.sectors())
    }
}

impl Slot {
    /// An empty slot: a disk of no sectors, of which every request fails. The guest sees the first 20 bytes of `serial` (as
    /// /sys/block/…/serial), and finds the slot by it.
    pub fn empty(serial: &str) -> Self {
        Slot(Arc::new(Inner { serial: serial.to_owned(), state: Mutex::default() }))
    }

    /// Puts a disk into the slot, in place of what was there, and tells the guest.
    ///
    /// # Errors
    /// When `parts` do not make a disk; the slot is then as before.
    pub fn insert(&self, parts: Vec<DiskPart>) -> Result<(), DiskError> {
        let disk = Disk::new(parts)?;
        self.replace(Some(Arc::new(disk)));
        Ok(())
    }

    /// Has the disk in the slot go on with more of its last image, `length` bytes of it, and tells the guest; whether there is one.
    ///
    /// # Errors
    /// When the image has not so many, or the disk more already; it is then as before.
    pub fn grow(&self, length: u64) -> Result<bool, DiskError> {
        let Some(disk) = self.disk() else { return Ok(false) };
        self.replace(Some(Arc::new(disk.grown(length)?)));
        Ok(true)
    }

    /// Empties the slot and tells the guest. A request that is being served still ends on the old disk.
    pub fn eject(&self) {
        self.replace(None);
    }

    /// Whether a disk is in it.
    pub fn is_filled(&self) -> bool {
        self.state().disk.is_some()
    }

    /// What the guest sees as its serial number.
    pub(super) fn serial(&self) -> &str {
        &self.0.serial
    }

    fn replace(&self, disk: Option<Arc<Disk>>) {
        let mut state = self.state();
        state.disk = disk;
        if let Some(interrupt) = &state.interrupt {
            interrupt.config();
        }
    }

    pub(super) fn disk(&self) -> Option<Arc<Disk>> {
        self.state().disk.clone()
    }

    /// The capacity, for a driver that asks for it.
    pub(super) fn show(&self) -> u64 {
        let mut state = self.state();
        let sectors = state.sectors();
        state.shown = Some(sectors);
        sectors
    }

    /// From now on, a driver is there to be told; at once, if what it read before is true no more.
    pub(super) fn listen(&self, interrupt: Arc<dyn Interrupt>) {
        let mut state = self.state();
        if state.shown.is_some_and(|shown| shown != state.sectors()) {
            interrupt.config();
        }
        state.interrupt = Some(interrupt);
    }

    pub(super) fn forget(&self) {
        let mut state = self.state();
        (state.interrupt, state.shown) = (None, None);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("serial", &self.0.serial).field("disk", &self.disk()).finish()
    }
}
