//! Guests that break the rules: nothing they do may stop the host, a stream of another, or grow memory.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::thread;

use super::super::credit::WINDOW;
use super::super::spec::{HEADER_SIZE, Header, Op};
use super::guest::{Guest, Layout, MAX_PAYLOAD, no_ports};
use super::stack::{Key, packet};
use super::{connected, even_ports, is_closed, line, listening, pattern};

const SPACE: (u32, u32) = (1 << 20, 0);

/// An open stream to guest port 9, driven by hand.
fn open() -> (Guest, std::os::unix::net::UnixStream, Key) {
    let mut guest = Guest::start(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    let key = (9, guest.expect().0.src_port);
    guest.send(packet(key, Op::RESPONSE, 0, 0, SPACE), &[]);
    assert!(line(&mut client).starts_with("OK "));
    (guest, client, key)
}

/// Asserts that the device has reset stream `key` and closed its socket, and still works.
fn assert_reset(mut guest: Guest, mut client: std::os::unix::net::UnixStream, key: Key, what: &str) {
    let (reset, _) = guest.expect();
    assert_eq!((reset.op, reset.dst_port, reset.src_port), (Op::RST, key.0, key.1), "{what}");
    assert!(is_closed(&mut client), "{what}: the socket is open");
    client = guest.client();
    client.write_all(b"CONNECT 10\n").unwrap();
    assert_eq!(guest.expect().0.op, Op::REQUEST, "{what}: the device is dead");
}

#[test]
fn packets_that_no_stream_expects_end_it() {
    for op in [Op(0), Op::REQUEST, Op::RESPONSE, Op(8), Op(u16::MAX)] {
        let (mut guest, client, key) = open();
        guest.send(packet(key, op, 0, 0, SPACE), &[]);
        assert_reset(guest, client, key, &format!("{op:?}"));
    }
}

#[test]
fn a_packet_shorter_than_it_claims_ends_its_stream() {
    for len in [6, 4096, u32::MAX - 43, u32::MAX] {
        let (mut guest, client, key) = open();
        guest.send(packet(key, Op::RW, 0, len, SPACE), b"hello");
        assert_reset(guest, client, key, &format!("{len} bytes"));
    }
}

#[test]
fn more_bytes_than_granted_end_the_stream_and_those_before_are_kept() {
    let (mut guest, mut client, key) = open();
    let mut sent = Vec::new();
    // Nobody reads: the socket's buffer and the window fill up, and then there is one packet too many.
    let reset = loop {
        assert!(sent.len() < 64 << 20, "the device holds everything");
        let payload = pattern(MAX_PAYLOAD, sent.len() as u32);
        guest.send(packet(key, Op::RW, 0, payload.len() as u32, SPACE), &payload);
        sent.extend_from_slice(&payload);
        thread::sleep(std::time::Duration::from_millis(1));
        match guest.receive() {
            Some((header, _)) if header.op == Op::RST => break header,
            _ => {}
        }
    };
    assert_eq!((reset.dst_port, reset.src_port), key);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(sent.starts_with(&got) && got.len() >= WINDOW as usize);
}

#[test]
fn packets_for_nobody_are_answered_with_rst_and_rst_is_not() {
    let mut guest = Guest::start(Layout::Two, true, no_ports());
    for op in [Op::RW, Op::RESPONSE, Op::SHUTDOWN, Op::CREDIT_REQUEST, Op(77)] {
        guest.send(packet((1, 2), op, 0, 0, SPACE), &[]);
        let (reset, _) = guest.expect();
        assert_eq!((reset.op, reset.dst_port, reset.src_port), (Op::RST, 1, 2));
        // The next one is for another stream, so that it is not taken for a repetition.
        guest.send(packet((3, 4), Op::RST, 0, 0, SPACE), &[]);
    }
    guest.expect_silence();
}

#[test]
fn an_unknown_socket_type_is_refused_and_a_wrong_address_ignored() {
    let (ports, offered) = even_ports();
    let mut guest = Guest::start(Layout::Single, true, ports);
    let good = packet((1, 2), Op::REQUEST, 0, 0, SPACE);
    guest.send(Header { kind: 2, ..good }, &[]);
    let (reset, _) = guest.expect();
    assert_eq!((reset.op, reset.kind), (Op::RST, 2));
    for bad in [Header { src_cid: 3, ..good }, Header { dst_cid: 1, ..good }, Header { src_cid: 2, ..good }] {
        guest.send(bad, &[]);
    }
    guest.expect_silence();
    assert!(offered.try_recv().is_err());
    guest.send(good, &[]);
    assert_eq!(guest.expect().0.op, Op::RESPONSE);
}

#[test]
fn a_chain_without_a_header_stops_the_device_and_frees_its_clients() {
    let (mut guest, mut client, _) = open();
    guest.send_raw(&[0; HEADER_SIZE - 1], &[]);
    guest.expect_broken();
    assert!(is_closed(&mut client));
}

#[test]
fn a_receive_buffer_without_room_stops_the_device() {
    for len in [0, 1, HEADER_SIZE as u32] {
        let mut guest = Guest::start(Layout::Single, true, no_ports());
        guest.withhold = true;
        // Answers to nobody's packets use up the good buffers, and then the bad one.
        for port in 0..17 {
            guest.send(packet((port, 2), Op::RW, 0, 0, SPACE), &[]);
        }
        while guest.withheld.len() < 16 {
            guest.expect();
        }
        guest.rx.describe(0, 0x10_0000, len, 2, 0);
        guest.rx.post(0);
        guest.expect_broken();
    }
}

#[test]
fn a_guest_that_takes_no_answers_is_not_listened_to_for_ever() {
    let mut guest = Guest::start(Layout::Single, true, no_ports());
    guest.withhold = true;
    let mut sent = 0_u32;
    // Sixteen buffers, a bounded queue, the ring: then the device takes no more.
    for _ in 0..100_000 {
        if !guest.can_send() {
            thread::sleep(std::time::Duration::from_millis(20));
            if !guest.can_send() {
                break;
            }
        }
        guest.send(packet((sent, 2), Op::RW, 0, 0, SPACE), &[]);
        sent += 1;
    }
    assert!(sent < 5000, "{sent} packets were taken from a guest that takes none");
    guest.release();
    let mut resets = 0;
    let mut last = 0;
    while last != sent - 1 {
        let (reset, _) = guest.expect();
        assert_eq!(reset.op, Op::RST);
        last = reset.dst_port;
        resets += 1;
    }
    // The sixteen that were withheld had been received, though not looked at.
    assert!(resets >= sent - 16, "{resets} answers to {sent} packets");
}

#[test]
fn a_hostile_stream_does_not_touch_another() {
    let mut stack = listening(Layout::Single);
    let (mut client, key) = connected(&mut stack);
    for seed in 0..200 {
        stack.guest.send(packet((seed, seed * 7), Op(seed as u16 % 9), seed, 0, SPACE), &[]);
    }
    stack.streams.get_mut(&key).unwrap().outgoing = b"well".to_vec();
    stack.step();
    let mut text = [0; 4];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"well");
}

