//! The whole device against a test guest and real unix sockets.

mod closing;
mod guest;
mod hostile;
mod lifecycle;
mod stack;
mod streams;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};

use super::HostPorts;
use guest::{Guest, Layout, Ports};
use stack::{Key, Stack};

/// Bytes that repeat at no power of two, so that a lost or doubled piece shows.
fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

/// A guest whose listening port 700 is served, with Linux's buffer space.
fn listening(layout: Layout) -> Stack {
    let mut stack = Stack::new(Guest::start(layout, true, guest::no_ports()), 256 * 1024);
    stack.listening.push(700);
    stack
}

/// A client's end and the guest's name for a stream to port 700.
fn connected(stack: &mut Stack) -> (UnixStream, Key) {
    let known: Vec<Key> = stack.streams.keys().copied().collect();
    let mut client = stack.guest.client();
    client.write_all(b"CONNECT 700\n").unwrap();
    stack.run_until("a connection", |stack| stack.streams.len() > known.len());
    let key = *stack.streams.keys().find(|key| !known.contains(key)).unwrap();
    assert_eq!(line(&mut client), format!("OK {}\n", key.1));
    (client, key)
}

/// The line that a client gets; empty if it gets none.
fn line(client: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && client.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Ports of a host that takes every connection to an even port; the host's ends come out of the channel.
fn even_ports() -> (Box<dyn HostPorts>, Receiver<(u32, UnixStream)>) {
    let (sender, receiver) = channel();
    let connect = move |port: u32| {
        if port % 2 == 1 {
            return None;
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(guest::PATIENCE)).unwrap();
        sender.send((port, ours)).unwrap();
        Some(theirs)
    };
    (Box::new(Ports(connect)), receiver)
}

/// Whether nothing more can be read from `client`: its other end is closed.
fn is_closed(client: &mut UnixStream) -> bool {
    match client.read(&mut [0]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => true,
        Err(error) => panic!("neither closed nor open: {error}"),
    }
}
