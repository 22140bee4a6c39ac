//! What every transport does alike (virtio 1.2, 3.1): status, feature negotiation, queue set-up, activation, reset, save.
//!
//! Knows no registers: `mmio.rs` and `pci/` turn reads and writes at offsets into calls of [`Transport`].
//! Whatever the driver writes is kept as written and judged once, when it says that it is ready; until a reset, nothing it
//! writes afterwards has an effect on queues or features.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::spec::{
    FEATURE_EVENT_INDEX, FEATURE_VERSION_1, QUEUE_SIZE_MAX, RING_ALIGNMENTS, STATUS_ACKNOWLEDGE, STATUS_DRIVER,
    STATUS_DRIVER_OK, STATUS_FAILED, STATUS_FEATURES_OK, STATUS_NEEDS_RESET, TRANSPORT_FEATURES, ring_bytes,
};
use super::{Activation, ActiveQueue, GuestMemory, Interrupt, LineInterrupt, SaveError, VirtioDevice};

mod state;

pub use state::{QueueFault, QueueState, RestoreError, TransportState};

/// A device and everything its driver has set up so far.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    line: Arc<LineInterrupt>,
    /// What the device raises: the line itself, or what stands before it.
    interrupt: Arc<dyn Interrupt>,
    kicks: Vec<EventFd>,
    status: u8,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected_queue: u32,
    queues: Vec<QueueState>,
    work: WorkState,
}

