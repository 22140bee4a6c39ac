//! Opening streams and moving bytes: order, flow control, fairness, many at once.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::spec::Op;
use super::guest::{Guest, Layout, no_ports};
use super::stack::{Stack, packet};
use super::{connected, even_ports, is_closed, line, listening, pattern};

#[test]
fn a_client_of_the_host_talks_to_a_guest_port() {
    for layout in [Layout::Single, Layout::Two, Layout::Many] {
        let mut stack = listening(layout);
        let (mut client, key) = connected(&mut stack);
        client.write_all(b"ping").unwrap();
        stack.run_until("four bytes", |stack| stack.streams[&key].incoming == b"ping");
        stack.streams.get_mut(&key).unwrap().outgoing = b"pong".to_vec();
        stack.step();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"pong", "{layout:?}");
    }
}

#[test]
fn a_client_may_send_before_it_is_answered() {
    let mut stack = listening(Layout::Single);
    let mut client = stack.guest.client();
    client.write_all(b"CONNECT 700\nearly").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    stack.run_until("the end", |stack| stack.streams.values().any(|stream| stream.at_end()));
    assert_eq!(stack.streams.values().next().unwrap().incoming, b"early");
    assert!(line(&mut client).starts_with("OK "));
}

#[test]
fn a_guest_port_where_nobody_listens_closes_the_client() {
    let mut stack = listening(Layout::Single);
    let mut client = stack.guest.client();
    client.write_all(b"CONNECT 701\n").unwrap();
    let answer = thread::spawn(move || line(&mut client));
    stack.run_until("a refusal", |_| answer.is_finished());
    assert_eq!(answer.join().unwrap(), "");
}

#[test]
fn a_client_that_talks_nonsense_is_closed_and_no_other() {
    let mut stack = listening(Layout::Single);
    let (mut good, key) = connected(&mut stack);
    let mut bad = stack.guest.client();
    bad.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert!(is_closed(&mut bad));
    good.write_all(b"x").unwrap();
    stack.run_until("a byte", |stack| stack.streams[&key].incoming == b"x");
}

#[test]
fn a_client_that_names_no_port_in_time_is_closed() {
    let stack = listening(Layout::Single);
    let mut silent = stack.guest.client();
    silent.write_all(b"CONN").unwrap();
    assert!(is_closed(&mut silent));
}

#[test]
fn a_guest_that_does_not_answer_loses_the_client_but_hears_of_it() {
    let mut guest = Guest::start(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    let (request, _) = guest.expect();
    assert_eq!((request.op, request.dst_port), (Op::REQUEST, 9));
    assert!(is_closed(&mut client));
    let (reset, _) = guest.expect();
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (Op::RST, request.src_port, 9));
    // An answer that comes too late finds nobody.
    guest.send(packet((9, request.src_port), Op::RESPONSE, 0, 0, (1000, 0)), &[]);
    assert_eq!(guest.expect().0.op, Op::RST);
}

#[test]
fn a_guest_program_reaches_the_ports_that_the_host_offers() {
    let (ports, offered) = even_ports();
    let mut stack = Stack::new(Guest::start(Layout::Single, true, ports), 256 * 1024);
    let key = stack.connect(1024);
    stack.run_until("an answer", |stack| stack.streams[&key].established);
    let (port, mut host) = offered.recv().unwrap();
    assert_eq!(port, 1024);
    stack.streams.get_mut(&key).unwrap().outgoing = b"ready".to_vec();
    stack.step();
    let mut text = [0; 5];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"ready");

    let refused = stack.connect(1025);
    stack.run_until("a refusal", |stack| stack.streams[&refused].reset);
    assert!(!stack.streams[&refused].established);
}

