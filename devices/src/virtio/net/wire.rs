//! What lies at the host's end of a pair of queues: a tap's queue, or a stream.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::super::buffers::Buffers;
use super::NicKind;
use super::spec::{FRAME_MAX, HEADER_BYTES};
use super::stream::Stream;
use super::tap::Tap;
use super::vhost::Vhost;
use crate::virtio::{GuestMemory, Segment};

/// An open end.
#[derive(Debug)]
pub(super) enum Wire {
    /// With virtio's headers.
    Tap(Tap),
    /// Without.
    Stream(Box<Stream>),
}

/// Where a received frame is, and how long it is with its header.
pub(super) enum Got {
    /// In the segments, and what they had no room for in the buffer beside.
    Direct(usize),
    /// In the buffer beside.
    Beside(usize),
}

impl Wire {
    /// Takes an open descriptor of this kind over; `vhost` is for a tap.
    pub(super) fn new(kind: NicKind, end: OwnedFd, vhost: Option<OwnedFd>) -> io::Result<Wire> {
        let flags = rustix::fs::fcntl_getfl(&end)?;
        rustix::fs::fcntl_setfl(&end, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(match kind {
            NicKind::Tap { .. } => Wire::Tap(Tap::new(end, vhost.map(Vhost::new).transpose()?)),
            NicKind::Stream => Wire::Stream(Box::new(Stream::new(UnixStream::from(end)))),
        })
    }

    /// Sends the frame in `segments`, whose header the host shall see as `header`.
    ///
    /// # Errors
    /// `WouldBlock`: later. For all others see [`is_gone`].
    pub(super) fn send(
        &mut self,
        buffers: &mut Buffers,
        memory: &GuestMemory,
        header: &[u8; HEADER_BYTES],
        segments: &[Segment],
    ) -> io::Result<()> {
        match self {
            Wire::Tap(tap) => tap.send(buffers, memory, header, segments),
            Wire::Stream(stream) => stream.send(buffers, memory, segments),
        }
    }

    /// Receives a frame. A length of 0 says that the other side is gone.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. All others: there will be none any more.
    pub(super) fn receive<'a>(
        &mut self,
        buffers: &mut Buffers,
        memory: &GuestMemory,
        segments: impl Iterator<Item = &'a Segment>,
        beside: &mut [u8; FRAME_MAX],
    ) -> io::Result<Got> {
        match self {
            Wire::Tap(tap) => tap.receive(buffers, memory, segments, beside).map(Got::Direct),
            Wire::Stream(stream) => stream.receive(beside).map(Got::Beside),
        }
    }

    /// Sends what is left of a frame that was sent by halves.
    ///
    /// # Errors
    /// `WouldBlock` while some is left.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Tap(_) => Ok(()),
            Wire::Stream(stream) => stream.flush(),
        }
    }

    /// Whether it waits for room to send the rest of a frame.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Wire::Stream(stream) if stream.is_full())
    }

    /// The tap, if it is one.
    pub(super) fn tap(&self) -> Option<&Tap> {
        match self {
            Wire::Tap(tap) => Some(tap),
            Wire::Stream(_) => None,
        }
    }

    /// The same, to be changed.
    pub(super) fn tap_mut(&mut self) -> Option<&mut Tap> {
        match self {
            Wire::Tap(tap) => Some(tap),
            Wire::Stream(_) => None,
        }
    }
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Wire::Tap(tap) => tap.as_fd(),
            Wire::Stream(stream) => stream.as_fd(),
        }
    }
}

/// Whether an error of sending says that there is nobody to send to any more, rather than that this frame could not be sent.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let gone = [libc::EBADFD, libc::ENODEV, libc::ENXIO, libc::EPIPE, libc::ECONNRESET, libc::ENOTCONN, libc::EBADF];
    error.raw_os_error().is_some_and(|code| gone.contains(&code)) || error.kind() == io::ErrorKind::WriteZero
}
