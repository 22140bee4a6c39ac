//! What a disk does whichever way it is served: requests good and bad, edges, slots that fill while the guest runs.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::virtio::spec::INTERRUPT_CONFIG;

/// A device on the engine that this module is named after.
fn device(slot: &Slot) -> Box<dyn VirtioDevice> {
    let uring = !module_path!().ends_with("without_uring");
    super::device(slot, BlkConfig { uring, ..BlkConfig::default() })
}

fn start(read_only: bool) -> (Driver, File) {
    let (slot, file) = (Slot::empty("disk-1"), image());
    slot.insert(vec![part(file.try_clone().unwrap(), 0, read_only)]).unwrap();
    (Driver::start(device(&slot)), file)
}

#[test]
fn the_configuration_tells_the_size() {
    let (driver, _) = start(false);
    assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS);
    assert_eq!(u32::from_le_bytes(driver.config(12)), u32::from(QUEUE_SIZE) - 2);
    assert_eq!(u32::from_le_bytes(driver.config(20)), 512);
    assert_eq!(driver.config::<8>(24), [3, 0, 8, 0, 0, 0, 0, 0], "4 KiB blocks, no best size");
    assert_eq!(driver.config::<8>(57), [0; 8]);
}

#[test]
fn a_disk_grows_while_it_is_used() {
    let (slot, file) = (Slot::empty("disk-1"), image());
    let bytes = SECTORS * 512;
    slot.insert(vec![part(file.try_clone().unwrap(), 0, false)]).unwrap();
    let mut driver = Driver::start(device(&slot));
    assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS);
    assert_eq!(ask(&mut driver, TYPE_READ, SECTORS, &[into(DATA_AT, 512)]).0, ERROR);
    let short = slot.grow(bytes + 512).unwrap_err();
    assert!(matches!(short, DiskError::Short { part: 0, .. }), "{short}");
    file.set_len(bytes + 1024).unwrap();
    slot.grow(bytes + 512).unwrap();
    assert_eq!(driver.get(0x60) & INTERRUPT_CONFIG, INTERRUPT_CONFIG);
    assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS + 1);
    let smaller = slot.grow(bytes).unwrap_err();
    assert!(matches!(smaller, DiskError::Smaller { part: 0, .. }), "{smaller}");
    driver.put(DATA_AT, &[0x5a; 512]);
    assert_eq!(ask(&mut driver, TYPE_WRITE, SECTORS, &[out(DATA_AT, 512)]), (OK, 1));
    assert_eq!(ask(&mut driver, TYPE_READ, SECTORS - 1, &[into(DATA_AT, 1024)]), (OK, 1025));
    assert_eq!(driver.bytes(DATA_AT, 1024), [[(SECTORS - 1) as u8; 512], [0x5a; 512]].concat());
    assert_eq!(ask(&mut driver, TYPE_READ, SECTORS + 1, &[into(DATA_AT, 512)]).0, ERROR);
}

#[test]
fn parts_that_make_no_disk_are_refused_and_the_slot_stays_as_it_is() {
    let slot = Slot::empty("");
    let file = |length: u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file
    };
    let at = |start: u64, length: u64| part(file(length), start, false);
    let error = |parts: Vec<DiskPart>| slot.insert(parts).unwrap_err();
    assert!(matches!(error(vec![]), DiskError::NoParts));
    assert!(matches!(error(vec![at(0, 0)]), DiskError::Empty(0)));
    assert!(matches!(error(vec![at(0, 512), at(512, 1000)]), DiskError::Unaligned { part: 1, bytes: 1000 }));
    assert!(matches!(error(vec![at(100, 512)]), DiskError::Unaligned { part: 0, bytes: 100 }));
    assert!(matches!(error(vec![at(0, 1024), at(512, 512)]), DiskError::Overlap(1)));
    assert!(matches!(error(vec![at(u64::MAX - 511, 512)]), DiskError::Overlap(0)));
    let short = DiskPart { length: 1024, ..at(0, 512) };
    assert!(matches!(error(vec![short]), DiskError::Short { part: 0, expected: 1024, found: 512 }));
    let (pipe, _writer) = std::io::pipe().unwrap();
    let no_disk = DiskPart { image: File::from(std::os::fd::OwnedFd::from(pipe)), length: 512, ..at(0, 0) };
    assert!(matches!(error(vec![no_disk]), DiskError::Size { part: 0, .. }));
    assert!(!slot.is_filled());
    assert_eq!(slot.show(), 0);

    slot.insert(vec![at(512, 512), at(4096, 512)]).unwrap();
    error(vec![]);
    assert!(slot.is_filled());
    assert_eq!(slot.show(), 9);
}

