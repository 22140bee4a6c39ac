//! Good chains of every shape, and each way in which a driver can break the rules of the ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::virtio::testing::{Dice, HIGH, LOW_BYTES, Rings, into, memory, out};

const SIZE: u16 = 16;

#[derive(Default)]
struct Counter(AtomicUsize);

impl Interrupt for Counter {
    fn queue(&self, _index: u16) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn queue_event(&self, _index: u16) -> Option<&EventFd> {
        None
    }

    fn config(&self) {}

    fn needs_reset(&self) {}
}

struct Bench {
    memory: GuestMemory,
    ring: Ring,
    rings: Rings,
    interrupts: Arc<Counter>,
}

impl Bench {
    fn new() -> Self {
        Self::with(memory(), false)
    }

    fn with(memory: GuestMemory, event_index: bool) -> Self {
        let rings = Rings::at(&memory, 0, SIZE);
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_avail_ring_address(Some(rings.available as u32), None);
        queue.set_used_ring_address(Some(rings.used as u32), None);
        queue.set_event_idx(event_index);
        let interrupts = Arc::new(Counter::default());
        let active = ActiveQueue { queue, kick: EventFd::new(EFD_NONBLOCK).unwrap() };
        let ring = Ring::new(0, active, memory.clone(), Arc::clone(&interrupts) as _);
        Bench { memory, ring, rings, interrupts }
    }

    /// Stores descriptors as they are at the start of the table.
    fn table(&self, descriptors: &[Descriptor]) {
        self.indirect(self.rings.table, descriptors);
    }

    fn indirect(&self, table: u64, descriptors: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(descriptors) {
            self.rings.describe(table, index, *descriptor);
        }
    }

    /// What taking one chain, headed by descriptor 0, gives.
    fn take_first(&mut self, descriptors: &[Descriptor]) -> Result<Chain, RingError> {
        self.table(descriptors);
        self.rings.offer(0);
        self.ring.take().map(|chain| chain.expect("a chain"))
    }
}

fn next(descriptor: Descriptor, next: u16) -> Descriptor {
    Descriptor::new(descriptor.addr().0, descriptor.len(), descriptor.flags() | DESCRIPTOR_NEXT, next)
}

fn table_at(address: u64, len: u32, flags: u16) -> Descriptor {
    Descriptor::new(address, len, DESCRIPTOR_INDIRECT | flags, 0)
}

fn segment(address: u64, len: u32) -> Segment {
    Segment { address: GuestAddress(address), len }
}

#[test]
fn what_is_put_back_is_taken_again() {
    let mut bench = Bench::new();
    bench.table(&[into(0x1_0000, 64), into(0x2_0000, 32)]);
    for head in [0, 1] {
        bench.rings.offer(head);
    }
    for _ in 0..3 {
        let chain = bench.ring.take().unwrap().expect("a chain");
        assert_eq!(chain.head(), 0);
        bench.ring.put_back(chain);
    }
    for head in [0, 1] {
        let chain = bench.ring.take().unwrap().expect("a chain");
        assert_eq!(chain.head(), head);
        bench.ring.give_back(chain, 1).unwrap();
    }
    assert!(bench.ring.take().unwrap().is_none());
    assert_eq!([bench.rings.used(0), bench.rings.used(1)], [(0, 1), (1, 1)]);
}

#[test]
fn a_chain_is_split_into_what_to_read_and_what_to_write() {
    let mut bench = Bench::new();
    let chain = bench
        .take_first(&[next(out(0x1000, 16), 1), next(out(HIGH, 8), 2), next(into(0x3000, 512), 3), into(0x4000, 1)])
        .unwrap();
    assert_eq!(chain.readable(), [segment(0x1000, 16), segment(HIGH, 8)]);
    assert_eq!(chain.writable(), [segment(0x3000, 512), segment(0x4000, 1)]);
    bench.ring.give_back(chain, 513).unwrap();
    assert_eq!((bench.rings.used_index(), bench.rings.used(0)), (1, (0, 513)));
    assert!(bench.ring.take().unwrap().is_none());
}

