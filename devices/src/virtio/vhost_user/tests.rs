//! A driver in front of the device, and a back end behind it that is honest, or not.

mod peer;

use vm_memory::Bytes;

use self::peer::*;
use super::*;
use crate::virtio::GuestMemory;
use crate::virtio::spec::{FEATURE_EVENT_INDEX, FEATURE_INDIRECT_DESCRIPTORS, STATUS_NEEDS_RESET};
use crate::virtio::testing::{Driver, HIGH, into, out, shared_memory, threads, wait_for};

const PROTOCOL_FEATURES: u64 = 1 << 30;
/// MQ, REPLY_ACK, CONFIG.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 9;
const FEATURE_CONFIG_WCE: u64 = 1 << 11;
/// Without an event index: interrupts come with every call.
const CLAIMS: Claims = Claims {
    features: PROTOCOL_FEATURES
        | FEATURE_VERSION_1
        | FEATURE_INDIRECT_DESCRIPTORS
        | FEATURE_CONFIG_WCE
        | spec::FEATURE_FLUSH
        | spec::FEATURE_QUEUES,
    protocol: PROTOCOL | 1 << 15,
    queues: 2,
    config: {
        let mut config = [7; 60];
        config[34] = 99;
        config
    },
};
const DATA_AT: u64 = 0x10_0000;
const STATUS_AT: u64 = 0x2000;
const UNTOUCHED: u8 = 0xee;

fn disk(socket: UnixStream) -> Result<VhostUser, BackendError> {
    VhostUser::disk(socket, 4, false, threads())
}

fn refused(claims: Claims, mischief: impl FnMut(u32, &[u8]) -> Option<Deed> + Send + 'static) -> String {
    let (_peer, socket) = Peer::start(claims, Box::new(mischief));
    disk(socket).unwrap_err().to_string()
}

fn driver(socket: UnixStream, memory: GuestMemory) -> Driver {
    let mut driver = Driver::within(memory, Box::new(disk(socket).unwrap()));
    driver.bring_up(u64::MAX);
    driver
}

/// Posts a request to read, at `head`.
fn ask(driver: &mut Driver, head: u16) {
    let status = STATUS_AT + u64::from(head);
    driver.put(status, &[UNTOUCHED]);
    driver.post(0, head, &[out(0x1000, 16), into(DATA_AT, 512), into(status, 1)]);
}

fn status_of(driver: &Driver, head: u16) -> u8 {
    driver.bytes(STATUS_AT + u64::from(head), 1)[0]
}

/// Asks, and expects the answer that it failed.
fn ask_in_vain(driver: &mut Driver, head: u16) {
    ask(driver, head);
    assert_eq!(driver.take(0), (head.into(), 1));
    assert_eq!(status_of(driver, head), 1);
    assert_eq!(driver.status() & STATUS_NEEDS_RESET, 0);
}

#[test]
fn features_and_configuration_are_the_back_ends_as_far_as_they_can_be() {
    let (peer, socket) = Peer::honest(CLAIMS);
    let memory = shared_memory();
    memory.write_obj(0x1234_u16, vm_memory::GuestAddress(0x5000)).unwrap();
    memory.write_obj(0x5678_u16, vm_memory::GuestAddress(HIGH + 0x5000)).unwrap();
    let driver = driver(socket, memory);
    assert_eq!(driver.config::<2>(34), [2, 0], "as many queues as there are");
    assert_eq!(driver.config::<4>(0), [7; 4]);
    assert_eq!(driver.config::<4>(60), [0; 4]);
    wait_for("both queues", || peer.told.lock().unwrap().enabled == 2);
    let told = peer.told.lock().unwrap();
    let agreed = CLAIMS.features & !FEATURE_CONFIG_WCE;
    assert_eq!(told.features, agreed);
    assert_eq!((told.size, told.base), (spec::QUEUE_SIZE, 0));
    assert_eq!((told.at_guest(0x5000), told.at_guest(HIGH + 0x5000)), ([0x34, 0x12], [0x78, 0x56]));
    let greeting = [SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_CONFIG, GET_QUEUE_NUM];
    assert_eq!(told.requests[..6], greeting);
    assert_eq!(driver.transport.transport().device().ring_features() & FEATURE_EVENT_INDEX, 0);
}

