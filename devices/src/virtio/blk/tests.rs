//! Disks in temporary files through the device: what both engines must do alike (`tests/cases.rs`), and what is the device's own.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::disk::{Disk, Last};
use super::request::{Range, Request};
use super::spec::*;
use super::*;
use crate::virtio::Allowance;
use crate::virtio::testing::{Driver, into, out, threads};

mod many;

#[allow(clippy::duplicate_mod, reason = "the same cases on each engine")]
#[path = "tests/cases.rs"]
mod with_uring;
#[allow(clippy::duplicate_mod, reason = "the same cases on each engine")]
#[path = "tests/cases.rs"]
mod without_uring;

/// Enough for a whole page of a host whose pages have 64 KiB.
const SECTORS: u64 = 256;
const HEADER_AT: u64 = 0x1000;
const DATA_AT: u64 = 0x10_0000;
const STATUS_AT: u64 = 0x2000;
/// No status: what a byte holds that nobody has written.
const UNTOUCHED: u8 = 0xee;

/// An image whose sectors are filled with their own numbers.
fn image() -> File {
    let file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all_at(&[sector as u8; 512], sector * 512).unwrap();
    }
    file
}

fn part(image: File, start: u64, read_only: bool) -> DiskPart {
    let length = image.metadata().unwrap().len();
    DiskPart { image, start, length, read_only }
}

/// A disk of one image.
fn whole(image: File) -> Vec<DiskPart> {
    vec![part(image, 0, false)]
}

fn header(driver: &Driver, kind: u32, sector: u64) {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    driver.put(HEADER_AT, &bytes);
    driver.put(STATUS_AT, &[UNTOUCHED]);
}

/// Asks for one thing; gives the status and how many bytes the device claims to have written.
fn ask(driver: &mut Driver, kind: u32, sector: u64, data: &[virtio_queue::desc::split::Descriptor]) -> (u8, u32) {
    header(driver, kind, sector);
    let mut chain = vec![out(HEADER_AT, HEADER_BYTES as u32)];
    chain.extend_from_slice(data);
    chain.push(into(STATUS_AT, 1));
    driver.post(0, 9, &chain);
    let (head, written) = driver.take(0);
    assert_eq!(head, 9);
    (driver.bytes(STATUS_AT, 1)[0], written)
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

const OK: u8 = Status::Ok as u8;
const ERROR: u8 = Status::Error as u8;
const UNSUPPORTED: u8 = Status::Unsupported as u8;

fn device(slot: &Slot, config: BlkConfig) -> Box<dyn VirtioDevice> {
    Box::new(Blk::new(slot.clone(), config, threads()).unwrap())
}

/// Whether io_uring can be tested here.
fn has_uring() -> bool {
    Uring::new(1).is_some()
}

#[test]
fn each_queue_is_served() {
    for uring in [true, false] {
        let slot = Slot::empty("");
        slot.insert(whole(image())).unwrap();
        let mut driver = Driver::start(device(&slot, BlkConfig { queues: 4, uring, ..BlkConfig::default() }));
        assert_eq!(u16::from_le_bytes(driver.config(34)), 4);
        for queue in 0..4 {
            header(&driver, TYPE_READ, queue as u64 + 1);
            driver.post(queue, 0, &[out(HEADER_AT, HEADER_BYTES as u32), into(DATA_AT, 513)]);
            assert_eq!(driver.take(queue), (0, 513));
            assert_eq!(driver.bytes(DATA_AT, 513), [&[queue as u8 + 1; 512][..], &[OK]].concat());
        }
    }
}

#[test]
fn a_driver_may_leave_queues_alone_but_the_first() {
    let slot = Slot::empty("");
    let config = BlkConfig { queues: 2, ..BlkConfig::default() };
    let mut driver = Driver::new(device(&slot, config));
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0);
    driver.add_status(crate::virtio::spec::STATUS_DRIVER_OK);
    assert_eq!(ask(&mut driver, TYPE_IDENTIFY, 0, &[into(DATA_AT, 20)]), (OK, 21));
    driver.reset();
    driver.negotiate(u64::MAX);
    driver.set_up_queue(1);
    driver.add_status(crate::virtio::spec::STATUS_DRIVER_OK);
    driver.wait_for_needs_reset();
}

#[test]
fn one_queue_is_not_called_many() {
    let device = device(&Slot::empty(""), BlkConfig::default());
    assert_eq!((device.features() & FEATURE_QUEUES, device.queue_sizes().len()), (0, 1));
}

#[test]
fn without_the_page_cache_buffers_lie_where_they_like() {
    for uring in [true, false] {
        let file = image();
        if let Err(error) = fcntl_setfl(&file, fcntl_getfl(&file).unwrap() | OFlags::DIRECT) {
            eprintln!("not tested: the file system of temporary files has no such way: {error}");
            return;
        }
        let slot = Slot::empty("");
        slot.insert(whole(file)).unwrap();
        let mut driver = Driver::start(device(&slot, BlkConfig { uring, ..BlkConfig::default() }));
        let scattered = |at: u64| [into(at + 1, 100), into(at + 0x1003, 412), into(at + 0x2000, 512)];
        assert_eq!(ask(&mut driver, TYPE_READ, 7, &scattered(DATA_AT)), (OK, 1025));
        assert_eq!(driver.bytes(DATA_AT + 1, 101), [&[7; 100][..], &[0]].concat());
        assert_eq!(driver.bytes(DATA_AT + 0x1003, 412), [7; 412]);
        assert_eq!(driver.bytes(DATA_AT + 0x2000, 512), [8; 512]);
        driver.put(DATA_AT, &[0xab; 2048]);
        assert_eq!(ask(&mut driver, TYPE_WRITE, 3, &[out(DATA_AT + 3, 24), out(DATA_AT + 29, 1000)]), (OK, 1));
        assert_eq!(ask(&mut driver, TYPE_WRITE, 5, &[out(DATA_AT, 512)]), (OK, 1));
        assert_eq!(ask(&mut driver, TYPE_FLUSH, 0, &[]), (OK, 1));
        assert_eq!(ask(&mut driver, TYPE_READ, 2, &[into(DATA_AT, 2560)]), (OK, 2561));
        assert_eq!(driver.bytes(DATA_AT, 2560), [&[2; 512][..], &[0xab; 1536], &[6; 512]].concat());
    }
}

#[test]
fn what_shall_last_is_synchronized() {
    let disk = Disk::new(whole(image())).unwrap();
    let syncs = |request: &Request, last| {
        let steps = disk.plan(request, last).unwrap();
        steps.iter().any(|step| step.deed == super::disk::Deed::Sync)
    };
    let change = Request::Discard(vec![Range { offset: 0, len: 512, unmap: false }]);
    let look = Request::Read { offset: 0, into: Vec::new() };
    for (last, expected) in
        [(Last::Flushed, [true, false, false]), (Last::Always, [true, true, false]), (Last::Never, [false; 3])]
    {
        assert_eq!([&Request::Flush, &change, &look].map(|request| syncs(request, last)), expected, "{last:?}");
    }
}
