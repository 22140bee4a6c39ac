//! The PCI transport as a driver meets it: what it finds, what it may set, and what it must not get away with.
//!
//! What the steps of 3.1.1 allow and forbid is the same for every transport, and tested in full over MMIO.

use std::sync::Arc;

use super::spec::{NO_VECTOR, common::*};
use super::*;
use crate::pci::spec::{BAR0, CAPABILITIES};
use crate::virtio::Interrupt;
use crate::virtio::spec::*;
use crate::virtio::testing::probe::{FEATURE, Probe, SIZES};
use crate::virtio::testing::{Dice, LOW_BYTES, Rings, memory};

const ADDRESS: u32 = 0xd000_8000;
const COMMON_AT: u64 = COMMON.0 as u64;
const TABLE_AT: u64 = MSIX_TABLE.0 as u64;
const PENDING_AT: u64 = MSIX_PENDING.0 as u64;

/// What a vector was said to send, in order.
type Routed = Arc<Mutex<Vec<(u16, Message)>>>;

struct Recorder(Routed);

impl MessageRoutes for Recorder {
    fn route(&self, vector: u16, message: Message) {
        self.0.lock().unwrap().push((vector, message));
    }
}

/// A driver, and what its function's surroundings were told.
struct Driver {
    pci: PciTransport,
    memory: GuestMemory,
    probe: Probe,
    routed: Routed,
}

impl Driver {
    fn with_messages() -> Driver {
        let routed = Routed::default();
        Driver::new(PciInterrupts::Messages(Box::new(Recorder(Arc::clone(&routed)))), routed)
    }

    fn with_pin() -> Driver {
        Driver::new(PciInterrupts::Pin, Routed::default())
    }

    fn new(interrupts: PciInterrupts, routed: Routed) -> Driver {
        let (probe, memory) = (Probe::default(), memory());
        let pci = PciTransport::new(Box::new(probe.clone()), memory.clone(), ADDRESS, interrupts).unwrap();
        Driver { pci, memory, probe, routed }
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.pci.read(offset, &mut data);
        data
    }

    fn get(&self, register: u32) -> u32 {
        u32::from_le_bytes(self.read(COMMON_AT + u64::from(register)))
    }

    fn half(&self, register: u32) -> u16 {
        u16::from_le_bytes(self.read(COMMON_AT + u64::from(register)))
    }

    fn status(&self) -> u8 {
        self.read::<1>(COMMON_AT + u64::from(DEVICE_STATUS))[0]
    }

    fn set(&mut self, register: u32, data: &[u8]) {
        self.pci.write(COMMON_AT + u64::from(register), data);
    }

    fn set_half(&mut self, register: u32, value: u16) {
        self.set(register, &value.to_le_bytes());
    }

    fn config<const N: usize>(&self, register: usize) -> [u8; N] {
        let mut data = [0xaa; N];
        self.pci.read_config(register as u16, &mut data);
        data
    }

    fn negotiate(&mut self) {
        for status in [1, 3] {
            self.set(DEVICE_STATUS, &[status]);
        }
        for page in [0_u32, 1] {
            self.set(DEVICE_FEATURE_SELECT, &page.to_le_bytes());
            self.set(DRIVER_FEATURE_SELECT, &page.to_le_bytes());
            let offered = self.get(DEVICE_FEATURE);
            self.set(DRIVER_FEATURE, &offered.to_le_bytes());
        }
        self.set(DEVICE_STATUS, &[0xb]);
    }

    fn rings(&self, queue: u16) -> Rings {
        Rings::at(&self.memory, (8 + u64::from(queue)) << 20, SIZES[usize::from(queue)])
    }

