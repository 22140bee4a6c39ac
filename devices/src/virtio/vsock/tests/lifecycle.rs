//! The device through its life: before a driver, reset, pause; and asleep when there is nothing to do.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::super::spec::Op;
use super::super::{Vsock, VsockError};
use super::guest::{GUEST_CID, Guest, Layout, PlainThreads, no_ports};
use super::stack::packet;
use super::{connected, is_closed, line, listening, pattern};
use crate::virtio::{ActivateError, Activation, DeviceKind, VirtioDevice};

#[test]
fn the_configuration_is_the_context_id() {
    let guest = Guest::new(Layout::Single, true, no_ports());
    assert_eq!(guest.device.kind(), DeviceKind::Vsock);
    let mut bytes = [0xff; 12];
    guest.device.read_config(0, &mut bytes);
    assert_eq!(bytes[..8], GUEST_CID.to_le_bytes());
    assert_eq!(bytes[8..], [0; 4]);
    let mut bytes = [0xff; 4];
    guest.device.read_config(u64::MAX - 1, &mut bytes);
    assert_eq!(bytes, [0; 4]);
}

#[test]
fn reserved_context_ids_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        let listener = UnixListener::bind(folder.path().join(cid.to_string())).unwrap();
        let made = Vsock::new(cid, listener, no_ports(), Arc::new(PlainThreads::default()));
        assert!(matches!(made, Err(VsockError::ReservedCid(refused)) if refused == cid));
    }
}

#[test]
fn a_driver_that_leaves_out_a_queue_is_refused() {
    let mut guest = Guest::new(Layout::Single, true, no_ports());
    let activation = Activation {
        memory: guest.memory.clone(),
        features: 0,
        queues: vec![None, None, None],
        interrupt: Arc::clone(&guest.bell) as _,
    };
    assert!(matches!(guest.device.activate(activation), Err(ActivateError::MissingQueue(0))));
}

#[test]
fn a_client_that_comes_before_the_driver_is_served_when_it_is_up() {
    let mut guest = Guest::new(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    thread::sleep(Duration::from_millis(50));
    guest.activate();
    let (request, _) = guest.expect();
    assert_eq!((request.op, request.dst_port), (Op::REQUEST, 9));
}

#[test]
fn a_reset_closes_every_stream_and_the_next_driver_starts_afresh() {
    let mut stack = listening(Layout::Single);
    let (mut client, _) = connected(&mut stack);
    stack.guest.device.reset();
    assert!(is_closed(&mut client));
    stack.guest.device.reset();
    stack.streams.clear();
    stack.guest.activate();
    let (mut client, key) = connected(&mut stack);
    client.write_all(b"again").unwrap();
    stack.run_until("five bytes", |stack| stack.streams[&key].incoming == b"again");
}

#[test]
fn a_pause_keeps_streams_and_queues() {
    let mut stack = listening(Layout::Single);
    assert!(Guest::new(Layout::Single, true, no_ports()).device.pause().is_empty());
    let (mut client, key) = connected(&mut stack);
    let bytes = pattern(1 << 20, 29);
    let writer = thread::spawn({
        let (mut client, bytes) = (client.try_clone().unwrap(), bytes.clone());
        move || client.write_all(&bytes).unwrap()
    });
    for _ in 0..20 {
        stack.step();
        let queues = stack.guest.device.pause();
        assert_eq!(queues.len(), 3);
        assert!(stack.guest.device.pause().is_empty(), "there is nothing to pause twice");
        stack.guest.give(queues);
    }
    stack.run_until("everything", |stack| stack.streams[&key].incoming.len() == bytes.len());
    assert!(stack.streams[&key].incoming == bytes);
    writer.join().unwrap();
    stack.streams.get_mut(&key).unwrap().outgoing = b"fine".to_vec();
    stack.step();
    let mut text = [0; 4];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"fine");
}

#[test]
fn a_pause_with_kicks_switched_off_loses_no_kick_afterwards() {
    for event_index in [true, false] {
        let mut guest = Guest::start(Layout::Single, event_index, no_ports());
        let ask = |guest: &mut Guest, count: u32| {
            for port in 0..count {
                guest.send(packet((port, 2), Op::RW, 0, 0, (0, 0)), &[]);
            }
        };
        let take = |guest: &mut Guest, count: u32| {
            for _ in 0..count {
                assert_eq!(guest.expect().0.op, Op::RST, "event indexes: {event_index}");
            }
            thread::sleep(Duration::from_millis(20));
        };
        // Run out of buffers, so that kicks are asked for; get some, so that they are switched off; use up those exactly, so that
        // they stay off; and pause like that.
        guest.withhold = true;
        ask(&mut guest, 20);
        take(&mut guest, 16);
        guest.release();
        guest.withhold = true;
        take(&mut guest, 4);
        ask(&mut guest, 12);
        take(&mut guest, 12);
        let queues = guest.device.pause();
        guest.give(queues);
        ask(&mut guest, 1);
        thread::sleep(Duration::from_millis(20));
        guest.release();
        take(&mut guest, 1);
    }
}

