//! The other side, for tests: a driver that brings a device up register by register, and posts what it is told to, good or bad.
//!
//! Knows no device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::spec::{
    DESCRIPTOR_BYTES, DESCRIPTOR_NEXT, STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
};
use super::{GuestMemory, MmioTransport, Role, Threads, TransportState, VirtioDevice};

pub(crate) mod probe;

/// Low RAM of the test machine, in bytes; buffers and rings live here.
pub(crate) const LOW_BYTES: usize = 16 << 20;
/// High RAM begins at 4 GiB and is this long.
pub(crate) const HIGH_BYTES: usize = 1 << 20;
pub(crate) const HIGH: u64 = 4 << 30;
/// Where the rings are: one a MiB from here.
const RINGS: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Threads without confinement.
#[derive(Debug)]
pub(crate) struct PlainThreads;

impl Threads for PlainThreads {
    fn spawn(&self, name: &str, _role: Role, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        assert!(name.len() <= 15, "{name} is too long a name for a thread");
        std::thread::Builder::new().name(name.to_owned()).spawn(body)
    }
}

pub(crate) fn threads() -> Arc<dyn Threads> {
    Arc::new(PlainThreads)
}

/// RAM with a hole, as a PC has it.
pub(crate) fn memory() -> GuestMemory {
    let ranges = [(GuestAddress(0), LOW_BYTES), (GuestAddress(HIGH), HIGH_BYTES)];
    GuestMemory::from_ranges(&ranges).expect("memory for the test guest")
}

/// The same in files that another process could map, the upper part further on in its file than at the beginning.
pub(crate) fn shared_memory() -> GuestMemory {
    let file = |size: usize, start: u64| {
        let file = rustix::fs::memfd_create("test guest", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
        rustix::fs::ftruncate(&file, start + size as u64).expect("a file in memory");
        Some(FileOffset::new(file.into(), start))
    };
    let low = (GuestAddress(0), LOW_BYTES, file(LOW_BYTES, 0));
    let high = (GuestAddress(HIGH), HIGH_BYTES, file(HIGH_BYTES, 0x2_0000));
    GuestMemory::from_ranges_with_files([low, high]).expect("memory for the test guest")
}

/// A descriptor for the device to read.
pub(crate) fn out(address: u64, len: u32) -> Descriptor {
    Descriptor::new(address, len, 0, 0)
}

/// A descriptor for the device to write.
pub(crate) fn into(address: u64, len: u32) -> Descriptor {
    Descriptor::new(address, len, super::spec::DESCRIPTOR_WRITE, 0)
}

/// The driver's view of one queue's three areas. (virtio-queue's own mock lays the used ring over the available one.)
#[derive(Clone)]
pub(crate) struct Rings {
    memory: GuestMemory,
    size: u16,
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl Rings {
    pub(crate) fn at(memory: &GuestMemory, start: u64, size: u16) -> Self {
        let available = start + DESCRIPTOR_BYTES * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Rings { memory: memory.clone(), size, table: start, available, used }
    }

    /// Writes descriptor `index` of a table anywhere.
    pub(crate) fn describe(&self, table: u64, index: u16, descriptor: Descriptor) {
        let place = GuestAddress(table + DESCRIPTOR_BYTES * u64::from(index));
        self.memory.write_obj(descriptor, place).expect("a table in RAM");
    }

    pub(crate) fn available_index(&self) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(self.available + 2)).expect("a ring in RAM"))
    }

    pub(crate) fn set_available_index(&self, index: u16) {
        self.memory.store(index.to_le(), GuestAddress(self.available + 2), Ordering::Release).expect("a ring in RAM");
    }

    /// Makes `head` available.
    pub(crate) fn offer(&self, head: u16) {
        let index = self.available_index();
        let slot = self.available + 4 + 2 * u64::from(index % self.size);
        self.memory.write_obj(head.to_le(), GuestAddress(slot)).expect("a ring in RAM");
        self.set_available_index(index.wrapping_add(1));
    }

    pub(crate) fn used_index(&self) -> u16 {
        u16::from_le(self.memory.load(GuestAddress(self.used + 2), Ordering::Acquire).expect("a ring in RAM"))
    }

    /// Entry number `index` of the used ring: head and length.
    pub(crate) fn used(&self, index: u16) -> (u32, u32) {
        let slot = self.used + 4 + 8 * u64::from(index % self.size);
        let [head, len]: [u32; 2] = self.memory.read_obj(GuestAddress(slot)).expect("a ring in RAM");
        (u32::from_le(head), u32::from_le(len))
    }
}

/// Numbers that look random and are the same each time (xorshift), for drivers that try everything.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.roll() >> 16) % end
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A driver and the device it drives.
pub(crate) struct Driver {
    pub(crate) transport: MmioTransport,
    pub(crate) memory: GuestMemory,
    /// A ring size for each queue.
    sizes: Vec<u16>,
    /// Chains taken back so far, by queue.
    taken: Vec<u16>,
}

