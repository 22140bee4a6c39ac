//! Many requests at once: that each gets its own bytes, in whatever order they end, and what pause, save, reset and limits do to
//! those under way. On both engines.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::MmioTransport;
use crate::virtio::spec::STATUS_NEEDS_RESET;
use crate::virtio::testing::wait_for;

/// Requests at once; each has three descriptors of the ring's 128.
const MANY: u16 = 40;
/// Bytes of each.
const BYTES: u32 = 4096;
const UNREAD: u8 = 0xaa;

/// Engines that can be had here.
fn engines() -> impl Iterator<Item = bool> {
    [true, false].into_iter().filter(|uring| !uring || has_uring())
}

fn driver(uring: bool, limit: RateLimit) -> Driver {
    let slot = Slot::empty("");
    slot.insert(whole(image())).unwrap();
    Driver::start(device(&slot, BlkConfig { uring, limit, ..BlkConfig::default() }))
}

fn data_at(request: u16) -> u64 {
    DATA_AT + 0x2000 * u64::from(request)
}

/// The sectors that a request is about.
fn sector_of(request: u16) -> u64 {
    u64::from(request) * 7 % (SECTORS - 8)
}

/// Lays a request out without making it available; its head is three times its number.
fn lay(driver: &Driver, request: u16, kind: u32) {
    let at = HEADER_AT + 0x40 * u64::from(request);
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector_of(request).to_le_bytes());
    driver.put(at, &bytes);
    driver.put(data_at(request), &[UNREAD; BYTES as usize + 1]);
    let data = match kind {
        TYPE_READ => into(data_at(request), BYTES),
        _ => into(data_at(request), 0),
    };
    let status = into(data_at(request) + u64::from(BYTES), 1);
    driver.lay(0, 3 * request, &[out(at, HEADER_BYTES as u32), data, status]);
}

/// Makes reads available, a flush among them, and kicks once.
fn post(driver: &mut Driver) {
    for request in 0..MANY {
        lay(driver, request, if request == 3 { TYPE_FLUSH } else { TYPE_READ });
        driver.rings(0).offer(3 * request);
    }
    driver.set(0x50, 0);
}

/// Takes back what `post` made available, in any order, and looks at all of it.
fn check(driver: &mut Driver) {
    let mut heads: Vec<u32> = (0..MANY)
        .map(|_| {
            let (head, written) = driver.take(0);
            assert_eq!(written, if head == 9 { 1 } else { BYTES + 1 });
            head
        })
        .collect();
    heads.sort_unstable();
    assert_eq!(heads, (0..u32::from(MANY)).map(|request| 3 * request).collect::<Vec<_>>());
    for request in (0..MANY).filter(|&request| request != 3) {
        let bytes = driver.bytes(data_at(request), BYTES as usize + 1);
        for (sector, content) in (sector_of(request)..).zip(bytes.chunks_exact(512)) {
            assert_eq!(content, [sector as u8; 512], "request {request}, sector {sector}");
        }
        assert_eq!(bytes[BYTES as usize], OK);
    }
}

#[test]
fn each_gets_its_own_bytes() {
    for uring in engines() {
        let mut driver = driver(uring, RateLimit::default());
        for _ in 0..20 {
            post(&mut driver);
            check(&mut driver);
        }
    }
}

#[test]
fn after_a_reset_nothing_comes_any_more() {
    for uring in engines() {
        let mut driver = driver(uring, RateLimit::default());
        for _ in 0..10 {
            post(&mut driver);
            driver.reset();
            let zeroes = vec![0x55; 0x2000 * usize::from(MANY)];
            driver.put(DATA_AT, &zeroes);
            std::thread::sleep(Duration::from_millis(5));
            assert!(driver.bytes(DATA_AT, zeroes.len()) == zeroes, "memory of a device that was reset was written to");
            driver.bring_up(u64::MAX);
        }
        post(&mut driver);
        check(&mut driver);
    }
}

#[test]
fn a_pause_loses_nothing() {
    for uring in engines() {
        let mut driver = driver(uring, RateLimit::default());
        for _ in 0..10 {
            post(&mut driver);
            driver.transport.transport_mut().pause();
            let used = driver.used(0);
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(driver.used(0), used, "an answer during a pause");
            driver.transport.transport_mut().resume();
            check(&mut driver);
        }
    }
}

#[test]
fn what_was_under_way_when_saved_is_answered_after() {
    for uring in engines() {
        let slot = Slot::empty("");
        slot.insert(whole(image())).unwrap();
        let config = BlkConfig { uring, ..BlkConfig::default() };
        let mut driver = Driver::start(device(&slot, config));
        for _ in 0..5 {
            post(&mut driver);
            driver.transport.transport_mut().pause();
            let saved = driver.transport.save().unwrap();
            let mut restored = MmioTransport::new(device(&slot, config), driver.memory.clone()).unwrap();
            restored.restore(&saved).unwrap();
            driver.transport = restored;
            driver.transport.transport_mut().resume();
            check(&mut driver);
        }
    }
}

