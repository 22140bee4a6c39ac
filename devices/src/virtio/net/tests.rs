//! The network device between a driver and a tap that is a socket: it keeps the frames' borders, and refuses a tap's ioctls.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::spec::*;
use super::wire::Wire;
use super::*;
use crate::virtio::spec::{INTERRUPT_CONFIG, STATUS_DRIVER_OK};
use crate::virtio::testing::{Dice, Driver, into, memory, out, threads, wait_for};
use crate::virtio::{Allowance, RateLimit};

mod vhost;

const ADDRESS: [u8; 6] = [2, 3, 4, 5, 6, 7];
const TAP: NicKind = NicKind::Tap { cuts_udp: true };
const RX: usize = 0;
const TX: usize = 1;
/// Where buffers for receiving lie, a page each.
const BUFFERS: u64 = 0x10_0000;
/// Where frames to be sent lie.
const FRAME_AT: u64 = 0x4000;

fn slot(kind: NicKind, pairs: u16) -> NicSlot {
    NicSlot::empty(NicShape { address: ADDRESS, kind, pairs, mtu: Some(1400), limits: NicLimits::NONE }).unwrap()
}

/// The far end of a tap, and the queue.
fn tap() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

/// A driver with every feature but some, in front of a device with a tap plugged in.
fn start(without: u64) -> (Driver, NicSlot, OwnedFd) {
    start_on(slot(TAP, 1), without)
}

fn start_on(slot: NicSlot, without: u64) -> (Driver, NicSlot, OwnedFd) {
    let (far, near) = tap();
    slot.plug(vec![near]).unwrap();
    let mut driver = Driver::new(Box::new(Net::new(slot.clone(), 0, threads())));
    driver.bring_up(!without);
    (driver, slot, far)
}

/// A frame of `len` bytes behind a header of zeroes.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let bytes = (0..len).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed));
    [0; HEADER_BYTES].into_iter().chain(bytes).collect()
}

fn send(far: &OwnedFd, bytes: &[u8]) {
    assert_eq!(rustix::net::send(far, bytes, SendFlags::empty()).unwrap(), bytes.len());
}

/// The next frame that the guest sent. Panics after ten seconds.
fn receive(far: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_MAX];
    let mut len = 0;
    wait_for("frame from the guest", || match rustix::net::recv(far, bytes.as_mut_slice(), RecvFlags::DONTWAIT) {
        Ok((_, count)) => {
            len = count;
            true
        }
        Err(_) => false,
    });
    bytes.truncate(len);
    bytes
}

/// Posts a buffer for receiving.
fn post(driver: &mut Driver, head: u16, len: u32) {
    driver.post(RX, head, &[into(BUFFERS + 0x1000 * u64::from(head), len)]);
}

fn buffer(driver: &Driver, head: u32, len: u32) -> Vec<u8> {
    driver.bytes(BUFFERS + 0x1000 * u64::from(head), len as usize)
}

/// Has the guest send bytes, header included.
fn transmit(driver: &mut Driver, bytes: &[u8]) {
    driver.put(FRAME_AT, bytes);
    driver.post(TX, 0, &[out(FRAME_AT, bytes.len() as u32)]);
    assert_eq!(driver.take(TX), (0, 0));
}

fn is_up(driver: &Driver) -> bool {
    driver.config::<2>(6) == STATUS_LINK_UP.to_le_bytes()
}

#[test]
fn the_configuration_tells_address_link_pairs_and_mtu() {
    let slot = slot(TAP, 3);
    let mut driver = Driver::new(Box::new(Net::new(slot.clone(), 0, threads())));
    driver.bring_up(u64::MAX);
    assert_eq!(driver.config(0), ADDRESS);
    assert!(!is_up(&driver));
    assert_eq!(driver.config(8), 3_u16.to_le_bytes());
    assert_eq!(driver.config(10), 1400_u16.to_le_bytes());
    assert_eq!(driver.config(12), [0; 8]);
    let ends: Vec<_> = (0..3).map(|_| tap()).collect();
    assert!(slot.plug(vec![tap().1]).is_err());
    assert!(slot.plug((0..5).map(|_| tap().1).collect()).is_err());
    let (_far, near): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    slot.plug(near).unwrap();
    assert!(is_up(&driver));
    assert_eq!(driver.get(0x60) & INTERRUPT_CONFIG, INTERRUPT_CONFIG);
    slot.pull();
    assert!(!is_up(&driver));
}

