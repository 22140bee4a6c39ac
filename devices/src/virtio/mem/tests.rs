//! The memory device before drivers good and bad: what may be touched is what is plugged, and that is never more than wanted.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::virtio::testing::{Dice, Driver, HIGH, HIGH_BYTES, into, memory, out, threads, wait_for};

const BLOCK: u64 = 64 << 10;
const BLOCKS: usize = HIGH_BYTES / BLOCK as usize;
const REGION: MemRegion = MemRegion { start: HIGH, size: HIGH_BYTES as u64, block: BLOCK };

/// Which blocks may be touched; refuses to change any while `stubborn`.
#[derive(Default)]
struct Doors {
    open: Mutex<[bool; BLOCKS]>,
    stubborn: AtomicBool,
}

impl Doors {
    fn turn(&self, address: GuestAddress, len: u64, open: bool) -> io::Result<()> {
        if self.stubborn.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let first = ((address.0 - HIGH) / BLOCK) as usize;
        self.open.lock().unwrap()[first..first + (len / BLOCK) as usize].fill(open);
        Ok(())
    }

    fn open(&self) -> Vec<usize> {
        let open = self.open.lock().unwrap();
        (0..BLOCKS).filter(|block| open[*block]).collect()
    }
}

impl Backing for Doors {
    fn release(&self, _memory: &GuestMemory, _address: GuestAddress, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn open(&self, _memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()> {
        self.turn(address, len, true)
    }

    fn close(&self, _memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()> {
        self.turn(address, len, false)
    }
}

struct Rig {
    driver: Driver,
    size: MemSize,
    doors: Arc<Doors>,
}

fn rig() -> Rig {
    let (size, doors) = (MemSize::new(REGION), Arc::new(Doors::default()));
    let driver = Driver::start(Box::new(Mem::new(size.clone(), Arc::clone(&doors) as _, threads())));
    Rig { driver, size, doors }
}

const REQUEST: u64 = 0x1000;
const ANSWER: u64 = 0x2000;

impl Rig {
    /// One request and its answer: the response, and the state where it was asked for.
    fn ask(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        let mut request = [0; REQUEST_BYTES];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        self.driver.put(REQUEST, &request);
        self.driver.post(0, 0, &[out(REQUEST, REQUEST_BYTES as u32), into(ANSWER, RESPONSE_BYTES as u32)]);
        assert_eq!(self.driver.take(0), (0, RESPONSE_BYTES as u32));
        let answer = self.driver.bytes(ANSWER, RESPONSE_BYTES);
        (u16::from_le_bytes([answer[0], answer[1]]), u16::from_le_bytes([answer[8], answer[9]]))
    }

    fn plug(&mut self, block: u64, count: u16) -> u16 {
        self.ask(PLUG, HIGH + block * BLOCK, count).0
    }

    fn unplug(&mut self, block: u64, count: u16) -> u16 {
        self.ask(UNPLUG, HIGH + block * BLOCK, count).0
    }
}

const ACK: u16 = Response::Ack as u16;
const NACK: u16 = Response::Nack as u16;
const BUSY: u16 = Response::Busy as u16;
const ERROR: u16 = Response::Error as u16;

#[test]
fn the_configuration_says_where_and_how_much() {
    let rig = rig();
    let word = |at| u64::from_le_bytes(rig.driver.config(at));
    assert_eq!([0, 16, 24, 32, 40, 48].map(word), [BLOCK, HIGH, HIGH_BYTES as u64, HIGH_BYTES as u64, 0, 0]);
    rig.size.request(BLOCK + 1).unwrap();
    wait_for("a config interrupt", || rig.driver.get(0x60) & 2 != 0);
    assert_eq!(word(48), 2 * BLOCK);
    let error = rig.size.request(HIGH_BYTES as u64 + 1).unwrap_err();
    assert_eq!(error.to_string(), "1048577 bytes of memory are wanted, 1048576 can be added at most");
    assert_eq!(rig.size.requested(), 2 * BLOCK);
}

#[test]
fn blocks_open_when_plugged_and_close_when_unplugged() {
    let mut rig = rig();
    rig.size.request(3 * BLOCK).unwrap();
    assert_eq!(rig.plug(2, 2), ACK);
    assert_eq!((rig.doors.open(), rig.size.plugged()), (vec![2, 3], 2 * BLOCK));
    assert_eq!(rig.ask(STATE, HIGH + BLOCK, 2), (ACK, Plugged::Some as u16));
    assert_eq!(rig.ask(STATE, HIGH + 2 * BLOCK, 2), (ACK, Plugged::All as u16));
    assert_eq!(rig.ask(STATE, HIGH, 2), (ACK, Plugged::None as u16));
    assert_eq!(rig.plug(8, 2), NACK, "one more is wanted, not two");
    assert_eq!(rig.plug(3, 1), ERROR, "it is plugged");
    assert_eq!(rig.unplug(3, 2), ERROR, "one of them is not plugged");
    assert_eq!(rig.unplug(2, 1), ACK);
    assert_eq!(rig.doors.open(), [3]);
    assert_eq!(rig.size.unplugged(), [HIGH..HIGH + 3 * BLOCK, HIGH + 4 * BLOCK..HIGH + HIGH_BYTES as u64]);
    rig.size.request(0).unwrap();
    assert_eq!(rig.plug(5, 1), NACK);
    assert_eq!(rig.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!((rig.doors.open(), rig.size.plugged()), (vec![], 0));
}

#[test]
fn requests_beyond_the_region_or_of_unknown_kinds_are_errors() {
    let mut rig = rig();
    rig.size.request(HIGH_BYTES as u64).unwrap();
    let end = HIGH + HIGH_BYTES as u64;
    for kind in [PLUG, UNPLUG, STATE] {
        for (address, count) in [
            (end, 1),
            (end - BLOCK, 2),
            (HIGH - BLOCK, 1),
            (HIGH, 0),
            (HIGH + 1, 1),
            (0, u16::MAX),
            (u64::MAX, u16::MAX),
        ] {
            assert_eq!(rig.ask(kind, address, count).0, ERROR, "{kind}: {count} at {address:#x}");
        }
    }
    assert_eq!(rig.ask(4, HIGH, 1).0, ERROR);
    assert_eq!(rig.ask(u16::MAX, HIGH, 1).0, ERROR);
    assert!(rig.doors.open().is_empty());
}

#[test]
fn a_host_that_cannot_is_busy_and_nothing_changes() {
    let mut rig = rig();
    rig.size.request(4 * BLOCK).unwrap();
    rig.plug(0, 1);
    rig.doors.stubborn.store(true, Ordering::Relaxed);
    assert_eq!((rig.plug(1, 1), rig.unplug(0, 1), rig.ask(UNPLUG_ALL, 0, 0).0), (BUSY, BUSY, BUSY));
    assert_eq!(rig.size.plugged(), BLOCK);
    rig.doors.stubborn.store(false, Ordering::Relaxed);
    assert_eq!((rig.plug(1, 1), rig.unplug(0, 1)), (ACK, ACK));
}

#[test]
fn requests_that_are_too_short_stop_the_device() {
    for (readable, writable) in [(REQUEST_BYTES as u32 - 1, 10), (24, RESPONSE_BYTES as u32 - 1), (0, 10)] {
        let mut rig = rig();
        let chain = [out(REQUEST, readable), into(ANSWER, writable)];
        rig.driver.post(0, 0, if readable == 0 { &chain[1..] } else { &chain });
        rig.driver.wait_for_needs_reset();
    }
}

#[test]
fn a_driver_that_would_touch_unplugged_memory_is_not_served() {
    let device = Mem::new(MemSize::new(REGION), Arc::new(Doors::default()), threads());
    let mut driver = Driver::new(Box::new(device));
    driver.bring_up(!FEATURE_UNPLUGGED_INACCESSIBLE);
    driver.wait_for_needs_reset();
}

#[test]
fn whatever_is_asked_for_no_more_is_open_than_wanted() {
    let mut rig = rig();
    let mut dice = Dice::new(9);
    for _ in 0..300 {
        if dice.below(4) == 0 {
            // Less is wanted only when as little is plugged, so that the rule can be held against every state.
            let wanted = dice.below(BLOCKS as u64 + 1) * BLOCK;
            rig.size.request(wanted.max(rig.size.plugged())).unwrap();
        }
        let address = (HIGH + dice.below(BLOCKS as u64 + 3) * BLOCK) | dice.pick(&[0, 0, 0, 1, BLOCK / 2]);
        let kind = dice.pick(&[PLUG, PLUG, PLUG, UNPLUG, UNPLUG, STATE, UNPLUG_ALL, 77]);
        let count = dice.below(6) as u16;
        rig.ask(kind, address, count);
        let open = rig.doors.open();
        assert_eq!(open.len() as u64 * BLOCK, rig.size.plugged());
        assert!(rig.size.plugged() <= rig.size.requested());
    }
}

#[test]
fn what_is_plugged_outlives_a_reset_and_a_restore() {
    let mut rig = rig();
    rig.size.request(3 * BLOCK).unwrap();
    rig.plug(1, 2);
    rig.driver.reset();
    assert_eq!(rig.doors.open(), [1, 2]);
    rig.driver.bring_up(u64::MAX);
    assert_eq!(rig.unplug(1, 1), ACK);
    rig.driver.transport.transport_mut().pause();
    let saved = rig.driver.transport.save().unwrap();

    let (size, doors) = (MemSize::new(REGION), Arc::new(Doors::default()));
    let device = Box::new(Mem::new(size.clone(), Arc::clone(&doors) as _, threads()));
    let mut transport = super::super::MmioTransport::new(device, memory()).unwrap();
    transport.restore(&saved).unwrap();
    assert_eq!((doors.open(), size.plugged(), size.requested()), (vec![2], BLOCK, 3 * BLOCK));
    let mut damaged = saved;
    damaged.device.pop();
    assert!(matches!(transport.restore(&damaged), Err(RestoreError::Device)));
}
