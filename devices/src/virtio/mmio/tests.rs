//! The transport as a driver meets it: the order of 3.1.1, what comes too early or too late, and queues that cannot be.

use std::sync::Arc;

use virtio_queue::QueueT;

use super::*;
use crate::virtio::spec::*;
use crate::virtio::testing::probe::{FEATURE, Probe};
use crate::virtio::testing::{Driver, HIGH, HIGH_BYTES, LOW_BYTES};

fn probe() -> (Probe, Driver) {
    let probe = Probe::default();
    let driver = Driver::new(Box::new(probe.clone()));
    (probe, driver)
}

#[test]
fn a_driver_finds_the_device() {
    let (_, driver) = probe();
    assert_eq!(driver.get(0x00), 0x7472_6976);
    assert_eq!(driver.get(0x04), 2);
    assert_eq!(driver.get(0x08), 2);
    assert_eq!(driver.get(0x70), 0);
    assert_eq!((driver.get(0xb0), driver.get(0xb4)), (u32::MAX, u32::MAX), "no shared memory region");
    assert_eq!(driver.config::<3>(2), [2, 3, 4]);
}

#[test]
fn features_come_in_pages_and_include_the_transports_own() {
    let (_, mut driver) = probe();
    let mut pages = [0; 3];
    for (page, bits) in pages.iter_mut().enumerate() {
        driver.set(0x14, page as u32);
        *bits = driver.get(0x10);
    }
    assert_eq!(pages, [(FEATURE | 3 << 28) as u32, 1, 0]);
}

#[test]
fn the_usual_order_activates_with_what_was_set_up() {
    let (probe, mut driver) = probe();
    driver.bring_up(u64::MAX);
    assert_eq!(driver.status(), 0xf);
    let rings = driver.rings(1);
    let expected = (rings.table, rings.available, rings.used);
    probe.seen(|seen| {
        let activation = seen.activation.as_ref().expect("an activation");
        assert_eq!(activation.features, FEATURE | TRANSPORT_FEATURES);
        let queue = &activation.queues[1].as_ref().expect("queue 1").queue;
        assert_eq!((queue.desc_table(), queue.avail_ring(), queue.used_ring()), expected);
        assert_eq!(queue.size(), 64);
        assert!(queue.event_idx_enabled());
    });
}

#[test]
fn a_legacy_driver_is_refused() {
    let (probe, mut driver) = probe();
    driver.bring_up(!FEATURE_VERSION_1);
    assert_eq!(driver.status(), STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    assert!(!probe.is_active());
}

#[test]
fn features_never_offered_are_refused() {
    let (_, mut driver) = probe();
    driver.add_status(STATUS_ACKNOWLEDGE);
    driver.add_status(STATUS_DRIVER);
    for (page, bits) in [(0, 1 << 9), (1, 1)] {
        driver.set(0x24, page);
        driver.set(0x20, bits);
    }
    driver.add_status(STATUS_FEATURES_OK);
    assert_eq!(driver.status() & STATUS_FEATURES_OK, 0);
}

#[test]
fn steps_out_of_order_have_no_effect() {
    let (probe, mut driver) = probe();
    driver.set(0x70, u32::from(STATUS_DRIVER));
    driver.set(0x70, u32::from(STATUS_DRIVER_OK));
    driver.set(0x70, u32::from(STATUS_FEATURES_OK));
    assert_eq!(driver.status(), 0);
    driver.negotiate(u64::MAX);
    driver.set(0x70, u32::from(STATUS_ACKNOWLEDGE));
    assert_eq!(driver.status(), 0xb, "a status bit cannot be taken back");
    driver.set(0x70, 0x1_000f);
    assert!(!probe.is_active());
}

#[test]
fn features_are_settled_by_features_ok() {
    let (probe, mut driver) = probe();
    driver.negotiate(u64::MAX);
    driver.set(0x24, 0);
    driver.set(0x20, 0);
    driver.set_up_queue(0);
    driver.add_status(STATUS_DRIVER_OK);
    assert_eq!(probe.seen(|seen| seen.activation.as_ref().unwrap().features), FEATURE | TRANSPORT_FEATURES);
}

#[test]
fn queues_cannot_be_set_up_too_early_nor_changed_after_activation() {
    let (probe, mut driver) = probe();
    driver.set(0x38, 8);
    driver.set(0x44, 1);
    assert_eq!(driver.get(0x44), 0);
    driver.bring_up(u64::MAX);
    driver.set(0x30, 0);
    let before = driver.transport.save().unwrap();
    for register in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        driver.set(register, 0x1000);
    }
    assert_eq!(driver.transport.save().unwrap(), before);
    driver.add_status(STATUS_DRIVER_OK);
    assert_eq!(probe.seen(|seen| seen.activations), 1);
}

