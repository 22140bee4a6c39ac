//! What is left of a device whose back end is gone: rings of which every request fails, those too that the back end took along.
//!
//! A driver waits for its requests for ever (Linux, for one), so somebody must answer them; the ledger knows which there are.

use std::sync::Arc;

use virtio_queue::QueueT;
use vm_memory::Address;

use super::super::{ActiveQueue, Chain, Fault, GuestMemory, Progress, Ring, Segment, ring};
use super::ledger::{Ledger, Owed};
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
    /// Takes queue number `index` over from whoever served it until now, and fails what is in it by its `ledger`.
    ///
    /// # Errors
    /// When the driver broke a rule of the ring.
    pub(super) fn adopt(
        index: u16,
        mut active: ActiveQueue,
        ledger: Ledger,
        around: &Surroundings,
    ) -> Result<Self, Fault> {
        let Surroundings { memory, interrupt, failing, .. } = around;
        let Owed { heads, available, used } = ledger.settle(index, &active.queue, memory)?;
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