#[test]
fn one_that_speaks_only_the_first_protocol_serves_files_too() {
    let features = FEATURE_VERSION_1 | FEATURE_EVENT_INDEX;
    let (peer, socket) = Peer::honest(Claims { features, ..CLAIMS });
    let device = VhostUser::files(socket, "tag", 4, threads()).unwrap();
    let mut driver = Driver::within(shared_memory(), Box::new(device));
    driver.bring_up(u64::MAX);
    assert_eq!(driver.config::<4>(0), *b"tag\0");
    assert_eq!(driver.config::<4>(36), [1, 0, 0, 0]);
    driver.post(0, 3, &[out(0x1000, 40), into(0x3000, 16)]);
    assert_eq!(peer.take(), 3);
    peer.give_back(3);
    assert_eq!(driver.take(0), (3, 1));
    assert_eq!(peer.told.lock().unwrap().enabled, 0);
    assert!(matches!(VhostUser::files(UnixStream::pair().unwrap().0, "", 1, threads()), Err(BackendError::Tag(_))));
}

#[test]
fn requests_go_past_the_device_and_calls_become_interrupts() {
    let (peer, socket) = Peer::honest(CLAIMS);
    let mut driver = driver(socket, shared_memory());
    for head in [9, 30] {
        ask(&mut driver, head);
        assert_eq!(peer.take(), head);
        assert_eq!(driver.get(0x60), 0, "nothing to interrupt for");
        peer.give_back(head);
        assert_eq!(driver.take(0), (head.into(), 1));
        wait_for("an interrupt", || driver.get(0x60) == 1);
        driver.set(0x64, 1);
    }
    assert_eq!(status_of(&driver, 9), UNTOUCHED, "this back end writes no status, and nobody else does");
}

#[test]
fn a_paused_queue_goes_on_where_it_was_and_a_reset_one_at_the_start() {
    let (peer, socket) = Peer::honest(CLAIMS);
    let mut driver = driver(socket, shared_memory());
    for head in [0, 3, 6] {
        ask(&mut driver, head);
        peer.give_back(peer.take());
        driver.take(0);
    }
    driver.transport.transport_mut().pause();
    let told = || peer.told.lock().unwrap();
    assert_eq!(told().requests.iter().filter(|request| **request == GET_VRING_BASE).count(), 2);
    // The back end forgets; it is told.
    told().base = 77;
    let saved = driver.transport.transport().save();
    assert!(matches!(saved, Err(SaveError::Elsewhere)), "{saved:?}");
    driver.transport.transport_mut().resume();
    wait_for("the queue", || told().enabled == 4);
    assert_eq!(told().base, 3);
    ask(&mut driver, 9);
    assert_eq!(peer.take(), 9);
    peer.give_back(9);
    assert_eq!(driver.take(0), (9, 1));
    driver.reset();
    driver.bring_up(u64::MAX);
    wait_for("the queue", || told().enabled == 6);
    assert_eq!(told().base, 0);
    ask(&mut driver, 12);
    assert_eq!(peer.take(), 12);
}

#[test]
fn what_a_dead_back_end_took_along_fails_and_so_does_all_that_comes() {
    let (peer, socket) = Peer::honest(CLAIMS);
    let mut driver = driver(socket, shared_memory());
    // Some come back out of order, a ringful and more in all, and two do not.
    let heads: Vec<u16> = (0..12).map(|index| index * 4).collect();
    for round in 0..20 {
        for &head in &heads {
            ask(&mut driver, head);
        }
        let mut taken: Vec<u16> = heads.iter().map(|_| peer.take()).collect();
        taken.rotate_left(round % 5);
        let kept = if round == 19 { 2 } else { 0 };
        for head in &taken[kept..] {
            peer.give_back(*head);
            driver.take(0);
        }
        if kept > 0 {
            peer.leave();
            let mut failed = [driver.take(0), driver.take(0)].map(|(head, _)| head as u16);
            failed.sort_unstable();
            let mut missing: Vec<u16> = taken[..kept].to_vec();
            missing.sort_unstable();
            assert_eq!(failed[..], missing);
            assert!(missing.iter().all(|head| status_of(&driver, *head) == 1));
        }
    }
    ask_in_vain(&mut driver, 60);
    driver.transport.transport_mut().pause();
    ask(&mut driver, 64);
    driver.transport.transport_mut().resume();
    assert_eq!(driver.take(0), (64, 1));
    driver.reset();
    driver.bring_up(u64::MAX);
    ask_in_vain(&mut driver, 9);
    wait_for("an interrupt", || driver.get(0x60) == 1);
}