#[test]
fn a_stream_offers_nothing_that_needs_a_header() {
    let device = |kind| Net::new(slot(kind, 1), 0, threads()).features();
    assert_eq!(device(NicKind::Stream), FEATURE_MAC | FEATURE_STATUS | FEATURE_MERGE | FEATURE_CONTROL | FEATURE_MTU);
    assert_eq!(device(TAP) & (FEATURE_MQ | FEATURE_HOST_USO), FEATURE_HOST_USO);
    assert_eq!(device(NicKind::Tap { cuts_udp: false }) & FEATURE_HOST_USO, 0);
}

#[test]
fn a_frame_takes_as_many_buffers_as_it_needs() {
    let (mut driver, _slot, far) = start(0);
    for head in 0..5 {
        post(&mut driver, head, 1536);
    }
    send(&far, &frame(4000, 1));
    let taken: Vec<_> = (0..3).map(|_| driver.take(RX)).collect();
    assert_eq!(taken, [(0, 1536), (1, 1536), (2, 4012 - 3072)]);
    let got: Vec<u8> = taken.iter().flat_map(|&(head, len)| buffer(&driver, head, len)).collect();
    assert_eq!(got[..10], [0; 10]);
    assert_eq!(got[10..12], 3_u16.to_le_bytes());
    assert!(got[12..] == frame(4000, 1)[12..]);
    send(&far, &frame(60, 2));
    assert_eq!(driver.take(RX), (3, 72));
    assert!(buffer(&driver, 3, 72)[10..] == [&[1, 0], &frame(60, 2)[12..]].concat());
}

#[test]
fn a_frame_waits_for_the_buffers_that_it_lacks() {
    let (mut driver, slot, far) = start(0);
    post(&mut driver, 0, 1536);
    send(&far, &frame(4000, 1));
    send(&far, &frame(100, 2));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used(RX), 0);
    for head in 1..4 {
        post(&mut driver, head, 1536);
    }
    let taken: Vec<_> = (0..4).map(|_| driver.take(RX)).collect();
    assert_eq!(taken, [(0, 1536), (1, 1536), (2, 940), (3, 112)]);
    let got: Vec<u8> = taken[..3].iter().flat_map(|&(head, len)| buffer(&driver, head, len)).collect();
    assert!(got[12..] == frame(4000, 1)[12..]);
    assert_eq!(slot.lost(), (0, 0));
}

#[test]
fn without_merging_what_is_larger_than_a_buffer_is_dropped_and_counted() {
    let (mut driver, slot, far) = start(FEATURE_MERGE);
    post(&mut driver, 0, 1536);
    post(&mut driver, 1, 1536);
    send(&far, &frame(4000, 1));
    send(&far, &frame(100, 2));
    // The buffer comes back empty.
    assert_eq!(driver.take(RX), (0, 0));
    assert_eq!(driver.take(RX), (1, 112));
    assert_eq!(buffer(&driver, 1, 12)[10..], [1, 0]);
    // Counted after the buffers are given back.
    wait_for("the count", || slot.lost() == (1, 0));
}