/// Ten megabytes each way at once, both ends checking, the guest with `space` bytes of buffer.
fn both_ways(layout: Layout, event_index: bool, space: u32) {
    const BYTES: usize = 10 << 20;
    let mut stack = Stack::new(Guest::start(layout, event_index, no_ports()), space);
    stack.listening.push(700);
    let (client, key) = connected(&mut stack);
    let (down, up) = (pattern(BYTES, 7), pattern(BYTES, 11));
    stack.streams.get_mut(&key).unwrap().outgoing = up.clone();
    stack.streams.get_mut(&key).unwrap().finish = true;
    let (mut sender, mut receiver) = (client.try_clone().unwrap(), client);
    let sent = down.clone();
    let sending = thread::spawn(move || {
        sender.write_all(&sent).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let receiving = thread::spawn(move || {
        let mut bytes = Vec::new();
        receiver.read_to_end(&mut bytes).unwrap();
        bytes
    });
    stack.run_until("ten megabytes", |stack| stack.streams[&key].at_end() && receiving.is_finished());
    sending.join().unwrap();
    assert!(receiving.join().unwrap() == up, "the host got other bytes than the guest sent");
    assert!(stack.streams[&key].incoming == down, "the guest got other bytes than the host sent");
}

#[test]
fn ten_megabytes_both_ways_with_event_indexes() {
    both_ways(Layout::Single, true, 256 * 1024);
}

#[test]
fn ten_megabytes_both_ways_without_event_indexes() {
    both_ways(Layout::Two, false, 256 * 1024);
}

#[test]
fn ten_megabytes_both_ways_through_small_credit_in_many_pieces() {
    both_ways(Layout::Many, true, 8 * 1024);
}

#[test]
fn two_hundred_streams_at_once() {
    let mut stack = listening(Layout::Single);
    let clients: Vec<_> = (0..200)
        .map(|number: u32| {
            let mut client = stack.guest.client();
            thread::spawn(move || {
                client.write_all(b"CONNECT 700\n").unwrap();
                assert!(line(&mut client).starts_with("OK "));
                let bytes = pattern(20_000 + number as usize, number);
                client.write_all(&bytes).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                let mut echo = Vec::new();
                client.read_to_end(&mut echo).unwrap();
                assert!(echo == bytes, "client {number} got other bytes back than it sent");
            })
        })
        .collect();
    stack.run_until("two hundred echoes", |stack| {
        for stream in stack.streams.values_mut().filter(|stream| !stream.close) {
            stream.outgoing.append(&mut stream.incoming);
            stream.close = stream.at_end();
        }
        clients.iter().all(|client| client.is_finished())
    });
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn a_reader_on_the_host_that_stops_stops_its_stream_only() {
    let mut stack = listening(Layout::Single);
    let (mut lazy, stuck) = connected(&mut stack);
    let (mut client, key) = connected(&mut stack);
    let bytes = pattern(4 << 20, 3);
    for stream in [stuck, key] {
        stack.streams.get_mut(&stream).unwrap().outgoing = bytes.clone();
        stack.streams.get_mut(&stream).unwrap().finish = true;
    }
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        got
    });
    stack.run_until("the reader that reads", |_| reader.is_finished());
    assert!(reader.join().unwrap() == bytes);
    assert!(!stack.streams[&stuck].outgoing.is_empty(), "somebody holds megabytes for a reader that does not read");
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        lazy.read_to_end(&mut got).unwrap();
        got
    });
    stack.run_until("the lazy reader", |_| reader.is_finished());
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn a_reader_in_the_guest_that_stops_stops_its_stream_only() {
    let mut stack = listening(Layout::Single);
    let (mut first, stuck) = connected(&mut stack);
    let (mut second, key) = connected(&mut stack);
    stack.streams.get_mut(&stuck).unwrap().stalled = true;
    let bytes = pattern(4 << 20, 5);
    let copies = [bytes.clone(), bytes.clone()];
    let [one, two] = copies;
    let blocked = thread::spawn(move || {
        first.write_all(&one).unwrap();
        first
    });
    let writer = thread::spawn(move || {
        second.write_all(&two).unwrap();
        second
    });
    stack.run_until("the stream that is read", |stack| stack.streams[&key].incoming.len() == bytes.len());
    assert!(!blocked.is_finished());
    stack.streams.get_mut(&stuck).unwrap().stalled = false;
    stack.run_until("the other", |stack| stack.streams[&stuck].incoming.len() == bytes.len());
    assert!(stack.streams[&stuck].incoming == bytes && stack.streams[&key].incoming == bytes);
    drop((blocked.join().unwrap(), writer.join().unwrap()));
}

