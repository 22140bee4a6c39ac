//! A driver without manners: brings a device up as Linux does, then does to registers, rings and memory whatever its input says.
//!
//! Knows no device: what a device's requests look like comes as a [`Rig`]. All that it does is bounded; what a device does with it
//! must be as well.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tatami_devices::virtio::{GuestMemory, MmioTransport, Role, SaveError, Threads, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

use crate::input::Input;

/// Bytes of RAM from address 0 on: first buffers, then the rings.
pub const LOW_BYTES: usize = 1 << 20;
/// RAM begins again here, as behind a PC's hole, with [`HIGH_BYTES`].
pub const HIGH: u64 = 4 << 30;
/// Bytes of RAM at [`HIGH`].
pub const HIGH_BYTES: usize = 64 << 10;
/// Buffers lie below.
const RINGS: u64 = 512 << 10;
/// What one queue's areas take at most, in bytes.
const RING_BYTES: u64 = 64 << 10;
/// Steps of one run.
const STEPS: usize = 96;
/// A device that has not come to rest by then never will.
const PATIENCE: Duration = Duration::from_secs(8);

/// virtio-mmio's registers, those that nothing is behind among them.
const STATUS: u64 = 0x70;
const NOTIFY: u64 = 0x50;
const QUEUE_REGISTERS: [u64; 9] = [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0x30];

/// A device, and how to ask it for something that makes sense to it.
pub struct Rig<'a> {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// How many of its queues it listens to, from the first on: kicks of others are heard by nobody.
    pub served: usize,
    /// Posts one request, or does whatever else the device's surroundings can do to it.
    pub request: &'a mut dyn FnMut(&mut Driver, &mut Input<'_>),
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// The device's to write.
    pub writable: bool,
}

/// A driver and the device it drives.
pub struct Driver {
    transport: MmioTransport,
    memory: GuestMemory,
    sizes: Vec<u16>,
    served: usize,
    next_head: u16,
}

/// Threads without confinement.
struct PlainThreads;

impl Threads for PlainThreads {
    fn spawn(&self, name: &str, _role: Role, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.to_owned()).spawn(body)
    }
}

/// Threads for a device.
pub fn threads() -> Arc<dyn Threads> {
    Arc::new(PlainThreads)
}

/// A guest's RAM, with a hole.
pub fn memory() -> GuestMemory {
    let ranges = [(GuestAddress(0), LOW_BYTES), (GuestAddress(HIGH), HIGH_BYTES)];
    GuestMemory::from_ranges(&ranges).expect("a megabyte of memory")
}

/// The guest physical address of queue `queue`'s table, available and used ring, when it has `size` entries.
pub fn areas(queue: usize, size: u16) -> [u64; 3] {
    let table = RINGS + RING_BYTES * queue as u64;
    let available = table + 16 * u64::from(size);
    [table, available, (available + 6 + 2 * u64::from(size)).next_multiple_of(4)]
}

/// Drives the device as `data` says, and then asks of it no more than to come to rest, be reset and start again.
pub fn drive(rig: Rig<'_>, data: &[u8]) {
    drive_in(memory(), rig, data);
}

/// The same in this RAM, which is laid out as that of [`memory`].
pub fn drive_in(memory: GuestMemory, rig: Rig<'_>, data: &[u8]) {
    let mut input = Input::new(data);
    let mut driver = Driver::new(memory, rig.device, rig.served);
    // The well-behaved beginning can be left out: then the input has to find its way through the registers.
    if input.byte() != 0xff {
        driver.bring_up(u64::from(input.byte()) << 24 | 0xffff_ffff_00ff_ffff);
    }
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        driver.step(&mut input, rig.request);
    }
    driver.settle();
    driver.reset();
    driver.bring_up(u64::MAX);
    assert_eq!(driver.get(STATUS) & 0x4f, 0xf, "the device does not start again after a reset");
}

impl Driver {
    fn new(memory: GuestMemory, device: Box<dyn VirtioDevice>, served: usize) -> Driver {
        let sizes = device.queue_sizes().to_vec();
        let transport = MmioTransport::new(device, memory.clone()).expect("event descriptors");
        Driver { transport, memory, sizes, served, next_head: 0 }
    }

