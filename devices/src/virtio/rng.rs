//! virtio-rng (virtio 1.2, 5.4): entropy for the guest, from the host kernel.

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, EventSet};

use super::worker::Work;
use super::{
    ActivateError, Activation, ActiveQueue, Chain, DeviceKind, Fault, GuestMemory, Progress, Ring, Role, Segment,
    Threads, VirtioDevice, Worker, ring,
};

/// The one queue, `requestq` (5.4.2).
const QUEUE_SIZES: [u16; 1] = [64];
/// Most bytes given for one request, whatever room it has: the driver asks again if it wants more.
const REQUEST_BYTES: u32 = 4096;

/// The entropy device.
pub struct Rng {
    threads: Arc<dyn Threads>,
    worker: Option<Worker<Generator>>,
}

impl std::fmt::Debug for Rng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rng").field("active", &self.worker.is_some()).finish()
    }
}

impl Rng {
    /// An entropy device that gets its thread from `threads`.
    pub fn new(threads: Arc<dyn Threads>) -> Self {
        Rng { threads, worker: None }
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, mut queues, interrupt, .. } = activation;
        let queue = queues.first_mut().and_then(Option::take).ok_or(ActivateError::MissingQueue(0))?;
        let ring = Ring::new(0, queue, memory, Arc::clone(&interrupt));
        let kicks = vec![(0, ring.kick().try_clone()?)];
        let work = Generator { ring };
        self.worker = Some(Worker::spawn(self.threads.as_ref(), "virtio-rng", Role::Io, kicks, interrupt, work)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        let work = self.worker.take().and_then(Worker::stop);
        work.into_iter().map(|work| Some(work.ring.into_active())).collect()
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

struct Generator {
    ring: Ring,
}

impl Work for Generator {
    fn start(&mut self, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        Ok(())
    }

    fn kicked(&mut self, _index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        let memory = self.ring.memory().clone();
        self.ring.drain(|chain| fill(&memory, chain))
    }

    fn ready(&mut self, _token: u32, _set: EventSet, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn fill(memory: &GuestMemory, chain: &Chain) -> Result<u32, Fault> {
    let room: &[Segment] = chain.writable();
    let mut bytes = [0; REQUEST_BYTES as usize];
    let len = ring::total(room).min(REQUEST_BYTES) as usize;
    entropy(&mut bytes[..len])?;
    Ok(ring::write(memory, room, &bytes[..len]) as u32)
}

fn entropy(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        done += rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}
