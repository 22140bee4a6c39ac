//! virtio-balloon (virtio 1.2, 5.5): memory that the guest does not use goes back to the host.
//!
//! It has two ways. The driver reports pages that happen to be free, and takes them again without a word: nobody needs to ask.
//! And the host may ask for pages ([`BalloonSize::set`]), which the driver then takes from its own processes and caches; when it
//! runs out of memory it takes them back.
//!
//! Knows no addresses of the host: what is behind RAM is [`Backing`]'s. There are no statistics: the agent in the guest tells
//! more.

mod spec;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use event_manager::EventOps;
use vm_memory::GuestAddress;

use self::spec::{
    CONFIG_ACTUAL, CONFIG_BYTES, CONFIG_POISON, CONFIG_WANTED, DEFLATE, FEATURE_DEFLATE_ON_OOM, FEATURE_PAGE_POISON,
    FEATURE_PAGE_REPORTING, INFLATE, NUMBER_BYTES, NUMBERS_LIMIT, PAGE_BYTES, QUEUE_SIZES, REPORTING,
};
use super::device::read_space;
use super::interrupt::ConfigListener;
use super::worker::Work;
use super::{
    ActivateError, Activation, ActiveQueue, Backing, Chain, DeviceKind, Fault, GuestMemory, Progress, RestoreError,
    Ring, Role, SaveError, Threads, VirtioDevice, Worker, ring,
};

/// The balloon.
pub struct Balloon {
    size: BalloonSize,
    reporting: bool,
    backing: Arc<dyn Backing>,
    threads: Arc<dyn Threads>,
    worker: Option<Worker<Service>>,
}

/// How large the balloon is and shall be. Clones are of the same balloon.
#[derive(Clone, Default)]
pub struct BalloonSize(Arc<Inner>);

#[derive(Default)]
struct Inner {
    wanted: AtomicU32,
    actual: AtomicU32,
    poison: AtomicU32,
    /// Whom to tell of another wish.
    listener: ConfigListener,
}

impl BalloonSize {
    /// Asks the guest for `bytes` in all, rounded down to pages of 4 KiB; it gives what it can, over time.
    pub fn set(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        self.0.wanted.store(pages, Ordering::Release);
        self.0.listener.tell();
    }

    /// What was asked for, in bytes.
    pub fn wanted(&self) -> u64 {
        u64::from(self.0.wanted.load(Ordering::Acquire)) * PAGE_BYTES
    }

    /// What the guest says it has given, in bytes.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::Acquire)) * PAGE_BYTES
    }

    fn config_space(&self) -> [u8; CONFIG_BYTES] {
        let mut space = [0; CONFIG_BYTES];
        for (at, value) in
            [(CONFIG_WANTED, &self.0.wanted), (CONFIG_ACTUAL, &self.0.actual), (CONFIG_POISON, &self.0.poison)]
        {
            space[at..at + 4].copy_from_slice(&value.load(Ordering::Acquire).to_le_bytes());
        }
        space
    }
}

impl std::fmt::Debug for BalloonSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BalloonSize").field("wanted", &self.wanted()).field("actual", &self.actual()).finish()
    }
}

impl std::fmt::Debug for Balloon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balloon").field("size", &self.size).field("active", &self.worker.is_some()).finish()
    }
}

impl Balloon {
    /// A balloon that `size` tells how large to be, and whose pages go back through `backing`.
    pub fn new(size: BalloonSize, backing: Arc<dyn Backing>, threads: Arc<dyn Threads>) -> Self {
        Balloon { size, reporting: true, backing, threads, worker: None }
    }