#[test]
fn a_chain_that_is_under_way_cannot_be_made_available_again() {
    for uring in engines() {
        let mut driver = driver(uring, RateLimit::default());
        // All at once, so that the first is not back when it is met again.
        let rings = driver.rings(0);
        for request in 0..=MANY {
            if request < MANY {
                lay(&driver, request, TYPE_READ);
            }
            let slot = rings.available + 4 + 2 * u64::from(request);
            driver.memory.write_obj((3 * (request % MANY)).to_le(), GuestAddress(slot)).unwrap();
        }
        rings.set_available_index(MANY + 1);
        driver.set(0x50, 0);
        driver.wait_for_needs_reset();
        driver.reset();
        driver.bring_up(u64::MAX);
        post(&mut driver);
        check(&mut driver);
    }
}

#[test]
fn a_limited_disk_takes_its_time_and_does_everything() {
    let limit = |operations: Option<Allowance>, bytes| RateLimit { operations, bytes };
    let allowance = |per_second: u64, burst: u64| {
        Some(Allowance { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
    };
    // Forty requests: ten at once and thirty at 300 a second; 39 of 4 KiB, of which 19 at once and 20 in 100 ms.
    for limit in [limit(allowance(300, 10), None), limit(None, allowance(819_200, 77_824))] {
        for uring in engines() {
            let mut driver = driver(uring, limit);
            let began = Instant::now();
            post(&mut driver);
            check(&mut driver);
            assert!(began.elapsed() >= Duration::from_millis(95), "{:?} for {limit:?}", began.elapsed());
        }
    }
}

#[test]
fn what_waits_for_its_allowance_survives_a_pause_and_goes_with_a_reset() {
    let allowance = Allowance { per_second: 200.try_into().unwrap(), burst: 1.try_into().unwrap() };
    for uring in engines() {
        let mut driver = driver(uring, RateLimit { operations: Some(allowance), bytes: None });
        post(&mut driver);
        wait_for("first answer", || driver.used(0) > 0);
        driver.transport.transport_mut().pause();
        assert!(driver.used(0) < MANY);
        driver.transport.transport_mut().resume();
        check(&mut driver);
        post(&mut driver);
        driver.reset();
        assert_eq!(driver.status() & STATUS_NEEDS_RESET, 0);
        driver.memory.write_obj(0_u16, GuestAddress(driver.rings(0).used + 2)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(driver.used(0), 0);
    }
}

#[test]
fn a_driver_that_knows_event_indexes_is_told_less_often_than_it_is_answered() {
    for uring in engines() {
        let slot = Slot::empty("");
        slot.insert(whole(image())).unwrap();
        let mut driver = Driver::new(device(&slot, BlkConfig { uring, ..BlkConfig::default() }));
        driver.bring_up(u64::MAX);
        // It wants to hear when the last of its requests has been answered.
        let event = driver.rings(0).available + 4 + 2 * u64::from(QUEUE_SIZE);
        driver.memory.write_obj((MANY - 1).to_le(), GuestAddress(event)).unwrap();
        let interrupts = driver.transport.transport().interrupt().line().try_clone().unwrap();
        let _ = interrupts.read();
        post(&mut driver);
        check(&mut driver);
        wait_for("interrupt", || interrupts.read().is_ok_and(|count| count == 1));
    }
}

#[test]
fn writes_past_the_page_cache_arrive() {
    for uring in engines() {
        let file = image();
        let direct = rustix::fs::fcntl_getfl(&file).unwrap() | rustix::fs::OFlags::DIRECT;
        let slot = Slot::empty("");
        let copy = File::options().write(true).read(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        if rustix::fs::fcntl_setfl(&copy, direct).is_err() {
            eprintln!("not tested: no O_DIRECT where temporary files are");
            return;
        }
        slot.insert(whole(copy)).unwrap();
        let mut driver = Driver::start(device(&slot, BlkConfig { uring, ..BlkConfig::default() }));
        for request in 0..16_u16 {
            lay(&driver, request, TYPE_WRITE);
            let at = HEADER_AT + 0x40 * u64::from(request);
            driver.put(at + 8, &(8 * u64::from(request)).to_le_bytes());
            driver.put(data_at(request), &[0x40 + request as u8; BYTES as usize]);
            let status = into(data_at(request) + u64::from(BYTES), 1);
            let chain = [out(at, HEADER_BYTES as u32), out(data_at(request), BYTES), status];
            driver.post(0, 3 * request, &chain);
        }
        for _ in 0..16 {
            assert_eq!(driver.take(0).1, 1);
        }
        for request in 0..16_u16 {
            assert_eq!(driver.bytes(data_at(request) + u64::from(BYTES), 1), [OK]);
            let mut bytes = [0; BYTES as usize];
            file.read_exact_at(&mut bytes, u64::from(BYTES) * u64::from(request)).unwrap();
            assert_eq!(bytes, [0x40 + request as u8; BYTES as usize], "request {request}");
        }
    }
}