#[test]
fn a_guest_without_receive_buffers_gets_everything_once_it_has_some() {
    let mut stack = listening(Layout::Single);
    let (mut client, key) = connected(&mut stack);
    stack.guest.withhold = true;
    let bytes = pattern(600_000, 9);
    let copy = bytes.clone();
    let writer = thread::spawn(move || {
        client.write_all(&copy).unwrap();
        client
    });
    for _ in 0..50 {
        stack.step();
        thread::sleep(Duration::from_millis(2));
    }
    assert!(stack.streams[&key].incoming.len() < bytes.len() && !stack.guest.withheld.is_empty());
    stack.guest.release();
    stack.run_until("the rest", |stack| stack.streams[&key].incoming.len() == bytes.len());
    assert!(stack.streams[&key].incoming == bytes);
    drop(writer.join().unwrap());
}

#[test]
fn a_guest_that_is_slow_to_grant_credit_is_asked() {
    let mut guest = Guest::start(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n0123456789").unwrap();
    let (request, _) = guest.expect();
    let key = (9, request.src_port);
    guest.send(packet(key, Op::RESPONSE, 0, 0, (4, 0)), &[]);
    let (data, payload) = guest.expect();
    assert_eq!((data.op, payload.as_slice()), (Op::RW, b"0123".as_slice()));
    for consumed in [4, 8] {
        assert_eq!(guest.expect().0.op, Op::CREDIT_REQUEST);
        guest.send(packet(key, Op::CREDIT_UPDATE, 0, 0, (4, consumed)), &[]);
        assert_eq!(guest.expect().0.op, Op::RW);
    }
}

#[test]
fn the_device_tells_of_its_space_when_asked() {
    let mut guest = Guest::start(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    let key = (9, guest.expect().0.src_port);
    guest.send(packet(key, Op::RESPONSE, 0, 0, (4096, 0)), &[]);
    assert!(line(&mut client).starts_with("OK "));
    guest.send(packet(key, Op::RW, 0, 5, (4096, 0)), b"hello");
    guest.send(packet(key, Op::CREDIT_REQUEST, 0, 0, (4096, 0)), &[]);
    let (update, _) = guest.expect();
    assert_eq!((update.op, update.fwd_cnt), (Op::CREDIT_UPDATE, 5));
    assert!(update.buf_alloc >= 64 * 1024, "less than one packet's worth of space");
}

#[test]
fn clients_beyond_the_table_are_turned_away_and_a_freed_place_is_used_again() {
    let mut stack = listening(Layout::Single);
    // Descriptors for twice the table: each client has two ends.
    let limit = super::super::table::CAPACITY;
    raise_descriptor_limit();
    let mut clients: Vec<_> = Vec::new();
    for _ in 0..limit {
        let mut client = stack.guest.client();
        client.write_all(b"CONNECT 700\n").unwrap();
        clients.push(client);
        stack.step();
    }
    stack.run_until("a full table", |stack| stack.streams.len() == limit);
    for client in &mut clients {
        assert!(line(client).starts_with("OK "));
    }
    let mut refused = stack.guest.client();
    assert!(is_closed(&mut refused));
    drop(clients.pop());
    stack.run_until("a free place", |stack| stack.streams.values().filter(|stream| stream.reset).count() == 1);
    // Its RST is on its way to the device; the device looks at it before it can look at a later client's.
    let mut late = stack.guest.client();
    thread::sleep(Duration::from_millis(50));
    late.write_all(b"CONNECT 700\n").unwrap();
    let answer = thread::spawn(move || line(&mut late));
    stack.run_until("an answer", |_| answer.is_finished());
    assert!(answer.join().unwrap().starts_with("OK "));
}

fn raise_descriptor_limit() {
    // A test runner often has 1024; the limit above that is the user's to raise.
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|soft| soft < 4096) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(4096), maximum });
        raised.unwrap_or_else(|error| {
            panic!("this test needs 4096 open files, of {maximum:?}: raise `ulimit -Hn`: {error}")
        });
    }
}
