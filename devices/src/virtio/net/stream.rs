//! A stream socket to a network in another process (passt, for one): each frame behind its length, four bytes in network order,
//! and without virtio's header.
//!
//! Knows no rings. What the other side sends is not trusted: a length that no frame has ends the connection.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::super::buffers::Buffers;
use super::spec::{FRAME_MAX, HEADER_BYTES};
use crate::virtio::{GuestMemory, Segment, ring};

/// Bytes of a length.
const LENGTH_BYTES: usize = 4;
/// Bytes read at once, and the longest that a frame can be.
const INCOMING_BYTES: usize = 128 << 10;

/// One connection.
#[derive(Debug)]
pub(super) struct Stream {
    socket: UnixStream,
    /// What has been read and not taken: `incoming[taken..filled]`.
    incoming: Box<[u8]>,
    taken: usize,
    filled: usize,
    /// The rest of a frame that the socket had no room for, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
}

impl Stream {
    /// Takes over a connected socket that does not block.
    pub(super) fn new(socket: UnixStream) -> Stream {
        let incoming = vec![0; INCOMING_BYTES].into_boxed_slice();
        Stream { socket, incoming, taken: 0, filled: 0, outgoing: Vec::new(), sent: 0 }
    }

    /// Sends a frame: the segments but for their header. A part may go later, with [`Stream::flush`].
    ///
    /// # Errors
    /// `WouldBlock` when nothing was taken.
    pub(super) fn send(&mut self, buffers: &mut Buffers, memory: &GuestMemory, segments: &[Segment]) -> io::Result<()> {
        self.flush()?;
        let frame = ring::total(segments).saturating_sub(HEADER_BYTES as u32);
        let length = frame.to_be_bytes();
        let whole = LENGTH_BYTES + frame as usize;
        let done = buffers.write(self.socket.as_fd(), memory, &length, (segments, HEADER_BYTES as u32))?;
        if done < whole {
            let kept = done.min(LENGTH_BYTES);
            self.outgoing.extend_from_slice(&length[kept..]);
            let skip = (done - kept) as u32;
            let rest = ring::slice(segments, HEADER_BYTES as u32 + skip, frame - skip);
            let start = self.outgoing.len();
            self.outgoing.resize(start + (frame - skip) as usize, 0);
            ring::read(memory, &rest, &mut self.outgoing[start..]);
        }
        Ok(())
    }

    /// Sends what is left of a frame.
    ///
    /// # Errors
    /// `WouldBlock` while some is left.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.outgoing.len() {
            match self.socket.write(&self.outgoing[self.sent..]) {
                Ok(done) => self.sent += done,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }

    /// Whether a part of a frame waits for room.
    pub(super) fn is_full(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Puts the next frame into `out`, behind a header of zeroes; says how many bytes these are together. 0: the other side is gone.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; `InvalidData` when what came cannot be one.
    pub(super) fn receive(&mut self, out: &mut [u8; FRAME_MAX]) -> io::Result<usize> {
        loop {
            if let Some(frame) = self.next()? {
                let len = HEADER_BYTES + frame.len();
                out[..HEADER_BYTES].fill(0);
                out[HEADER_BYTES..len].copy_from_slice(&self.incoming[frame.clone()]);
                self.taken = frame.end;
                return Ok(len);
            }
            self.incoming.copy_within(self.taken..self.filled, 0);
            (self.taken, self.filled) = (0, self.filled - self.taken);
            match self.socket.read(&mut self.incoming[self.filled..]) {
                Ok(0) => return Ok(0),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the next whole frame lies.
    fn next(&self) -> io::Result<Option<std::ops::Range<usize>>> {
        let waiting = &self.incoming[self.taken..self.filled];
        let Some(length) = waiting.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_MAX - HEADER_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let start = self.taken + LENGTH_BYTES;
        Ok((start + length <= self.filled).then_some(start..start + length))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::memory;
    use vm_memory::{Bytes, GuestAddress};

    fn pair() -> (UnixStream, Stream) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (theirs, Stream::new(ours))
    }

    fn receive(stream: &mut Stream) -> io::Result<Vec<u8>> {
        let mut out = Box::new([0xee; FRAME_MAX]);
        stream.receive(&mut out).map(|len| out[..len].to_vec())
    }

    #[test]
    fn frames_come_whole_however_they_arrive() {
        let (mut theirs, mut stream) = pair();
        let mut sent = Vec::new();
        for len in [14_u32, 0, 1500, 65_550] {
            sent.extend_from_slice(&len.to_be_bytes());
            sent.extend(std::iter::repeat_n(len as u8, len as usize));
        }
        let mut got = Vec::new();
        for piece in sent.chunks(1000) {
            theirs.write_all(piece).unwrap();
            loop {
                match receive(&mut stream) {
                    Ok(frame) => got.push(frame),
                    Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        }
        let lengths: Vec<_> = got.iter().map(|frame| frame.len() - HEADER_BYTES).collect();
        assert_eq!(lengths, [14, 0, 1500, 65_550]);
        assert!(
            got[2][..HEADER_BYTES] == [0; HEADER_BYTES]
                && got[2][HEADER_BYTES..].iter().all(|byte| *byte == 1500_u16 as u8)
        );
        drop(theirs);
        assert!(receive(&mut stream).unwrap().is_empty());
    }

    #[test]
    fn a_length_that_cannot_be_is_an_error() {
        let (mut theirs, mut stream) = pair();
        theirs.write_all(&65_551_u32.to_be_bytes()).unwrap();
        assert_eq!(receive(&mut stream).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_frame_that_was_sent_by_halves_is_sent_whole() {
        let (mut theirs, mut stream) = pair();
        // A piece of what is sent is at most half as large: two for a frame, however large the host's pages are.
        rustix::net::sockopt::set_socket_send_buffer_size(&stream, 40_000).unwrap();
        let memory = memory();
        let frame: Vec<u8> = (0..60_000_u32).map(|byte| (byte / 7) as u8).collect();
        memory.write_slice(&frame, GuestAddress(0x1_000c)).unwrap();
        let segments = [
            Segment { address: GuestAddress(0x1_0000), len: 100 },
            Segment { address: GuestAddress(0x1_0064), len: 60_012 - 100 },
        ];
        let (mut buffers, mut count, mut got, mut piece) = (Buffers::default(), 0, Vec::new(), [0; 10_000]);
        theirs.set_nonblocking(true).unwrap();
        while !stream.is_full() {
            match stream.send(&mut buffers, &memory, &segments) {
                Ok(()) => count += 1,
                // The socket was full with whole frames: room for less than another.
                Err(_) => {
                    let len = theirs.read(&mut piece).unwrap();
                    got.extend_from_slice(&piece[..len]);
                }
            }
        }
        assert_eq!(stream.send(&mut buffers, &memory, &segments).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        while got.len() < count * 60_004 {
            match theirs.read(&mut piece) {
                Ok(len) => got.extend_from_slice(&piece[..len]),
                Err(_) => stream.flush().unwrap_or_default(),
            }
        }
        for sent in got.chunks(60_004) {
            assert_eq!(sent[..4], 60_000_u32.to_be_bytes());
            assert!(sent[4..] == frame[..]);
        }
    }
}