/// Where the queues are.
enum WorkState {
    /// Not set up, or given up.
    None,
    /// With the device.
    Running,
    /// Here, between [`Transport::pause`] and [`Transport::resume`].
    Paused(Vec<Option<ActiveQueue>>),
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("kind", &self.device.kind())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// Carries `device` between a driver and the RAM it shares with it.
    ///
    /// # Errors
    /// When event descriptors (one for the interrupt, one a queue) are not to be had.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> io::Result<Self> {
        let line = Arc::new(LineInterrupt::new()?);
        let interrupt = Arc::clone(&line);
        Transport::with_interrupt(device, memory, line, interrupt)
    }

    /// The same where the device raises `interrupt`, which leaves to `line` what is not sent in another way.
    ///
    /// # Errors
    /// When event descriptors are not to be had.
    pub(super) fn with_interrupt(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        line: Arc<LineInterrupt>,
        interrupt: Arc<dyn Interrupt>,
    ) -> io::Result<Self> {
        let kicks =
            device.queue_sizes().iter().map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect::<Result<_, _>>()?;
        let queues = fresh_queues(device.as_ref());
        Ok(Transport {
            device,
            memory,
            line,
            interrupt,
            kicks,
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            selected_queue: 0,
            queues,
            work: WorkState::None,
        })
    }

    /// The device.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// The interrupt line; to be tied to an interrupt controller.
    pub fn interrupt(&self) -> &Arc<LineInterrupt> {
        &self.line
    }

    /// One event descriptor a queue, by index, that lives as long as the transport: written, it kicks the queue.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Whether the device has the queues.
    pub fn is_active(&self) -> bool {
        matches!(self.work, WorkState::Running)
    }

    /// Kicks queue `index`, as a write to its notification register does. Unknown queues are ignored.
    pub fn kick(&self, index: u32) {
        if let (true, Some(kick)) = (self.is_active(), self.kicks.get(index as usize)) {
            // Fails only when the counter is at its end: then it is kicked already.
            let _ = kick.write(1);
        }
    }

    /// Device status (2.1).
    pub fn status(&self) -> u8 {
        let asked = if self.line.is_reset_needed() { STATUS_NEEDS_RESET } else { 0 };
        self.status | asked
    }

    /// The driver's write to the device status: one more step of 3.1.1, or 0 for reset. Steps out of order are ignored.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let kept = value & self.status == self.status;
        let added = value & !self.status & !STATUS_NEEDS_RESET;
        if !kept {
            log::debug!(
                "{:?}: the driver would take back status bits ({:#x} to {value:#x})",
                self.device.kind(),
                self.status
            );
            return;
        }
        for (step, needs) in [
            (STATUS_ACKNOWLEDGE, 0),
            (STATUS_DRIVER, STATUS_ACKNOWLEDGE),
            (STATUS_FEATURES_OK, STATUS_DRIVER),
            (STATUS_DRIVER_OK, STATUS_FEATURES_OK),
        ] {
            if added & step == 0 || self.status & needs != needs {
                continue;
            }
            match step {
                STATUS_FEATURES_OK if !self.are_features_acceptable() => {}
                STATUS_DRIVER_OK if self.status & STATUS_FAILED != 0 => {}
                STATUS_DRIVER_OK => {
                    self.status |= step;
                    self.start();
                }
                _ => self.status |= step,
            }
        }
        self.status |= added & STATUS_FAILED;
    }

    /// The 32 feature bits that the driver has selected.
    pub fn device_features(&self) -> u32 {
        page(self.offered(), self.device_features_page)
    }

    /// Which 32 bits the driver has selected, of the device's features and of its own.
    pub(super) fn feature_pages(&self) -> (u32, u32) {
        (self.device_features_page, self.driver_features_page)
    }

    /// The 32 feature bits of its own that the driver has selected.
    pub(super) fn driver_features(&self) -> u32 {
        page(self.driver_features, self.driver_features_page)
    }

    /// The driver selects 32 of the device's feature bits.
    pub fn select_device_features(&mut self, page: u32) {
        self.device_features_page = page;
    }

    /// The driver selects 32 of its own feature bits.
    pub fn select_driver_features(&mut self, page: u32) {
        self.driver_features_page = page;
    }

    /// The driver writes the selected 32 of its feature bits; in time only between DRIVER and FEATURES_OK.
    pub fn set_driver_features(&mut self, bits: u32) {
        if self.status & (STATUS_DRIVER | STATUS_FEATURES_OK) != STATUS_DRIVER {
            return;
        }
        let shift = match self.driver_features_page {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let mask = u64::from(u32::MAX) << shift;
        self.driver_features = self.driver_features & !mask | u64::from(bits) << shift;
    }

    /// The driver selects the queue that the next calls mean.
    pub fn select_queue(&mut self, index: u32) {
        self.selected_queue = index;
    }

    /// The largest size of the selected queue; 0 where there is none.
    pub fn queue_size_max(&self) -> u16 {
        self.device.queue_sizes().get(self.selected_queue as usize).copied().unwrap_or(0)
    }

    /// Which queue is selected; there may be none of that number.
    pub(super) fn selected_queue(&self) -> u32 {
        self.selected_queue
    }

    /// The selected queue's registers, if there is such a queue.
    pub(super) fn queue(&self) -> Option<&QueueState> {
        self.queues.get(self.selected_queue as usize)
    }

    /// Whether the selected queue is set up.
    pub fn is_queue_ready(&self) -> bool {
        self.queue().is_some_and(|queue| queue.ready)
    }

    /// The driver writes to the selected queue's set-up; in time only between FEATURES_OK and DRIVER_OK.
    pub fn set_up_queue(&mut self, write: impl FnOnce(&mut QueueState)) {
        if self.status & (STATUS_FEATURES_OK | STATUS_DRIVER_OK) != STATUS_FEATURES_OK {
            return;
        }
        if let Some(queue) = self.queues.get_mut(self.selected_queue as usize) {
            write(queue);
        }
    }

    /// The driver reads the configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.device.read_config(offset, data);
    }

    /// The driver writes the configuration space.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status & STATUS_DRIVER != 0 && self.status & STATUS_FAILED == 0 {
            self.device.write_config(offset, data);
        }
    }

    /// Takes the queues from the device; [`Transport::resume`] gives them back. No effect unless the device is at work.
    pub fn pause(&mut self) {
        if self.is_active() {
            self.work = WorkState::Paused(self.device.pause());
        }
    }

    /// Lets the device go on after [`Transport::pause`] or [`Transport::restore`].
    pub fn resume(&mut self) {
        if let WorkState::Paused(queues) = std::mem::replace(&mut self.work, WorkState::None) {
            self.activate(queues);
        }
    }

    /// Where device and driver stand in each queue, at work or not, for who wants to know why a driver does not go on.
    pub fn describe(&self) -> String {
        let mut text = format!("{:?} {:#x}", self.device.kind(), self.status());
        for queue in self.queues.iter().filter(|queue| queue.ready) {
            text.push_str(&describe_queue(queue, &self.memory));
        }
        text
    }

    /// Kicks every queue of a device at work, and interrupts its driver for each: whoever has missed something looks again.
    pub fn nudge(&self) {
        for (index, _) in (0..).zip(&self.queues).filter(|(_, queue)| self.is_active() && queue.ready) {
            self.kick(u32::from(index));
            self.interrupt.queue(index);
        }
    }

    /// All that a new process needs to go on from here. The device must be paused or not yet at work; a driver's set-up of
    /// a device at work is saved without its position.
    ///
    /// # Errors
    /// When the device cannot write down what it remembers.
    pub fn save(&self) -> Result<TransportState, SaveError> {
        let mut queues = self.queues.clone();
        if let WorkState::Paused(paused) = &self.work {
            for (state, queue) in queues.iter_mut().zip(paused) {
                state.position = queue.as_ref().map(|active| (active.queue.next_avail(), active.queue.next_used()));
            }
        }
        Ok(TransportState {
            status: self.status,
            driver_features: self.driver_features,
            device_features_page: self.device_features_page,
            driver_features_page: self.driver_features_page,
            selected_queue: self.selected_queue,
            pending_interrupts: self.line.pending(),
            needs_reset: self.line.is_reset_needed(),
            queues,
            device: self.device.save()?,
        })
    }

    /// Takes up a saved state; the device, if it was at work, waits for [`Transport::resume`].
    ///
    /// # Errors
    /// When the state is not of this device, or damaged; the transport is then as after a reset.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        self.reset();
        if state.queues.len() != self.queues.len() {
            return Err(RestoreError::QueueCount { found: state.queues.len(), expected: self.queues.len() });
        }
        let positioned = state.queues.iter().any(|queue| queue.position.is_some());
        // Until a driver asks for them to be accepted, it may have written any.
        let accepted = positioned || state.status & STATUS_FEATURES_OK != 0;
        let unknown = state.driver_features & !self.offered();
        if accepted && unknown != 0 {
            return Err(RestoreError::Features(unknown));
        }
        let mut queues = Vec::new();
        if positioned {
            for (index, queue) in state.queues.iter().enumerate() {
                queues.push(self.build(index as u16, queue, state.driver_features)?);
            }
            self.work = WorkState::Paused(queues);
        }
        if let Err(error) = self.device.restore(&state.device, &self.memory) {
            self.work = WorkState::None;
            return Err(error);
        }
        self.status = state.status;
        self.driver_features = state.driver_features;
        self.device_features_page = state.device_features_page;
        self.driver_features_page = state.driver_features_page;
        self.selected_queue = state.selected_queue;
        self.queues.clone_from(&state.queues);
        self.queues.iter_mut().for_each(|queue| queue.position = None);
        self.line.restore(state.pending_interrupts, state.needs_reset);
        Ok(())
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES & self.device.ring_features()
    }

    fn are_features_acceptable(&self) -> bool {
        let unknown = self.driver_features & !self.offered();
        let legacy = self.driver_features & FEATURE_VERSION_1 == 0;
        if unknown != 0 || legacy {
            log::warn!(
                "{:?}: the driver wants features {:#x}, which will not do",
                self.device.kind(),
                self.driver_features
            );
        }
        unknown == 0 && !legacy
    }

    /// The driver is ready: judge what it set up, and let the device begin.
    fn start(&mut self) {
        let queues: Result<Vec<_>, _> = self
            .queues
            .iter()
            .enumerate()
            .map(|(index, queue)| self.build(index as u16, queue, self.driver_features))
            .collect();
        match queues {
            Ok(queues) => self.activate(queues),
            Err(error) => {
                // Of a queue that is the driver's own doing, no saved state is to be blamed.
                let reason = if let RestoreError::Queue(fault) = &error { fault as &dyn Error } else { &error };
                log::error!("{:?}: not started: {reason}", self.device.kind());
                self.interrupt.needs_reset();
            }
        }
    }

    fn activate(&mut self, queues: Vec<Option<ActiveQueue>>) {
        let interrupt = Arc::clone(&self.interrupt);
        let activation = Activation { memory: self.memory.clone(), features: self.driver_features, queues, interrupt };
        match self.device.activate(activation) {
            Ok(()) => self.work = WorkState::Running,
            Err(error) => {
                log::error!("{:?}: not started: {error}", self.device.kind());
                self.interrupt.needs_reset();
            }
        }
    }

    /// A queue that can work, from what the driver wrote; none if it left the queue alone.
    fn build(&self, index: u16, state: &QueueState, features: u64) -> Result<Option<ActiveQueue>, RestoreError> {
        if !state.ready {
            return Ok(None);
        }
        let max = self.device.queue_sizes()[usize::from(index)];
        let mut queue = check(index, state, max, &self.memory)?;
        queue.set_event_idx(features & FEATURE_EVENT_INDEX != 0);
        if let Some((available, used)) = state.position {
            queue.set_next_avail(available);
            queue.set_next_used(used);
        }
        let kick = self.kicks[usize::from(index)].try_clone()?;
        Ok(Some(ActiveQueue { queue, kick }))
    }

    fn reset(&mut self) {
        self.device.reset();
        self.work = WorkState::None;
        self.status = 0;
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.selected_queue = 0;
        self.queues = fresh_queues(self.device.as_ref());
        self.line.clear();
        for kick in &self.kicks {
            // A kick that nobody heard is not the next driver's.
            let _ = kick.read();
        }
    }
}

