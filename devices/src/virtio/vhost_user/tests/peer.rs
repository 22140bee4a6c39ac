//! The other side, for tests: a back end of a few lines, which reads and writes guest memory through the files it was sent.
//!
//! Written against the protocol's text and not with the crate that the device uses: what both misread, no test would find.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_OWNER: u32 = 3;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;
pub(super) const GET_CONFIG: u32 = 24;

const NEED_REPLY: u32 = 8;
const REPLY: u32 = 5;

/// What it does with a message, other than what it should.
pub(super) enum Deed {
    /// Answers this.
    Say(Vec<u8>),
    /// Answers another message, of this number.
    Mistake(u32),
    /// Sends these bytes, whatever they are.
    Babble(Vec<u8>),
    /// Does not answer.
    Ignore,
    /// Ends the connection.
    Leave,
}

type Mischief = Box<dyn FnMut(u32, &[u8]) -> Option<Deed> + Send>;

/// What it has been told. Positions are those of queue 0.
#[derive(Default)]
pub(super) struct Told {
    pub(super) requests: Vec<u32>,
    pub(super) features: u64,
    pub(super) base: u16,
    pub(super) size: u16,
    pub(super) enabled: u32,
    regions: Vec<(Region, File)>,
    addresses: [u64; 3],
    kick: Option<File>,
    call: Option<File>,
}

#[derive(Clone, Copy)]
struct Region {
    guest: u64,
    size: u64,
    user: u64,
    offset: u64,
}

/// A back end, on a thread of its own until the device hangs up.
pub(super) struct Peer {
    pub(super) told: Arc<Mutex<Told>>,
    socket: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// What it says of itself.
#[derive(Clone, Copy)]
pub(super) struct Claims {
    pub(super) features: u64,
    pub(super) protocol: u64,
    pub(super) queues: u64,
    pub(super) config: [u8; 60],
}

impl Peer {
    /// A back end, and the device's end of its connection.
    pub(super) fn start(claims: Claims, mischief: Mischief) -> (Peer, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let told = Arc::new(Mutex::new(Told::default()));
        let (socket, notes) = (ours.try_clone().unwrap(), Arc::clone(&told));
        let thread = std::thread::spawn(move || serve(&ours, claims, mischief, &notes));
        (Peer { told, socket, thread: Some(thread) }, theirs)
    }

    /// An honest one.
    pub(super) fn honest(claims: Claims) -> (Peer, UnixStream) {
        Peer::start(claims, Box::new(|_, _| None))
    }

    /// Takes the next chain that is available in queue 0; its head.
    pub(super) fn take(&self) -> u16 {
        super::wait_for("a chain", || {
            let told = self.told.lock().unwrap();
            told.kick.is_some() && told.read::<2>(told.addresses[1] + 2) != told.base.to_le_bytes()
        });
        let mut told = self.told.lock().unwrap();
        let slot = u64::from(told.base % told.size);
        told.base = told.base.wrapping_add(1);
        u16::from_le_bytes(told.read(told.addresses[1] + 4 + 2 * slot))
    }

    /// Gives a chain of queue 0 back, and calls.
    pub(super) fn give_back(&self, head: u16) {
        let told = self.told.lock().unwrap();
        let used = u16::from_le_bytes(told.read(told.addresses[2] + 2));
        let slot = u64::from(used % told.size);
        let entry = [u32::from(head).to_le_bytes(), 1_u32.to_le_bytes()].concat();
        told.write(told.addresses[2] + 4 + 8 * slot, &entry);
        told.write(told.addresses[2] + 2, &used.wrapping_add(1).to_le_bytes());
        let mut call = told.call.as_ref().unwrap();
        call.write_all(&1_u64.to_ne_bytes()).unwrap();
    }

    /// Ends the connection.
    pub(super) fn leave(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Says something that nobody asked for.
    pub(super) fn babble(&self, bytes: &[u8]) {
        (&self.socket).write_all(bytes).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.leave();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Told {
    /// What is at a guest's address.
    pub(super) fn at_guest<const N: usize>(&self, address: u64) -> [u8; N] {
        let (region, file) = self.region(|region| address.wrapping_sub(region.guest) < region.size);
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, region.offset + address - region.guest).unwrap();
        bytes
    }

    fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let (region, file) = self.region(|region| address.wrapping_sub(region.user) < region.size);
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, region.offset + address - region.user).unwrap();
        bytes
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let (region, file) = self.region(|region| address.wrapping_sub(region.user) < region.size);
        file.write_all_at(bytes, region.offset + address - region.user).unwrap();
    }

