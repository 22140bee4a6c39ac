//! A driver's end of the two rings, and the machine around it: memory, kicks, interrupts, a thread for the device.
//!
//! Kicks only when the device asked for it and sleeps until it is interrupted, so that a lost notification of either kind shows
//! as a test that does not end. Knows packets, but not what they mean.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::spec::{HEADER_SIZE, Header};
use super::super::{HostPorts, Vsock};
use crate::virtio::{Activation, ActiveQueue, GuestMemory, Interrupt, Role, Threads, VirtioDevice};

/// The context id of the test guest.
pub(super) const GUEST_CID: u64 = 52;
/// How long anything may take before a test gives up.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

const RX: usize = 0;
const TX: usize = 1;
const SIZE: u16 = 128;
const DESCRIPTOR_NEXT: u16 = 1;
const DESCRIPTOR_WRITE: u16 = 2;

/// Size of a receive buffer in bytes, header included; like Linux's.
pub(super) const RX_BUFFER: u32 = 3776;
const TX_BUFFER: u64 = 0x1_1000;
/// The largest payload that the test guest sends in one packet; like Linux's.
pub(super) const MAX_PAYLOAD: usize = 64 * 1024;

/// How the driver cuts packets into descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Header and payload in one descriptor.
    Single,
    /// One descriptor for each.
    Two,
    /// Many, the header cut as well.
    Many,
}

/// What the device says to its driver.
#[derive(Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
    pub(super) broken: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.heard.notify_all();
    }

    /// Waits for an interrupt since the last call, at most until `end`.
    fn wait(&self, end: Instant) -> bool {
        let rung = self.rung.lock().unwrap();
        let left = end.saturating_duration_since(Instant::now());
        let (mut rung, _) = self.heard.wait_timeout_while(rung, left, |rung| !*rung).unwrap();
        std::mem::take(&mut rung)
    }
}

impl Interrupt for Bell {
    fn queue(&self, _index: u16) {
        self.ring();
    }

    fn queue_event(&self, _index: u16) -> Option<&EventFd> {
        None
    }

    fn config(&self) {}

    fn needs_reset(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.ring();
    }
}

/// Plain threads that remember under which number the kernel knows them.
#[derive(Default)]
pub(super) struct PlainThreads {
    pub(super) task: Arc<Mutex<Option<PathBuf>>>,
}

impl Threads for PlainThreads {
    fn spawn(&self, name: &str, role: Role, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        assert_eq!(role, Role::Socket);
        let task = Arc::clone(&self.task);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            *task.lock().unwrap() = Some(PathBuf::from("/proc").join(std::fs::read_link("/proc/thread-self").unwrap()));
            body();
        })
    }
}

/// Offers ports by a closure.
pub(super) struct Ports<F>(pub(super) F);

impl<F: FnMut(u32) -> Option<UnixStream> + Send> HostPorts for Ports<F> {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        (self.0)(port)
    }
}

/// Refuses every port.
pub(super) fn no_ports() -> Box<dyn HostPorts> {
    Box::new(Ports(|_| None))
}

/// One ring from the driver's side.
pub(super) struct DriverQueue {
    memory: GuestMemory,
    base: u64,
    event_index: bool,
    posted: u16,
    seen: u16,
    kick: EventFd,
}

impl DriverQueue {
    fn new(memory: &GuestMemory, base: u64, event_index: bool) -> DriverQueue {
        memory.write_slice(&[0; 0x4000], GuestAddress(base)).unwrap();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        DriverQueue { memory: memory.clone(), base, event_index, posted: 0, seen: 0, kick }
    }

    fn active(&self) -> ActiveQueue {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.avail() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used() as u32), Some(0));
        queue.set_event_idx(self.event_index);
        queue.set_ready(true);
        ActiveQueue { queue, kick: self.kick.try_clone().unwrap() }
    }

    fn avail(&self) -> u64 {
        self.base + 0x2000
    }

    fn used(&self) -> u64 {
        self.base + 0x3000
    }

    fn store(&self, address: u64, value: u16) {
        self.memory.store(value.to_le(), GuestAddress(address), Ordering::SeqCst).unwrap();
    }

    fn load(&self, address: u64) -> u16 {
        u16::from_le(self.memory.load(GuestAddress(address), Ordering::SeqCst).unwrap())
    }

    /// Writes one descriptor.
    pub(super) fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(self.base + 16 * u64::from(index))).unwrap();
    }

    /// Makes the chain at `head` available, and kicks if the device wants that.
    pub(super) fn post(&mut self, head: u16) {
        self.store(self.avail() + 4 + 2 * u64::from(self.posted % SIZE), head);
        let old = self.posted;
        self.posted = old.wrapping_add(1);
        self.store(self.avail() + 2, self.posted);
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            self.load(self.used() + 4 + 8 * u64::from(SIZE)) == old
        } else {
            self.load(self.used()) & 1 == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// A chain that the device gave back: its head and how much was written to it.
    fn take(&mut self) -> Option<(u16, u32)> {
        if self.load(self.used() + 2) == self.seen {
            return None;
        }
        let mut bytes = [0; 8];
        let at = self.used() + 4 + 8 * u64::from(self.seen % SIZE);
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Some((word(0) as u16, word(4)))
    }

    /// Asks for an interrupt at the next chain given back; whether one has been already.
    fn arm(&self) -> bool {
        self.store(self.avail() + 4 + 2 * u64::from(SIZE), self.seen);
        fence(Ordering::SeqCst);
        self.load(self.used() + 2) != self.seen
    }
}