#[test]
fn reception_does_not_freeze_when_buffers_are_late() {
    let (mut driver, slot, far) = start(0);
    const FRAMES: u32 = 3000;
    let sender = std::thread::spawn(move || {
        for number in 0..FRAMES {
            let mut bytes = frame(60, 0);
            bytes[12..16].copy_from_slice(&number.to_le_bytes());
            // Blocks while nobody reads.
            send(&far, &bytes);
        }
        far
    });
    let (mut dice, mut free) = (Dice::new(7), (0..64_u16).collect::<Vec<_>>());
    for number in 0..FRAMES {
        // None, a few or all that there are, so that the ring runs empty again and again.
        while driver.used(RX) == number as u16 && (free.len() == 64 || dice.below(4) == 0) {
            let Some(head) = free.pop() else { break };
            post(&mut driver, head, 1536);
        }
        let (head, len) = driver.take(RX);
        assert_eq!(len, 72);
        assert_eq!(buffer(&driver, head, 16)[12..], number.to_le_bytes());
        free.push(head as u16);
    }
    let _far = sender.join().unwrap();
    assert_eq!(slot.lost(), (0, 0));
}

#[test]
fn frames_go_out_with_their_headers() {
    let (mut driver, slot, far) = start(0);
    let mut bytes = frame(9000, 3);
    bytes[..12].copy_from_slice(&[FLAG_NEEDS_CSUM, GSO_TCPV4, 54, 0, 0xa8, 5, 34, 0, 16, 0, 9, 9]);
    transmit(&mut driver, &bytes);
    bytes[10..12].fill(0);
    assert!(receive(&far) == bytes);
    // In pieces, the header cut in two.
    driver.put(FRAME_AT, &frame(100, 4));
    driver.post(TX, 1, &[out(FRAME_AT, 5), out(FRAME_AT + 5, 50), out(FRAME_AT + 55, 57)]);
    assert_eq!(driver.take(TX), (1, 0));
    assert!(receive(&far) == frame(100, 4));
    assert_eq!(slot.lost(), (0, 0));
}

#[test]
fn what_is_no_frame_is_dropped_and_counted() {
    let (mut driver, slot, far) = start(0);
    let mut lie = frame(100, 0);
    lie[..2].copy_from_slice(&[0, GSO_TCPV4]);
    transmit(&mut driver, &lie);
    transmit(&mut driver, &[0; 12]);
    transmit(&mut driver, &[0; 1]);
    // Nothing for the device to read.
    driver.post(TX, 0, &[into(FRAME_AT, 100)]);
    assert_eq!(driver.take(TX), (0, 0));
    driver.post(TX, 0, &[out(FRAME_AT, 60_000), out(FRAME_AT, 60_000)]);
    assert_eq!(driver.take(TX), (0, 0));
    transmit(&mut driver, &frame(60, 5));
    assert!(receive(&far) == frame(60, 5));
    wait_for("the count", || slot.lost() == (0, 5));
}

#[test]
fn a_wire_without_room_holds_frames_up_and_loses_none() {
    let (mut driver, slot, far) = start(0);
    driver.put(FRAME_AT, &frame(30_000, 6));
    for head in 0..128 {
        driver.post(TX, head, &[out(FRAME_AT, 30_012)]);
    }
    let end = Instant::now() + Duration::from_secs(10);
    for _ in 0..128 {
        assert!(receive(&far) == frame(30_000, 6) && Instant::now() < end);
    }
    wait_for("all to come back", || driver.used(TX) == 128);
    assert_eq!(slot.lost(), (0, 0));
}

#[test]
fn a_loop_stops_the_device_until_it_is_reset() {
    let (mut driver, _slot, far) = start(0);
    let rings = driver.rings(TX);
    let looped = virtio_queue::desc::split::Descriptor::new(FRAME_AT, 16, crate::virtio::spec::DESCRIPTOR_NEXT, 0);
    rings.describe(rings.table, 0, looped);
    rings.offer(0);
    driver.set(0x50, TX as u32);
    driver.wait_for_needs_reset();
    driver.reset();
    driver.bring_up(u64::MAX);
    transmit(&mut driver, &frame(60, 1));
    assert!(receive(&far) == frame(60, 1), "what is plugged in outlives the driver");
}

