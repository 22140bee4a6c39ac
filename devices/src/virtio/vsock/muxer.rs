//! Many streams over one pair of queues: which packet belongs to which socket, and whose turn it is.
//!
//! Owns the host's sockets, moves bytes, and asks to have sockets watched; hears packets one at a time, and sends some of one
//! stream at once. It knows neither rings nor threads nor epoll, and never blocks.
//!
//! Nothing waits in here on its way to the guest: a host's bytes are read only when there is a buffer of the guest to read them
//! into and the guest has granted space. On the way to the host, bytes wait in the stream's outbox, at most as many as the guest
//! was granted. A RST that belongs to no stream waits in a short queue; while it is full, no packets are taken from the guest.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use event_manager::EventSet;

use super::super::buffers::Buffers;
use super::HostPorts;
use super::connection::{Connection, Heard, Next};
use super::greeting::{self, Greeting, Progress};
use super::packet::{self, Frame, Packet};
use super::slot::{Patience, Side, Slot};
use super::spec::{HOST_CID, Header, Op, TYPE_STREAM};
use super::table::{Ports, SlotId, Table};

/// How many RSTs may wait for buffers of the guest.
const RESETS: usize = 1024;

/// Host ports given to clients on the host: from here on. Below are those on which the host offers something.
pub(super) const FIRST_PORT: u32 = 0x4000_0000;
/// VMADDR_PORT_ANY: not a port.
const NO_PORT: u32 = u32::MAX;

/// Whoever watches sockets for the muxer, level-triggered.
pub(super) trait Watcher {
    /// Watches `stream` under the name `id` for `new` in place of `old`; `None` means not to watch it.
    ///
    /// # Errors
    /// When the operating system cannot.
    fn watch(
        &mut self,
        stream: &UnixStream,
        id: SlotId,
        old: Option<EventSet>,
        new: Option<EventSet>,
    ) -> io::Result<()>;
}

/// A RST for a stream that is not, or no longer, in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reset {
    ports: Ports,
    kind: u16,
}

/// All streams of one device.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    table: Table,
    /// Slots that have something for the guest, in the order of their turns.
    ready: VecDeque<SlotId>,
    resets: VecDeque<Reset>,
    /// Slots whose watch or deadline may have to change.
    touched: Vec<SlotId>,
    /// Slots that are out of the table, until nobody watches their sockets.
    closing: Vec<Slot>,
    next_port: u32,
    buffers: Buffers,
}

