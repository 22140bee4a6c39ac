//! virtio-mem (virtio 1.2, 5.15): memory that the guest gets and gives back while it runs, in blocks.
//!
//! The host says how much of a region shall be plugged ([`MemSize::request`]); the driver plugs and unplugs blocks until as much
//! is, or as near as it can come. What is enforced: no more is ever plugged than was wanted at that moment, and a block that is
//! not plugged holds none of the host's memory, because touching it ends the machine (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE is
//! required of drivers). What is not: a driver may keep what it has when less is wanted, as one that cannot move what lies there
//! must.
//!
//! Knows no addresses of the host: what is behind RAM is [`Backing`]'s.

mod blocks;
mod spec;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::EventOps;
use vm_memory::GuestAddress;

use self::blocks::Blocks;
pub use self::blocks::MemRegion;
use self::spec::{
    FEATURE_UNPLUGGED_INACCESSIBLE, PLUG, Plugged, QUEUE_SIZES, REQUEST_BYTES, RESPONSE_BYTES, Response, STATE, UNPLUG,
    UNPLUG_ALL, config_space,
};
use super::device::read_space;
use super::interrupt::ConfigListener;
use super::worker::Work;
use super::{
    ActivateError, Activation, ActiveQueue, Backing, Chain, DeviceKind, Fault, GuestMemory, Progress, RestoreError,
    Ring, Role, SaveError, Threads, VirtioDevice, Worker, ring,
};

/// The memory device.
pub struct Mem {
    size: MemSize,
    backing: Arc<dyn Backing>,
    threads: Arc<dyn Threads>,
    worker: Option<Worker<Service>>,
}

/// How much of a memory device's region is plugged and shall be. Clones are of the same device.
#[derive(Clone)]
pub struct MemSize(Arc<Inner>);

struct Inner {
    blocks: Mutex<Blocks>,
    /// Whom to tell of another wish.
    listener: ConfigListener,
}

/// More is wanted than the region holds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes of memory are wanted, {limit} can be added at most")]
pub struct TooMuch {
    /// Wanted.
    pub wanted: u64,
    /// There.
    pub limit: u64,
}

impl MemSize {
    /// All of `region` unplugged.
    pub fn new(region: MemRegion) -> Self {
        MemSize(Arc::new(Inner { blocks: Mutex::new(Blocks::new(region)), listener: ConfigListener::default() }))
    }

    /// Asks the guest to plug or unplug blocks until `bytes`, rounded up to blocks, are plugged; it does what it can, over time.
    ///
    /// # Errors
    /// When the region has fewer; what was wanted before stays.
    pub fn request(&self, bytes: u64) -> Result<(), TooMuch> {
        let mut blocks = self.blocks();
        if !blocks.request(bytes) {
            return Err(TooMuch { wanted: bytes, limit: blocks.region().size });
        }
        drop(blocks);
        self.0.listener.tell();
        Ok(())
    }

    /// What is wanted, in bytes.
    pub fn requested(&self) -> u64 {
        self.blocks().requested()
    }

    /// What is plugged, in bytes.
    pub fn plugged(&self) -> u64 {
        self.blocks().bytes()
    }

    /// The guest-physical addresses that are not plugged: nobody may touch them.
    pub fn unplugged(&self) -> Vec<Range<u64>> {
        let blocks = self.blocks();
        blocks.stretches(false).iter().map(|stretch| blocks.addresses(stretch)).collect()
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.0.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for MemSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blocks = self.blocks();
        f.debug_struct("MemSize")
            .field("region", &blocks.region())
            .field("plugged", &blocks.bytes())
            .field("requested", &blocks.requested())
            .finish()
    }
}

impl std::fmt::Debug for Mem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mem").field("size", &self.size).field("active", &self.worker.is_some()).finish()
    }
}

impl Mem {
    /// A device for the region of `size`, which must be RAM that nobody can touch yet ([`Backing::close`]).
    pub fn new(size: MemSize, backing: Arc<dyn Backing>, threads: Arc<dyn Threads>) -> Self {
        Mem { size, backing, threads, worker: None }
    }
}

