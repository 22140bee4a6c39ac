//! What a block device's thread does: takes requests from the queues, has them carried out, and answers them.
//!
//! What the host's page cache can answer or take is carried out on the spot, which is the fastest there is: a read that comes
//! alone or after one that was there, and every write (a ring hands those to a thread of the kernel's on ext4, which takes five
//! times as long). Everything else goes through io_uring, many at once, and is answered in whatever order it ends; without
//! io_uring, one after another. Knows policy only: what a request is, and how its steps are taken, is in the modules beside it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};

use super::disk::{Disk, Last};
use super::flight::Flight;
use super::request::{self, Parsed, Request};
use super::slot::Slot;
use super::spec::{IDENTITY_BYTES, Status};
use super::uring::Uring;
use crate::virtio::worker::Work;
use crate::virtio::{Chain, Fault, GuestMemory, Progress, Ring, Segment, Throttle, ring};

const TOKEN_URING: u32 = 0;
const TOKEN_TIMER: u32 = 1;

/// Most bytes that are copied before anything is answered: that takes longer than an answer does.
const BATCH_BYTES: u64 = 256 << 10;
/// The same of bytes that the disk moves by itself.
const DIRECT_BATCH_BYTES: u64 = 4 << 20;
/// How long an answer may lie in its queue before the driver is told, while the thread goes on to the next request.
const NOTICE: Duration = Duration::from_micros(200);

/// What a device has, whether or not it is at work.
pub(super) struct Equipment {
    pub(super) uring: Option<Uring>,
    pub(super) throttle: Option<Throttle>,
}

/// A device at work.
pub(super) struct Service {
    slot: Slot,
    last: Last,
    /// An error of the host's has been logged; a guest that repeats it does not fill the log.
    warned: bool,
    memory: GuestMemory,
    queues: Vec<Option<Queue>>,
    equipment: Equipment,
    /// The last read for which the page cache was asked was there.
    found: bool,
    /// Requests taken from a queue and not yet begun; empty between two turns.
    batch: Vec<Flight>,
    /// How often the timer has had the queues served.
    queues_turned: usize,
}

struct Queue {
    ring: Ring,
    /// Something was given back of which the driver has not been told.
    owes_notice: bool,
}

/// Why no more is taken from a queue for now.
#[derive(PartialEq, Eq)]
enum Halt {
    /// It is empty.
    Empty,
    /// Enough for one batch.
    Batch,
    /// Enough for one turn.
    Turn,
    /// The next request must wait for its allowance.
    Limit,
}

impl Service {
    pub(super) fn new(
        slot: Slot,
        last: Last,
        memory: GuestMemory,
        rings: Vec<Option<Ring>>,
        mut equipment: Equipment,
    ) -> Service {
        if let Some(uring) = &mut equipment.uring {
            uring.set_memory(memory.clone());
        }
        let queue = |ring: Option<Ring>| ring.map(|ring| Queue { ring, owes_notice: false });
        let queues = rings.into_iter().map(queue).collect();
        Service {
            slot,
            last,
            warned: false,
            memory,
            queues,
            equipment,
            found: false,
            batch: Vec::new(),
            queues_turned: 0,
        }
    }

    /// The queues, where they stand, and what can be used again.
    pub(super) fn into_parts(self) -> (Vec<Option<Ring>>, Equipment) {
        (self.queues.into_iter().map(|queue| queue.map(|queue| queue.ring)).collect(), self.equipment)
    }

    /// Serves what queue `index` has, at most a ringful.
    fn serve(&mut self, index: u16) -> Result<Progress, Fault> {
        let mut budget = self.ring(index)?.size();
        loop {
            self.ring(index)?.disable_kicks()?;
            let halt = loop {
                let halt = self.gather(index, &mut budget)?;
                self.begin()?;
                self.collect()?;
                if halt != Halt::Batch {
                    break halt;
                }
            };
            match halt {
                Halt::Empty if self.ring(index)?.enable_kicks()? => {}
                // The timer, not a kick, tells when a limited queue goes on.
                Halt::Empty | Halt::Limit => return Ok(Progress::Idle),
                Halt::Batch | Halt::Turn => return Ok(Progress::More),
            }
        }
    }

