//! Raw FUSE to the file server (kernel's fuse.h), to get at what is not in the shared folder. The folder holds `inside` and a link
//! `out` to `../../outside`, which is on the host and says `secret`.

use crate::machine::{fill, load, store};
use crate::serial::{count, tell};
use crate::virtio::{BUFFERS, Device, FILES, Queue, into, out};

const REQUEST: u64 = BUFFERS;
const REPLY: u64 = BUFFERS + (1 << 20);
const REPLY_BYTES: u32 = 64 << 10;
const ROOT: u64 = 1;
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
const CREATE: u32 = 35;

const NAMES: [&[u8]; 12] = [
    b"..\0",
    b".\0",
    b"/\0",
    b"\0",
    b"/etc/passwd\0",
    b"../../outside\0",
    b"../outside\0",
    b"inside/../..\0",
    b"out/x\0",
    b"./inside\0",
    b"endless",
    b"/proc/self/root\0",
];

pub fn run() {
    let Some(device) = Device::find(FILES) else { return tell("the file server", "MISSING") };
    for (name, opcode, skip) in [
        ("LOOKUP of paths", LOOKUP, 0),
        ("MKDIR of paths", MKDIR, 8),
        ("MKNOD of paths", MKNOD, 16),
        ("CREATE of paths", CREATE, 16),
        ("UNLINK of paths", UNLINK, 0),
        ("SYMLINK to paths", SYMLINK, 0),
        ("RENAME of paths", RENAME, 8),
        ("LINK of paths", LINK, 8),
    ] {
        let mut through = 0;
        for path in NAMES {
            let mut server = Server::start(&device);
            let mut body = Body::new();
            body.zeros(skip);
            body.bytes(path);
            // Where there are two names, the second is as bad.
            body.bytes(path);
            through += u64::from(server.ask(opcode, ROOT, &body) == 0);
        }
        match through {
            0 => tell(name, "refused"),
            times => count(name, times, "WENT THROUGH"),
        }
    }
    embedded_zero(&device);
    links(&device);
    unknown(&device);
    lengths(&device);
    opcodes(&device);
    let mut server = Server::start(&device);
    let mut body = Body::new();
    body.bytes(b"inside\0");
    tell("the file server after all that", if server.ask(LOOKUP, ROOT, &body) == 0 { "works" } else { "DEAD" });
}

/// A zero in the middle ends a name: what is behind it is not looked at.
fn embedded_zero(device: &Device) {
    let mut server = Server::start(device);
    let mut body = Body::new();
    body.bytes(b"inside\0/../../outside\0");
    let outcome = if server.ask(LOOKUP, ROOT, &body) == 0 { "the first part counts" } else { "refused" };
    tell("a zero in a name", outcome);
}

/// Links that lead out, made by the host or by us: they can be looked up, and not opened as what they point to.
fn links(device: &Device) {
    for (name, make) in [("a link of the host's that leads out", false), ("a link of our own that leads out", true)] {
        let mut server = Server::start(device);
        let mut body = Body::new();
        if make {
            body.bytes(b"mine\0/../../../../../../etc/passwd\0");
            server.ask(SYMLINK, ROOT, &body);
            body = Body::new();
        }
        body.bytes(if make { b"mine\0" } else { b"out\0\0" });
        let found = server.ask(LOOKUP, ROOT, &body) == 0;
        let node: u64 = load(REPLY + 16);
        let opened = found && server.ask(OPEN, node, &Body::zeroed(8)) == 0;
        let handle: u64 = load(REPLY + 16);
        let mut body = Body::new();
        body.number(handle);
        body.zeros(8);
        body.number(u64::from(REPLY_BYTES - 16));
        body.zeros(16);
        let read = opened && server.ask(READ, node, &body) == 0;
        // Something below it, as if it were a folder.
        let mut below = Body::new();
        below.bytes(b"x\0");
        let below = found && server.ask(LOOKUP, node, &below) == 0;
        tell(name, if opened || read || below { "WENT THROUGH" } else { "refused" });
    }
}

/// Nodes and handles that were never given.
fn unknown(device: &Device) {
    let mut server = Server::start(device);
    let mut through = 0;
    for node in [0, 2, 77, 1 << 32, u64::MAX] {
        for opcode in [GETATTR, OPEN, READ, LOOKUP] {
            let mut body = Body::new();
            body.bytes(b"inside\0\0");
            body.zeros(32);
            through += u64::from(server.ask(opcode, node, &body) == 0);
            if device.needs_reset() {
                server = Server::start(device);
            }
        }
    }
    match through {
        0 => tell("nodes that nobody was given", "refused"),
        times => count("nodes that nobody was given", times, "ANSWERED"),
    }
}