    /// As Linux does it: each queue has the vector after its number, changes the first.
    fn bring_up(&mut self) {
        self.negotiate();
        self.set_half(CONFIG_VECTOR, 0);
        for queue in 0..SIZES.len() as u16 {
            let rings = self.rings(queue);
            self.set_half(QUEUE_SELECT, queue);
            self.set_half(QUEUE_SIZE, SIZES[usize::from(queue)]);
            // One address whole, the others by halves.
            self.set(QUEUE_AREAS, &rings.table.to_le_bytes());
            for (place, address) in [(8, rings.available), (16, rings.used)] {
                self.set(QUEUE_AREAS + place, &(address as u32).to_le_bytes());
                self.set(QUEUE_AREAS + place + 4, &((address >> 32) as u32).to_le_bytes());
            }
            self.set_half(QUEUE_VECTOR, queue + 1);
            self.set_half(QUEUE_ENABLE, 1);
        }
        self.set(DEVICE_STATUS, &[0xf]);
    }

    /// Where MSI-X's capability is, if there is one; and the structures' kinds with their places, in their order.
    fn capabilities(&self) -> (Option<usize>, Vec<(u8, usize)>) {
        let (mut msix, mut structures) = (None, Vec::new());
        let [mut at] = self.config::<1>(CAPABILITIES);
        while at != 0 {
            let [id, next, _, kind] = self.config(at.into());
            match id {
                CAPABILITY_MSIX => msix = Some(at.into()),
                _ => structures.push((kind, at.into())),
            }
            at = next;
        }
        (msix, structures)
    }

    /// Sets the message control's upper byte, where its two bits are.
    fn control(&mut self, control: u16) {
        let at = self.capabilities().0.expect("a capability");
        self.pci.write_config(at as u16 + 2, &control.to_le_bytes());
    }

    fn unmask(&mut self, vector: u64, message: Message) {
        let entry = TABLE_AT + 16 * vector;
        self.pci.write(entry, &message.address.to_le_bytes());
        self.pci.write(entry + 8, &message.data.to_le_bytes());
        self.pci.write(entry + 12, &[0; 4]);
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.probe.seen(|seen| Arc::clone(&seen.activation.as_ref().expect("a device at work").interrupt))
    }

    /// How often a vector's message was sent since it was last asked.
    fn sent(&self, vector: usize) -> u64 {
        self.pci.messages()[vector].read().unwrap_or(0)
    }

    fn window(&mut self, offset: u32, length: u32) -> usize {
        let at = self.capabilities().1.iter().find(|(kind, _)| *kind == PCI_CFG).unwrap().1;
        self.pci.write_config(at as u16 + 8, &offset.to_le_bytes());
        self.pci.write_config(at as u16 + 12, &length.to_le_bytes());
        at + 16
    }
}

fn message(vector: u32) -> Message {
    Message { address: 0xfee0_1000, data: 0x4020 + vector }
}

#[test]
fn a_driver_finds_the_structures() {
    let driver = Driver::with_messages();
    assert_eq!(driver.config(0), [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(driver.config(8), [1, 0, 0x80, 1]);
    assert_eq!(driver.config(BAR0), ADDRESS.to_le_bytes());
    assert_eq!(driver.config(INTERRUPT_PIN), [0], "messages only");
    let (msix, structures) = driver.capabilities();
    assert_eq!(u16::from_le_bytes(driver.config(msix.unwrap() + 2)), SIZES.len() as u16, "a vector more than queues");
    let kinds: Vec<_> = structures.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG]);
    let mut ends = 0;
    for (_, at) in &structures[..4] {
        let [bar] = driver.config(at + 4);
        let [offset, length] = [8, 12].map(|place| u32::from_le_bytes(driver.config(at + place)));
        assert_eq!(bar, 0);
        assert!(length > 0 && offset + length <= BAR_BYTES);
        ends = ends.max(offset + length);
    }
    assert!(ends <= MSIX_TABLE.0);
    let pin = Driver::with_pin();
    assert_eq!((pin.config(INTERRUPT_PIN), pin.capabilities().0), ([1], None));
    assert!(pin.pci.messages().is_empty());
}