    /// Takes requests from queue `index` into the batch, and answers those that need no disk.
    fn gather(&mut self, index: u16, budget: &mut u16) -> Result<Halt, Fault> {
        let disk = self.slot.disk();
        let sectors = disk.as_ref().map_or(0, |disk| disk.sectors());
        let is_cached = disk.as_ref().is_none_or(|disk| disk.is_cached());
        let most = if is_cached { BATCH_BYTES } else { DIRECT_BATCH_BYTES };
        let mut bytes = 0;
        while bytes < most {
            if *budget == 0 {
                return Ok(Halt::Turn);
            }
            let Some(chain) = self.ring(index)?.take()? else { return Ok(Halt::Empty) };
            let Parsed { request, status } = request::parse(&self.memory, &chain, sectors)?;
            let cost = request.as_ref().map_or(0, Request::bytes);
            if let Some(throttle) = &mut self.equipment.throttle
                && !throttle.admit(cost)?
            {
                self.ring(index)?.put_back(chain);
                return Ok(Halt::Limit);
            }
            *budget -= 1;
            bytes += cost;
            match (request, &disk) {
                (Ok(Request::Identify { into }), _) => {
                    let gain = ring::write(&self.memory, &into, &self.identity()) as u32;
                    self.answer(index, chain, status, Ok(gain))?;
                }
                (Ok(request), Some(disk)) => self.prepare((index, chain, status), request, disk)?,
                (Ok(_), None) => self.answer(index, chain, status, Err(Status::Error))?,
                (Err(refusal), _) => self.answer(index, chain, status, Err(refusal))?,
            }
        }
        Ok(Halt::Batch)
    }

    fn prepare(
        &mut self,
        (index, chain, status): (u16, Chain, Segment),
        request: Request,
        disk: &Arc<Disk>,
    ) -> Result<(), Fault> {
        match disk.plan(&request, self.last) {
            Ok(steps) => {
                let flight = Flight::new((index, chain, status), Arc::clone(disk), request.into_segments(), steps);
                self.batch.push(flight);
                Ok(())
            }
            Err(error) => {
                let refusal = self.judge(&error);
                self.answer(index, chain, status, Err(refusal))
            }
        }
    }

    /// Has the batch carried out, or begins to.
    fn begin(&mut self) -> Result<(), Fault> {
        let mut batch = std::mem::take(&mut self.batch);
        let alone = batch.len() == 1 && self.equipment.uring.as_ref().is_some_and(Uring::is_idle);
        let mut told = Instant::now();
        for mut flight in batch.drain(..) {
            let outcome = match &self.equipment.uring {
                // Into the page cache: what one thread of the kernel's after another would do, one write to a file at a time.
                Some(_) if flight.is_cached() && flight.is_write() => flight.complete(&self.memory),
                Some(_) if flight.is_cached() && (alone || self.found) => {
                    let outcome = flight.attempt(&self.memory);
                    self.found = flight.is_complete();
                    outcome
                }
                Some(_) if flight.bounces() => flight.complete(&self.memory),
                Some(_) => Ok(()),
                None => flight.complete(&self.memory),
            };
            if outcome.is_err() || flight.is_complete() {
                self.end(flight, outcome)?;
            } else {
                self.launch(flight)?;
            }
            if told.elapsed() > NOTICE {
                self.notify()?;
                told = Instant::now();
            }
        }
        self.batch = batch;
        Ok(())
    }

    /// Hands a request to the kernel; what it does not take is carried out here.
    fn launch(&mut self, flight: Flight) -> Result<(), Fault> {
        let launched = match &mut self.equipment.uring {
            Some(uring) => uring.launch(flight),
            None => Err(Box::new((flight, io::ErrorKind::Unsupported.into()))),
        };
        let Err(refused) = launched else { return Ok(()) };
        let (mut flight, error) = *refused;
        log::debug!("virtio-blk {}: io_uring does not take a request: {error}", self.slot.serial());
        let outcome = flight.complete(&self.memory);
        self.end(flight, outcome)
    }

    /// Submits what was launched, answers what has ended meanwhile, and tells the driver.
    fn collect(&mut self) -> Result<(), Fault> {
        while let Some(uring) = &mut self.equipment.uring {
            uring.submit()?;
            let Some(landed) = uring.land() else { break };
            self.landed(landed)?;
            while let Some(landed) = self.equipment.uring.as_mut().and_then(Uring::land) {
                self.landed(landed)?;
            }
        }
        self.notify()
    }