#[test]
fn a_tap_that_goes_takes_the_link_down_and_another_brings_it_up() {
    let (mut driver, slot, far) = start(0);
    assert!(is_up(&driver));
    post(&mut driver, 0, 1536);
    drop(far);
    wait_for("the link to go down", || !slot.is_up());
    assert!(!is_up(&driver));
    assert_eq!(driver.get(0x60) & INTERRUPT_CONFIG, INTERRUPT_CONFIG);
    // Frames go nowhere, and come back.
    transmit(&mut driver, &frame(60, 1));
    let (far, near) = tap();
    slot.plug(vec![near]).unwrap();
    assert!(is_up(&driver));
    send(&far, &frame(60, 2));
    assert_eq!(driver.take(RX), (0, 72));
    transmit(&mut driver, &frame(60, 3));
    assert!(receive(&far) == frame(60, 3));
}

#[test]
fn what_is_sent_before_the_thread_has_the_new_tap_waits_for_it() {
    let (mut driver, slot, _) = start(0);
    slot.pull();
    // A kick may come before what wakes the thread: then the frame would go to the old tap.
    wait_for("thread without a tap", || !slot.0.has_new(0));
    transmit(&mut driver, &frame(60, 1));
    wait_for("the count", || slot.lost() == (0, 1));
    // What the pull has woken it for as well is over by then.
    std::thread::sleep(Duration::from_millis(200));
    let (far, near) = tap();
    // Plugged in, but for what wakes the thread.
    slot.0.keep(0, Wire::new(TAP, near, None).unwrap());
    driver.put(FRAME_AT, &frame(61, 2));
    driver.post(TX, 0, &[out(FRAME_AT, 61 + HEADER_BYTES as u32)]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((driver.used(TX), slot.lost()), (1, (0, 1)));
    slot.0.set_active(1);
    assert_eq!(receive(&far), frame(61, 2));
    assert_eq!(driver.take(TX), (0, 0));
}

/// Says something on the control queue; the answer.
fn command(driver: &mut Driver, queue: usize, bytes: &[u8]) -> u8 {
    driver.put(0x8000, bytes);
    driver.put(0x9000, &[0xee]);
    driver.post(queue, 0, &[out(0x8000, bytes.len() as u32), into(0x9000, 1)]);
    assert_eq!(driver.take(queue), (0, 1));
    driver.bytes(0x9000, 1)[0]
}

#[test]
fn pairs_and_offloads_are_the_drivers_to_choose_within_bounds() {
    let slot = slot(TAP, 3);
    let (far, near): (Vec<_>, Vec<_>) = (0..3).map(|_| tap()).unzip();
    slot.plug(near).unwrap();
    let mut driver = Driver::new(Box::new(Net::new(slot.clone(), 0, threads())));
    driver.bring_up(!FEATURE_GUEST_USO4);
    assert_eq!(command(&mut driver, 6, &[CLASS_MQ, MQ_PAIRS_SET, 3, 0]), CONTROL_OK);
    for wrong in [&[CLASS_MQ, MQ_PAIRS_SET, 4, 0][..], &[CLASS_MQ, MQ_PAIRS_SET, 0, 0], &[CLASS_MQ], &[9, 9, 9]] {
        assert_eq!(command(&mut driver, 6, wrong), CONTROL_ERROR, "{wrong:?}");
    }
    assert_eq!(slot.0.active(), 3);
    let offloads = |value: u64| [&[CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET][..], &value.to_le_bytes()].concat();
    assert_eq!(command(&mut driver, 6, &offloads(FEATURE_GUEST_CSUM)), CONTROL_OK);
    assert_eq!(command(&mut driver, 6, &offloads(FEATURE_GUEST_USO4)), CONTROL_ERROR);
    assert_eq!(slot.0.offloads(), FEATURE_GUEST_CSUM);
    // Each pair has a wire of its own.
    for (pair, far) in far.iter().enumerate() {
        driver.put(FRAME_AT, &frame(60, pair as u8));
        driver.post(2 * pair + 1, 0, &[out(FRAME_AT, 72)]);
        assert!(receive(far) == frame(60, pair as u8));
        driver.post(2 * pair, 5, &[into(BUFFERS, 1536)]);
        send(far, &frame(70, 9));
        assert_eq!(driver.take(2 * pair), (5, 82));
    }
}

#[test]
fn a_driver_that_knows_one_pair_finds_the_control_queue_behind_it() {
    let slot = slot(TAP, 2);
    let mut driver = Driver::new(Box::new(Net::new(slot, 0, threads())));
    driver.negotiate(!FEATURE_MQ);
    for queue in 0..3 {
        driver.set_up_queue(queue);
    }
    driver.add_status(STATUS_DRIVER_OK);
    assert_eq!(command(&mut driver, 2, &[9, 9, 9]), CONTROL_ERROR);
}

#[test]
fn a_saved_driver_goes_on_with_another_tap() {
    let (mut driver, slot, far) = start(0);
    assert_eq!(
        command(&mut driver, 2, &[CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET, 2, 0, 0, 0, 0, 0, 0, 0]),
        CONTROL_OK
    );
    assert!(is_up(&driver));
    for head in 0..3 {
        post(&mut driver, head, 1536);
    }
    send(&far, &frame(60, 1));
    driver.take(RX);
    driver.transport.transport_mut().pause();
    driver.transport.transport_mut().resume();
    send(&far, &frame(60, 2));
    assert_eq!(driver.take(RX), (1, 72), "buffers that were taken and not used are used after a pause");
    driver.transport.transport_mut().pause();
    let state = driver.transport.save().unwrap();
    let other = self::slot(TAP, 1);
    let mut second = driver.continue_with(Box::new(Net::new(other.clone(), 0, threads())), &state);
    second.transport.transport_mut().resume();
    wait_for("the news of the link", || second.get(0x60) & INTERRUPT_CONFIG != 0);
    assert!(!is_up(&second));
    let (far, near) = tap();
    other.plug(vec![near]).unwrap();
    send(&far, &frame(60, 3));
    assert_eq!(second.take(RX), (2, 72));
    assert_eq!(other.0.offloads(), FEATURE_GUEST_CSUM);
    assert!(slot.is_up());
}

#[test]
fn a_saved_driver_that_reads_registers_as_memory_is_told_that_its_link_is_gone_and_back() {
    let readable = |driver: &Driver, slot: &NicSlot| {
        let device = Box::new(Net::new(slot.clone(), 0, threads()));
        crate::virtio::MmioTransport::readable(device, driver.memory.clone()).unwrap()
    };
    let (mut driver, slot, _far) = start(0);
    driver.transport = readable(&driver, &slot);
    driver.bring_up(u64::MAX);
    driver.transport.transport_mut().pause();
    let state = driver.transport.save().unwrap();
    let other = self::slot(TAP, 1);
    let mut second = driver.continue_with(Box::new(Net::new(other.clone(), 0, threads())), &state);
    second.transport = readable(&second, &other);
    second.transport.restore(&state).unwrap();
    second.transport.transport_mut().resume();
    wait_for("the news of the link", || second.get(0x60) & INTERRUPT_CONFIG != 0);
    second.set(0x64, INTERRUPT_CONFIG);
    assert!(!is_up(&second));
    let (_far, near) = tap();
    other.plug(vec![near]).unwrap();
    assert_ne!(second.get(0x60) & INTERRUPT_CONFIG, 0);
    second.set(0x64, INTERRUPT_CONFIG);
    assert!(is_up(&second));
}

#[test]
fn a_state_that_is_not_its_own_is_refused() {
    let mut device = Net::new(slot(TAP, 2), 0, threads());
    let state = device.save().unwrap();
    device.restore(&state, &memory()).unwrap();
    for (at, value) in [(0, 3), (1, 0), (1, 3), (2, 1), (3, 2)] {
        let mut state = state.clone();
        state[at] = value;
        assert!(device.restore(&state, &memory()).is_err(), "{at}: {value}");
    }
    assert!(device.restore(&[], &memory()).is_err() && device.restore(&state[1..], &memory()).is_err());
}

#[test]
fn a_stream_carries_frames_without_headers() {
    use std::io::{Read, Write};
    let slot = slot(NicKind::Stream, 1);
    let (mut far, near) = UnixStream::pair().unwrap();
    slot.plug(vec![near.into()]).unwrap();
    let mut driver = Driver::start(Box::new(Net::new(slot.clone(), 0, threads())));
    transmit(&mut driver, &frame(1000, 1));
    let mut got = [0; 1004];
    far.read_exact(&mut got).unwrap();
    assert_eq!(got[..4], 1000_u32.to_be_bytes());
    assert!(got[4..] == frame(1000, 1)[12..]);
    for len in [60_u32, 4000] {
        far.write_all(&[&len.to_be_bytes(), &frame(len as usize, 2)[12..]].concat()).unwrap();
    }
    for head in 0..4 {
        post(&mut driver, head, 1536);
    }
    let taken: Vec<_> = (0..4).map(|_| driver.take(RX)).collect();
    assert_eq!(taken, [(0, 72), (1, 1536), (2, 1536), (3, 940)]);
    let got: Vec<u8> = taken[1..].iter().flat_map(|&(head, len)| buffer(&driver, head, len)).collect();
    assert!(got[10..12] == [3, 0] && got[12..] == frame(4000, 2)[12..]);
    // Nonsense ends it.
    far.write_all(&[0xff; 64]).unwrap();
    driver.post(RX, 9, &[into(BUFFERS, 1536)]);
    wait_for("the link to go down", || !slot.is_up());
}

#[test]
fn arbitrary_chains_neither_hang_nor_kill_it() {
    let mut dice = Dice::new(11);
    for _ in 0..20 {
        let (mut driver, _slot, far) = start(if dice.below(2) == 0 { FEATURE_MERGE } else { 0 });
        for _ in 0..50 {
            let queue = dice.below(3) as usize;
            let rings = driver.rings(queue);
            for index in 0..8 {
                let address = dice.pick(&[FRAME_AT, BUFFERS, 0, u64::MAX, 0xff_fff0]);
                let len = dice.pick(&[0, 1, 12, 72, 1536, 70_000, u32::MAX]);
                let flags = dice.pick(&[0, 1, 2, 3, 4, 5]);
                let next = dice.below(9) as u16;
                let descriptor = virtio_queue::desc::split::Descriptor::new(address, len, flags, next);
                rings.describe(rings.table, index, descriptor);
            }
            rings.offer(dice.below(8) as u16);
            driver.set(0x50, queue as u32);
            // A full socket is no matter here.
            let _ = rustix::net::send(&far, &frame(200, 1), SendFlags::DONTWAIT);
        }
        driver.reset();
        driver.bring_up(u64::MAX);
        while rustix::net::recv(&far, &mut [0; 16], RecvFlags::DONTWAIT).is_ok() {}
        transmit(&mut driver, &frame(61, 1));
        while receive(&far).len() != 73 {}
    }
}

/// A device with these limits.
fn start_limited(limits: NicLimits) -> (Driver, NicSlot, OwnedFd) {
    let shape = NicShape { address: ADDRESS, kind: TAP, pairs: 1, mtu: None, limits };
    start_on(NicSlot::empty(shape).unwrap(), 0)
}

fn allowance(per_second: u64, burst: u64) -> Option<Allowance> {
    Some(Allowance { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
}

#[test]
fn frames_to_the_guest_come_no_faster_than_they_may() {
    let receive = RateLimit { operations: allowance(20, 1), bytes: allowance(10_000, 1000) };
    let (mut driver, slot, far) = start_limited(NicLimits { receive, ..NicLimits::NONE });
    (0..4).for_each(|head| post(&mut driver, head, 2000));
    let began = Instant::now();
    (0..3).for_each(|seed| send(&far, &frame(100, seed)));
    for seed in 0..3 {
        let (head, len) = driver.take(RX);
        assert_eq!(buffer(&driver, head, len)[HEADER_BYTES..], frame(100, seed)[HEADER_BYTES..]);
    }
    assert!(began.elapsed() >= Duration::from_millis(95), "{:?}", began.elapsed());
    // More than the bucket holds: let through, and paid for by the next.
    send(&far, &frame(1500, 3));
    driver.take(RX);
    let began = Instant::now();
    post(&mut driver, 4, 2000);
    send(&far, &frame(100, 4));
    driver.take(RX);
    assert!(began.elapsed() >= Duration::from_millis(45), "{:?}", began.elapsed());
    assert_eq!(slot.lost(), (0, 0));
}

#[test]
fn frames_from_the_guest_go_no_faster_than_they_may_and_none_is_lost() {
    let limit = RateLimit { bytes: allowance(50_000, 1000), operations: None };
    let (mut driver, slot, far) = start_limited(NicLimits { transmit: limit, ..NicLimits::NONE });
    let began = Instant::now();
    for seed in 0..4 {
        transmit(&mut driver, &frame(1000, seed));
        assert_eq!(receive(&far)[HEADER_BYTES..], frame(1000, seed)[HEADER_BYTES..]);
    }
    // The first is what may go at once; each of the others takes a fiftieth of a second.
    assert!(began.elapsed() >= Duration::from_millis(57), "{:?}", began.elapsed());
    assert_eq!(slot.lost(), (0, 0));
}

#[test]
fn a_limited_device_can_be_paused_while_it_waits() {
    let limit = RateLimit { operations: allowance(5, 1), bytes: None };
    let (mut driver, _slot, far) = start_limited(NicLimits { transmit: limit, ..NicLimits::NONE });
    transmit(&mut driver, &frame(60, 0));
    receive(&far);
    driver.put(FRAME_AT, &frame(60, 1));
    driver.post(TX, 0, &[out(FRAME_AT, frame(60, 1).len() as u32)]);
    driver.transport.transport_mut().pause();
    driver.transport.transport_mut().resume();
    assert_eq!(receive(&far)[HEADER_BYTES..], frame(60, 1)[HEADER_BYTES..]);
}

/// What is no vhost-net, in its place.
fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

#[test]
fn vhost_is_for_taps_without_a_limit() {
    let limited = NicLimits { receive: RateLimit { bytes: None, operations: allowance(10, 1) }, ..NicLimits::NONE };
    let shape = NicShape { address: ADDRESS, kind: TAP, pairs: 1, mtu: None, limits: limited };
    for shape in [shape, NicShape { kind: NicKind::Stream, limits: NicLimits::NONE, ..shape }] {
        let slot = NicSlot::empty(shape).unwrap();
        assert!(matches!(slot.plug(vec![tap().1, null()]), Err(NicError::Vhost)));
        assert!(!slot.is_up());
    }
}

#[test]
fn a_vhost_that_fails_stops_the_device_until_it_is_reset() {
    let slot = slot(TAP, 1);
    let (far, near) = tap();
    slot.plug(vec![near, null()]).unwrap();
    let mut driver = Driver::new(Box::new(Net::new(slot.clone(), 0, threads())));
    driver.bring_up(u64::MAX);
    driver.wait_for_needs_reset();
    drop(far);
    let (far, near) = tap();
    slot.plug(vec![near]).unwrap();
    driver.reset();
    driver.bring_up(u64::MAX);
    transmit(&mut driver, &frame(60, 1));
    assert_eq!(receive(&far), frame(60, 1));
}

#[test]
fn a_vhost_whose_tap_is_gone_is_an_interface_without_a_link() {
    let slot = slot(TAP, 1);
    let (far, near) = tap();
    drop(far);
    slot.plug(vec![near, null()]).unwrap();
    let mut driver = Driver::new(Box::new(Net::new(slot.clone(), 0, threads())));
    driver.bring_up(u64::MAX);
    wait_for("end of the link", || !slot.is_up());
    transmit(&mut driver, &frame(60, 1));
    let (far, near) = tap();
    slot.plug(vec![near]).unwrap();
    transmit(&mut driver, &frame(60, 2));
    assert_eq!(receive(&far), frame(60, 2));
    assert!(is_up(&driver));
}