/// What a hostile driver may write over a good set-up of queue 0 before it says that it is ready.
fn refused(spoil: impl FnOnce(&mut Driver)) {
    let (probe, mut driver) = probe();
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0);
    spoil(&mut driver);
    driver.add_status(STATUS_DRIVER_OK);
    assert!(!probe.is_active(), "the device got a bad queue");
    assert_ne!(driver.status() & STATUS_NEEDS_RESET, 0);
    assert_eq!(driver.get(0x60), INTERRUPT_CONFIG);
}

#[test]
fn bad_queue_sizes_are_refused() {
    for size in [0, 3, 512, 0x1_0100, u32::MAX] {
        refused(|driver| driver.set(0x38, size));
    }
}

#[test]
fn misaligned_rings_are_refused() {
    for (register, address) in [(0x80, 0x1008), (0x90, 0x1001), (0xa0, 0x1002)] {
        refused(|driver| driver.set(register, address));
    }
}

#[test]
fn rings_that_leave_ram_are_refused() {
    let low = LOW_BYTES as u32;
    for register in [0x80, 0x90, 0xa0] {
        refused(|driver| driver.set(register, low - 16));
        refused(|driver| driver.set(register, low));
        // Ends in RAM again, having begun in the hole.
        refused(|driver| driver.set(register, u32::MAX - 15));
        refused(|driver| {
            driver.set(register, 0xffff_fff0);
            driver.set(register + 4, u32::MAX);
        });
    }
}

#[test]
fn a_ring_may_end_where_ram_ends() {
    let (probe, mut driver) = probe();
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0);
    let table = HIGH + HIGH_BYTES as u64 - 16 * 256;
    driver.set(0x80, table as u32);
    driver.set(0x84, (table >> 32) as u32);
    driver.add_status(STATUS_DRIVER_OK);
    assert!(probe.is_active());
}

#[test]
fn a_device_that_does_not_start_asks_for_a_reset() {
    let (probe, mut driver) = probe();
    driver.negotiate(u64::MAX);
    driver.add_status(STATUS_DRIVER_OK);
    assert!(!probe.is_active());
    assert_ne!(driver.status() & STATUS_NEEDS_RESET, 0);
}

#[test]
fn reset_makes_everything_new() {
    let (probe, mut driver) = probe();
    let fresh = driver.transport.save().unwrap();
    driver.bring_up(u64::MAX);
    probe.seen(|seen| seen.activation.as_ref().unwrap().interrupt.needs_reset());
    driver.set(0x50, 0);
    driver.set(0x70, 0);
    assert!(!probe.is_active());
    assert_eq!(driver.transport.save().unwrap(), fresh);
    assert!(driver.transport.transport().kicks()[0].read().is_err(), "a stale kick is left");
    driver.bring_up(u64::MAX);
    assert_eq!(probe.seen(|seen| seen.activations), 2);
}

#[test]
fn interrupts_are_pending_until_acknowledged() {
    let (probe, mut driver) = probe();
    driver.bring_up(u64::MAX);
    let interrupt = probe.seen(|seen| Arc::clone(&seen.activation.as_ref().unwrap().interrupt));
    let generation = driver.get(0xfc);
    interrupt.queue(1);
    assert_eq!((driver.get(0x60), driver.get(0xfc)), (INTERRUPT_USED, generation));
    interrupt.config();
    assert_eq!(driver.get(0x60), INTERRUPT_USED | INTERRUPT_CONFIG);
    assert_ne!(driver.get(0xfc), generation);
    driver.set(0x64, INTERRUPT_USED);
    assert_eq!(driver.get(0x60), INTERRUPT_CONFIG);
    assert_eq!(driver.transport.transport().interrupt().line().read().unwrap(), 2, "one signal for each");
}