#[test]
fn a_request_that_was_taken_long_ago_fails_with_its_back_end() {
    let (peer, socket) = Peer::honest(CLAIMS);
    let mut driver = driver(socket, shared_memory());
    ask(&mut driver, 9);
    assert_eq!(peer.take(), 9);
    // So many come and go meanwhile that neither ring has anything of it any more.
    for round in 0..2 * spec::QUEUE_SIZE {
        let head = 12 + round % 7 * 4;
        ask(&mut driver, head);
        peer.give_back(peer.take());
        assert_eq!(driver.take(0), (head.into(), 1));
        wait_for("an interrupt", || driver.get(0x60) == 1);
        driver.set(0x64, 1);
    }
    peer.leave();
    assert_eq!(driver.take(0), (9, 1));
    assert_eq!(status_of(&driver, 9), 1);
    ask_in_vain(&mut driver, 12);
}

#[test]
fn files_of_a_dead_back_end_cannot_be_read() {
    let (peer, socket) = Peer::honest(CLAIMS);
    let device = VhostUser::files(socket, "tag", 4, threads()).unwrap();
    let mut driver = Driver::within(shared_memory(), Box::new(device));
    driver.bring_up(u64::MAX);
    peer.leave();
    let request = [&40_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &0x1122_3344_5566_7788_u64.to_le_bytes()].concat();
    driver.put(0x1000, &request);
    driver.post(1, 5, &[out(0x1000, 40), into(0x3000, 8), into(0x3008, 80)]);
    assert_eq!(driver.take(1), (5, 16));
    let answer = [&16_u32.to_le_bytes()[..], &(-libc::EIO).to_le_bytes(), &request[8..]].concat();
    assert_eq!(driver.bytes(0x3000, 16), answer);
    // One that expects no answer, and one that is none.
    driver.post(1, 7, &[out(0x1000, 40)]);
    assert_eq!(driver.take(1), (7, 0));
    driver.post(0, 7, &[out(0x1000, 4), into(0x3000, 16)]);
    assert_eq!(driver.take(0), (7, 0));
}

#[test]
fn files_have_as_many_queues_of_requests_as_both_sides_know_of() {
    for (queues, vcpus, expected) in [(5, 2, 2), (3, 4, 2), (2, 4, 1), (1, 4, 1), (40, 255, 16)] {
        let (_peer, socket) = Peer::honest(Claims { queues, ..CLAIMS });
        let mut driver =
            Driver::within(shared_memory(), Box::new(VhostUser::files(socket, "tag", vcpus, threads()).unwrap()));
        assert_eq!(driver.config::<4>(36), u32::to_le_bytes(expected), "{queues} queues, {vcpus} vCPUs");
        driver.set(0x30, expected);
        assert_eq!(driver.get(0x34), 1024);
        driver.set(0x30, expected + 1);
        assert_eq!(driver.get(0x34), 0);
    }
    let (peer, socket) = Peer::honest(Claims { queues: 4, ..CLAIMS });
    let mut driver = Driver::within(shared_memory(), Box::new(VhostUser::files(socket, "tag", 3, threads()).unwrap()));
    driver.bring_up(u64::MAX);
    wait_for("all four queues", || peer.told.lock().unwrap().enabled == 4);
    // Whoever serves them being gone, the last one fails as the first does.
    peer.leave();
    driver.put(0x1000, &[&40_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &7_u64.to_le_bytes()].concat());
    driver.post(3, 5, &[out(0x1000, 40), into(0x3000, 16)]);
    assert_eq!(driver.take(3), (5, 16));
}

#[test]
fn one_that_will_not_do_is_refused_in_words() {
    let claims = |features, protocol| Claims { features, protocol, ..CLAIMS };
    let honest = |claims| refused(claims, |_, _| None);
    assert!(honest(claims(CLAIMS.features & !FEATURE_VERSION_1, PROTOCOL)).contains("virtio 1.0"));
    assert!(honest(claims(CLAIMS.features, PROTOCOL & !(1 << 9))).contains("PROTOCOL_F_CONFIG"));
    assert!(honest(claims(CLAIMS.features & !PROTOCOL_FEATURES, PROTOCOL)).contains("PROTOCOL_F_CONFIG"));
    assert!(honest(Claims { queues: 0, ..CLAIMS }).contains("a single queue"));
    let (_peer, socket) = Peer::honest(CLAIMS);
    let error = VhostUser::disk(socket, 1, true, threads()).unwrap_err().to_string();
    assert!(error.contains("read-only"), "{error}");
    let features = CLAIMS.features | spec::FEATURE_READ_ONLY;
    let (_peer, socket) = Peer::honest(Claims { features, ..CLAIMS });
    VhostUser::disk(socket, 1, true, threads()).unwrap();
}

