//! The balloon before drivers good and bad: what it gives back, and what it does not.

use std::io;
use std::sync::Mutex;

use vm_memory::GuestMemory as _;

use super::*;
use crate::virtio::testing::{Dice, Driver, HIGH, HIGH_BYTES, LOW_BYTES, into, out, threads, wait_for};

/// Notes what it is to let go, and refuses what is not RAM, as the real one does.
#[derive(Default)]
struct Notes(Mutex<Vec<(u64, u64)>>);

impl Backing for Notes {
    fn release(&self, memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()> {
        if !memory.check_range(address, len as usize) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.lock().unwrap().push((address.0, len));
        Ok(())
    }

    fn open(&self, _memory: &GuestMemory, _address: GuestAddress, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn close(&self, _memory: &GuestMemory, _address: GuestAddress, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Notes {
    fn take(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

struct Rig {
    driver: Driver,
    size: BalloonSize,
    notes: Arc<Notes>,
}

fn rig() -> Rig {
    let (size, notes) = (BalloonSize::default(), Arc::new(Notes::default()));
    let driver = Driver::new(Box::new(Balloon::new(size.clone(), Arc::clone(&notes) as _, threads())));
    Rig { driver, size, notes }
}

fn started(features: u64) -> Rig {
    let mut rig = rig();
    rig.driver.bring_up(features);
    rig
}

const ADDRESS: u64 = 0x1000;

impl Rig {
    /// Inflates with these pages, and waits until the device has seen them.
    fn inflate(&mut self, pages: &[u32]) {
        let numbers: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.driver.put(ADDRESS, &numbers);
        self.driver.post(usize::from(INFLATE), 0, &[out(ADDRESS, numbers.len() as u32)]);
        self.driver.take(usize::from(INFLATE));
    }
}

#[test]
fn neighbours_go_back_together_in_either_direction() {
    let mut rig = started(u64::MAX);
    rig.inflate(&[10, 11, 12, 40, 39, 38, 7, 0]);
    assert_eq!(rig.notes.take(), [(10 << 12, 3 << 12), (38 << 12, 3 << 12), (7 << 12, 1 << 12), (0, 1 << 12)]);
}

#[test]
fn pages_outside_ram_are_left_alone_and_the_rest_goes() {
    let mut rig = started(u64::MAX);
    let (low_end, high) = ((LOW_BYTES >> 12) as u32, (HIGH >> 12) as u32);
    rig.inflate(&[u32::MAX, low_end, low_end + 1, 5, high, high + (HIGH_BYTES >> 12) as u32 + 7]);
    assert_eq!(rig.notes.take(), [(5 << 12, 1 << 12), (HIGH, 1 << 12)]);
    // A stretch that begins in RAM and leaves it.
    rig.inflate(&[low_end - 1, low_end]);
    assert_eq!(rig.notes.take(), []);
}

#[test]
fn deflating_lets_nothing_go() {
    let mut rig = started(u64::MAX);
    rig.driver.put(ADDRESS, &7_u32.to_le_bytes());
    rig.driver.post(usize::from(DEFLATE), 0, &[out(ADDRESS, 4)]);
    assert_eq!(rig.driver.take(usize::from(DEFLATE)), (0, 0));
    assert_eq!(rig.notes.take(), []);
}

#[test]
fn what_is_reported_free_goes_back() {
    let mut rig = started(u64::MAX);
    rig.driver.post(usize::from(REPORTING), 0, &[into(0x20_0000, 0x20_0000), into(HIGH, 0x1000)]);
    assert_eq!(rig.driver.take(usize::from(REPORTING)), (0, 0));
    assert_eq!(rig.notes.take(), [(0x20_0000, 0x20_0000), (HIGH, 0x1000)]);
}

#[test]
fn free_pages_stay_with_a_driver_that_expects_its_own_bytes_in_them() {
    for (poison, kept) in [(0_u32, false), (0xaaaa_aaaa, true)] {
        let mut rig = rig();
        rig.driver.negotiate(u64::MAX);
        rig.driver.transport.write(0x100 + CONFIG_POISON as u64, &poison.to_le_bytes());
        (0..3).for_each(|queue| rig.driver.set_up_queue(queue));
        rig.driver.add_status(4);
        rig.driver.post(usize::from(REPORTING), 0, &[into(0x20_0000, 0x1000)]);
        rig.driver.take(usize::from(REPORTING));
        assert_eq!(rig.notes.take().is_empty(), kept, "{poison:#x}");
    }
}

#[test]
fn the_host_asks_and_the_driver_answers() {
    let mut rig = started(u64::MAX);
    assert_eq!(rig.driver.config::<8>(0), [0; 8]);
    rig.size.set((3 << 12) + 5);
    wait_for("a config interrupt", || rig.driver.get(0x60) & 2 != 0);
    assert_eq!(u32::from_le_bytes(rig.driver.config(0)), 3);
    rig.driver.transport.write(0x100 + CONFIG_ACTUAL as u64, &2_u32.to_le_bytes());
    assert_eq!((rig.size.wanted(), rig.size.actual()), (3 << 12, 2 << 12));
    rig.driver.reset();
    assert_eq!((rig.size.wanted(), rig.size.actual()), (3 << 12, 0), "the next driver has given nothing");
}

#[test]
fn writes_to_anything_else_of_the_configuration_are_ignored() {
    let mut rig = started(u64::MAX);
    for offset in [0, 1, 5, 8, 16, u64::MAX - 0x200] {
        rig.driver.transport.write(0x100 + offset, &[0xff; 4]);
    }
    rig.driver.transport.write(0x104, &[0xff; 2]);
    assert_eq!(rig.driver.config::<16>(0), [0; 16]);
    assert_eq!(rig.driver.config::<8>(CONFIG_BYTES as u64), [0; 8]);
}

#[test]
fn a_driver_without_reporting_leaves_its_queue_out() {
    let mut rig = rig();
    rig.driver.negotiate(!FEATURE_PAGE_REPORTING);
    (0..2).for_each(|queue| rig.driver.set_up_queue(queue));
    rig.driver.add_status(4);
    rig.inflate(&[3]);
    assert_eq!(rig.notes.take(), [(3 << 12, 1 << 12)]);
}

#[test]
fn reporting_is_offered_unless_it_is_switched_off() {
    let offered = |reporting| {
        let balloon = Balloon::new(BalloonSize::default(), Arc::new(Notes::default()), threads());
        balloon.with_reporting(reporting).features() & FEATURE_PAGE_REPORTING != 0
    };
    assert_eq!((offered(true), offered(false)), (true, false));
}

#[test]
fn too_many_or_ragged_page_numbers_stop_the_device() {
    for len in [NUMBERS_LIMIT + 4, 8 << 20, 6] {
        let mut rig = started(u64::MAX);
        rig.driver.post(usize::from(INFLATE), 0, &[out(0, len)]);
        rig.driver.wait_for_needs_reset();
        assert_eq!(rig.notes.take(), []);
    }
}

#[test]
fn a_report_of_what_is_not_ram_stops_the_device() {
    for bad in [into(LOW_BYTES as u64, 0x1000), into(LOW_BYTES as u64 - 0x1000, 0x2000), into(u64::MAX - 0xfff, 0x1000)]
    {
        let mut rig = started(u64::MAX);
        rig.driver.post(usize::from(REPORTING), 0, &[into(0x1000, 0x1000), bad]);
        rig.driver.wait_for_needs_reset();
        assert_eq!(rig.notes.take(), [], "a chain is good as a whole or not at all");
    }
}

#[test]
fn nonsense_never_reaches_beyond_ram() {
    let mut rig = started(u64::MAX);
    let mut dice = Dice::new(5);
    for _ in 0..200 {
        let pages: Vec<u32> = (0..dice.below(64)).map(|_| dice.roll() as u32 >> dice.below(24)).collect();
        rig.inflate(&pages);
        let readable = out(dice.below(1 << 20), dice.below(1 << 16) as u32);
        let writable = into(dice.below(LOW_BYTES as u64 / 2), dice.below(1 << 20) as u32 + 1);
        rig.driver.post(usize::from(REPORTING), 0, &[readable, writable]);
        rig.driver.take(usize::from(REPORTING));
    }
    for (address, len) in rig.notes.take() {
        assert!(rig.driver.memory.check_range(GuestAddress(address), len as usize), "{len:#x} at {address:#x}");
    }
}

#[test]
fn it_goes_on_after_a_pause() {
    let mut rig = started(u64::MAX);
    rig.inflate(&[1]);
    rig.driver.transport.transport_mut().pause();
    rig.driver.post(usize::from(REPORTING), 0, &[into(0x20_0000, 0x1000)]);
    assert_eq!(rig.driver.used(usize::from(REPORTING)), 0);
    rig.driver.transport.transport_mut().resume();
    rig.driver.take(usize::from(REPORTING));
    assert_eq!(rig.notes.take(), [(1 << 12, 1 << 12), (0x20_0000, 0x1000)]);
}

#[test]
fn what_the_driver_said_is_part_of_the_state() {
    let mut rig = started(u64::MAX);
    rig.size.set(9 << 12);
    rig.driver.transport.write(0x100 + CONFIG_ACTUAL as u64, &2_u32.to_le_bytes());
    rig.driver.transport.write(0x100 + CONFIG_POISON as u64, &0xaa_u32.to_le_bytes());
    rig.driver.transport.transport_mut().pause();
    let saved = rig.driver.transport.save().unwrap();
    let mut other = self::rig();
    other.driver.transport.restore(&saved).unwrap();
    assert_eq!((other.size.wanted(), other.size.actual()), (9 << 12, 2 << 12));
    other.driver.transport.transport_mut().resume();
    assert_eq!(u32::from_le_bytes(other.driver.config(CONFIG_POISON as u64)), 0xaa);
}