#[test]
fn a_written_notification_kicks_the_queue_and_only_that() {
    let (_, mut driver) = probe();
    driver.set(0x50, 1);
    assert!(driver.transport.transport().kicks()[1].read().is_err(), "nobody is there to be kicked");
    driver.bring_up(u64::MAX);
    driver.set(0x50, 1);
    driver.set(0x50, 2);
    driver.set(0x50, u32::MAX);
    assert_eq!(driver.transport.transport().kicks()[1].read().unwrap(), 1);
    assert!(driver.transport.transport().kicks()[0].read().is_err());
}

#[test]
fn odd_accesses_are_harmless() {
    let (probe, mut driver) = probe();
    for offset in (0..0x140).chain([0xfff, 0x1000, u64::MAX]) {
        for len in [0, 1, 2, 3, 8] {
            let mut bytes = vec![0xaa; len];
            driver.transport.read(offset, &mut bytes);
            if offset < 0x100 {
                assert_eq!(bytes, vec![0; len], "{len} bytes at {offset:#x}");
                driver.transport.write(offset, &bytes);
            }
        }
    }
    driver.set(0x30, u32::MAX);
    assert_eq!((driver.get(0x34), driver.get(0x44)), (0, 0));
    driver.transport.write(0x104, &[1, 2]);
    assert!(probe.seen(|seen| seen.written.is_empty()), "no driver, no configuration");
    driver.add_status(STATUS_ACKNOWLEDGE);
    driver.add_status(STATUS_DRIVER);
    driver.transport.write(0x104, &[1, 2]);
    assert_eq!(probe.seen(|seen| seen.written.clone()), [(4, vec![1, 2])]);
}

#[test]
fn a_saved_transport_goes_on_in_another() {
    let (probe_before, mut before) = probe();
    before.bring_up(u64::MAX);
    probe_before.seen(|seen| {
        let activation = seen.activation.as_mut().unwrap();
        let queue = &mut activation.queues[0].as_mut().unwrap().queue;
        queue.set_next_avail(7);
        queue.set_next_used(6);
        activation.interrupt.queue(0);
    });
    before.transport.transport_mut().pause();
    let state = before.transport.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let state: TransportState = serde_json::from_str(&text).unwrap();

    let (probe_after, mut after) = probe();
    after.transport.restore(&state).unwrap();
    assert_eq!(after.transport.save().unwrap(), state, "what was restored can be saved again");
    assert!(!probe_after.is_active(), "not before it is told to");
    after.transport.transport_mut().resume();
    assert_eq!((after.status(), after.get(0x60)), (0xf, INTERRUPT_USED));
    assert_eq!(after.transport.transport().interrupt().line().read().unwrap(), 1, "the interrupt is not lost");
    probe_after.seen(|seen| {
        let activation = seen.activation.as_ref().unwrap();
        let queue = &activation.queues[0].as_ref().unwrap().queue;
        assert_eq!((queue.next_avail(), queue.next_used()), (7, 6));
        assert_eq!(activation.features, FEATURE | TRANSPORT_FEATURES);
    });
}

#[test]
fn a_damaged_state_is_refused() {
    let (_, mut driver) = probe();
    driver.bring_up(u64::MAX);
    driver.transport.transport_mut().pause();
    let good = driver.transport.save().unwrap();
    let mut bad = vec![good.clone(); 3];
    bad[0].queues.pop();
    bad[1].driver_features |= 1 << 60;
    bad[2].queues[0].areas[0] = LOW_BYTES as u64 - 16;
    for state in bad {
        let (probe, mut driver) = probe();
        let fresh = driver.transport.save().unwrap();
        driver.transport.restore(&state).expect_err("a damaged state was taken");
        assert_eq!(driver.transport.save().unwrap(), fresh);
        driver.transport.transport_mut().resume();
        assert!(!probe.is_active());
    }
}