/// Requests that say they are longer or shorter than they are; and with no room for an answer.
fn lengths(device: &Device) {
    let mut stopped = 0;
    for len in [0, 1, 39, 41, 48, 1 << 16, 1 << 20, u32::MAX] {
        let mut server = Server::start(device);
        let mut body = Body::new();
        body.bytes(b"inside\0");
        body.finish(LOOKUP, ROOT);
        store(REQUEST, len);
        server.queue.post(&[out(REQUEST, body.len), into(REPLY, REPLY_BYTES)]);
        stopped += u64::from(!server.queue.wait());
    }
    count("requests that lie about their length", stopped, "of 8 stopped the device");
    let mut stopped = 0;
    for room in [1, 15] {
        let mut server = Server::start(device);
        let mut body = Body::new();
        body.bytes(b"inside\0");
        body.finish(LOOKUP, ROOT);
        server.queue.post(&[out(REQUEST, body.len), into(REPLY, room)]);
        stopped += u64::from(!server.queue.wait());
    }
    count("requests without room for an answer", stopped, "of 2 stopped the device");
}

/// Every number a request can have, with few or many zeros or ones behind it.
fn opcodes(device: &Device) {
    let mut server = Server::start(device);
    let (mut answered, mut stopped) = (0, 0);
    for opcode in (0..64).chain([4096, 0x8000_0000, u32::MAX]) {
        // FALLOCATE may well do as it is told, and fill the host's disk.
        for byte in [0, 0xff] {
            for len in [8, 4096] {
                let mut body = Body::new();
                if opcode != 43 {
                    body.same(len, byte);
                }
                server.ask(opcode, ROOT, &body);
                answered += 1;
                if device.needs_reset() {
                    stopped += 1;
                    server = Server::start(device);
                }
            }
        }
    }
    count("every opcode with nonsense", answered, "tried");
    count("every opcode with nonsense", stopped, "stopped the device");
}

struct Server {
    queue: Queue,
}

impl Server {
    /// A fresh session, past its INIT.
    fn start(device: &Device) -> Server {
        let mut server = Server { queue: device.bring_up_queue(1) };
        let mut body = Body::new();
        for word in [7, 38, 1 << 20, 0] {
            store::<u32>(REQUEST + 40 + u64::from(body.len - 40), word);
            body.len += 4;
        }
        body.zeros(48);
        if server.ask(INIT, 0, &body) != 0 {
            tell("FUSE INIT", "FAILED");
        }
        server
    }

    /// Asks; gives the error of the answer, 0 for none, or 1 if there is no answer.
    fn ask(&mut self, opcode: u32, node: u64, body: &Body) -> i32 {
        body.finish(opcode, node);
        fill(REPLY, 256, 0);
        self.queue.post(&[out(REQUEST, body.len), into(REPLY, REPLY_BYTES)]);
        if self.queue.wait() { load(REPLY + 4) } else { 1 }
    }
}

/// A request's parameters, put where it will be posted.
struct Body {
    /// Bytes so far, the head's among them.
    len: u32,
}

impl Body {
    fn new() -> Body {
        Body { len: 40 }
    }

    fn zeroed(len: u32) -> Body {
        let mut body = Body::new();
        body.zeros(len);
        body
    }

    fn zeros(&mut self, len: u32) {
        self.same(len, 0);
    }

    fn same(&mut self, len: u32, byte: u8) {
        fill(REQUEST + u64::from(self.len), len.into(), byte);
        self.len += len;
    }

    fn number(&mut self, number: u64) {
        store(REQUEST + u64::from(self.len), number);
        self.len += 8;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            store(REQUEST + u64::from(self.len), *byte);
            self.len += 1;
        }
    }

    /// Puts the head before it.
    fn finish(&self, opcode: u32, node: u64) {
        store(REQUEST, self.len);
        store(REQUEST + 4, opcode);
        store::<u64>(REQUEST + 8, 1);
        store(REQUEST + 16, node);
        for at in 24..40 {
            store::<u8>(REQUEST + at, 0);
        }
    }
}