impl Driver {
    /// In front of `device`, nothing done yet.
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Driver::within(memory(), device)
    }

    /// As [`Driver::new`], in this memory.
    pub(crate) fn within(memory: GuestMemory, device: Box<dyn VirtioDevice>) -> Self {
        let sizes = device.queue_sizes().to_vec();
        let count = sizes.len();
        let transport = MmioTransport::new(device, memory.clone()).expect("a transport");
        Driver { transport, memory, sizes, taken: vec![0; count] }
    }

    /// Brings `device` up with every feature that it offers, its rings as long as it allows.
    pub(crate) fn start(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Driver::new(device);
        driver.bring_up(u64::MAX);
        driver
    }

    /// The same guest in front of another device, to which `state` has been restored.
    pub(crate) fn continue_with(&self, device: Box<dyn VirtioDevice>, state: &TransportState) -> Self {
        let mut transport = MmioTransport::new(device, self.memory.clone()).expect("a transport");
        transport.restore(state).expect("a state of this device");
        Driver { transport, memory: self.memory.clone(), sizes: self.sizes.clone(), taken: self.taken.clone() }
    }

    /// Brings the device up with those of `features` that it offers.
    pub(crate) fn bring_up(&mut self, features: u64) {
        self.negotiate(features);
        for queue in 0..self.sizes.len() {
            self.set_up_queue(queue as u32);
        }
        self.add_status(STATUS_DRIVER_OK);
    }

    /// Resets the device, and forgets what came back from it.
    pub(crate) fn reset(&mut self) {
        self.set(0x70, 0);
        self.taken.fill(0);
    }

    /// As far as FEATURES_OK.
    pub(crate) fn negotiate(&mut self, features: u64) {
        self.add_status(STATUS_ACKNOWLEDGE);
        self.add_status(STATUS_DRIVER);
        for page in [0, 1] {
            self.set(0x14, page);
            let offered = self.get(0x10);
            self.set(0x24, page);
            self.set(0x20, offered & (features >> (32 * page)) as u32);
        }
        self.add_status(STATUS_FEATURES_OK);
    }

    /// Lays a queue out and tells the device.
    pub(crate) fn set_up_queue(&mut self, queue: u32) {
        let rings = self.rings(queue as usize);
        let areas = [rings.table, rings.available, rings.used];
        for area in areas {
            self.put(area, &[0; 64]);
        }
        self.set(0x30, queue);
        self.set(0x38, u32::from(self.sizes[queue as usize]));
        for (register, area) in [0x80, 0x90, 0xa0].into_iter().zip(areas) {
            self.set(register, area as u32);
            self.set(register + 4, (area >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    pub(crate) fn get(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u8 {
        self.get(0x70) as u8
    }

    pub(crate) fn add_status(&mut self, step: u8) {
        self.set(0x70, u32::from(self.status() | step));
    }

    pub(crate) fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.transport.read(0x100 + offset, &mut bytes);
        bytes
    }

    /// The queue's rings, to write nonsense into.
    pub(crate) fn rings(&self, queue: usize) -> Rings {
        Rings::at(&self.memory, RINGS + ((queue as u64) << 20), self.sizes[queue])
    }

    /// Writes `descriptors` into the table from `head` on, linked to a chain.
    pub(crate) fn lay(&self, queue: usize, head: u16, descriptors: &[Descriptor]) {
        let rings = self.rings(queue);
        for (index, descriptor) in (head..).zip(descriptors) {
            let last = usize::from(index - head) + 1 == descriptors.len();
            let flags = descriptor.flags() | if last { 0 } else { DESCRIPTOR_NEXT };
            let linked = Descriptor::new(descriptor.addr().0, descriptor.len(), flags, index + 1);
            rings.describe(rings.table, index, linked);
        }
    }

    /// Posts a chain at `head` and kicks.
    pub(crate) fn post(&mut self, queue: usize, head: u16, descriptors: &[Descriptor]) {
        self.lay(queue, head, descriptors);
        self.rings(queue).offer(head);
        self.set(0x50, queue as u32);
    }

    /// The next chain that comes back, as (head, bytes written). Panics after ten seconds.
    pub(crate) fn take(&mut self, queue: usize) -> (u32, u32) {
        let taken = self.taken[queue];
        let rings = self.rings(queue);
        wait_for("used buffer", || rings.used_index() != taken);
        self.taken[queue] = taken.wrapping_add(1);
        rings.used(taken)
    }

    /// How many chains have come back in all.
    pub(crate) fn used(&self, queue: usize) -> u16 {
        self.rings(queue).used_index()
    }

    /// Waits until the device asks for a reset. Panics after ten seconds.
    pub(crate) fn wait_for_needs_reset(&self) {
        wait_for("DEVICE_NEEDS_RESET", || self.status() & STATUS_NEEDS_RESET != 0);
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("an address in RAM");
    }

    pub(crate) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("an address in RAM");
        bytes
    }
}

/// Waits for something that another thread does. Panics after ten seconds.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "no {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