/// Asserts that the device's thread sleeps.
fn assert_asleep(guest: &Guest, what: &str) {
    // What is under way, and the timers that go off once, come to an end.
    thread::sleep(Duration::from_millis(400));
    let before = guest.switches();
    thread::sleep(Duration::from_millis(300));
    let switches = guest.switches() - before;
    assert!(switches <= 2, "{what}: the thread ran {switches} times with nothing to do");
    let task = guest.task.lock().unwrap().clone().unwrap();
    let stat = std::fs::read_to_string(task.join("stat")).unwrap();
    assert!(stat.contains(") S "), "{what}: the thread does not sleep: {stat}");
}

#[test]
fn the_thread_sleeps_whatever_its_streams_are_stuck_in() {
    let mut stack = listening(Layout::Single);
    assert_asleep(&stack.guest, "no stream");
    let (_idle, _) = connected(&mut stack);
    assert_asleep(&stack.guest, "an idle stream");

    let (half, key) = connected(&mut stack);
    half.shutdown(Shutdown::Write).unwrap();
    stack.run_until("the end", |stack| stack.streams[&key].at_end());
    assert_asleep(&stack.guest, "a stream whose host sends no more");

    let (_deaf, key) = connected(&mut stack);
    stack.streams.get_mut(&key).unwrap().outgoing = pattern(1 << 20, 31);
    for _ in 0..20 {
        stack.step();
        thread::sleep(Duration::from_millis(1));
    }
    assert_asleep(&stack.guest, "a stream whose host does not read");

    let (mut gone, key) = connected(&mut stack);
    stack.streams.get_mut(&key).unwrap().stalled = true;
    let writer = thread::spawn(move || gone.write_all(&pattern(350_000, 37)).unwrap());
    stack.run_until("a full guest", |_| writer.is_finished());
    // The guest does not read, and the host is gone with bytes in its socket.
    for _ in 0..400 {
        stack.step();
        thread::sleep(Duration::from_millis(1));
    }
    assert_asleep(&stack.guest, "a stream whose guest does not read and whose host is gone");

    let (mut starved, _) = connected(&mut stack);
    stack.guest.withhold = true;
    let writer = thread::spawn(move || {
        let _ = starved.write_all(&pattern(400_000, 41));
        starved
    });
    for _ in 0..50 {
        stack.step();
        thread::sleep(Duration::from_millis(1));
    }
    assert_asleep(&stack.guest, "a guest without receive buffers");
    stack.guest.device.reset();
    drop(writer.join().unwrap());
}

#[test]
fn a_client_whose_guest_driver_is_reset_is_closed_while_it_waits() {
    let mut guest = Guest::start(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    assert_eq!(guest.expect().0.op, Op::REQUEST);
    guest.device.reset();
    assert_eq!(line(&mut client), "");
    guest.activate();
    guest.send(packet((9, 0x4000_0000), Op::RESPONSE, 0, 0, (1000, 0)), &[]);
    assert_eq!(guest.expect().0.op, Op::RST, "an answer from before the reset");
}

#[test]
fn a_driver_hears_of_the_move_before_anything_else() {
    for (event_index, buffers) in [(true, 8), (false, 8), (true, 1), (false, 1)] {
        let mut guest = Guest::new(Layout::Single, event_index, no_ports());
        let mut other = Guest::start(Layout::Single, event_index, no_ports());
        other.client().write_all(b"CONNECT 9\n").unwrap();
        let (old, _) = other.expect();
        other.device.pause();
        let state = other.device.save().unwrap();
        let mut client = guest.client();
        client.write_all(b"CONNECT 9\n").unwrap();
        guest.take_over(buffers, &state);
        let (head, number) = guest.expect_event();
        assert_eq!((head, number), (0, 0));
        // A packet of a stream of before, which the driver had sent already.
        guest.send(packet((5, 2), Op::RW, 0, 0, (0, 0)), &[]);
        guest.expect_silence();
        guest.give_event_buffer(head);
        let mut heard = [guest.expect().0, guest.expect().0];
        heard.sort_by_key(|header| header.op.0);
        assert_eq!(heard.map(|header| header.op), [Op::REQUEST, Op::RST], "{event_index}, {buffers} buffers");
        assert_ne!(heard[0].src_port, old.src_port, "a new stream is not taken for an old one");
    }
}

#[test]
fn a_driver_without_event_buffers_is_served_at_once() {
    let mut guest = Guest::new(Layout::Single, true, no_ports());
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\n").unwrap();
    guest.take_over(0, &0_u32.to_le_bytes());
    assert_eq!(guest.expect().0.op, Op::REQUEST);
}

#[test]
fn a_pause_before_the_driver_has_heard_tells_it_again() {
    let mut guest = Guest::new(Layout::Single, true, no_ports());
    guest.take_over(2, &0_u32.to_le_bytes());
    guest.expect_event();
    let queues = guest.device.pause();
    assert!(queues.iter().all(Option::is_some));
    guest.give(queues);
    assert_eq!(guest.expect_event(), (1, 0));
}

#[test]
fn a_state_that_is_not_its_own_is_refused() {
    let mut guest = Guest::new(Layout::Single, true, no_ports());
    for state in [&[][..], &[0; 3], &[0; 5]] {
        assert!(guest.device.restore(state, &guest.memory).is_err());
    }
}