impl Muxer {
    /// A muxer for the guest called `guest_cid`, which gives host ports from `next_port` on.
    pub(super) fn new(guest_cid: u64, next_port: u32) -> Muxer {
        Muxer {
            guest_cid,
            table: Table::default(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            touched: Vec::new(),
            closing: Vec::new(),
            next_port: next_port.max(FIRST_PORT),
            buffers: Buffers::default(),
        }
    }

    /// The host port that the next client is given, if it is free.
    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Takes in a client on the host, its socket non-blocking; without room, its socket is closed.
    pub(super) fn admit(&mut self, stream: UnixStream) {
        if self.table.is_full() {
            log::warn!("vsock: a client was turned away: {} sockets are open", super::table::CAPACITY);
            return;
        }
        let id = self.table.insert(stream, Side::Greeting(Greeting::default()));
        // It has mostly sent its line by now.
        self.greet(id);
    }

    /// Something happened at the socket of slot `id`.
    pub(super) fn socket_event(&mut self, id: SlotId, events: EventSet) {
        let Some(slot) = self.table.get(id) else { return };
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        match &slot.side {
            Side::Greeting(_) => return self.greet(id),
            Side::Stream(_, connection) if gone && connection.is_pending() => return self.end(id, true),
            Side::Leftover if gone => return self.close(id),
            Side::Stream(..) | Side::Leftover => {}
        }
        if events.contains(EventSet::OUT) && !gone {
            slot.flush();
        }
        if gone {
            slot.hang_up();
        }
        // A socket that hung up has at least its end to give.
        slot.readable |= gone || events.contains(EventSet::IN);
        self.advance(id);
    }

    /// Takes in a packet from the guest. `ports` is asked when it wants a connection to the host.
    pub(super) fn hear(&mut self, packet: &Packet<'_>, host: &mut dyn HostPorts) {
        let header = &packet.header;
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            log::debug!("vsock: dropped a packet from {} to {}", header.src_cid, header.dst_cid);
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        if header.kind != TYPE_STREAM {
            return self.refuse(ports, header);
        }
        let Some(id) = self.table.find(ports) else {
            return match header.op {
                Op::REQUEST => self.accept(ports, header, host),
                _ => self.refuse(ports, header),
            };
        };
        let Some(Slot { stream, side: Side::Stream(_, connection), outbox, .. }) = self.table.get(id) else { return };
        let heard = if packet.is_truncated() { Heard::Violation } else { connection.hear(header) };
        match heard {
            Heard::Noted => {}
            Heard::Connected => {
                // A fresh socket has room for a line, unless its other end is gone.
                if stream.write_all(greeting::accepted(ports.host).as_bytes()).is_err() {
                    return self.end(id, true);
                }
            }
            Heard::Data => match packet.deliver(stream, outbox) {
                Ok(written) => connection.forwarded(written),
                Err(_) => {
                    outbox.clear();
                    connection.host_reads_no_more();
                }
            },
            Heard::Reset => return self.end(id, false),
            Heard::Violation => {
                log::debug!("vsock: {ports:?}: ended after an unexpected {header:?}");
                return self.end(id, true);
            }
        }
        self.advance(id);
    }

    /// Whether [`Muxer::fill`] has something to send, unless a socket disappoints.
    pub(super) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Whether the guest has to take packets before any more of it can be heard.
    pub(super) fn is_congested(&self) -> bool {
        self.resets.len() >= RESETS
    }

    /// Writes what there is next for the guest into `frames`, of which there are some, from the first on: a packet, or several of one
    /// stream. Notes in `filled` how many bytes each fills; nothing if there is none after all.
    pub(super) fn fill(&mut self, frames: &[Frame<'_>], filled: &mut Vec<u32>) {
        if let Some(frame) = frames.first()
            && let Some(Reset { ports, kind }) = self.resets.pop_front()
        {
            return filled
                .push(frame.finish(&Header { kind, ..header(self.guest_cid, ports, (Op::RST, 0, 0), (0, 0)) }));
        }
        // Ends: a slot comes back only with a packet to send, and finding its socket empty is what takes that from it.
        while filled.is_empty()
            && let Some(id) = self.ready.pop_front()
        {
            self.turn(id, frames, filled);
            self.advance(id);
        }
    }

    /// When to call [`Muxer::expire`] next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.table.next_deadline()
    }

    /// Acts on deadlines that have passed at `now`.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(id) = self.table.pop_expired(now) {
            match self.table.get(id) {
                Some(Slot { patience: Some((Patience::Credit, _)), side: Side::Stream(_, connection), .. }) => {
                    connection.ask_for_credit();
                    self.advance(id);
                }
                _ => self.end(id, true),
            }
        }
    }

    /// Brings watches and deadlines up to date with everything that happened before `now`, and closes what is to be closed.
    pub(super) fn settle(&mut self, watcher: &mut dyn Watcher, now: Instant) {
        while let Some(id) = self.touched.pop() {
            let Some(slot) = self.table.get(id) else { continue };
            slot.touched = false;
            let (old, new) = (slot.watched, slot.interest());
            if old != new {
                if let Err(error) = watcher.watch(&slot.stream, id, old, new) {
                    log::error!("vsock: a stream is given up, its socket cannot be watched: {error}");
                    self.end(id, true);
                    // What is left of it could not be watched either.
                    self.close(id);
                    continue;
                }
                slot.watched = new;
            }
            let patience = slot.patience_needed();
            self.table.wait(id, patience, now);
        }
        for slot in self.closing.drain(..) {
            if slot.watched.is_some()
                && let Err(error) = watcher.watch(&slot.stream, 0, slot.watched, None)
            {
                log::error!("vsock: a socket cannot be left alone: {error}");
            }
        }
    }

    /// Closes every socket with the next [`Muxer::settle`].
    pub(super) fn close_all(&mut self) {
        for id in self.table.ids() {
            self.close(id);
        }
        self.resets.clear();
    }

    /// Forgets that anything is watched: the watcher is gone, and another will be told everything anew.
    pub(super) fn unwatch_all(&mut self) {
        self.closing.clear();
        for id in self.table.ids() {
            if let Some(slot) = self.table.get(id) {
                slot.watched = None;
            }
            self.touch(id);
        }
    }

    /// One slot's turn to send.
    fn turn(&mut self, id: SlotId, frames: &[Frame<'_>], filled: &mut Vec<u32>) {
        let Some(slot) = self.table.get(id) else { return };
        slot.queued = false;
        let Slot { stream, side: Side::Stream(ports, connection), readable, .. } = slot else { return };
        let (op, flags, mut left) = match connection.next(*readable) {
            None => return,
            Some(Next::Control(op, flags)) => (op, flags, 0),
            Some(Next::Data(max)) => match packet::read_from(frames, &mut self.buffers, stream, max) {
                Ok(0) => {
                    *readable = false;
                    return connection.host_sent_last();
                }
                Ok(len) => {
                    // Less than there was room for: the socket is empty, and will be watched for more.
                    *readable = len == packet::fit(frames, max);
                    (Op::RW, 0, len)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *readable = false;
                    return;
                }
                Err(_) => {
                    connection.host_sent_last();
                    return slot.hang_up();
                }
            },
        };
        for frame in frames {
            let len = frame.fit(left);
            let account = connection.say(op, len);
            filled.push(frame.finish(&header(self.guest_cid, *ports, (op, flags, len), account)));
            left -= len;
            if left == 0 {
                break;
            }
        }
        if op == Op::RW {
            self.table.wait_no_more(id);
        }
    }

    /// Reads a client's line as far as it is there, and no further.
    fn greet(&mut self, id: SlotId) {
        let guest = loop {
            let Some(Slot { stream, side: Side::Greeting(line), .. }) = self.table.get(id) else { return };
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => match line.push(byte[0]) {
                    Progress::More => {}
                    Progress::Port(port) => break port,
                    Progress::Nonsense => return self.close(id),
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.touch(id),
                Ok(_) | Err(_) => return self.close(id),
            }
        };
        let ports = Ports { host: self.free_port(guest), guest };
        self.table.become_side(id, Side::Stream(ports, Connection::wanted()));
        self.advance(id);
    }

    /// A host port that no stream to guest port `guest` uses; long unused ones first, so that late packets find nobody.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = if host == NO_PORT - 1 { FIRST_PORT } else { host + 1 };
            // The table is far smaller than the range of ports, so one is free.
            if self.table.find(Ports { host, guest }).is_none() {
                return host;
            }
        }
    }

    fn accept(&mut self, ports: Ports, request: &Header, host: &mut dyn HostPorts) {
        if self.table.is_full() {
            return self.refuse(ports, request);
        }
        let Some(stream) = host.connect(ports.host) else { return self.refuse(ports, request) };
        if let Err(error) = stream.set_nonblocking(true) {
            log::error!("vsock: port {}: {error}", ports.host);
            return self.refuse(ports, request);
        }
        let id = self.table.insert(stream, Side::Stream(ports, Connection::accepted(request)));
        self.advance(id);
    }

    /// Answers a packet that belongs nowhere. A RST is never answered, else two such ends would never stop.
    fn refuse(&mut self, ports: Ports, header: &Header) {
        if header.op != Op::RST {
            self.reset(ports, header.kind);
        }
    }

    fn reset(&mut self, ports: Ports, kind: u16) {
        let reset = Reset { ports, kind };
        // A guest that had many packets under way when its stream ended needs one answer, not as many.
        if self.resets.back() != Some(&reset) {
            self.resets.push_back(reset);
        }
    }

    /// Draws the consequences of whatever just happened to slot `id`.
    fn advance(&mut self, id: SlotId) {
        let Some(slot) = self.table.get(id) else { return };
        match &slot.side {
            Side::Greeting(_) => {}
            Side::Leftover if slot.outbox.is_empty() => return self.close(id),
            Side::Leftover => {}
            Side::Stream(_, connection) => {
                // Fails only when the other end is gone already.
                if connection.guest_sent_last() && !std::mem::replace(&mut slot.shut_write, true) {
                    let _ = slot.stream.shutdown(std::net::Shutdown::Write);
                }
                if connection.guest_is_deaf() && !std::mem::replace(&mut slot.shut_read, true) {
                    let _ = slot.stream.shutdown(std::net::Shutdown::Read);
                }
                if connection.is_over() {
                    return self.end(id, true);
                }
                if !slot.queued && connection.next(slot.readable).is_some() {
                    slot.queued = true;
                    self.ready.push_back(id);
                }
            }
        }
        self.touch(id);
    }

    fn touch(&mut self, id: SlotId) {
        if let Some(slot) = self.table.get(id)
            && !std::mem::replace(&mut slot.touched, true)
        {
            self.touched.push(id);
        }
    }

    /// Ends the stream in slot `id`, with a RST if `tell` and the guest knows of it. What it holds for the host stays until taken.
    fn end(&mut self, id: SlotId, tell: bool) {
        if let Some(Side::Stream(ports, connection)) = self.table.become_side(id, Side::Leftover)
            && tell
            && connection.is_known_to_guest()
        {
            self.reset(ports, TYPE_STREAM);
        }
        self.unqueue(id);
        self.advance(id);
    }

    fn close(&mut self, id: SlotId) {
        self.unqueue(id);
        self.closing.extend(self.table.remove(id));
    }

    /// Takes slot `id` out of the queue of turns, so that the queue never grows beyond the table.
    fn unqueue(&mut self, id: SlotId) {
        if let Some(slot) = self.table.get(id)
            && std::mem::replace(&mut slot.queued, false)
        {
            self.ready.retain(|queued| *queued != id);
        }
    }
}

/// The header of a packet to the guest: what it is, its flags and the length of its payload; the stream's account.
fn header(guest_cid: u64, ports: Ports, (op, flags, len): (Op, u32, u32), (buf_alloc, fwd_cnt): (u32, u32)) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: ports.host,
        dst_port: ports.guest,
        len,
        kind: TYPE_STREAM,
        op,
        flags,
        buf_alloc,
        fwd_cnt,
    }
}