#[test]
fn the_usual_order_activates_with_what_was_set_up() {
    let mut driver = Driver::with_messages();
    driver.bring_up();
    assert_eq!(driver.status(), 0xf);
    assert_eq!(driver.half(NUM_QUEUES), SIZES.len() as u16);
    let (rings, mut areas) = (driver.rings(1), [0; 3]);
    driver.probe.seen(|seen| {
        let activation = seen.activation.as_ref().expect("an activation");
        assert_eq!(activation.features, FEATURE | TRANSPORT_FEATURES);
        let queue = &activation.queues[1].as_ref().expect("queue 1").queue;
        use virtio_queue::QueueT;
        assert_eq!((queue.desc_table(), queue.avail_ring()), (rings.table, rings.available));
        assert_eq!((queue.used_ring(), queue.size()), (rings.used, SIZES[1]));
    });
    assert_eq!([QUEUE_SIZE, QUEUE_ENABLE, QUEUE_NOTIFY_OFF, QUEUE_VECTOR].map(|at| driver.half(at)), [64, 1, 1, 2]);
    for (area, place) in areas.iter_mut().zip([0, 8, 16]) {
        *area = u64::from_le_bytes(driver.read(COMMON_AT + u64::from(QUEUE_AREAS) + place));
    }
    assert_eq!(areas, [rings.table, rings.available, rings.used]);
    assert_eq!(driver.read::<3>(u64::from(DEVICE_CONFIG.0) + 2), [2, 3, 4]);
}

#[test]
fn nothing_changes_after_activation() {
    let mut driver = Driver::with_messages();
    driver.set_half(QUEUE_SIZE, 8);
    driver.set_half(QUEUE_ENABLE, 1);
    assert_eq!(driver.half(QUEUE_ENABLE), 0, "too early");
    driver.bring_up();
    driver.set_half(QUEUE_SELECT, 0);
    let before = driver.pci.save().unwrap();
    driver.set_half(QUEUE_SIZE, 8);
    driver.set_half(QUEUE_ENABLE, 0);
    driver.set(DRIVER_FEATURE, &[0; 4]);
    for place in (QUEUE_AREAS..QUEUE_AREAS_END).step_by(4) {
        driver.set(place, &[0, 0x10, 0, 0]);
    }
    driver.set(QUEUE_AREAS, &[0; 8]);
    assert_eq!(driver.pci.save().unwrap(), before);
    driver.set(DEVICE_STATUS, &[0xf]);
    assert_eq!(driver.probe.seen(|seen| seen.activations), 1);
}

#[test]
fn queues_that_do_not_exist_are_none() {
    let mut driver = Driver::with_messages();
    driver.negotiate();
    driver.set_half(QUEUE_SELECT, 7);
    driver.set_half(QUEUE_VECTOR, 1);
    driver.set_half(QUEUE_ENABLE, 1);
    assert_eq!([QUEUE_SIZE, QUEUE_ENABLE, QUEUE_VECTOR].map(|at| driver.half(at)), [0, 0, NO_VECTOR]);
}

#[test]
fn a_bar_can_be_sized_but_not_moved() {
    let mut driver = Driver::with_messages();
    driver.pci.write_config(BAR0 as u16, &[0xff; 4]);
    assert_eq!(driver.config(BAR0), (!(BAR_BYTES - 1)).to_le_bytes());
    driver.pci.write_config(BAR0 as u16, &0x1000_0000_u32.to_le_bytes());
    assert_eq!(driver.config(BAR0), ADDRESS.to_le_bytes());
    assert_eq!(driver.status(), 0, "it answers where it was");
}