#[test]
fn an_indirect_table_is_one_descriptor_of_the_ring() {
    let mut bench = Bench::new();
    bench.indirect(0x5008, &[next(out(0x1000, 4), 2), out(0, 0), into(0x2000, 4)]);
    let chain = bench.take_first(&[table_at(0x5008, 48, 0)]).unwrap();
    assert_eq!(chain.readable(), [segment(0x1000, 4)]);
    assert_eq!(chain.writable(), [segment(0x2000, 4)]);
}

#[test]
fn a_chain_as_long_as_the_ring_is_good_and_one_longer_is_not() {
    for (extra, good) in [(0, true), (1, false)] {
        let mut bench = Bench::new();
        let count = SIZE + extra;
        let table: Vec<_> = (0..count)
            .map(|index| if index + 1 < count { next(out(0x1000, 1), index + 1) } else { out(0x1000, 1) })
            .collect();
        bench.indirect(0x6000, &table);
        let taken = bench.take_first(&[table_at(0x6000, 16 * u32::from(count), 0)]);
        assert_eq!(taken.is_ok(), good, "{count} descriptors: {taken:?}");
    }
}

#[test]
fn empty_buffers_do_not_count() {
    let mut bench = Bench::new();
    let chain = bench.take_first(&[next(out(u64::MAX, 0), 1), into(0x1000, 3)]).unwrap();
    assert!(chain.readable().is_empty());
    assert_eq!(chain.writable(), [segment(0x1000, 3)]);
}

#[test]
fn a_buffer_over_two_regions_comes_in_two_segments() {
    let regions = [(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000)];
    let mut bench = Bench::with(GuestMemory::from_ranges(&regions).unwrap(), false);
    let chain = bench.take_first(&[into(0x7ff0, 0x30)]).unwrap();
    assert_eq!(chain.writable(), [segment(0x7ff0, 0x10), segment(0x8000, 0x20)]);
}

#[test]
fn every_broken_rule_has_its_error() {
    let low = LOW_BYTES as u64;
    type Case<'a> = (&'a str, &'a [Descriptor], fn(&RingError) -> bool);
    let cases: &[Case<'_>] = &[
        ("next beyond the table", &[next(out(0x1000, 1), SIZE)], |e| {
            matches!(e, RingError::IndexOutOfTable { index: SIZE, size: SIZE, .. })
        }),
        ("a loop of one", &[next(out(0x1000, 1), 0)], |e| matches!(e, RingError::TooLong { .. })),
        ("a loop of two", &[next(out(0x1000, 1), 1), next(out(0x1000, 1), 0)], |e| {
            matches!(e, RingError::TooLong { .. })
        }),
        ("a loop of nothing", &[next(out(0, 0), 0)], |e| matches!(e, RingError::TooLong { .. })),
        ("readable after writable", &[next(into(0x1000, 1), 1), out(0x1000, 1)], |e| {
            matches!(e, RingError::Order { .. })
        }),
        ("a buffer past RAM", &[out(low - 8, 9)], |e| matches!(e, RingError::NotRam { len: 9, .. })),
        ("a buffer in the hole", &[into(low, 1)], |e| matches!(e, RingError::NotRam { .. })),
        ("a buffer over the hole", &[out(low - 1, u32::MAX)], |e| matches!(e, RingError::NotRam { .. })),
        ("a buffer at the end of the world", &[out(u64::MAX, 2)], |e| matches!(e, RingError::NotRam { .. })),
        ("an indirect table with a successor", &[table_at(0x5000, 16, DESCRIPTOR_NEXT)], |e| {
            matches!(e, RingError::BadIndirect { .. })
        }),
        ("a writable indirect table", &[table_at(0x5000, 16, DESCRIPTOR_WRITE)], |e| {
            matches!(e, RingError::BadIndirect { .. })
        }),
        ("an empty indirect table", &[table_at(0x5000, 0, 0)], |e| matches!(e, RingError::BadIndirect { .. })),
        ("a ragged indirect table", &[table_at(0x5000, 24, 0)], |e| matches!(e, RingError::BadIndirect { .. })),
        ("an endless indirect table", &[table_at(0x5000, 0xffff_fff0, 0)], |e| {
            matches!(e, RingError::BadIndirect { .. })
        }),
        ("an indirect table in the hole", &[table_at(low, 16, 0)], |e| matches!(e, RingError::NotRam { .. })),
        ("an indirect table at the end of the world", &[table_at(u64::MAX - 7, 16, 0)], |e| {
            matches!(e, RingError::NotRam { .. })
        }),
    ];
    for (name, descriptors, is_expected) in cases {
        let error = Bench::new().take_first(descriptors).expect_err(name);
        assert!(is_expected(&error), "{name}: {error}");
    }
}