#[test]
fn reads_scatter_and_writes_gather() {
    let (mut driver, file) = start(false);
    let pieces = [into(DATA_AT, 100), into(DATA_AT + 0x1000, 412), into(DATA_AT + 0x2000, 512)];
    assert_eq!(ask(&mut driver, TYPE_READ, 7, &pieces), (OK, 1025));
    assert_eq!(driver.bytes(DATA_AT, 101), [&[7; 100][..], &[0]].concat());
    assert_eq!(driver.bytes(DATA_AT + 0x1000, 412), [7; 412]);
    assert_eq!(driver.bytes(DATA_AT + 0x2000, 512), [8; 512]);

    driver.put(DATA_AT, &[0xab; 1024]);
    assert_eq!(ask(&mut driver, TYPE_WRITE, 3, &[out(DATA_AT, 24), out(DATA_AT + 24, 1000)]), (OK, 1));
    assert_eq!(ask(&mut driver, TYPE_FLUSH, 0, &[]), (OK, 1));
    let mut bytes = [0; 4 * 512];
    file.read_exact_at(&mut bytes, 2 * 512).unwrap();
    assert_eq!(bytes, *[&[2; 512][..], &[0xab; 1024], &[5; 512]].concat());
}

#[test]
fn header_and_status_may_lie_anywhere_in_a_chain() {
    let (mut driver, _) = start(false);
    header(&driver, TYPE_READ, 5);
    // The header in two pieces; data and status in one buffer.
    driver.post(0, 0, &[out(HEADER_AT, 3), out(HEADER_AT + 3, 13), into(DATA_AT, 513)]);
    assert_eq!(driver.take(0), (0, 513));
    assert_eq!(driver.bytes(DATA_AT, 514), [&[5; 512][..], &[OK, 0]].concat());
}

#[test]
fn nothing_beyond_the_end_is_reached() {
    let (mut driver, file) = start(false);
    let one = [into(DATA_AT, 512)];
    assert_eq!(ask(&mut driver, TYPE_READ, SECTORS - 1, &one), (OK, 513));
    for sector in [SECTORS, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX] {
        assert_eq!(ask(&mut driver, TYPE_READ, sector, &one), (ERROR, 1), "read at {sector}");
        assert_eq!(ask(&mut driver, TYPE_WRITE, sector, &[out(DATA_AT, 512)]), (ERROR, 1), "write at {sector}");
    }
    assert_eq!(ask(&mut driver, TYPE_READ, SECTORS - 1, &[into(DATA_AT, 1024)]), (ERROR, 1));
    assert_eq!(ask(&mut driver, TYPE_READ, 0, &[into(DATA_AT, 511)]), (ERROR, 1), "half a sector");
    assert_eq!(ask(&mut driver, TYPE_WRITE, 0, &[out(DATA_AT, 513)]), (ERROR, 1), "a sector and a byte");
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512, "the image has grown");
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let (mut driver, file) = start(true);
    assert_eq!(ask(&mut driver, TYPE_WRITE, 0, &[out(DATA_AT, 512)]), (ERROR, 1));
    driver.put(DATA_AT, &range(0, 8, 0));
    assert_eq!(ask(&mut driver, TYPE_DISCARD, 0, &[out(DATA_AT, 16)]), (ERROR, 1));
    assert_eq!(ask(&mut driver, TYPE_WRITE_ZEROES, 0, &[out(DATA_AT, 16)]), (ERROR, 1));
    assert_eq!(ask(&mut driver, TYPE_FLUSH, 0, &[]), (OK, 1));
    let mut bytes = [0; 512];
    file.read_exact_at(&mut bytes, 512).unwrap();
    assert_eq!(bytes, [1; 512]);
}