#[test]
fn nonsense_and_silence_at_the_beginning_are_errors() {
    let at = |when: u32, deed: fn() -> Deed| refused(CLAIMS, move |request, _| (request == when).then(deed));
    for request in [GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_CONFIG] {
        let silent = at(request, || Deed::Ignore);
        assert!(silent.contains("did not answer within"), "{request}: {silent}");
        for deed in [
            || Deed::Mistake(SET_OWNER),
            || Deed::Mistake(0xffff_ffff),
            || Deed::Say(vec![]),
            || Deed::Say(vec![0xff; 4]),
            || Deed::Babble(vec![0xff; 4096]),
            || Deed::Babble(vec![1]),
            || Deed::Leave,
        ] {
            let error = at(request, deed);
            assert!(error.contains("back end"), "{request}: {error}");
        }
    }
    // Four thousand million queues, a configuration of no bytes, and one of more than there are.
    assert!(at(GET_QUEUE_NUM, || Deed::Say(vec![0xff; 8])).contains("failed"));
    assert!(at(GET_CONFIG, || Deed::Say([[0; 4], [0; 4], [0; 4]].concat())).contains("back end"));
    assert!(
        at(GET_CONFIG, || Deed::Say([&[0, 0, 0, 0, 0xff, 0xff, 0, 0][..], &[0; 64]].concat())).contains("back end")
    );
}

#[test]
fn nonsense_and_silence_at_work_fail_what_is_asked() {
    for request in [SET_FEATURES, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_KICK, SET_VRING_ENABLE] {
        for deed in [|| Deed::Say(vec![1; 8]), || Deed::Ignore, || Deed::Leave, || Deed::Mistake(GET_CONFIG)] {
            let (_peer, socket) = Peer::start(CLAIMS, Box::new(move |asked, _| (asked == request).then(deed)));
            let mut driver = driver(socket, shared_memory());
            ask_in_vain(&mut driver, 9);
        }
    }
    let (peer, socket) = Peer::honest(CLAIMS);
    let mut driver = driver(socket, shared_memory());
    wait_for("both queues", || peer.told.lock().unwrap().enabled == 2);
    // That was before it has been answered: a word then would be the answer.
    std::thread::sleep(std::time::Duration::from_millis(50));
    peer.babble(b"?");
    ask_in_vain(&mut driver, 9);
}

#[test]
fn an_end_that_is_not_told_truly_ends_the_device() {
    let nonsense: [fn() -> Deed; 4] = [
        || Deed::Say([0, u32::from(spec::QUEUE_SIZE) + 1].map(u32::to_le_bytes).concat()),
        || Deed::Say([0_u32, 0x1_0000].map(u32::to_le_bytes).concat()),
        || Deed::Ignore,
        || Deed::Leave,
    ];
    for deed in nonsense {
        let (_peer, socket) = Peer::start(CLAIMS, Box::new(move |asked, _| (asked == GET_VRING_BASE).then(deed)));
        let mut driver = driver(socket, shared_memory());
        driver.transport.transport_mut().pause();
        ask(&mut driver, 9);
        driver.transport.transport_mut().resume();
        assert_eq!(driver.take(0), (9, 1));
        ask_in_vain(&mut driver, 12);
    }
}

#[test]
fn memory_that_cannot_be_shared_is_not() {
    let (peer, socket) = Peer::honest(CLAIMS);
    let mut driver = driver(socket, crate::virtio::testing::memory());
    ask_in_vain(&mut driver, 9);
    assert!(!peer.told.lock().unwrap().requests.contains(&SET_MEM_TABLE));
}

#[test]
fn a_driver_that_breaks_the_rings_of_a_dead_back_end_gets_no_more_of_it() {
    let (peer, socket) = Peer::honest(CLAIMS);
    let driver = driver(socket, shared_memory());
    wait_for("both queues", || peer.told.lock().unwrap().enabled == 2);
    driver.rings(0).set_available_index(5000);
    peer.leave();
    driver.wait_for_needs_reset();
}