fn fresh_queues(device: &dyn VirtioDevice) -> Vec<QueueState> {
    let fresh = |&size: &u16| QueueState { size: u32::from(size), ..QueueState::default() };
    device.queue_sizes().iter().map(fresh).collect()
}

/// How many chains the driver has made available and the device has used, each modulo 65536, and past which one of them the device wants a kick
/// and the driver an interrupt (virtio 1.2, 2.7.6 to 2.7.10): `?` where that cannot be read.
fn describe_queue(queue: &QueueState, memory: &GuestMemory) -> String {
    let [_, available, used] = queue.areas;
    let word = |ring: u64, offset: u64| {
        let word = memory.load::<u16>(GuestAddress(ring.wrapping_add(offset)), Ordering::Acquire);
        word.map_or_else(|_| "?".to_owned(), |word| u16::from_le(word).to_string())
    };
    format!(
        " [{} given, {} used; kick past {}, interrupt past {}]",
        word(available, 2),
        word(used, 2),
        word(used, 4 + 8 * u64::from(queue.size)),
        word(available, 4 + 2 * u64::from(queue.size)),
    )
}

fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Holds a driver's set-up to 2.7: a power of two, each area aligned and wholly in RAM.
fn check(index: u16, state: &QueueState, max: u16, memory: &GuestMemory) -> Result<Queue, QueueFault> {
    let bad_size = QueueFault::Size { index, size: state.size, max };
    let size = match u16::try_from(state.size) {
        Ok(size) if size.is_power_of_two() && size <= max && max <= QUEUE_SIZE_MAX => size,
        _ => return Err(bad_size),
    };
    for ((&address, alignment), len) in state.areas.iter().zip(RING_ALIGNMENTS).zip(ring_bytes(size)) {
        if address % alignment != 0 {
            return Err(QueueFault::Alignment { index, address, alignment });
        }
        let wraps = GuestAddress(address).checked_add(len).is_none();
        if wraps || !memory.check_range(GuestAddress(address), len as usize) {
            return Err(QueueFault::NotRam { index, address, len });
        }
    }
    let mut queue = Queue::new(max).map_err(|_| bad_size)?;
    queue.set_size(size);
    let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
    let [descriptors, available, used] = state.areas.map(halves);
    queue.set_desc_table_address(descriptors.0, descriptors.1);
    queue.set_avail_ring_address(available.0, available.1);
    queue.set_used_ring_address(used.0, used.1);
    queue.set_ready(true);
    Ok(queue)
}
