//! A queue of a tap: frames with virtio's header, and three ioctls of which none needs a privilege; and who moves its frames in
//! place of this process, if anybody does.
//!
//! Opened, made a tap and given its header's form by whoever hands it over; knows no rings.
#![allow(unsafe_code, reason = "a tap's settings are ioctls, which have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Opcode, opcode};

use super::super::buffers::Buffers;
use super::offload;
use super::spec::HEADER_BYTES;
use super::vhost::Vhost;
use crate::virtio::{GuestMemory, Interrupt, Ring, Segment};

/// TUNSETOFFLOAD and TUNSETQUEUE; the macros differ between architectures, so they are computed.
const SET_OFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
const SET_QUEUE: Opcode = opcode::write::<libc::c_int>(b'T', 217);

/// An open queue of a tap.
#[derive(Debug)]
pub(super) struct Tap {
    queue: File,
    /// Moves its frames, when it has been given the driver's queues; none: this process does.
    pub(super) vhost: Option<Vhost>,
}

impl Tap {
    pub(super) fn new(queue: OwnedFd, vhost: Option<Vhost>) -> Tap {
        Tap { queue: queue.into(), vhost }
    }

    /// Lets vhost, if it has any, have the driver's queues: [`Vhost::start`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn hand_over(&mut self, features: u64, rings: [&Ring; 2], interrupt: &dyn Interrupt) -> io::Result<()> {
        self.vhost.as_mut().map_or(Ok(()), |vhost| vhost.start(&self.queue, features, rings, interrupt))
    }

    /// Whether it is a tap's no more.
    pub(super) fn is_gone(&self) -> bool {
        // It says so whatever is asked.
        let mut queue = [PollFd::new(&self.queue, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut queue, Some(&now)).is_ok() && queue[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
    }

    /// Says what the driver takes: `offloads` are feature bits.
    pub(super) fn set_offloads(&self, offloads: u64) -> io::Result<()> {
        let flags = libc::c_ulong::from(offload::tun_flags(offloads));
        // SAFETY: the argument is a number, and a descriptor that is no tap refuses.
        checked(unsafe { libc::ioctl(self.queue.as_raw_fd(), SET_OFFLOAD as _, flags) })
    }

    /// Whether the tap gives this queue a part of its frames; only a tap of several queues can be asked.
    pub(super) fn attend(&self, attend: bool) -> io::Result<()> {
        // SAFETY: ifreq is plain data for which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let what = if attend { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = what as libc::c_short;
        // SAFETY: the kernel reads one ifreq, which lives across the call.
        checked(unsafe { libc::ioctl(self.queue.as_raw_fd(), SET_QUEUE as _, &raw const request) })
    }

    /// Sends a frame: its header, and the segments behind theirs.
    pub(super) fn send(
        &self,
        buffers: &mut Buffers,
        memory: &GuestMemory,
        header: &[u8; HEADER_BYTES],
        segments: &[Segment],
    ) -> io::Result<()> {
        buffers.write(self.queue.as_fd(), memory, header, (segments, HEADER_BYTES as u32)).map(drop)
    }

    /// Receives a frame with its header into the segments, and what they have no room for into `rest`.
    pub(super) fn receive<'a>(
        &self,
        buffers: &mut Buffers,
        memory: &GuestMemory,
        segments: impl Iterator<Item = &'a Segment>,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        buffers.read(self.queue.as_fd(), memory, segments, rest)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
