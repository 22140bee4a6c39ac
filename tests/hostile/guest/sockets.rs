//! Packets to the socket device that no driver sends: to and from anybody, longer than they are, beyond the credit, by the thousand.
//! And a well-behaved guest, which listens on port 700 and sends back what it gets: the neighbour that must not notice.

use crate::machine::{load, store};
use crate::serial::{count, say, tell};
use crate::virtio::{BUFFERS, Device, Queue, SOCKET, into, out};

const HEADER: u64 = BUFFERS;
const PAYLOAD: u64 = BUFFERS + 0x1000;
/// Receive buffers, 4 KiB each.
const RECEIVE: u64 = BUFFERS + (1 << 20);
const CID: u64 = 3;
/// Packets under way at once in a flood.
const BATCH: u32 = 20;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

#[derive(Clone, Copy)]
struct Packet {
    cids: [u64; 2],
    ports: [u32; 2],
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    credit: [u32; 2],
}

/// From guest port `from` to host port `to`.
fn packet(op: u16, from: u32, to: u32) -> Packet {
    Packet { cids: [CID, 2], ports: [from, to], len: 0, kind: 1, op, flags: 0, credit: [1 << 16, 0] }
}

struct Sockets {
    device: Device,
    rx: Queue,
    tx: Queue,
}

impl Sockets {
    fn start() -> Option<Sockets> {
        let device = Device::find(SOCKET)?;
        device.bring_up();
        let (rx, tx) = (device.queue(0), device.queue(1));
        let mut sockets = Sockets { device, rx, tx };
        for buffer in 0..u64::from(sockets.rx.size) {
            sockets.rx.post(&[into(RECEIVE + buffer * 4096, 4096)]);
        }
        Some(sockets)
    }

    /// Sends `packet` with `payload` bytes behind it, whatever it says; false if the device does not take it.
    fn send(&mut self, packet: Packet, payload: u32) -> bool {
        self.post(0, packet, payload);
        self.tx.wait()
    }

    /// Makes it available, its header in place `place`.
    fn post(&mut self, place: u32, packet: Packet, payload: u32) {
        let header = HEADER + 64 * u64::from(place);
        store(header, packet.cids);
        store(header + 16, packet.ports);
        store(header + 24, packet.len);
        store(header + 28, packet.kind);
        store(header + 30, packet.op);
        store(header + 32, packet.flags);
        store(header + 36, packet.credit);
        match payload {
            0 => self.tx.post(&[out(header, 44)]),
            len => self.tx.post(&[out(header, 44), out(PAYLOAD, len)]),
        }
    }

    /// Takes what the device sent: how many packets of kind `op`. The buffers go back.
    fn take(&mut self, op: u16) -> u64 {
        let mut found = 0;
        while self.rx.used() != self.rx.taken {
            let entry = self.rx.used + 4 + 8 * u64::from(self.rx.taken % self.rx.size);
            let head: u32 = load(entry);
            let buffer: u64 = load(self.rx.table + 16 * u64::from(head));
            found += u64::from(load::<u16>(buffer + 30) == op);
            self.rx.taken = self.rx.taken.wrapping_add(1);
            self.rx.offer(head as u16);
        }
        found
    }

    /// Sends the same again and again, a batch at a time.
    fn flood(&mut self, name: &str, times: u32, make: impl Fn(u32) -> (Packet, u32)) {
        let (mut taken, mut resets) = (0_u64, 0);
        for batch in (0..times).step_by(BATCH as usize) {
            for place in 0..BATCH {
                let (packet, payload) = make(batch + place);
                self.post(place, packet, payload);
            }
            for _ in 0..BATCH {
                if !self.tx.wait() && !self.device.needs_reset() {
                    tell(name, "NOTHING HAPPENED");
                    return;
                }
            }
            taken += u64::from(BATCH);
            resets += self.take(RST);
            if self.device.needs_reset() {
                tell(name, "device stopped");
                if let Some(fresh) = Sockets::start() {
                    *self = fresh;
                }
                return;
            }
        }
        count(name, taken, "packets taken");
        count(name, resets, "streams refused or ended");
    }
}

