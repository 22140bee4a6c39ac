//! virtio-rng (virtio 1.2, 5.4): entropy for the guest, from the host kernel.

use std::io;
use std::sync::Arc;

use event_manager::EventOps;

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

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

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
    fn kicked(&mut self, _index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        let memory = self.ring.memory().clone();
        self.ring.drain(|chain| fill(&memory, chain))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Driver, into, out, threads};

    fn start() -> Driver {
        Driver::start(Box::new(Rng::new(threads())))
    }

    #[test]
    fn the_guest_gets_what_it_has_room_for() {
        let mut driver = start();
        driver.post(0, 0, &[into(0x1000, 32), into(0x2000, 32)]);
        assert_eq!(driver.take(0), (0, 64));
        assert_ne!(driver.bytes(0x1000, 32), [0; 32]);
        assert_ne!(driver.bytes(0x2000, 32), driver.bytes(0x1000, 32));
        assert_eq!(driver.bytes(0x1020, 32), [0; 32], "not a byte more");
    }

    #[test]
    fn a_large_request_gets_a_part() {
        let mut driver = start();
        driver.post(0, 3, &[into(0x10_0000, 1 << 20)]);
        assert_eq!(driver.take(0), (3, REQUEST_BYTES));
    }

    #[test]
    fn a_request_without_room_comes_back_empty() {
        let mut driver = start();
        driver.post(0, 0, &[out(0x1000, 32)]);
        assert_eq!(driver.take(0), (0, 0));
    }

    #[test]
    fn a_malformed_ring_stops_the_device_until_it_is_reset() {
        let mut driver = start();
        driver.post(0, 0, &[into(u64::from(u32::MAX), 32)]);
        driver.wait_for_needs_reset();
        driver.post(0, 1, &[into(0x1000, 32)]);
        assert_eq!(driver.used(0), 0);
        driver.reset();
        driver.bring_up(u64::MAX);
        driver.post(0, 1, &[into(0x1000, 32)]);
        assert_eq!(driver.take(0), (1, 32));
    }

    #[test]
    fn it_goes_on_after_a_pause() {
        let mut driver = start();
        driver.post(0, 0, &[into(0x1000, 8)]);
        driver.take(0);
        driver.transport.transport_mut().pause();
        driver.post(0, 1, &[into(0x1000, 8)]);
        assert_eq!(driver.used(0), 1, "nothing is served during a pause");
        driver.transport.transport_mut().resume();
        assert_eq!(driver.take(0), (1, 8), "what was posted meanwhile is served without another kick");
    }
}