    /// One step of a request has been taken.
    fn landed(&mut self, (mut flight, result): (Flight, io::Result<u64>)) -> Result<(), Fault> {
        let outcome = match result {
            // It would have had to wait, and nobody was there to.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => flight.complete(&self.memory),
            result => flight.advance(result),
        };
        if outcome.is_err() || flight.is_complete() { self.end(flight, outcome) } else { self.launch(flight) }
    }

    fn end(&mut self, flight: Flight, outcome: io::Result<()>) -> Result<(), Fault> {
        let result = match outcome {
            Ok(()) => Ok(flight.gain),
            Err(error) => Err(self.judge(&error)),
        };
        self.answer(flight.queue, flight.chain, flight.status, result)
    }

    /// Gives a chain back with its status; the guest got `Ok` bytes before that.
    fn answer(&mut self, index: u16, chain: Chain, status: Segment, result: Result<u32, Status>) -> Result<(), Fault> {
        let (code, gain) = result.map_or_else(|status| (status, 0), |gain| (Status::Ok, gain));
        ring::write(&self.memory, &[status], &[code as u8]);
        if let Some(queue) = self.queues.get_mut(usize::from(index)).and_then(Option::as_mut) {
            queue.ring.give_back(chain, gain + 1)?;
            queue.owes_notice = true;
        }
        Ok(())
    }

    /// Interrupts the driver for every queue that has new answers and wants it.
    fn notify(&mut self) -> Result<(), Fault> {
        for queue in self.queues.iter_mut().flatten() {
            if std::mem::take(&mut queue.owes_notice) {
                queue.ring.notify()?;
            }
        }
        Ok(())
    }

    /// The allowance has grown, for which any queue may have waited; each time another one is the first to get of it.
    fn refill(&mut self) -> Result<(), Fault> {
        self.queues_turned = self.queues_turned.wrapping_add(1);
        let count = self.queues.len();
        for turn in 0..count {
            let index = (self.queues_turned + turn) % count;
            if self.queues[index].is_some() && self.serve(index as u16)? == Progress::More {
                self.ring(index as u16)?.kick().write(1)?;
            }
        }
        Ok(())
    }

    /// Waits for all that is under way and answers it.
    fn drain(&mut self) -> Result<(), Fault> {
        while let Some(uring) = &mut self.equipment.uring
            && !uring.is_idle()
        {
            uring.wait()?;
            self.collect()?;
        }
        Ok(())
    }

    /// # Errors
    /// When the driver has set up no such queue; then nobody asks for it.
    fn ring(&mut self, index: u16) -> Result<&mut Ring, Fault> {
        let queue = self.queues.get_mut(usize::from(index)).and_then(Option::as_mut);
        queue.map(|queue| &mut queue.ring).ok_or_else(|| Fault::Request(format!("queue {index} is not set up")))
    }

    fn identity(&self) -> [u8; IDENTITY_BYTES] {
        let mut identity = [0; IDENTITY_BYTES];
        for (byte, value) in identity.iter_mut().zip(self.slot.serial().bytes()) {
            *byte = value;
        }
        identity
    }

    /// What the guest is told of an error of the host's.
    fn judge(&mut self, error: &io::Error) -> Status {
        if error.kind() == io::ErrorKind::Unsupported {
            return Status::Unsupported;
        }
        if !std::mem::replace(&mut self.warned, true) {
            log::warn!("virtio-blk {}: a request failed, later ones are not reported: {error}", self.slot.serial());
        }
        Status::Error
    }
}

impl Work for Service {
    fn start(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        let watched = |error| Fault::Host(io::Error::other(error));
        if let Some(uring) = &self.equipment.uring {
            ops.add(Events::with_data_raw(uring.event(), TOKEN_URING, EventSet::IN)).map_err(watched)?;
        }
        if let Some(throttle) = &self.equipment.throttle {
            ops.add(Events::with_data(throttle.timer(), TOKEN_TIMER, EventSet::IN)).map_err(watched)?;
        }
        Ok(())
    }

    fn kicked(&mut self, index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        self.serve(index)
    }

    fn ready(&mut self, token: u32, _set: EventSet, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        match (token, &mut self.equipment.throttle) {
            (TOKEN_TIMER, Some(throttle)) => {
                throttle.ready()?;
                self.refill()
            }
            _ => self.collect(),
        }
    }

    fn finish(&mut self) {
        if let Err(fault) = self.drain() {
            log::error!("virtio-blk {}: requests are lost: {fault}", self.slot.serial());
        }
    }
}
