//! Ends: half and full, in every order, with bytes under way.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use super::super::spec::{Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::guest::{Guest, Layout, no_ports};
use super::stack::packet;
use super::{connected, is_closed, line, listening, pattern};

#[test]
fn the_guest_ends_its_direction_first() {
    let mut stack = listening(Layout::Single);
    let (mut client, key) = connected(&mut stack);
    let stream = stack.streams.get_mut(&key).unwrap();
    (stream.outgoing, stream.finish) = (b"last words".to_vec(), true);
    stack.step();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    client.write_all(b"still here").unwrap();
    drop(client);
    stack.run_until("the host's end", |stack| stack.streams[&key].at_end());
    assert_eq!(stack.streams[&key].incoming, b"still here");
}

#[test]
fn the_host_ends_its_direction_first() {
    let mut stack = listening(Layout::Single);
    let (mut client, key) = connected(&mut stack);
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    stack.run_until("the host's end", |stack| stack.streams[&key].at_end());
    assert_eq!(stack.streams[&key].incoming, b"last words");
    assert_eq!(stack.streams[&key].peer_ends, SHUTDOWN_SEND, "the host still reads");
    let stream = stack.streams.get_mut(&key).unwrap();
    (stream.outgoing, stream.close) = (b"still here".to_vec(), true);
    let reader = thread::spawn(move || {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    });
    stack.run_until("the guest's RST", |stack| stack.streams[&key].reset);
    assert_eq!(reader.join().unwrap(), "still here");
}

#[test]
fn a_guest_that_closes_is_answered_at_once() {
    let mut stack = listening(Layout::Single);
    let (mut client, key) = connected(&mut stack);
    stack.streams.get_mut(&key).unwrap().close = true;
    let start = Instant::now();
    stack.run_until("the answer", |stack| stack.streams[&key].reset);
    assert!(start.elapsed() < Duration::from_secs(1), "a guest's close would hang");
    assert!(is_closed(&mut client));
}

#[test]
fn bytes_of_a_guest_that_is_gone_reach_a_slow_reader() {
    let mut stack = listening(Layout::Single);
    let (mut client, key) = connected(&mut stack);
    // More than a socket's buffer holds, and no more than the device grants beyond it.
    let bytes = pattern(400_000, 13);
    let stream = stack.streams.get_mut(&key).unwrap();
    (stream.outgoing, stream.close) = (bytes.clone(), true);
    stack.run_until("everything sent", |stack| stack.streams[&key].my_ends != 0);
    assert!(!stack.streams[&key].reset, "the device freed the stream with bytes still in hand");
    // What Linux does when it has waited for eight seconds.
    stack.guest.send(packet(key, Op::RST, 0, 0, (0, 0)), &[]);
    stack.streams.get_mut(&key).unwrap().reset = true;
    thread::sleep(Duration::from_millis(100));
    // The ports are free again, whoever still reads from the old stream.
    let (_other, _) = connected(&mut stack);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
}

#[test]
fn a_stream_is_freed_once_a_slow_reader_has_everything() {
    let mut stack = listening(Layout::Single);
    let (mut client, key) = connected(&mut stack);
    let bytes = pattern(400_000, 17);
    let stream = stack.streams.get_mut(&key).unwrap();
    (stream.outgoing, stream.close) = (bytes.clone(), true);
    stack.run_until("everything sent", |stack| stack.streams[&key].my_ends != 0);
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        got
    });
    stack.run_until("the RST", |stack| stack.streams[&key].reset);
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn bytes_of_a_host_that_is_gone_reach_a_slow_guest() {
    let mut stack = listening(Layout::Single);
    let (mut client, key) = connected(&mut stack);
    stack.streams.get_mut(&key).unwrap().stalled = true;
    // The guest's buffer, and some that stay in the socket.
    let bytes = pattern(350_000, 19);
    let writer = thread::spawn({
        let bytes = bytes.clone();
        move || client.write_all(&bytes).unwrap()
    });
    stack.run_until("the host to be gone", |_| writer.is_finished());
    stack.run_until("the guest to hear that nobody reads", |stack| {
        stack.streams[&key].peer_ends & SHUTDOWN_RECEIVE != 0
    });
    assert!(!stack.streams[&key].at_end());
    stack.streams.get_mut(&key).unwrap().stalled = false;
    stack.run_until("everything", |stack| stack.streams[&key].at_end());
    assert!(stack.streams[&key].incoming == bytes);
}

#[test]
fn a_guest_that_sends_to_a_host_that_is_gone_is_told_and_never_blocks() {
    let mut stack = listening(Layout::Single);
    let (client, key) = connected(&mut stack);
    stack.streams.get_mut(&key).unwrap().outgoing = pattern(2 << 20, 23);
    stack.step();
    drop(client);
    stack.run_until("the end", |stack| stack.streams[&key].reset);
    assert_eq!(stack.streams[&key].peer_ends, SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
}

#[test]
fn a_guest_that_never_frees_a_finished_stream_has_it_freed() {
    let mut guest = Guest::start(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    let key = (9, guest.expect().0.src_port);
    guest.send(packet(key, Op::RESPONSE, 0, 0, (4096, 0)), &[]);
    assert!(line(&mut client).starts_with("OK "));
    drop(client);
    let (end, _) = guest.expect();
    assert_eq!((end.op, end.flags), (Op::SHUTDOWN, SHUTDOWN_RECEIVE | SHUTDOWN_SEND));
    assert_eq!(guest.expect().0.op, Op::RST);
}

#[test]
fn a_deaf_guest_closes_the_hosts_sending_direction() {
    let mut guest = Guest::start(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    let key = (9, guest.expect().0.src_port);
    guest.send(packet(key, Op::RESPONSE, 0, 0, (4096, 0)), &[]);
    assert!(line(&mut client).starts_with("OK "));
    guest.send(packet(key, Op::SHUTDOWN, SHUTDOWN_RECEIVE, 0, (4096, 0)), &[]);
    guest.send(packet(key, Op::RW, 0, 5, (4096, 0)), b"hello");
    let mut text = [0; 5];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello", "the other direction is open");
    assert_eq!(client.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    guest.expect_silence();
}

#[test]
fn a_client_that_gives_up_before_the_answer_is_taken_back() {
    let mut guest = Guest::start(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    let (request, _) = guest.expect();
    drop(client);
    let (reset, _) = guest.expect();
    assert_eq!((reset.op, reset.src_port), (Op::RST, request.src_port));
}