#[test]
fn a_disk_of_several_images_is_one_disk_with_holes_that_nobody_reaches() {
    let (first, second) = (image(), image());
    let slot = Slot::empty("");
    let parts =
        vec![part(first.try_clone().unwrap(), 0, true), part(second.try_clone().unwrap(), SECTORS * 512, false)];
    slot.insert(parts).unwrap();
    let mut driver = Driver::start(device(&slot));
    assert_eq!(u64::from_le_bytes(driver.config(0)), 2 * SECTORS);

    // Across the border, in pieces that do not end there.
    let pieces = [into(DATA_AT, 700), into(DATA_AT + 0x1000, 324), into(DATA_AT + 0x2000, 512)];
    assert_eq!(ask(&mut driver, TYPE_READ, SECTORS - 1, &pieces), (OK, 1537));
    assert_eq!(driver.bytes(DATA_AT, 700), [&[(SECTORS - 1) as u8; 512][..], &[0; 188]].concat());
    assert_eq!(driver.bytes(DATA_AT + 0x1000, 324), [0; 324]);
    assert_eq!(driver.bytes(DATA_AT + 0x2000, 512), [1; 512]);

    // What may not be written is not written in part either.
    driver.put(DATA_AT, &[0xab; 1024]);
    assert_eq!(ask(&mut driver, TYPE_WRITE, SECTORS - 1, &[out(DATA_AT, 1024)]), (ERROR, 1));
    assert_eq!(ask(&mut driver, TYPE_WRITE, SECTORS + 1, &[out(DATA_AT, 1024)]), (OK, 1));
    let mut bytes = [0; 4 * 512];
    second.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, *[&[0; 512][..], &[0xab; 1024], &[3; 512]].concat());

    slot.insert(vec![part(first, 512, false), part(second, (SECTORS + 2) * 512, false)]).unwrap();
    let two = [into(DATA_AT, 1024)];
    for (sector, status) in [(0, ERROR), (1, OK), (SECTORS, ERROR), (SECTORS + 1, ERROR), (SECTORS + 2, OK)] {
        assert_eq!(ask(&mut driver, TYPE_READ, sector, &two).0, status, "at {sector}");
    }
}

#[test]
fn it_says_who_it_is() {
    let (mut driver, _) = start(false);
    assert_eq!(ask(&mut driver, TYPE_IDENTIFY, 0, &[into(DATA_AT, 20)]), (OK, 21));
    assert_eq!(driver.bytes(DATA_AT, 20), *b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(ask(&mut driver, TYPE_IDENTIFY, 0, &[into(DATA_AT, 19)]), (ERROR, 1));
}

#[test]
fn unknown_requests_are_unsupported() {
    let (mut driver, _) = start(false);
    for kind in [2, 3, 99, u32::MAX] {
        assert_eq!(ask(&mut driver, kind, 0, &[out(DATA_AT, 512)]), (UNSUPPORTED, 1));
    }
}

#[test]
fn zeroes_are_written_and_space_is_given_back() {
    let (mut driver, mut file) = start(false);
    let before = file.metadata().unwrap().blocks();
    driver.put(DATA_AT, &[range(1, 2, 0), range(8, 8, RANGE_UNMAP)].concat());
    assert_eq!(ask(&mut driver, TYPE_WRITE_ZEROES, 0, &[out(DATA_AT, 32)]), (OK, 1));
    driver.put(DATA_AT, &range(128, 128, 0));
    assert_eq!(ask(&mut driver, TYPE_DISCARD, 0, &[out(DATA_AT, 16)]), (OK, 1));
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    for (sector, content) in (0..).zip(bytes.chunks_exact(512)) {
        let is_zero = matches!(sector, 0..=2 | 8..=15 | 128..=255);
        assert_eq!(content, [if is_zero { 0 } else { sector as u8 }; 512], "sector {sector}");
    }
    assert!(file.metadata().unwrap().blocks() < before, "no space was given back");
}

#[test]
fn bad_ranges_are_refused() {
    let (mut driver, _) = start(false);
    for (sector, sectors, flags, status) in [
        (SECTORS, 1, 0, ERROR),
        (0, SECTORS as u32 + 1, 0, ERROR),
        (u64::MAX, 1, 0, ERROR),
        (0, u32::MAX, 0, ERROR),
        (0, 1, 2, UNSUPPORTED),
    ] {
        driver.put(DATA_AT, &range(sector, sectors, flags));
        for kind in [TYPE_DISCARD, TYPE_WRITE_ZEROES] {
            assert_eq!(ask(&mut driver, kind, 0, &[out(DATA_AT, 16)]), (status, 1), "{sectors} at {sector}");
        }
    }
    driver.put(DATA_AT, &range(0, 1, RANGE_UNMAP));
    assert_eq!(ask(&mut driver, TYPE_DISCARD, 0, &[out(DATA_AT, 16)]), (UNSUPPORTED, 1));
    for len in [0, 15, 17, 16 * (RANGES_MAX + 1)] {
        assert_eq!(ask(&mut driver, TYPE_DISCARD, 0, &[out(0x20_0000, len)]), (ERROR, 1), "{len} bytes of ranges");
    }
}

#[test]
fn requests_that_cannot_be_answered_stop_the_device() {
    let chains = [
        vec![out(HEADER_AT, 16)],
        vec![into(STATUS_AT, 1)],
        vec![out(HEADER_AT, 15), into(STATUS_AT, 1)],
        vec![out(HEADER_AT, 16), into(STATUS_AT, 0)],
    ];
    for chain in chains {
        let (mut driver, _) = start(false);
        header(&driver, TYPE_READ, 0);
        driver.post(0, 0, &chain);
        driver.wait_for_needs_reset();
        assert_eq!(driver.used(0), 0);
    }
}

#[test]
fn a_failing_image_fails_the_request_and_nothing_else() {
    let (mut driver, file) = start(false);
    file.set_len(512).unwrap();
    assert_eq!(ask(&mut driver, TYPE_READ, 1, &[into(DATA_AT, 512)]), (ERROR, 1));
    assert_eq!(ask(&mut driver, TYPE_READ, 0, &[into(DATA_AT, 512)]), (OK, 513));
}

#[test]
fn an_empty_slot_is_a_disk_of_nothing() {
    let slot = Slot::empty("empty");
    let mut driver = Driver::start(device(&slot));
    assert_eq!(driver.config::<8>(0), [0; 8]);
    assert_eq!(ask(&mut driver, TYPE_READ, 0, &[into(DATA_AT, 512)]), (ERROR, 1));
    assert_eq!(ask(&mut driver, TYPE_FLUSH, 0, &[]), (ERROR, 1));
    assert_eq!(ask(&mut driver, TYPE_IDENTIFY, 0, &[into(DATA_AT, 20)]), (OK, 21));
}

#[test]
fn a_slot_is_filled_and_emptied_while_the_guest_runs() {
    let slot = Slot::empty("later");
    let mut driver = Driver::start(device(&slot));
    let generation = driver.get(0xfc);
    slot.insert(whole(image())).unwrap();
    assert_eq!(driver.get(0x60), INTERRUPT_CONFIG);
    assert_ne!(driver.get(0xfc), generation);
    assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS);
    assert_eq!(ask(&mut driver, TYPE_READ, 2, &[into(DATA_AT, 512)]), (OK, 513));
    slot.eject();
    assert_eq!(ask(&mut driver, TYPE_READ, 2, &[into(DATA_AT, 512)]), (ERROR, 1));
}