    /// One step: a request that makes sense in three of eight cases, else something that does not.
    fn step(&mut self, input: &mut Input<'_>, request: &mut dyn FnMut(&mut Driver, &mut Input<'_>)) {
        match input.byte() % 24 {
            0..=8 => request(self, input),
            9 | 10 => self.chain(input),
            11 => self.indirect(input),
            12 => self.scribble(input),
            13 => self.set(u64::from(input.byte()) * 4, input.word()),
            14 => self.reconfigure(input),
            15 => drop(self.get(u64::from(input.byte()) * 4)),
            16 => {
                let bytes = input.bytes(16);
                self.transport.write(u64::from(input.half()), bytes);
            }
            17 => {
                let mut bytes = [0; 16];
                let count = usize::from(input.byte() % 17);
                self.transport.read(input.double(), &mut bytes[..count]);
            }
            18 => self.claim(input),
            19 => self.set(NOTIFY, input.word()),
            20 => self.settle(),
            21 => {
                self.transport.transport_mut().pause();
                self.transport.transport_mut().resume();
            }
            22 => self.come_back(),
            _ => {
                self.reset();
                self.bring_up(input.double());
            }
        }
    }

    fn areas(&self, queue: usize) -> [u64; 3] {
        areas(queue, self.sizes[queue])
    }

    /// From reset to DRIVER_OK (virtio 1.2, 3.1.1), with those of `features` that the device offers.
    pub fn bring_up(&mut self, features: u64) {
        for status in [1, 3] {
            self.set(STATUS, status);
        }
        for page in [0, 1] {
            self.set(0x14, page);
            let offered = self.get(0x10);
            self.set(0x24, page);
            // VERSION_1, without which nothing goes on.
            self.set(0x20, offered & ((features >> (32 * page)) as u32 | page));
        }
        self.set(STATUS, 0xb);
        for queue in 0..self.sizes.len() {
            let areas = self.areas(queue);
            self.put(areas[0], &vec![0; RING_BYTES as usize]);
            self.set(0x30, queue as u32);
            self.set(0x38, u32::from(self.sizes[queue]));
            for (register, area) in [0x80, 0x90, 0xa0].into_iter().zip(areas) {
                self.set(register, area as u32);
                self.set(register + 4, (area >> 32) as u32);
            }
            self.set(0x44, 1);
        }
        self.set(STATUS, 0xf);
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.set(STATUS, 0);
    }

    /// Whether the device has asked for a reset.
    pub fn needs_reset(&self) -> bool {
        self.get(STATUS) & 0x40 != 0
    }

    /// Waits until the device has done all it was asked: heard every kick, and left its work in order for another to go on.
    pub fn settle(&mut self) {
        self.rest();
        self.transport.transport_mut().pause();
        self.transport.transport_mut().resume();
    }

    /// Waits until the device has heard every kick.
    ///
    /// # Panics
    /// When it does not come to rest: it loops.
    pub fn rest(&mut self) {
        let end = Instant::now() + PATIENCE;
        // A kick that can still be taken was not heard. It is put back.
        let is_unheard = |driver: &Driver| {
            let mut kicks = driver.transport.transport().kicks().iter().take(driver.served);
            kicks.any(|kick| kick.read().is_ok_and(|count| kick.write(count).is_ok()))
        };
        while self.transport.transport().is_active() && !self.needs_reset() && is_unheard(self) {
            assert!(Instant::now() < end, "the device does not come to rest");
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Saves the device and lets it go on from there.
    fn come_back(&mut self) {
        self.transport.transport_mut().pause();
        let state = match self.transport.save() {
            // Then it goes on as it was.
            Err(SaveError::Elsewhere) => return self.transport.transport_mut().resume(),
            state => state.expect("what can be written down"),
        };
        let text = serde_json::to_vec(&state).expect("a state is JSON");
        let state = serde_json::from_slice(&text).expect("what was written");
        self.transport.restore(&state).expect("a device's own state");
        self.transport.transport_mut().resume();
    }

    fn get(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// Writes to guest memory; what lies outside is lost.
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(address));
    }

    /// Reads guest memory.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let _ = self.memory.read(&mut bytes, GuestAddress(address));
        bytes
    }

    /// How many chains have come back from a queue in all, modulo 65536.
    pub fn used(&self, queue: usize) -> u16 {
        self.half_at(self.areas(queue)[2] + 2)
    }

    /// Gives a chain back, as whoever serves the queue from elsewhere.
    pub fn give_back(&mut self, queue: usize, head: u32, len: u32) {
        let (used, index) = (self.areas(queue)[2], self.used(queue));
        self.put(
            used + 4 + 8 * u64::from(index % self.sizes[queue]),
            [head.to_le_bytes(), len.to_le_bytes()].as_flattened(),
        );
        self.put(used + 2, &index.wrapping_add(1).to_le_bytes());
    }

    fn half_at(&self, address: u64) -> u16 {
        let bytes = self.bytes(address, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// Makes a chain of these buffers available in `queue` and kicks.
    pub fn post(&mut self, queue: usize, buffers: &[Buffer]) {
        let size = self.sizes[queue];
        if buffers.is_empty() || buffers.len() > usize::from(size) {
            return;
        }
        let first = self.next_head % size;
        self.next_head = self.next_head.wrapping_add(buffers.len() as u16);
        let table = self.areas(queue)[0];
        for (at, buffer) in buffers.iter().enumerate() {
            let index = (first + at as u16) % size;
            let last = at + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(buffer.writable) << 1;
            self.describe(table, index, buffer, (flags, (index + 1) % size));
        }
        self.offer(queue, first);
    }

    /// Writes one descriptor (virtio 1.2, 2.7.5).
    fn describe(&mut self, table: u64, index: u16, buffer: &Buffer, (flags, next): (u16, u16)) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table.wrapping_add(16 * u64::from(index)), &bytes);
    }

    /// Makes `head` available in `queue` and kicks.
    fn offer(&mut self, queue: usize, head: u16) {
        let available = self.areas(queue)[1];
        let index = self.half_at(available + 2);
        self.put(available + 4 + 2 * u64::from(index % self.sizes[queue]), &head.to_le_bytes());
        self.put(available + 2, &index.wrapping_add(1).to_le_bytes());
        self.set(NOTIFY, queue as u32);
    }

    /// An address: in the buffers, at a border, or anywhere.
    pub fn address(input: &mut Input<'_>) -> u64 {
        match input.byte() % 8 {
            0..=4 => u64::from(input.half()) * 4,
            5 => HIGH + u64::from(input.half()),
            6 => LOW_BYTES as u64 - u64::from(input.byte()),
            _ => input.double(),
        }
    }

    fn queue(&self, input: &mut Input<'_>) -> usize {
        usize::from(input.byte()) % self.sizes.len()
    }

    fn buffer(input: &mut Input<'_>) -> Buffer {
        let address = Driver::address(input);
        Buffer { address, len: input.word(), writable: input.byte() & 1 != 0 }
    }

    /// Any descriptors with any links, and any head.
    fn chain(&mut self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        let table = self.areas(queue)[0];
        for _ in 0..input.byte() % 8 {
            let index = input.half() % self.sizes[queue];
            let links = (u16::from(input.byte()), input.half());
            self.describe(table, index, &Driver::buffer(input), links);
        }
        self.offer(queue, input.half());
    }

    /// An indirect table, and a descriptor that names it.
    fn indirect(&mut self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        let (table, entries) = (Driver::address(input), u16::from(input.byte() % 16));
        for index in 0..entries {
            let links = (u16::from(input.byte()), u16::from(input.byte()));
            self.describe(table, index, &Driver::buffer(input), links);
        }
        let len = if input.byte() & 1 == 0 { u32::from(entries) * 16 } else { input.word() };
        let head = input.half() % self.sizes[queue];
        let outer = (4 | u16::from(input.byte()), input.half());
        self.describe(self.areas(queue)[0], head, &Buffer { address: table, len, writable: false }, outer);
        self.offer(queue, head);
    }

    fn scribble(&mut self, input: &mut Input<'_>) {
        let place = match input.byte() % 2 {
            0 => Driver::address(input),
            _ => RINGS + u64::from(input.word()) % (RING_BYTES * self.sizes.len() as u64),
        };
        self.put(place, input.bytes(64));
    }

    /// Says that more is available than there is.
    fn claim(&mut self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        let index = input.half();
        self.put(self.areas(queue)[1] + 2, &index.to_le_bytes());
        self.set(NOTIFY, queue as u32);
    }

    /// Writes queue registers, in time or not.
    fn reconfigure(&mut self, input: &mut Input<'_>) {
        self.set(0x30, u32::from(input.byte()));
        for _ in 0..input.byte() % 4 {
            self.set(input.pick(&QUEUE_REGISTERS), input.word());
        }
    }
}