    fn region(&self, has: impl Fn(&Region) -> bool) -> &(Region, File) {
        self.regions.iter().find(|(region, _)| has(region)).expect("an address that was told of")
    }

    fn note(&mut self, request: u32, body: &[u8], files: Vec<File>) {
        self.requests.push(request);
        let words: Vec<u64> = body.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        let is_first = words.first().is_some_and(|word| *word as u32 == 0);
        match request {
            SET_FEATURES => self.features = words[0],
            SET_MEM_TABLE => {
                let region = |w: &[u64]| Region { guest: w[0], size: w[1], user: w[2], offset: w[3] };
                self.regions = words[1..].chunks_exact(4).map(region).zip(files).collect();
            }
            SET_VRING_NUM if is_first => self.size = (words[0] >> 32) as u16,
            SET_VRING_BASE if is_first => self.base = (words[0] >> 32) as u16,
            // Descriptors, used, available: turned into the order of the rest.
            SET_VRING_ADDR if is_first => self.addresses = [words[1], words[3], words[2]],
            SET_VRING_KICK if is_first => self.kick = files.into_iter().next(),
            SET_VRING_CALL if is_first => self.call = files.into_iter().next(),
            SET_VRING_ENABLE => self.enabled += 1,
            GET_VRING_BASE if is_first => (self.kick, self.call) = (None, None),
            _ => {}
        }
    }

    /// What is to be answered.
    fn answer(&self, claims: &Claims, request: u32, body: &[u8]) -> Option<Vec<u8>> {
        match request {
            GET_FEATURES => Some(claims.features.to_le_bytes().to_vec()),
            GET_PROTOCOL_FEATURES => Some(claims.protocol.to_le_bytes().to_vec()),
            GET_QUEUE_NUM => Some(claims.queues.to_le_bytes().to_vec()),
            GET_CONFIG => Some([&body[..12], &claims.config].concat()),
            GET_VRING_BASE => Some([&body[..4], &u32::from(self.base).to_le_bytes()].concat()),
            _ => None,
        }
    }
}

fn serve(socket: &UnixStream, claims: Claims, mut mischief: Mischief, notes: &Mutex<Told>) {
    while let Some((request, flags, body, files)) = receive(socket) {
        let answer = {
            let mut told = notes.lock().unwrap();
            let answer = told.answer(&claims, request, &body);
            told.note(request, &body, files);
            answer
        };
        let asked = answer.is_some() || flags & NEED_REPLY != 0;
        let say = |number: u32, answer: &[u8]| {
            let header = [number, REPLY, answer.len() as u32].map(u32::to_le_bytes).concat();
            let _ = { socket }.write_all(&[&header, answer].concat());
        };
        match mischief(request, &body) {
            None if asked => say(request, &answer.unwrap_or_else(|| vec![0; 8])),
            Some(Deed::Say(answer)) => say(request, &answer),
            Some(Deed::Mistake(number)) => say(number, &answer.unwrap_or_else(|| vec![0; 8])),
            Some(Deed::Babble(bytes)) => drop({ socket }.write_all(&bytes)),
            Some(Deed::Leave) => drop(socket.shutdown(std::net::Shutdown::Both)),
            None | Some(Deed::Ignore) => {}
        }
    }
}

/// One message: request, flags, body and files.
fn receive(socket: &UnixStream) -> Option<(u32, u32, Vec<u8>, Vec<File>)> {
    let mut header = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut header)], &mut ancillary, flags).ok()?;
    if received.bytes < header.len() {
        return None;
    }
    let mut files = Vec::new();
    for item in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = item {
            files.extend(sent.map(File::from));
        }
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
    let mut body = vec![0; word(8) as usize];
    std::io::Read::read_exact(&mut { socket }, &mut body).ok()?;
    Some((word(0), word(4), body, files))
}
