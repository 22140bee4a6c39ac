//! A guest's socket layer, as far as tests need it: streams with accounts and ends of their own, written from the specification and
//! not from the device.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::spec::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::guest::{GUEST_CID, Guest, MAX_PAYLOAD, PATIENCE};

/// Guest port and host port.
pub(super) type Key = (u32, u32);

/// One stream, as the guest sees it.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) established: bool,
    pub(super) reset: bool,
    /// Bytes to send, from the program above.
    pub(super) outgoing: Vec<u8>,
    /// Send no more once `outgoing` is empty.
    pub(super) finish: bool,
    /// Give everything up once `outgoing` is empty.
    pub(super) close: bool,
    /// Bytes that came and were read by the program above.
    pub(super) incoming: Vec<u8>,
    /// Do not read.
    pub(super) stalled: bool,
    unread: Vec<u8>,
    /// SHUTDOWN flags that came, and that were sent.
    pub(super) peer_ends: u32,
    pub(super) my_ends: u32,
    peer_space: u32,
    peer_consumed: u32,
    sent: u32,
    consumed: u32,
    told: u32,
}

impl Stream {
    /// Whether the host has sent its last byte, and it has been read.
    pub(super) fn at_end(&self) -> bool {
        self.unread.is_empty() && (self.peer_ends & SHUTDOWN_SEND != 0 || self.reset)
    }
}

/// All streams of a guest.
pub(super) struct Stack {
    pub(super) guest: Guest,
    pub(super) streams: BTreeMap<Key, Stream>,
    /// Ports on which a program listens.
    pub(super) listening: Vec<u32>,
    /// Buffer space of each stream, in bytes.
    pub(super) space: u32,
    next_port: u32,
}

impl Stack {
    pub(super) fn new(guest: Guest, space: u32) -> Stack {
        Stack { guest, streams: BTreeMap::new(), listening: Vec::new(), space, next_port: 5000 }
    }

    /// A packet with the account of stream `key`.
    fn header(&mut self, key: Key, op: Op, flags: u32, len: usize) -> Header {
        let space = self.space;
        let consumed = self.streams.get_mut(&key).map_or(0, |stream| {
            stream.told = stream.consumed;
            stream.consumed
        });
        packet(key, op, flags, len as u32, (space, consumed))
    }

    fn say(&mut self, key: Key, op: Op, flags: u32) {
        let header = self.header(key, op, flags, 0);
        self.guest.send(header, &[]);
    }

    /// A program of the guest connects to a port of the host.
    pub(super) fn connect(&mut self, host_port: u32) -> Key {
        self.next_port += 1;
        let key = (self.next_port, host_port);
        self.streams.insert(key, Stream::default());
        self.say(key, Op::REQUEST, 0);
        key
    }

    /// Handles everything that has come and sends everything that may be sent. Says whether anything happened.
    pub(super) fn step(&mut self) -> bool {
        let mut busy = false;
        while let Some((header, payload)) = self.guest.receive() {
            busy = true;
            self.hear(&header, payload);
        }
        let keys: Vec<Key> = self.streams.keys().copied().collect();
        for key in keys {
            busy |= self.read(key) | self.write(key);
        }
        busy
    }