#[test]
fn an_indirect_table_in_an_indirect_table_is_an_error() {
    let mut bench = Bench::new();
    bench.indirect(0x5000, &[table_at(0x5000, 16, 0)]);
    let error = bench.take_first(&[table_at(0x5000, 16, 0)]).unwrap_err();
    assert!(matches!(error, RingError::BadIndirect { .. }), "{error}");
}

#[test]
fn an_index_beyond_an_indirect_table_is_an_error() {
    let mut bench = Bench::new();
    bench.indirect(0x5000, &[next(out(0x1000, 1), 1)]);
    let error = bench.take_first(&[table_at(0x5000, 16, 0)]).unwrap_err();
    assert!(matches!(error, RingError::IndexOutOfTable { index: 1, size: 1, .. }), "{error}");
}

#[test]
fn four_gibibytes_in_one_chain_are_an_error() {
    // Buffers may overlap, so that 16 MiB of RAM are enough for it.
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 30)]).unwrap();
    let mut bench = Bench::with(memory, false);
    let whole = out(0, 1 << 30);
    let error = bench.take_first(&[next(whole, 1), next(whole, 2), next(whole, 3), whole]).unwrap_err();
    assert!(matches!(error, RingError::TooManyBytes { .. }), "{error}");
}

#[test]
fn a_head_beyond_the_table_is_an_error() {
    let mut bench = Bench::new();
    bench.rings.offer(SIZE);
    assert!(matches!(bench.ring.take(), Err(RingError::IndexOutOfTable { index: SIZE, .. })));
}

#[test]
fn more_chains_than_the_ring_holds_are_an_error() {
    for ahead in [SIZE + 1, u16::MAX] {
        let mut bench = Bench::new();
        bench.rings.set_available_index(ahead);
        assert!(matches!(bench.ring.take(), Err(RingError::TooManyAvailable { .. })), "{ahead}");
    }
}

#[test]
fn a_head_cannot_be_used_twice_at_a_time() {
    let mut bench = Bench::new();
    let chain = bench.take_first(&[into(0x1000, 1)]).unwrap();
    bench.rings.offer(0);
    assert!(matches!(bench.ring.take(), Err(RingError::HeadInUse { head: 0, .. })));
    bench.ring.give_back(chain, 1).unwrap();
    let chain = bench.ring.take().unwrap().expect("the head is free again");
    bench.ring.give_back(chain, 1).unwrap();
}

#[test]
fn indices_wrap() {
    let mut bench = Bench::new();
    bench.table(&[into(0x1000, 1)]);
    for round in 0..70_000_u32 {
        bench.rings.offer(0);
        let chain = bench.ring.take().unwrap().unwrap_or_else(|| panic!("no chain in round {round}"));
        bench.ring.give_back(chain, 0).unwrap();
    }
    assert_eq!(bench.rings.used_index(), 70_000_u32 as u16);
}

#[test]
fn without_event_indexes_a_flag_silences_the_interrupt() {
    let mut bench = Bench::new();
    bench.ring.notify().unwrap();
    bench.memory.write_obj(AVAIL_NO_INTERRUPT.to_le(), GuestAddress(bench.rings.available)).unwrap();
    bench.ring.notify().unwrap();
    assert_eq!(bench.interrupts.0.load(Ordering::Relaxed), 1);
}

#[test]
fn with_event_indexes_the_driver_says_when() {
    let mut bench = Bench::with(memory(), true);
    bench.table(&[into(0x1000, 1), into(0x1000, 1), into(0x1000, 1)]);
    // used_event, behind the ring's slots: interrupt when the third is used.
    let used_event = GuestAddress(bench.rings.available + 4 + 2 * u64::from(SIZE));
    bench.memory.write_obj(2_u16.to_le(), used_event).unwrap();
    for (head, interrupts) in [(0, 0), (1, 0), (2, 1)] {
        bench.rings.offer(head);
        let chain = bench.ring.take().unwrap().unwrap();
        bench.ring.give_back(chain, 0).unwrap();
        bench.ring.notify().unwrap();
        assert_eq!(bench.interrupts.0.load(Ordering::Relaxed), interrupts, "after chain {head}");
    }
}