pub fn run() {
    let Some(mut sockets) = Sockets::start() else { return tell("the socket device", "MISSING") };
    sockets.flood("vsock: to nobody", 100, |n| (Packet { len: 64, ..packet(RW, n, n + 7) }, 64));
    sockets.flood("vsock: RST to nobody", 200, |n| (packet(RST, n, n), 0));
    sockets.flood("vsock: from others", 100, |n| (Packet { cids: [u64::from(n), 2], ..packet(REQUEST, n, 5) }, 0));
    sockets
        .flood("vsock: to others", 100, |n| (Packet { cids: [CID, u64::from(n) << 32], ..packet(REQUEST, n, 5) }, 0));
    sockets.flood("vsock: other socket types", 100, |n| (Packet { kind: n as u16 + 2, ..packet(REQUEST, n, 5) }, 0));
    sockets.flood("vsock: unknown operations", 100, |n| (packet(n as u16 + 8, n, 5), 0));
    sockets.flood("vsock: more connections than places", 1100, |n| (packet(REQUEST, n + 1, 1024), 0));
    sockets.flood("vsock: the same connection again", 100, |_| (packet(REQUEST, 1, 1024), 0));
    sockets
        .flood("vsock: longer than they are", 100, |n| (Packet { len: u32::MAX - n, ..packet(RW, n + 1, 1024) }, 64));
    // Nobody on the host reads: all that the device may hold is the window of each stream.
    sockets.flood("vsock: beyond the credit", 150, |n| match n {
        0 => (packet(REQUEST, 9000, 1024), 0),
        _ => (Packet { len: 32 << 10, ..packet(RW, 9000, 1024) }, 32 << 10),
    });
    sockets.flood("vsock: credit that lies", 150, |n| {
        let credit = [n.wrapping_mul(0x9e37_79b9), n.wrapping_mul(0x85eb_ca6b)];
        let op = [CREDIT_UPDATE, CREDIT_REQUEST, RW, SHUTDOWN][n as usize % 4];
        match n % 50 {
            0 => (packet(REQUEST, 9100 + n, 1024), 0),
            _ => (Packet { credit, flags: n, ..packet(op, 9100 + n - n % 50, 1024) }, 0),
        }
    });
    short(&mut sockets);
    // A receive queue of useless buffers, while there are answers to give.
    let Some(mut sockets) = Sockets::start() else { return };
    sockets.device.bring_up();
    (sockets.rx, sockets.tx) = (sockets.device.queue(0), sockets.device.queue(1));
    sockets.rx.post(&[into(RECEIVE, 44)]);
    sockets.send(packet(RW, 1, 2), 0);
    let stopped = (0..1000).any(|_| sockets.device.needs_reset());
    tell("vsock: a receive buffer without room", if stopped { "device stopped" } else { "TAKEN" });
    // And none at all: then the device must stop listening before it holds too much.
    sockets.device.bring_up();
    (sockets.rx, sockets.tx) = (sockets.device.queue(0), sockets.device.queue(1));
    let mut taken = 0_u64;
    while taken < 2000 && sockets.send(packet(RW, taken as u32, 2), 0) {
        taken += 1;
    }
    count("vsock: no receive buffers", taken, "packets taken before it stopped listening");
    sockets.device.reset();
}

/// A packet that is shorter than its header.
fn short(sockets: &mut Sockets) {
    sockets.tx.post(&[out(HEADER, 43)]);
    tell("vsock: half a header", sockets.tx.outcome());
}

/// Listens on port 700, and sends back what comes, for ever.
pub fn answer_politely() {
    let Some(mut sockets) = Sockets::start() else { return };
    let mut received = 0_u32;
    say("listening");
    loop {
        if sockets.rx.used() == sockets.rx.taken {
            core::hint::spin_loop();
            continue;
        }
        let entry = sockets.rx.used + 4 + 8 * u64::from(sockets.rx.taken % sockets.rx.size);
        let head: u32 = load(entry);
        let buffer: u64 = load(sockets.rx.table + 16 * u64::from(head));
        let (op, len) = (load::<u16>(buffer + 30), load::<u32>(buffer + 24).min(4096 - 44));
        let ports = [load::<u32>(buffer + 20), load::<u32>(buffer + 16)];
        let answer = Packet { ports, ..packet(RW, 0, 0) };
        match op {
            REQUEST => {
                received = 0;
                sockets.send(Packet { op: RESPONSE, ..answer }, 0);
            }
            RW => {
                for at in 0..u64::from(len) {
                    store(PAYLOAD + at, load::<u8>(buffer + 44 + at));
                }
                received = received.wrapping_add(len);
                sockets.send(Packet { len, credit: [1 << 16, received], ..answer }, len);
            }
            SHUTDOWN => drop(sockets.send(Packet { op: RST, ..answer }, 0)),
            _ => {}
        }
        sockets.rx.taken = sockets.rx.taken.wrapping_add(1);
        sockets.rx.offer(head as u16);
    }
}