/// A source of numbers that is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[test]
fn ten_thousand_arbitrary_packets_break_nothing() {
    let (ports, offered) = even_ports();
    let mut guest = Guest::start(Layout::Many, true, ports);
    let mut random = Random(0x5eed);
    let (mut ends, mut clients) = (Vec::new(), Vec::new());
    let payload = pattern(MAX_PAYLOAD, 1);
    for round in 0..10_000 {
        let len = [0, 1, 5, 300, MAX_PAYLOAD as u64][random.below(5) as usize];
        // Few ports, so that packets often meet a stream; sometimes a port that the device has given to a client.
        let host = if random.below(3) == 0 { 0x4000_0000 + random.below(40) as u32 } else { random.below(8) as u32 };
        let mut header = packet(
            (random.below(6) as u32, host),
            Op([1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 0, 99][random.below(12) as usize]),
            random.below(4) as u32,
            len as u32,
            (random.next() as u32 >> random.below(32), random.next() as u32 >> random.below(32)),
        );
        match random.below(50) {
            0 => header.len = random.next() as u32,
            1 => header.kind = random.below(4) as u16,
            2 => header.dst_cid = random.next(),
            _ => {}
        }
        guest.send(header, &payload[..len as usize]);
        while guest.receive().is_some() {}
        ends.extend(offered.try_iter().map(|(_, end)| end));
        match round % 7 {
            0 if clients.len() < 30 => {
                let mut client = guest.client();
                client.write_all(format!("CONNECT {}\nhi", random.below(6)).as_bytes()).unwrap();
                clients.push(client);
            }
            1 if !clients.is_empty() => drop(clients.swap_remove(random.below(clients.len() as u64) as usize)),
            2 if !ends.is_empty() => drop(ends.swap_remove(random.below(ends.len() as u64) as usize)),
            _ => {}
        }
    }
    assert!(!guest.bell.broken.load(Ordering::SeqCst), "the device gave up");
    // It still does its work.
    let mut client = guest.client();
    client.write_all(b"CONNECT 4000\n").unwrap();
    let request = loop {
        let (header, _) = guest.expect();
        if header.op == Op::REQUEST && header.dst_port == 4000 {
            break header;
        }
    };
    guest.send(packet((4000, request.src_port), Op::RESPONSE, 0, 0, SPACE), &[]);
    assert_eq!(line(&mut client), format!("OK {}\n", request.src_port));
}