#[test]
fn draining_stops_after_a_ringful() {
    let mut bench = Bench::new();
    bench.table(&[into(0x1000, 1)]);
    bench.rings.offer(0);
    let rings = bench.rings.clone();
    let mut served = 0;
    // A driver that posts the next chain as soon as it sees one taken; the head is free again by the time it is looked at.
    let progress = bench.ring.drain(|_| {
        served += 1;
        rings.offer(0);
        Ok(0)
    });
    assert_eq!((progress.unwrap(), served), (Progress::More, SIZE));
}

#[test]
fn slices_of_segments() {
    let segments = [segment(0x1000, 10), segment(0x2000, 10), segment(0x3000, 10)];
    assert_eq!(total(&segments), 30);
    assert_eq!(slice(&segments, 0, 30), segments);
    assert_eq!(slice(&segments, 5, 10), [segment(0x1005, 5), segment(0x2000, 5)]);
    assert_eq!(slice(&segments, 10, 1), [segment(0x2000, 1)]);
    assert_eq!(slice(&segments, 29, 5), [segment(0x3009, 1)]);
    assert!(slice(&segments, 30, 1).is_empty());
    assert!(slice(&segments, 0, 0).is_empty());
}

/// Tables of nonsense that is often nearly right: whatever is taken from them is inside RAM and no longer than the ring.
#[test]
fn nonsense_is_an_error_or_a_chain_that_can_be_trusted() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..20_000 {
        let (mut bench, mut dice) = (Bench::new(), Dice::new(seed));
        for table in [bench.rings.table, 0x5000] {
            for index in 0..SIZE {
                let address = dice.pick(&[0x1000, 0x5000, 0x5010, HIGH, LOW_BYTES as u64 - 1, u64::MAX - 15]);
                let len = dice.pick(&[0, 1, 16, 32, 48, 256, 0xffff_fff0]);
                let flags = dice.pick(&[0, 1, 1, 1, 1, 2, 3, 3, 4, 5, 6, 0xffff]);
                let descriptor = Descriptor::new(address, len, flags, dice.below(u64::from(SIZE) + 1) as u16);
                bench.rings.describe(table, index, descriptor);
            }
        }
        bench.rings.offer(dice.below(u64::from(SIZE) + 1) as u16);
        let Ok(chain) = bench.ring.take() else {
            bad += 1;
            continue;
        };
        let chain = chain.expect("one was offered");
        good += 1;
        assert!(chain.segments.len() <= usize::from(SIZE), "seed {seed}");
        for segment in chain.readable().iter().chain(chain.writable()) {
            assert!(bench.memory.check_range(segment.address, segment.len as usize), "seed {seed}: {segment:?}");
        }
        bench.ring.give_back(chain, 0).unwrap();
    }
    assert!(good > 1000 && bad > 1000, "the nonsense is of one kind: {good} good, {bad} bad");
}

#[test]
fn it_goes_on_where_somebody_else_has_left_the_queue() {
    let mut bench = Bench::with(memory(), true);
    bench.table(&[out(0x5000, 8), out(0x6000, 8)]);
    for head in [0, 1, 0, 1] {
        bench.rings.offer(head);
    }
    // Somebody has given the first three back, perhaps after having taken the fourth.
    bench.memory.write_obj(3_u16, GuestAddress(bench.rings.used + 2)).unwrap();
    bench.ring.go_on().unwrap();
    let chain = bench.ring.take().unwrap().expect("the fourth");
    assert_eq!(chain.head(), 1);
    bench.ring.give_back(chain, 0).unwrap();
    assert_eq!((bench.rings.used_index(), bench.rings.used(3)), (4, (1, 0)));
    assert!(bench.ring.take().unwrap().is_none());
    // What the other one has used, it has told of: the driver wants to hear of the first only.
    bench.ring.notify().unwrap();
    assert_eq!(bench.interrupts.0.load(Ordering::Relaxed), 0);
}