/// A machine with nothing but the socket device, and a driver.
pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) memory: GuestMemory,
    pub(super) rx: DriverQueue,
    pub(super) tx: DriverQueue,
    /// The event queue, for those who want one.
    pub(super) events: DriverQueue,
    pub(super) bell: Arc<Bell>,
    pub(super) layout: Layout,
    pub(super) task: Arc<Mutex<Option<PathBuf>>>,
    event_index: bool,
    free_tx: Vec<u16>,
    /// Receive buffers that the driver keeps to itself: heads.
    pub(super) withheld: Vec<u16>,
    /// Keep receive buffers instead of posting them again.
    pub(super) withhold: bool,
    folder: tempfile::TempDir,
}

/// Chains start at every eighth descriptor.
const SPACING: u16 = 8;
const CHAINS: u16 = SIZE / SPACING;

impl Guest {
    /// A guest whose driver has come up.
    pub(super) fn start(layout: Layout, event_index: bool, host: Box<dyn HostPorts>) -> Guest {
        let mut guest = Guest::new(layout, event_index, host);
        guest.activate();
        guest
    }

    /// A guest without a driver.
    pub(super) fn new(layout: Layout, event_index: bool, host: Box<dyn HostPorts>) -> Guest {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("vsock")).unwrap();
        let threads = PlainThreads::default();
        let task = Arc::clone(&threads.task);
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        Guest {
            device: Vsock::new(GUEST_CID, listener, host, Arc::new(threads)).unwrap(),
            rx: DriverQueue::new(&memory, 0x10000, event_index),
            tx: DriverQueue::new(&memory, 0x20000, event_index),
            events: DriverQueue::new(&memory, 0x30000, event_index),
            memory,
            bell: Arc::default(),
            layout,
            task,
            event_index,
            free_tx: Vec::new(),
            withheld: Vec::new(),
            withhold: false,
            folder,
        }
    }

    /// The driver comes up, or comes up again, with rings of its own.
    pub(super) fn activate(&mut self) {
        self.rx = DriverQueue::new(&self.memory, 0x10000, self.event_index);
        self.tx = DriverQueue::new(&self.memory, 0x20000, self.event_index);
        self.free_tx = (0..CHAINS).map(|chain| chain * SPACING).collect();
        let queues = vec![Some(self.rx.active()), Some(self.tx.active()), None];
        self.give(queues);
        for head in (0..CHAINS).map(|chain| chain * SPACING) {
            self.recycle(head);
        }
    }

    /// Hands `queues` to the device.
    pub(super) fn give(&mut self, queues: Vec<Option<ActiveQueue>>) {
        let (memory, interrupt) = (self.memory.clone(), Arc::clone(&self.bell) as Arc<dyn Interrupt>);
        self.device.activate(Activation { memory, features: 0, queues, interrupt }).unwrap();
    }

    /// Comes up in the place of another machine's device, which saved `state` and whose driver has given `events` buffers for
    /// events.
    pub(super) fn take_over(&mut self, events: u16, state: &[u8]) {
        self.rx = DriverQueue::new(&self.memory, 0x10000, self.event_index);
        self.tx = DriverQueue::new(&self.memory, 0x20000, self.event_index);
        self.events = DriverQueue::new(&self.memory, 0x30000, self.event_index);
        self.free_tx = (0..CHAINS).map(|chain| chain * SPACING).collect();
        (0..events).for_each(|head| self.give_event_buffer(head));
        for head in (0..CHAINS).map(|chain| chain * SPACING) {
            self.recycle(head);
        }
        self.device.restore(state, &self.memory).unwrap();
        let queues = vec![Some(self.rx.active()), Some(self.tx.active()), Some(self.events.active())];
        self.give(queues);
    }

    /// Posts a buffer for an event.
    pub(super) fn give_event_buffer(&mut self, head: u16) {
        let address = 0x8_0000 + 8 * u64::from(head);
        self.memory.write_slice(&[0xff; 8], GuestAddress(address)).unwrap();
        self.events.describe(head, address, 4, DESCRIPTOR_WRITE, 0);
        self.events.post(head);
    }

    /// The next event, waiting for it: its buffer's head and its number.
    pub(super) fn expect_event(&mut self) -> (u16, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some((head, len)) = self.events.take() {
                assert_eq!(len, 4);
                let number: u32 = self.memory.read_obj(GuestAddress(0x8_0000 + 8 * u64::from(head))).unwrap();
                return (head, u32::from_le(number));
            }
            assert!(Instant::now() < end, "no event came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A client's socket on the host.
    pub(super) fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join("vsock")).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn rx_address(head: u16) -> u64 {
        0x10_0000 + u64::from(head / SPACING) * 0x1000
    }

    /// Where the packet at `head` of the transmit queue is.
    pub(super) fn tx_address(head: u16) -> u64 {
        0x40_0000 + u64::from(head / SPACING) * TX_BUFFER
    }

    /// Posts a receive buffer.
    pub(super) fn recycle(&mut self, head: u16) {
        if self.withhold {
            self.withheld.push(head);
            return;
        }
        self.lay(RX, head, Guest::rx_address(head), RX_BUFFER, DESCRIPTOR_WRITE);
        self.rx.post(head);
    }

    /// Posts every buffer that was kept.
    pub(super) fn release(&mut self) {
        self.withhold = false;
        for head in std::mem::take(&mut self.withheld) {
            self.recycle(head);
        }
    }

    /// Describes `len` bytes at `address` as the layout demands.
    fn lay(&self, queue: usize, head: u16, address: u64, len: u32, flags: u16) {
        let header = HEADER_SIZE as u32;
        let cuts: &[u32] = match self.layout {
            Layout::Single => &[],
            Layout::Two => &[header],
            Layout::Many => &[7, header - 1, header + 1, header + 100, header + 1500],
        };
        let queue = if queue == RX { &self.rx } else { &self.tx };
        let (mut from, mut index) = (0, head);
        for cut in cuts.iter().copied().filter(|cut| *cut < len) {
            queue.describe(index, address + u64::from(from), cut - from, flags | DESCRIPTOR_NEXT, index + 1);
            (from, index) = (cut, index + 1);
        }
        queue.describe(index, address + u64::from(from), len - from, flags, 0);
    }

    /// Sends a packet, waiting for room in the ring.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        self.send_raw(&header.to_bytes(), payload);
    }

    /// Sends whatever bytes, waiting for room in the ring.
    pub(super) fn send_raw(&mut self, header: &[u8], payload: &[u8]) {
        let end = Instant::now() + PATIENCE;
        let head = loop {
            while let Some((head, _)) = self.tx.take() {
                self.free_tx.push(head);
            }
            match self.free_tx.pop() {
                Some(head) => break head,
                None => assert!(self.tx.arm() || self.bell.wait(end), "the device takes no packets"),
            }
        };
        let address = Guest::tx_address(head);
        self.memory.write_slice(header, GuestAddress(address)).unwrap();
        self.memory.write_slice(payload, GuestAddress(address + header.len() as u64)).unwrap();
        self.lay(TX, head, address, (header.len() + payload.len()) as u32, 0);
        self.tx.post(head);
    }

    /// Whether a packet could be sent without waiting.
    pub(super) fn can_send(&mut self) -> bool {
        while let Some((head, _)) = self.tx.take() {
            self.free_tx.push(head);
        }
        !self.free_tx.is_empty()
    }

    /// The next packet that has arrived, if one has.
    pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.rx.take()?;
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(Guest::rx_address(head))).unwrap();
        self.recycle(head);
        let header = Header::from_bytes(bytes[..HEADER_SIZE].try_into().expect("a packet without a header"));
        assert_eq!(header.len as usize, bytes.len() - HEADER_SIZE, "the used length and the header differ");
        Some((header, bytes.split_off(HEADER_SIZE)))
    }

    /// Sleeps until the device has done something, at most until `end`.
    pub(super) fn sleep(&mut self, end: Instant) {
        // Both must be armed.
        let busy = self.rx.arm() | self.tx.arm();
        if !busy {
            self.bell.wait(end);
        }
    }

    /// The next packet, waiting for it.
    pub(super) fn expect(&mut self) -> (Header, Vec<u8>) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.receive() {
                return packet;
            }
            assert!(Instant::now() < end, "no packet came");
            self.sleep(end);
        }
    }

    /// Asserts that no packet comes for a while.
    pub(super) fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.receive(), None, "a packet came");
    }

    /// Waits until the device has declared itself broken.
    pub(super) fn expect_broken(&mut self) {
        let end = Instant::now() + PATIENCE;
        while !self.bell.broken.load(Ordering::SeqCst) {
            assert!(Instant::now() < end, "the device goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How often the device's thread has gone to sleep or been interrupted so far.
    pub(super) fn switches(&self) -> u64 {
        let task = self.task.lock().unwrap().clone().expect("the device has a thread");
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let count = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).expect("a count of switches");
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:")
    }
}