    /// The same, if `reporting`; otherwise it takes only the pages that it asks for, and the driver is not offered to report free ones.
    pub fn with_reporting(self, reporting: bool) -> Self {
        Balloon { reporting, ..self }
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        let reporting = if self.reporting { FEATURE_PAGE_REPORTING } else { 0 };
        FEATURE_DEFLATE_ON_OOM | FEATURE_PAGE_POISON | reporting
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.size.config_space();
        read_space(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = data.try_into().map(u32::from_le_bytes) else { return };
        match usize::try_from(offset) {
            Ok(CONFIG_ACTUAL) => self.size.0.actual.store(bytes, Ordering::Release),
            Ok(CONFIG_POISON) => self.size.0.poison.store(bytes, Ordering::Release),
            _ => {}
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        let mut rings = Vec::with_capacity(QUEUE_SIZES.len());
        let mut kicks = Vec::with_capacity(QUEUE_SIZES.len());
        for (index, queue) in (0..).zip(queues) {
            let ring = queue.map(|queue| Ring::new(index, queue, memory.clone(), Arc::clone(&interrupt)));
            match &ring {
                Some(ring) => kicks.push((index, ring.kick().try_clone()?)),
                None if index == REPORTING && features & FEATURE_PAGE_REPORTING == 0 => {}
                None => return Err(ActivateError::MissingQueue(index)),
            }
            rings.push(ring);
        }
        // A driver that looks for bytes of its own in free pages must find them: they can go only if those are zeros.
        let poisons = features & FEATURE_PAGE_POISON != 0;
        let keeper = Keeper {
            memory,
            backing: Arc::clone(&self.backing),
            zeros_do: !poisons || self.size.0.poison.load(Ordering::Acquire) == 0,
            warned: false,
        };
        let listener = Arc::clone(&interrupt);
        let work = Service { rings, keeper };
        let name = "virtio-balloon";
        self.worker = Some(Worker::spawn(self.threads.as_ref(), name, Role::Memory, kicks, interrupt, work)?);
        self.size.0.listener.set(Some(listener));
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        let work = self.worker.take().and_then(Worker::stop);
        work.into_iter().flat_map(|work| work.rings).map(|ring| ring.map(Ring::into_active)).collect()
    }

    fn save(&self) -> Result<Vec<u8>, SaveError> {
        Ok(self.size.config_space().to_vec())
    }

    fn restore(&mut self, saved: &[u8], _memory: &GuestMemory) -> Result<(), RestoreError> {
        let words: &[[u8; 4]; CONFIG_BYTES / 4] = saved.as_chunks().0.try_into().map_err(|_| RestoreError::Device)?;
        for (at, value) in [
            (CONFIG_WANTED, &self.size.0.wanted),
            (CONFIG_ACTUAL, &self.size.0.actual),
            (CONFIG_POISON, &self.size.0.poison),
        ] {
            value.store(u32::from_le_bytes(words[at / 4]), Ordering::Release);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
        self.size.0.listener.set(None);
        // The next driver has given nothing yet.
        self.size.0.actual.store(0, Ordering::Release);
        self.size.0.poison.store(0, Ordering::Release);
    }
}

struct Service {
    /// By queue.
    rings: Vec<Option<Ring>>,
    keeper: Keeper,
}

impl Work for Service {
    fn kicked(&mut self, index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        let Some(ring) = self.rings.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(Progress::Idle);
        };
        let keeper = &mut self.keeper;
        ring.drain(|chain| {
            match index {
                INFLATE => keeper.inflate(chain)?,
                REPORTING => keeper.report(chain),
                // Pages come back by being touched; the driver only wants to hear that we know.
                other => debug_assert_eq!(other, DEFLATE, "there is no other queue"),
            }
            Ok(0)
        })
    }
}

/// Gives pages back.
struct Keeper {
    memory: GuestMemory,
    backing: Arc<dyn Backing>,
    /// The driver does not mind finding zeros in a page that was free.
    zeros_do: bool,
    /// A failure has been logged; later ones are not.
    warned: bool,
}

impl Keeper {
    /// Pages by number, 32 bits each (5.5.6.1): the driver leaves them alone until it takes them back.
    fn inflate(&mut self, chain: &Chain) -> Result<(), Fault> {
        let bytes = ring::total(chain.readable());
        if bytes > NUMBERS_LIMIT || !(bytes as usize).is_multiple_of(NUMBER_BYTES) {
            return Err(Fault::Request(format!("{bytes} bytes of page numbers")));
        }
        let mut numbers = vec![0; bytes as usize];
        ring::read(&self.memory, chain.readable(), &mut numbers);
        let pages = numbers.as_chunks::<NUMBER_BYTES>().0.iter().map(|number| u64::from(u32::from_le_bytes(*number)));
        for stretch in stretches(pages) {
            let (address, len) = (stretch.start * PAGE_BYTES, (stretch.end - stretch.start) * PAGE_BYTES);
            self.release(GuestAddress(address), len);
        }
        Ok(())
    }

    /// Stretches of RAM, as buffers for us to write (5.5.6.7), which nobody uses until they come back. The ring has seen to it that
    /// they are RAM.
    fn report(&mut self, chain: &Chain) {
        if self.zeros_do {
            for segment in chain.writable() {
                self.release(segment.address, segment.len.into());
            }
        }
    }

    /// What cannot be given back stays with the guest, which is no worse than before.
    fn release(&mut self, address: GuestAddress, len: u64) {
        if let Err(error) = self.backing.release(&self.memory, address, len)
            && !std::mem::replace(&mut self.warned, true)
        {
            let address = address.0;
            log::warn!(
                "virtio-balloon: {len} bytes at {address:#x} stay with the guest, later ones are not told of: {error}"
            );
        }
    }
}

/// Page numbers as stretches, those that follow one another in either direction made one.
fn stretches(pages: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut stretches: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match stretches.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            Some(last) if last.start == page + 1 => last.start = page,
            _ => stretches.push(page..page + 1),
        }
    }
    stretches
}

#[cfg(test)]
mod tests;