#[test]
fn a_driver_that_has_written_features_that_nobody_offered_can_be_saved() {
    let (_, mut before) = probe();
    before.add_status(STATUS_ACKNOWLEDGE);
    before.add_status(STATUS_DRIVER);
    for page in [0, 1] {
        before.set(0x24, page);
        before.set(0x20, u32::MAX);
    }
    let state = before.transport.save().unwrap();
    let (_, mut after) = probe();
    after.transport.restore(&state).unwrap();
    assert_eq!(after.transport.save().unwrap(), state);
    after.add_status(STATUS_FEATURES_OK);
    assert_eq!(after.status() & STATUS_FEATURES_OK, 0, "they are judged when they are to be accepted");
}

/// A driver that may read its registers as memory.
fn reader(device: Box<dyn VirtioDevice>) -> Driver {
    let mut driver = Driver::new(Box::new(Probe::default()));
    driver.transport = MmioTransport::readable(device, driver.memory.clone()).unwrap();
    driver
}

/// What stands in the page is what would be read.
fn agrees(driver: &Driver) {
    let page = driver.transport.page().expect("a page");
    for offset in (0..REGION_BYTES).step_by(4) {
        assert_eq!(page.get(offset), driver.get(offset), "at {offset:#x}");
    }
}

#[test]
fn what_a_driver_reads_as_memory_is_what_it_would_be_told() {
    let mut driver = reader(Box::new(Probe::default()));
    agrees(&driver);
    for page in [0, 1, 2] {
        driver.set(0x14, page);
        agrees(&driver);
    }
    driver.bring_up(u64::MAX);
    agrees(&driver);
    for queue in [1, 7, 0] {
        driver.set(0x30, queue);
        agrees(&driver);
    }
    let interrupt = Arc::clone(driver.transport.transport().interrupt());
    interrupt.queue(0);
    agrees(&driver);
    interrupt.config();
    assert_eq!(
        driver.transport.page().unwrap().get(0x60),
        INTERRUPT_USED | INTERRUPT_CONFIG,
        "set by the device itself"
    );
    driver.set(0x64, INTERRUPT_CONFIG);
    agrees(&driver);
    assert_eq!(driver.get(0xfc), 1, "the generation that it knows once it has acknowledged");
    interrupt.needs_reset();
    let status = driver.transport.page().unwrap().get(0x70) as u8;
    assert_ne!(status & STATUS_NEEDS_RESET, 0, "a driver that looks, and writes nothing, sees it");
    driver.transport.transport_mut().pause();
    let state = driver.transport.save().unwrap();
    driver.reset();
    agrees(&driver);
    let mut after = reader(Box::new(Probe::default()));
    after.transport.restore(&state).unwrap();
    agrees(&after);
    assert_eq!(after.transport.page().unwrap().get(0x60), INTERRUPT_USED | INTERRUPT_CONFIG);
}

#[test]
fn what_changed_between_a_drivers_last_look_and_its_start_is_told() {
    let probe = Probe::default();
    let mut driver = reader(Box::new(probe.clone()));
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0);
    let first = |driver: &Driver| driver.transport.page().unwrap().get(0x100) as u8;
    probe.seen(|seen| seen.first = 5);
    assert_eq!((first(&driver), driver.get(0x60)), (0, 0), "what it read last");
    driver.add_status(STATUS_DRIVER_OK);
    assert_eq!((first(&driver), driver.get(0x60)), (5, INTERRUPT_CONFIG));
    driver.set(0x64, INTERRUPT_CONFIG);
    driver.set(0x30, 1);
    assert_eq!(driver.get(0x60), 0, "once");
}

#[test]
fn the_kernel_may_interrupt_a_driver_that_reads_its_registers_as_memory_and_no_other() {
    let mut driver = reader(Box::new(Probe::default()));
    driver.bring_up(u64::MAX);
    let interrupt = Arc::clone(driver.transport.transport().interrupt());
    interrupt.queue_event(1).expect("the line").write(1).unwrap();
    assert_eq!(interrupt.line().read().unwrap(), 1, "the line itself");
    driver.set(0x64, INTERRUPT_USED);
    assert_eq!(driver.get(0x60), INTERRUPT_USED, "nobody sets it again when the kernel interrupts");
    driver.reset();
    assert_eq!(driver.get(0x60), 0);
    let (_, driver) = probe();
    assert!(driver.transport.transport().interrupt().queue_event(1).is_none());
}