    /// Works until `done`.
    pub(super) fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Stack) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "{what}: not in time; {:?}", self.summary());
            if !self.step() {
                // The condition may depend on the host, which rings no bell.
                let nap = Instant::now() + std::time::Duration::from_millis(5);
                self.guest.sleep(nap.min(end));
            }
        }
    }

    fn summary(&self) -> Vec<String> {
        let streams = self.streams.iter().take(5);
        streams
            .map(|(key, s)| {
                format!(
                    "{key:?} out {} in {} unread {} sent {} space {} consumed {} ends {} {} reset {}",
                    s.outgoing.len(),
                    s.incoming.len(),
                    s.unread.len(),
                    s.sent,
                    s.peer_space,
                    s.peer_consumed,
                    s.my_ends,
                    s.peer_ends,
                    s.reset
                )
            })
            .collect()
    }

    fn hear(&mut self, header: &Header, payload: Vec<u8>) {
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, GUEST_CID, TYPE_STREAM));
        let key = (header.dst_port, header.src_port);
        if header.op == Op::REQUEST {
            if !self.listening.contains(&key.0) || self.streams.contains_key(&key) {
                return self.say(key, Op::RST, 0);
            }
            let stream = Stream { established: true, peer_space: header.buf_alloc, ..Stream::default() };
            self.streams.insert(key, stream);
            return self.say(key, Op::RESPONSE, 0);
        }
        let Some(stream) = self.streams.get_mut(&key).filter(|stream| !stream.reset) else {
            // It may have been under way when the guest gave the stream up.
            assert!(header.op == Op::RST || self.streams.contains_key(&key), "{header:?} for a stream that never was");
            if header.op != Op::RST {
                self.say(key, Op::RST, 0);
            }
            return;
        };
        let space = self.space;
        if header.op != Op::RST {
            stream.peer_space = header.buf_alloc;
            stream.peer_consumed = header.fwd_cnt;
            let outstanding = stream.sent.wrapping_sub(stream.peer_consumed);
            assert!(outstanding <= stream.sent && outstanding <= header.buf_alloc, "the device took what was not sent");
        }
        match header.op {
            Op::RESPONSE => stream.established = true,
            Op::RW => {
                assert!(stream.peer_ends & SHUTDOWN_SEND == 0, "data after the end");
                assert!(!payload.is_empty(), "data without data");
                stream.unread.extend_from_slice(&payload);
                assert!(stream.unread.len() <= space as usize, "more data than there is space for");
            }
            Op::SHUTDOWN => {
                stream.peer_ends |= header.flags;
                self.answer_full_end(key);
            }
            Op::CREDIT_REQUEST => self.say(key, Op::CREDIT_UPDATE, 0),
            Op::CREDIT_UPDATE => {}
            Op::RST => stream.reset = true,
            op => panic!("{op:?} came"),
        }
    }

    /// Linux answers the end of both directions with RST as soon as nothing is unread.
    fn answer_full_end(&mut self, key: Key) {
        let stream = self.streams.get_mut(&key).expect("a stream");
        if stream.peer_ends == SHUTDOWN_RECEIVE | SHUTDOWN_SEND && stream.unread.is_empty() && !stream.reset {
            stream.reset = true;
            self.say(key, Op::RST, 0);
        }
    }

    /// The program reads.
    fn read(&mut self, key: Key) -> bool {
        let space = self.space;
        let stream = self.streams.get_mut(&key).expect("a stream");
        if stream.stalled || stream.unread.is_empty() {
            return false;
        }
        stream.consumed = stream.consumed.wrapping_add(stream.unread.len() as u32);
        stream.incoming.append(&mut stream.unread);
        // Linux tells when the sender may see less than a packet's worth of space.
        if space - stream.consumed.wrapping_sub(stream.told).min(space) < MAX_PAYLOAD as u32 && !stream.reset {
            self.say(key, Op::CREDIT_UPDATE, 0);
        }
        self.answer_full_end(key);
        true
    }

    /// The program's bytes are sent, as far as space and ring allow.
    fn write(&mut self, key: Key) -> bool {
        let mut busy = false;
        loop {
            let stream = self.streams.get_mut(&key).expect("a stream");
            if !stream.established || stream.reset {
                return busy;
            }
            if stream.peer_ends & SHUTDOWN_RECEIVE != 0 {
                stream.outgoing.clear();
            }
            let credit = stream.peer_space.saturating_sub(stream.sent.wrapping_sub(stream.peer_consumed)) as usize;
            let count = stream.outgoing.len().min(credit).min(MAX_PAYLOAD);
            let ends = match (stream.outgoing.is_empty(), stream.close, stream.finish) {
                (true, true, _) => SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
                (true, false, true) => SHUTDOWN_SEND,
                _ => 0,
            };
            let tell = ends & !stream.my_ends != 0;
            if count == 0 && !tell || !self.guest.can_send() {
                return busy;
            }
            let stream = self.streams.get_mut(&key).expect("a stream");
            busy = true;
            if tell {
                stream.my_ends |= ends;
                self.say(key, Op::SHUTDOWN, ends);
                continue;
            }
            let payload: Vec<u8> = stream.outgoing.drain(..count).collect();
            stream.sent = stream.sent.wrapping_add(count as u32);
            let header = self.header(key, Op::RW, 0, count);
            self.guest.send(header, &payload);
        }
    }
}

/// A packet of the guest.
pub(super) fn packet((guest, host): Key, op: Op, flags: u32, len: u32, (buf_alloc, fwd_cnt): (u32, u32)) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        len,
        kind: TYPE_STREAM,
        op,
        flags,
        buf_alloc,
        fwd_cnt,
    }
}
