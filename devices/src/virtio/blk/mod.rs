//! virtio-blk (virtio 1.2, 5.2): slots, into which disks come and from which they go while the guest runs.
//!
//! Knows no image formats (probing them has disclosed host files elsewhere) and opens nothing: it is given files.
//!
//! VIRTIO_BLK_F_RO is never offered: it is negotiated when the guest boots, for the device's whole life, and only what comes
//! into the slot later can be read-only. So the guest is told by whoever tells it of the disk, and a write fails whatever the
//! guest was told.

mod disk;
mod request;
mod spec;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet};

use self::disk::Disk;
pub use self::disk::{DiskError, DiskPart};
use self::request::Request;
use self::spec::{
    FEATURE_BLOCK_SIZE, FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_SEGMENTS_MAX, FEATURE_WRITE_ZEROES, IDENTITY_BYTES,
    QUEUE_SIZE, Status, config_space,
};
use super::worker::Work;
use super::{
    ActivateError, Activation, ActiveQueue, Chain, DeviceKind, Fault, GuestMemory, Interrupt, Progress, Ring, Role,
    Threads, VirtioDevice, Worker, ring,
};

const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];

/// A block device: a slot and the thread that serves it.
pub struct Blk {
    slot: Slot,
    threads: Arc<dyn Threads>,
    worker: Option<Worker<Service>>,
}

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

    /// Empties the slot and tells the guest. A request that is being served still ends on the old disk.
    pub fn eject(&self) {
        self.replace(None);
    }

    /// Whether a disk is in it.
    pub fn is_filled(&self) -> bool {
        self.state().disk.is_some()
    }

    fn replace(&self, disk: Option<Arc<Disk>>) {
        let mut state = self.state();
        state.disk = disk;
        if let Some(interrupt) = &state.interrupt {
            interrupt.config();
        }
    }

    fn disk(&self) -> Option<Arc<Disk>> {
        self.state().disk.clone()
    }

    /// The capacity, for a driver that asks for it.
    fn show(&self) -> u64 {
        let mut state = self.state();
        let sectors = state.sectors();
        state.shown = Some(sectors);
        sectors
    }

    /// From now on, a driver is there to be told; at once, if what it read before is true no more.
    fn listen(&self, interrupt: Arc<dyn Interrupt>) {
        let mut state = self.state();
        if state.shown.is_some_and(|shown| shown != state.sectors()) {
            interrupt.config();
        }
        state.interrupt = Some(interrupt);
    }

    fn forget(&self) {
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

impl std::fmt::Debug for Blk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blk").field("slot", &self.slot).field("active", &self.worker.is_some()).finish()
    }
}

impl Blk {
    /// A device for what is or will be in `slot`.
    pub fn new(slot: Slot, threads: Arc<dyn Threads>) -> Self {
        Blk { slot, threads, worker: None }
    }
}

impl VirtioDevice for Blk {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        FEATURE_SEGMENTS_MAX | FEATURE_BLOCK_SIZE | FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config_space(self.slot.show());
        for (byte, value) in data.iter_mut().zip(space.iter().skip(offset.try_into().unwrap_or(usize::MAX))) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, mut queues, interrupt } = activation;
        let queue = queues.first_mut().and_then(Option::take).ok_or(ActivateError::MissingQueue(0))?;
        let ring = Ring::new(0, queue, memory, Arc::clone(&interrupt));
        let kicks = vec![(0, ring.kick().try_clone()?)];
        let flushes = features & FEATURE_FLUSH != 0;
        let work = Service { server: Server { slot: self.slot.clone(), flushes, warned: false }, ring };
        let listener = Arc::clone(&interrupt);
        self.worker = Some(Worker::spawn(self.threads.as_ref(), "virtio-blk", Role::Io, kicks, interrupt, work)?);
        self.slot.listen(listener);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        let work = self.worker.take().and_then(Worker::stop);
        work.into_iter().map(|work| Some(work.ring.into_active())).collect()
    }

    fn reset(&mut self) {
        self.worker = None;
        self.slot.forget();
    }
}

struct Service {
    server: Server,
    ring: Ring,
}

impl Work for Service {
    fn start(&mut self, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        Ok(())
    }

    fn kicked(&mut self, _index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        let memory = self.ring.memory().clone();
        self.ring.drain(|chain| self.server.serve(&memory, chain))
    }

    fn ready(&mut self, _token: u32, _set: EventSet, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// Carries requests out.
struct Server {
    slot: Slot,
    /// The driver knows that there is a cache; otherwise each write lasts before it is answered (5.2.6.2).
    flushes: bool,
    /// An error of the host's has been logged; a guest that repeats it does not fill the log.
    warned: bool,
}

impl Server {
    /// Answers one chain; says how many bytes of it were written.
    fn serve(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<u32, Fault> {
        let disk = self.slot.disk();
        let sectors = disk.as_ref().map_or(0, |disk| disk.sectors());
        let parsed = request::parse(memory, chain, sectors)?;
        let outcome = parsed.request.and_then(|request| match (&disk, request) {
            (_, Request::Identify { into }) => Ok(ring::write(memory, &into, &self.identity()) as u32),
            (None, _) => Err(Status::Error),
            (Some(disk), request) => self.carry_out(disk, memory, request).map_err(|error| self.judge(&error)),
        });
        let (status, written) = match outcome {
            Ok(written) => (Status::Ok, written),
            Err(status) => (status, 0),
        };
        ring::write(memory, &[parsed.status], &[status as u8]);
        Ok(written + 1)
    }

    /// Does what is asked; says how many bytes the guest got.
    fn carry_out(&self, disk: &Disk, memory: &GuestMemory, request: Request) -> io::Result<u32> {
        match request {
            Request::Read { offset, into } => {
                disk.read(memory, &into, offset)?;
                return Ok(ring::total(&into));
            }
            Request::Write { offset, from } => {
                disk.write(memory, &from, offset)?;
                if !self.flushes {
                    disk.flush()?;
                }
            }
            Request::Flush => disk.flush()?,
            Request::Discard(ranges) => ranges.into_iter().try_for_each(|range| disk.discard(range))?,
            Request::WriteZeroes(ranges) => ranges.into_iter().try_for_each(|range| disk.write_zeroes(range))?,
            // Answered without a disk.
            Request::Identify { .. } => {}
        }
        Ok(0)
    }

    fn identity(&self) -> [u8; IDENTITY_BYTES] {
        let mut identity = [0; IDENTITY_BYTES];
        for (byte, value) in identity.iter_mut().zip(self.slot.0.serial.bytes()) {
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
            log::warn!("virtio-blk {}: a request failed, later ones are not reported: {error}", self.slot.0.serial);
        }
        Status::Error
    }
}

#[cfg(test)]
mod tests;
