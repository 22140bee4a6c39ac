//! The split queue and the transport's registers, without a device behind them, and held to what the devices rely on.

use std::sync::{Arc, Mutex};

use tatami_devices::pci::{ConfigPorts, PciBus};
use tatami_devices::virtio::pci::PciInterrupts;
use tatami_devices::virtio::{
    ActivateError, Activation, ActiveQueue, Chain, DeviceKind, Interrupt, LineInterrupt, Message, MessageRoutes,
    MmioTransport, PciTransport, Ring, Transport, VirtioDevice, ring,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver;
use crate::input::Input;

/// A device that holds its queues and does nothing.
#[derive(Default)]
struct Idle {
    queues: Vec<Option<ActiveQueue>>,
    /// What it was last given to raise.
    raised: Arc<Mutex<Option<Arc<dyn Interrupt>>>>,
}

impl VirtioDevice for Idle {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        0x55
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 1, 1024]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        for queue in activation.queues.iter().flatten() {
            assert!(queue.queue.size().is_power_of_two() && queue.queue.size() <= 1024);
            let areas = [queue.queue.desc_table(), queue.queue.avail_ring(), queue.queue.used_ring()];
            let lens = [16, 2, 8].map(|each| each * usize::from(queue.queue.size()));
            for (area, len) in areas.into_iter().zip(lens) {
                assert!(activation.memory.check_range(GuestAddress(area), len), "a ring outside of RAM");
            }
        }
        *self.raised.lock().expect("nobody has panicked") = Some(activation.interrupt);
        self.queues = activation.queues;
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        std::mem::take(&mut self.queues)
    }

    fn reset(&mut self) {
        self.queues.clear();
    }
}

/// Registers: read, written, saved and restored in any order. What a device at work was given does not change under it.
pub fn mmio(data: &[u8]) {
    let mut input = Input::new(data);
    let mut mmio = MmioTransport::new(Box::new(Idle::default()), driver::memory()).expect("event descriptors");
    let mut given = None;
    while !input.is_empty() {
        let register = u64::from(input.byte()) * 4;
        match input.byte() % 8 {
            0..=4 => mmio.write(register, &input.word().to_le_bytes()),
            5 => mmio.write(register.wrapping_add(input.double()), input.bytes(9)),
            6 => mmio.read(register.wrapping_add(input.double()), &mut vec![0; usize::from(input.byte() % 20)]),
            _ => {
                mmio.transport_mut().pause();
                let state = mmio.save().expect("a device that remembers nothing");
                mmio.restore(&state).expect("a transport's own state");
                mmio.transport_mut().resume();
            }
        }
        let state = mmio.save().expect("a device that remembers nothing");
        let set_up = (state.driver_features, state.queues);
        match (Transport::is_active(mmio.transport()), &given) {
            (false, _) => given = None,
            (true, None) => given = Some(set_up),
            (true, Some(given)) => assert_eq!(*given, set_up, "changed while the device was at work"),
        }
    }
}

/// Nobody to send messages to.
struct Nowhere;

impl MessageRoutes for Nowhere {
    fn route(&self, _vector: u16, _message: Message) {}
}

/// The same behind PCI: its memory, its configuration space through the ports, its messages. The first byte says whether it has any.
pub fn pci(data: &[u8]) {
    const ADDRESS: u32 = 0xd000_0000;
    let mut input = Input::new(data);
    let messages = input.byte() & 1 == 0;
    let interrupts = if messages { PciInterrupts::Messages(Box::new(Nowhere)) } else { PciInterrupts::Pin };
    let device = Idle::default();
    let raised = Arc::clone(&device.raised);
    let pci = PciTransport::new(Box::new(device), driver::memory(), ADDRESS, interrupts).expect("event descriptors");
    let (pci, mut bus) = (Arc::new(Mutex::new(pci)), PciBus::default());
    bus.add(Arc::clone(&pci) as _).expect("a place on an empty bus");
    let ports = ConfigPorts::new(Arc::new(bus));
    let lock = || pci.lock().expect("nobody has panicked");
    let mut given = None;
    while !input.is_empty() {
        // A structure, and how far into it.
        let offset = u64::from(input.byte() % 8) << 12 | u64::from(input.byte());
        match input.byte() % 12 {
            0..=3 => lock().write(offset, &input.word().to_le_bytes()[..input.pick(&[1, 2, 4])]),
            4 => lock().write(offset.wrapping_add(input.double()), input.bytes(9)),
            5 => lock().read(offset.wrapping_add(input.double()), &mut vec![0; usize::from(input.byte() % 20)]),
            6 => ports.write(0, &(1 << 31 | 1 << 11 | u32::from(input.byte())).to_le_bytes()),
            7 => ports.write(4, &input.word().to_le_bytes()[..input.pick(&[1, 2, 4])]),
            8 => ports.write(input.byte().into(), input.bytes(9)),
            9 => ports.read(input.byte().into(), &mut vec![0; usize::from(input.byte() % 9)]),
            10 => match &*raised.lock().expect("nobody has panicked") {
                Some(interrupt) if input.byte() & 1 == 0 => interrupt.queue(input.byte().into()),
                Some(interrupt) => interrupt.config(),
                None => {}
            },
            _ => {
                let mut pci = lock();
                pci.transport_mut().pause();
                let state = pci.save().expect("a device that remembers nothing");
                pci.restore(&state).expect("a transport's own state");
                pci.transport_mut().resume();
            }
        }
        let pci = lock();
        let state = pci.transport().save().expect("a device that remembers nothing");
        let set_up = (state.driver_features, state.queues);
        match (pci.transport().is_active(), &given) {
            (false, _) => given = None,
            (true, None) => given = Some(set_up),
            (true, Some(given)) => assert_eq!(*given, set_up, "changed while the device was at work"),
        }
    }
}

