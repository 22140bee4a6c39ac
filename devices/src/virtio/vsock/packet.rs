//! Packets in descriptor chains: the header copied out and in, the payload moved straight between guest memory and a socket.
//!
//! Makes no assumption on how a driver spreads header and payload over descriptors (virtio 1.2, 2.7.4): Linux has used one, two
//! and many. Knows nothing of connections.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use vm_memory::{Address, GuestMemory as _, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::super::buffers::Buffers;
use super::outbox::Outbox;
use super::spec::{HEADER_SIZE, Header};
use crate::virtio::{Chain, Fault, GuestMemory, Segment, ring};

/// A packet from the guest.
pub(super) struct Packet<'c> {
    pub(super) header: Header,
    memory: &'c GuestMemory,
    segments: &'c [Segment],
}

impl<'c> Packet<'c> {
    /// Reads the header of the packet in `chain`.
    ///
    /// # Errors
    /// When the chain is too short to hold one.
    pub(super) fn parse(memory: &'c GuestMemory, chain: &'c Chain) -> Result<Packet<'c>, Fault> {
        let segments = chain.readable();
        let mut bytes = [0; HEADER_SIZE];
        if ring::read(memory, segments, &mut bytes) < HEADER_SIZE {
            return Err(Fault::Request(format!(
                "a packet of {} bytes has no room for its header",
                ring::total(segments)
            )));
        }
        Ok(Packet { header: Header::from_bytes(&bytes), memory, segments })
    }

    /// Whether the chain is shorter than the header claims.
    pub(super) fn is_truncated(&self) -> bool {
        self.header.len > ring::total(self.segments) - HEADER_SIZE as u32
    }

    /// Writes the payload to `stream` as far as it takes it, and the rest to `outbox`; says how many bytes `stream` took. A
    /// filled `outbox` keeps its place: everything goes behind it.
    ///
    /// # Errors
    /// What the socket said; the payload is lost then.
    pub(super) fn deliver(&self, mut stream: &UnixStream, outbox: &mut Outbox) -> io::Result<u32> {
        let mut blocked = !outbox.is_empty();
        let mut written = 0;
        for slice in slices(self.memory, self.segments, HEADER_SIZE as u32, self.header.len) {
            let mut at = 0;
            while !blocked && at < slice.len() {
                let rest = slice.offset(at).map_err(into_io)?;
                match stream.write_volatile(&rest).map_err(into_io) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => at += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => blocked = true,
                    Err(error) => return Err(error),
                }
            }
            written += at as u32;
            if at < slice.len() {
                outbox.push(&slice.offset(at).map_err(into_io)?);
            }
        }
        Ok(written)
    }
}

/// Room for one packet to the guest.
pub(super) struct Frame<'c> {
    memory: &'c GuestMemory,
    segments: &'c [Segment],
    /// Bytes of payload that fit.
    room: u32,
}

impl<'c> Frame<'c> {
    /// The room in `chain`.
    ///
    /// # Errors
    /// When it does not hold a header and at least one byte.
    pub(super) fn new(memory: &'c GuestMemory, chain: &'c Chain) -> Result<Frame<'c>, Fault> {
        let segments = chain.writable();
        let bytes = ring::total(segments);
        match bytes.checked_sub(HEADER_SIZE as u32) {
            Some(room) if room > 0 => Ok(Frame { memory, segments, room }),
            _ => Err(Fault::Request(format!("a receive buffer of {bytes} bytes has no room for a packet"))),
        }
    }

    /// How many of `wanted` bytes of payload fit.
    pub(super) fn fit(&self, wanted: u32) -> u32 {
        self.room.min(wanted)
    }

    /// Writes the header; says how many bytes of the chain are filled, payload included.
    pub(super) fn finish(&self, header: &Header) -> u32 {
        ring::write(self.memory, self.segments, &header.to_bytes());
        HEADER_SIZE as u32 + header.len
    }
}

/// How many of `wanted` bytes of payload fit into all of `frames`.
pub(super) fn fit(frames: &[Frame<'_>], wanted: u32) -> u32 {
    frames.iter().fold(0, |room: u32, frame| room.saturating_add(frame.room)).min(wanted)
}

/// Fills the payloads of `frames`, of which there are some, one after the other from `stream` with at most `max` bytes in all; says how
/// many there were, 0 at the stream's end.
///
/// # Errors
/// What the socket said, `WouldBlock` among it.
pub(super) fn read_from(frames: &[Frame<'_>], buffers: &mut Buffers, stream: &UnixStream, max: u32) -> io::Result<u32> {
    let Some(Frame { memory, .. }) = frames.first() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let lists = frames.iter().map(|frame| frame.segments);
    buffers.scatter(stream.as_fd(), memory, (lists, HEADER_SIZE as u32), max).map(|count| count as u32)
}

/// The host memory behind bytes `skip..skip + len` of `segments`, which are known to be RAM.
fn slices<'c>(
    memory: &'c GuestMemory,
    segments: &'c [Segment],
    mut skip: u32,
    mut len: u32,
) -> impl Iterator<Item = VolatileSlice<'c>> {
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len);
        let count = len.min(segment.len - skipped);
        skip -= skipped;
        len -= count;
        if count == 0 {
            return None;
        }
        memory.get_slice(segment.address.unchecked_add(u64::from(skipped)), count as usize).ok()
    })
}

fn into_io(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        error => io::Error::other(error),
    }
}