#[test]
fn a_slot_is_used_again_and_again() {
    let slot = Slot::empty("again");
    let mut driver = Driver::start(device(&slot));
    for round in 0..3_u8 {
        let file = tempfile::tempfile().unwrap();
        let sectors = u64::from(round) + 1;
        file.write_all_at(&vec![0x10 + round; 512 * sectors as usize], 0).unwrap();
        slot.insert(whole(file)).unwrap();
        assert_eq!(u64::from_le_bytes(driver.config(0)), sectors);
        assert_eq!(ask(&mut driver, TYPE_READ, sectors - 1, &[into(DATA_AT, 512)]), (OK, 513));
        assert_eq!(driver.bytes(DATA_AT, 512), [0x10 + round; 512]);
        assert_eq!(ask(&mut driver, TYPE_READ, sectors, &[into(DATA_AT, 512)]), (ERROR, 1));
        slot.eject();
        assert!(!slot.is_filled());
        assert_eq!(driver.config::<8>(0), [0; 8]);
    }
}

#[test]
fn a_reset_leaves_the_disk_and_forgets_the_driver() {
    let slot = Slot::empty("reset");
    let mut driver = Driver::start(device(&slot));
    slot.insert(whole(image())).unwrap();
    driver.set(0x70, 0);
    assert_eq!((driver.get(0x70), driver.get(0x60)), (0, 0));
    // Nobody to tell.
    slot.eject();
    assert_eq!(driver.get(0x60), 0);
    slot.insert(whole(image())).unwrap();
    driver.bring_up(u64::MAX);
    assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS);
    assert_eq!(driver.get(0x60) & INTERRUPT_CONFIG, 0, "what the driver has not read has not changed");
}

#[test]
fn a_disk_that_comes_while_the_driver_starts_is_not_missed() {
    let slot = Slot::empty("racy");
    let mut driver = Driver::new(device(&slot));
    assert_eq!(driver.config::<8>(0), [0; 8]);
    slot.insert(whole(image())).unwrap();
    driver.bring_up(u64::MAX);
    assert_eq!(driver.get(0x60) & INTERRUPT_CONFIG, INTERRUPT_CONFIG);
}

#[test]
fn an_image_opened_for_reading_only_cannot_be_written_whatever_the_slot_says() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(4096).unwrap();
    let slot = Slot::empty("");
    slot.insert(whole(OpenOptions::new().read(true).open(named.path()).unwrap())).unwrap();
    let mut driver = Driver::start(device(&slot));
    assert_eq!(ask(&mut driver, TYPE_WRITE, 0, &[out(DATA_AT, 512)]), (ERROR, 1));
    assert_eq!(ask(&mut driver, TYPE_READ, 0, &[into(DATA_AT, 512)]), (OK, 513));
}
