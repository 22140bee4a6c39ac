//! virtio-console (virtio 1.2, 5.3): one port, through which the guest writes a buffer at a time where a serial line takes a byte.
//!
//! Nothing comes in: what the driver offers for it stays with the driver. No feature is offered, so there is no size and there
//! are no further ports. Knows no terminals: bytes go to a writer, as they are.

mod spec;

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::EventOps;

use self::spec::{BUFFER_LIMIT, PIECE, QUEUE_SIZES, RECEIVE, TRANSMIT};
use super::worker::Work;
use super::{
    ActivateError, Activation, ActiveQueue, Chain, DeviceKind, Fault, GuestMemory, Progress, Ring, Role, Threads,
    VirtioDevice, Worker, ring,
};

/// Where a console's output goes. It must not block for long, and what it cannot take is its own to lose.
type Output = Arc<Mutex<Box<dyn Write + Send>>>;

/// The console.
pub struct Console {
    output: Output,
    threads: Arc<dyn Threads>,
    worker: Option<Worker<Service>>,
    /// The driver's buffers for what comes in, kept for it.
    receive: Option<ActiveQueue>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("active", &self.worker.is_some()).finish_non_exhaustive()
    }
}

impl Console {
    /// A console that writes to `output`.
    pub fn new(output: Box<dyn Write + Send>, threads: Arc<dyn Threads>) -> Self {
        Console { output: Arc::new(Mutex::new(output)), threads, worker: None, receive: None }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, mut queues, interrupt, .. } = activation;
        let mut take = |index: u16| queues.get_mut(usize::from(index)).and_then(Option::take);
        let queue = take(TRANSMIT).ok_or(ActivateError::MissingQueue(TRANSMIT))?;
        let ring = Ring::new(TRANSMIT, queue, memory, Arc::clone(&interrupt));
        let kicks = vec![(TRANSMIT, ring.kick().try_clone()?)];
        let work = Service { ring, output: Arc::clone(&self.output) };
        self.worker = Some(Worker::spawn(self.threads.as_ref(), "virtio-console", Role::Io, kicks, interrupt, work)?);
        self.receive = take(RECEIVE);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        match self.worker.take().and_then(Worker::stop) {
            Some(work) => vec![self.receive.take(), Some(work.ring.into_active())],
            None => Vec::new(),
        }
    }

    fn reset(&mut self) {
        (self.worker, self.receive) = (None, None);
    }
}

struct Service {
    ring: Ring,
    output: Output,
}

impl Work for Service {
    fn kicked(&mut self, _index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        let memory = self.ring.memory().clone();
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        self.ring.drain(|chain| {
            pass_on(&memory, chain, output.as_mut());
            Ok(0)
        })
    }
}

fn pass_on(memory: &GuestMemory, chain: &Chain, output: &mut dyn Write) {
    let mut piece = [0; PIECE];
    let len = ring::total(chain.readable()).min(BUFFER_LIMIT);
    for start in (0..len).step_by(PIECE) {
        let part = ring::slice(chain.readable(), start, PIECE as u32);
        let count = ring::read(memory, &part, &mut piece).min((len - start) as usize);
        // A listener that is gone is not the guest's fault: its output is lost, as on an unplugged line.
        let _ = output.write_all(&piece[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Driver, LOW_BYTES, into, out, threads};

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<u8>>>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (Driver, Heard) {
        let heard = Heard::default();
        (Driver::start(Box::new(Console::new(Box::new(heard.clone()), threads()))), heard)
    }

    const OUT: usize = TRANSMIT as usize;

    #[test]
    fn what_the_guest_writes_comes_out_in_order() {
        let (mut driver, heard) = start();
        driver.put(0x1000, b"hello, ");
        driver.put(0x3000, b"world");
        driver.post(OUT, 0, &[out(0x1000, 7), out(0x3000, 5)]);
        assert_eq!(driver.take(OUT), (0, 0));
        driver.post(OUT, 3, &[out(0x3000, 1)]);
        driver.take(OUT);
        assert_eq!(*heard.0.lock().unwrap(), b"hello, worldw");
    }

    #[test]
    fn long_buffers_arrive_whole_and_endless_ones_up_to_a_bound() {
        let (mut driver, heard) = start();
        let text: Vec<u8> = (0..10_000_u32).map(|number| number as u8).collect();
        driver.put(0x1_0000, &text);
        driver.post(OUT, 0, &[out(0x1_0000, 10_000)]);
        driver.take(OUT);
        assert_eq!(*heard.0.lock().unwrap(), text);
        driver.post(OUT, 0, &[out(0, LOW_BYTES as u32), out(0, LOW_BYTES as u32)]);
        driver.take(OUT);
        assert_eq!(heard.0.lock().unwrap().len(), 10_000 + BUFFER_LIMIT as usize);
    }

    #[test]
    fn room_for_input_is_left_alone_across_a_pause() {
        let (mut driver, heard) = start();
        driver.post(usize::from(RECEIVE), 0, &[into(0x1000, 4096)]);
        driver.transport.transport_mut().pause();
        driver.put(0x1000, b"x");
        driver.post(OUT, 0, &[out(0x1000, 1)]);
        assert_eq!(driver.used(OUT), 0);
        driver.transport.transport_mut().resume();
        driver.take(OUT);
        assert_eq!((driver.used(usize::from(RECEIVE)), heard.0.lock().unwrap().len()), (0, 1));
    }

    #[test]
    fn a_buffer_outside_ram_stops_it() {
        let (mut driver, heard) = start();
        driver.post(OUT, 0, &[out(LOW_BYTES as u64 - 1, 2)]);
        driver.wait_for_needs_reset();
        assert!(heard.0.lock().unwrap().is_empty());
    }
}