/// A ring over memory full of whatever the driver wrote; it takes chains, or says what is wrong with one.
pub fn ring(data: &[u8]) {
    let mut input = Input::new(data);
    let (memory, size) = (driver::memory(), 1 << (input.byte() % 7));
    let (table, available, used) = (0x1000, 0x2000, 0x3000);
    let mut queue = Queue::new(64).expect("a power of two");
    queue.set_size(size);
    queue.set_desc_table_address(Some(table as u32), None);
    queue.set_avail_ring_address(Some(available as u32), None);
    queue.set_used_ring_address(Some(used as u32), None);
    queue.set_event_idx(input.byte() & 1 != 0);
    queue.set_next_avail(input.half());
    queue.set_ready(true);
    let kick = EventFd::new(EFD_NONBLOCK).expect("an event descriptor");
    let interrupt = Arc::new(LineInterrupt::new().expect("an event descriptor"));
    let mut ring = Ring::new(0, ActiveQueue { queue, kick }, memory.clone(), interrupt);
    let mut held: Vec<Chain> = Vec::new();
    while !input.is_empty() {
        match input.byte() % 8 {
            0..=2 => descriptor(&memory, table + 16 * u64::from(input.half() % size), &mut input),
            3 => descriptor(&memory, driver::Driver::address(&mut input), &mut input),
            4 => drop(memory.write(&input.half().to_le_bytes(), GuestAddress(available + 2 * u64::from(input.byte())))),
            5 => drop(ring.notify().and_then(|()| ring.disable_kicks()).and_then(|()| ring.enable_kicks())),
            6 if !held.is_empty() => {
                let chain = held.swap_remove(usize::from(input.byte()) % held.len());
                ring.give_back(chain, input.word()).expect("a used ring in RAM");
            }
            _ => {
                let Ok(Some(chain)) = ring.take() else { continue };
                check(&chain, size);
                assert!(held.iter().all(|other| other.head() != chain.head()), "one head twice in flight");
                held.push(chain);
            }
        }
    }
}

fn descriptor(memory: &tatami_devices::virtio::GuestMemory, place: u64, input: &mut Input<'_>) {
    let address = driver::Driver::address(input);
    let _ = memory.write(&address.to_le_bytes(), GuestAddress(place));
    let rest = u64::from(input.word()) | u64::from(input.byte()) << 32 | u64::from(input.half()) << 48;
    let _ = memory.write(&rest.to_le_bytes(), GuestAddress(place.wrapping_add(8)));
}

/// What every device takes for granted of a chain.
fn check(chain: &Chain, size: u16) {
    let memory = driver::memory();
    let (readable, writable) = (chain.readable(), chain.writable());
    assert!(readable.len() + writable.len() <= usize::from(size), "longer than the ring");
    for segment in readable.iter().chain(writable) {
        assert!(segment.len > 0 && memory.check_range(segment.address, segment.len as usize), "{segment:?} is not RAM");
        assert!(memory.get_slice(segment.address, segment.len as usize).is_ok(), "{segment:?} is in two regions");
    }
    // Panics where the sum does not fit.
    assert!(ring::total(readable).checked_add(ring::total(writable)).is_some());
}