#[test]
fn a_device_that_is_switched_off_does_not_answer() {
    let mut driver = Driver::with_messages();
    driver.pci.write_config(COMMAND as u16, &[0, 0]);
    assert_eq!(driver.status(), 0xff);
    driver.set(DEVICE_STATUS, &[1]);
    driver.pci.write_config(COMMAND as u16, &[6, 0]);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_notification_kicks_the_queue_and_only_that() {
    let mut driver = Driver::with_messages();
    let place = PciTransport::notify_offset(1);
    driver.pci.write(place, &[1, 0]);
    assert!(driver.pci.transport().kicks()[1].read().is_err(), "nobody is there to be kicked");
    driver.bring_up();
    driver.pci.write(place, &[1, 0]);
    for (offset, len) in [(2, 2), (1, 1), (0, 1), (0, 8), (4 * 2, 2), (0xffc, 4)] {
        driver.pci.write(place + offset, &vec![0; len]);
    }
    assert_eq!(driver.pci.transport().kicks()[1].read().unwrap(), 1);
    assert!(driver.pci.transport().kicks()[0].read().is_err());
}

#[test]
fn without_messages_the_pin_says_now_and_the_status_why() {
    let mut driver = Driver::with_pin();
    driver.bring_up();
    let isr = |driver: &Driver| driver.read::<1>(ISR.0.into())[0];
    let line = |driver: &Driver| driver.pci.transport().interrupt().line().read().unwrap_or(0);
    let (interrupt, generation) = (driver.interrupt(), driver.read::<1>(COMMON_AT + u64::from(CONFIG_GENERATION)));
    interrupt.queue(1);
    interrupt.config();
    assert_eq!((line(&driver), isr(&driver), isr(&driver)), (2, 3, 0));
    assert_ne!(driver.read::<1>(COMMON_AT + u64::from(CONFIG_GENERATION)), generation);
    driver.pci.write_config(COMMAND as u16, &[6, 4]);
    interrupt.queue(0);
    assert_eq!(line(&driver), 0, "the pin is to be left alone");
    driver.pci.write_config(COMMAND as u16, &[6, 0]);
    assert_eq!((line(&driver), isr(&driver)), (1, 1));
    interrupt.needs_reset();
    assert_eq!((driver.status() & STATUS_NEEDS_RESET, isr(&driver)), (STATUS_NEEDS_RESET, 2));
}

#[test]
fn a_message_goes_where_its_vector_says() {
    let mut driver = Driver::with_messages();
    driver.bring_up();
    driver.control(MSIX_ENABLED);
    (0..3).for_each(|vector| driver.unmask(vector, message(vector as u32)));
    assert_eq!(*driver.routed.lock().unwrap(), [0, 1, 2].map(|vector| (vector, message(vector.into()))));
    let interrupt = driver.interrupt();
    interrupt.queue(0);
    interrupt.config();
    assert_eq!([0, 1, 2].map(|vector| driver.sent(vector)), [1, 1, 0]);
    assert_eq!(driver.read::<1>(ISR.0.into()), [0], "and the status is not needed");
    interrupt.queue(17);
    driver.set_half(QUEUE_SELECT, 0);
    driver.set_half(QUEUE_VECTOR, NO_VECTOR);
    interrupt.queue(0);
    assert_eq!([0, 1, 2].map(|vector| driver.sent(vector)), [0, 0, 0]);
}

#[test]
fn what_is_masked_waits() {
    let mut driver = Driver::with_messages();
    driver.bring_up();
    driver.control(MSIX_ENABLED | MSIX_MASKED);
    driver.unmask(1, message(1));
    assert!(driver.routed.lock().unwrap().is_empty(), "nothing can be sent yet");
    let interrupt = driver.interrupt();
    interrupt.queue(0);
    interrupt.queue(1);
    assert_eq!((driver.sent(1), driver.read::<8>(PENDING_AT)), (0, [6, 0, 0, 0, 0, 0, 0, 0]));
    driver.control(MSIX_ENABLED);
    assert_eq!((driver.sent(1), driver.sent(2), driver.read::<4>(PENDING_AT)), (1, 0, [4, 0, 0, 0]));
    driver.unmask(2, message(2));
    assert_eq!((driver.sent(2), driver.read::<4>(PENDING_AT)), (1, [0; 4]));
    // Moved to another processor: masked, changed, unmasked.
    driver.pci.write(TABLE_AT + 12, &[1, 0, 0, 0]);
    driver.unmask(1, message(7));
    assert_eq!(driver.routed.lock().unwrap().last(), Some(&(1, message(7))));
}

#[test]
fn vectors_that_do_not_exist_are_none() {
    let mut driver = Driver::with_messages();
    for register in [CONFIG_VECTOR, QUEUE_VECTOR] {
        assert_eq!(driver.half(register), NO_VECTOR);
        driver.set_half(register, 2);
        assert_eq!(driver.half(register), 2);
        driver.set_half(register, 3);
        assert_eq!(driver.half(register), NO_VECTOR);
    }
}

#[test]
fn the_table_has_an_end() {
    let mut driver = Driver::with_messages();
    driver.control(MSIX_ENABLED);
    let fresh = driver.pci.save().unwrap();
    for offset in (16 * 3..MSIX_TABLE.1 as u64).step_by(4) {
        driver.pci.write(TABLE_AT + offset, &[0; 4]);
        driver.pci.write(TABLE_AT + (offset & !7), &[0; 8]);
        driver.pci.write(PENDING_AT + offset, &[0xff; 4]);
        assert_eq!((driver.read(TABLE_AT + offset), driver.read(PENDING_AT + offset)), ([0; 4], [0; 4]));
    }
    for (offset, len) in [(0, 1), (0, 2), (2, 4), (4, 8), (0, 3), (44, 8), (0xffe, 4)] {
        driver.pci.write(TABLE_AT + offset, &vec![0xff; len]);
    }
    assert_eq!(driver.pci.save().unwrap(), fresh);
    assert_eq!(driver.read(TABLE_AT + 12), [1, 0, 0, 0], "masked at first");
    assert!(driver.routed.lock().unwrap().is_empty());
}

#[test]
fn the_window_leads_to_the_same_registers() {
    let mut driver = Driver::with_messages();
    let data = driver.window(COMMON.0 + DEVICE_STATUS, 1);
    driver.pci.write_config(data as u16, &[1]);
    assert_eq!((driver.status(), driver.config::<4>(data)[0]), (1, 1));
    let data = driver.window(DEVICE_CONFIG.0 + 4, 4);
    assert_eq!((driver.config(data), driver.config(data + 2)), ([4, 5, 6, 7], [6, 7]));
    assert_eq!(driver.config::<8>(data - 4), [4, 0, 0, 0, 4, 5, 6, 7]);
}

#[test]
fn a_window_to_nowhere_does_nothing() {
    let mut driver = Driver::with_messages();
    let fresh = driver.pci.transport().save().unwrap();
    for (offset, length) in [
        (COMMON.0 + DEVICE_STATUS, 0),
        (COMMON.0 + DEVICE_STATUS, 3),
        (COMMON.0 + DEVICE_STATUS, u32::MAX),
        (COMMON.0 + DEVICE_STATUS + 1, 2),
        (BAR_BYTES, 1),
        (BAR_BYTES - 2, 4),
        (u32::MAX, 1),
        (u32::MAX - 3, 4),
    ] {
        let data = driver.window(offset, length);
        for width in [1, 2, 3, 4, 8] {
            driver.pci.write_config(data as u16, &vec![1; width]);
            let mut bytes = vec![0; width];
            driver.pci.read_config(data as u16, &mut bytes);
        }
    }
    // Another range than the first, of which there is none.
    let data = driver.window(COMMON.0 + DEVICE_STATUS, 1);
    driver.pci.write_config(data as u16 - 12, &[1]);
    driver.pci.write_config(data as u16, &[1]);
    assert_eq!(driver.pci.transport().save().unwrap(), fresh);
}

#[test]
fn reset_in_the_middle_makes_everything_new() {
    let mut driver = Driver::with_messages();
    driver.bring_up();
    driver.control(MSIX_ENABLED);
    driver.unmask(1, message(1));
    let interrupt = driver.interrupt();
    interrupt.queue(1);
    interrupt.needs_reset();
    driver.pci.write(PciTransport::notify_offset(0), &[0, 0]);
    driver.set(DEVICE_STATUS, &[0]);
    assert!(!driver.probe.is_active());
    assert_eq!((driver.status(), driver.half(CONFIG_VECTOR), driver.half(QUEUE_VECTOR)), (0, NO_VECTOR, NO_VECTOR));
    assert_eq!(driver.read::<8>(PENDING_AT), [0; 8]);
    assert!(driver.pci.transport().kicks()[0].read().is_err(), "a stale kick is left");
    // Whoever still holds the old interrupt reaches nobody.
    interrupt.queue(0);
    interrupt.config();
    assert_eq!([0, 1, 2].map(|vector| driver.sent(vector)), [0; 3]);
    driver.bring_up();
    assert_eq!(driver.probe.seen(|seen| seen.activations), 2);
}

#[test]
fn odd_accesses_are_harmless() {
    let (mut driver, mut dice) = (Driver::with_messages(), Dice::new(6));
    let identity: [u8; 4] = driver.config(0);
    for _ in 0..20_000 {
        let len = dice.pick(&[0, 1, 2, 3, 4, 8, 16]);
        let mut bytes: Vec<u8> = (0..len).map(|_| dice.roll() as u8).collect();
        let offset = dice.pick(&[0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x7000, u64::MAX - 4]);
        let offset = offset.wrapping_add(dice.below(0x48));
        match dice.below(4) {
            0 => driver.pci.read(offset, &mut bytes),
            1 => driver.pci.write(offset, &bytes),
            2 => driver.pci.read_config(dice.below(0x110) as u16, &mut bytes),
            _ => driver.pci.write_config(dice.below(0x110) as u16, &bytes),
        }
    }
    driver.pci.read_config(u16::MAX, &mut [0; 4]);
    driver.pci.write_config(u16::MAX, &[0; 4]);
    driver.pci.write_config(COMMAND as u16, &[6, 0]);
    driver.pci.write_config(BAR0 as u16, &[0; 4]);
    driver.set(DEVICE_STATUS, &[0]);
    assert_eq!((driver.config(0), driver.config(BAR0)), (identity, ADDRESS.to_le_bytes()));
    driver.bring_up();
    assert!(driver.probe.is_active());
}

#[test]
fn a_saved_device_goes_on_in_another() {
    let mut before = Driver::with_messages();
    before.bring_up();
    before.pci.write_config(COMMAND as u16, &[6, 4]);
    before.control(MSIX_ENABLED);
    before.unmask(1, message(1));
    before.interrupt().queue(1);
    before.pci.transport_mut().pause();
    let state = before.pci.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let state: PciState = serde_json::from_str(&text).unwrap();

    let mut after = Driver::with_messages();
    after.pci.restore(&state).unwrap();
    assert_eq!(after.pci.save().unwrap(), state, "what was restored can be saved again");
    assert!(!after.probe.is_active(), "not before it is told to");
    assert_eq!(*after.routed.lock().unwrap(), [(1, message(1))]);
    after.pci.transport_mut().resume();
    assert!(after.probe.is_active());
    assert_eq!((after.sent(1), after.sent(2)), (1, 0), "a message on its way is not lost");
    after.unmask(2, message(2));
    assert_eq!(after.sent(2), 1, "nor is one that waits");
}

#[test]
fn a_damaged_state_is_refused() {
    let mut driver = Driver::with_messages();
    driver.bring_up();
    driver.pci.transport_mut().pause();
    let good = driver.pci.save().unwrap();
    let pin = Driver::with_pin().pci.save().unwrap();
    let mut bad = vec![good.clone(); 4];
    bad[0].config.pop();
    bad[1].transport.queues[0].areas[0] = LOW_BYTES as u64 - 16;
    bad[2].messages = pin.messages;
    let text = serde_json::to_string(&bad[3].messages).unwrap().replace("\"config\":0", "\"config\":3");
    bad[3].messages = serde_json::from_str(&text).unwrap();
    for state in bad {
        let mut other = Driver::with_messages();
        let fresh = other.pci.save().unwrap();
        other.pci.restore(&state).expect_err("a damaged state was taken");
        assert_eq!(other.pci.save().unwrap(), fresh);
        other.pci.transport_mut().resume();
        assert!(!other.probe.is_active());
    }
}