impl VirtioDevice for Mem {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Memory
    }

    fn features(&self) -> u64 {
        FEATURE_UNPLUGGED_INACCESSIBLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let blocks = self.size.blocks();
        let MemRegion { start, size, block } = blocks.region();
        let space = config_space(block, start, size, blocks.bytes(), blocks.requested());
        read_space(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, mut queues, interrupt } = activation;
        if features & FEATURE_UNPLUGGED_INACCESSIBLE == 0 {
            return Err(ActivateError::MissingFeature("unplugged memory is inaccessible"));
        }
        let queue = queues.first_mut().and_then(Option::take).ok_or(ActivateError::MissingQueue(0))?;
        let ring = Ring::new(0, queue, memory.clone(), Arc::clone(&interrupt));
        let kicks = vec![(0, ring.kick().try_clone()?)];
        let (size, backing) = (self.size.clone(), Arc::clone(&self.backing));
        let work = Service { plugger: Plugger { size, backing, memory, warned: false }, ring };
        let listener = Arc::clone(&interrupt);
        self.worker = Some(Worker::spawn(self.threads.as_ref(), "virtio-mem", Role::Memory, kicks, interrupt, work)?);
        self.size.0.listener.set(Some(listener));
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        let work = self.worker.take().and_then(Worker::stop);
        work.into_iter().map(|work| Some(work.ring.into_active())).collect()
    }

    /// What is plugged stays: the next driver asks, and may unplug it.
    fn reset(&mut self) {
        self.worker = None;
        self.size.0.listener.set(None);
    }

    fn save(&self) -> Result<Vec<u8>, SaveError> {
        Ok(self.size.blocks().save())
    }

    fn restore(&mut self, saved: &[u8], memory: &GuestMemory) -> Result<(), RestoreError> {
        let mut blocks = self.size.blocks();
        if !blocks.restore(saved) {
            return Err(RestoreError::Device);
        }
        for stretch in blocks.stretches(true) {
            let Range { start, end } = blocks.addresses(&stretch);
            self.backing.open(memory, GuestAddress(start), end - start)?;
        }
        Ok(())
    }
}

struct Service {
    plugger: Plugger,
    ring: Ring,
}

impl Work for Service {
    fn kicked(&mut self, _index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        self.ring.drain(|chain| self.plugger.serve(chain))
    }
}

/// Carries requests out.
struct Plugger {
    size: MemSize,
    backing: Arc<dyn Backing>,
    memory: GuestMemory,
    /// A failure has been logged; later ones are not.
    warned: bool,
}

impl Plugger {
    /// Answers one chain; says how many bytes of it were written.
    fn serve(&mut self, chain: &Chain) -> Result<u32, Fault> {
        let mut request = [0; REQUEST_BYTES];
        let read = ring::read(&self.memory, chain.readable(), &mut request);
        let room = ring::total(chain.writable()) as usize;
        if read < REQUEST_BYTES || room < RESPONSE_BYTES {
            return Err(Fault::Request(format!("{read} bytes of a request, room for {room} of the answer")));
        }
        let word = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        let address = request[8..16].iter().rev().fold(0, |address, byte| address << 8 | u64::from(*byte));
        let (response, state) = self.carry_out(word(0), address, word(16));
        let mut bytes = [0; RESPONSE_BYTES];
        bytes[..2].copy_from_slice(&(response as u16).to_le_bytes());
        bytes[8..].copy_from_slice(&(state as u16).to_le_bytes());
        Ok(ring::write(&self.memory, chain.writable(), &bytes) as u32)
    }

    /// The state counts only where it was asked for.
    fn carry_out(&mut self, kind: u16, address: u64, count: u16) -> (Response, Plugged) {
        let size = self.size.clone();
        let mut blocks = size.blocks();
        if kind == UNPLUG_ALL {
            let all = blocks.stretches(true);
            let done = all.into_iter().map(|stretch| self.change(&mut blocks, stretch, false));
            let worst = done.filter(|response| *response != Response::Ack).last();
            return (worst.unwrap_or(Response::Ack), Plugged::All);
        }
        let Some(range) = blocks.range(address, count) else { return (Response::Error, Plugged::All) };
        let response = match kind {
            PLUG => match blocks.judge_plug(&range) {
                Response::Ack => self.change(&mut blocks, range, true),
                refusal => refusal,
            },
            UNPLUG => match blocks.judge_unplug(&range) {
                Response::Ack => self.change(&mut blocks, range, false),
                refusal => refusal,
            },
            STATE => return (Response::Ack, blocks.state(&range)),
            _ => Response::Error,
        };
        (response, Plugged::All)
    }

    /// Lets the guest at these blocks, or takes them from it. Where the host cannot, they are as before.
    fn change(&mut self, blocks: &mut Blocks, range: Range<usize>, plug: bool) -> Response {
        let Range { start, end } = blocks.addresses(&range);
        let (address, len) = (GuestAddress(start), end - start);
        let done = match plug {
            true => self.backing.open(&self.memory, address, len),
            false => self.backing.close(&self.memory, address, len),
        };
        match done {
            Ok(()) => {
                blocks.set(range, plug);
                Response::Ack
            }
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    log::warn!(
                        "virtio-mem: {len} bytes at {start:#x} stay as they are, later ones are not told of: {error}"
                    );
                }
                Response::Busy
            }
        }
    }
}

#[cfg(test)]
mod tests;
