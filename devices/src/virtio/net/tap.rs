//! A queue of a tap: frames with virtio's header, and three ioctls of which none needs a privilege.
//!
//! Opened, made a tap and given its header's form by whoever hands it over; knows no rings.
#![allow(unsafe_code, reason = "a tap's settings are ioctls, which have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::ioctl::{Opcode, opcode};

use super::buffers::Buffers;
use super::offload;
use super::spec::HEADER_BYTES;
use crate::virtio::{GuestMemory, Segment};

/// TUNSETOFFLOAD and TUNSETQUEUE; the macros differ between architectures, so they are computed.
const SET_OFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
const SET_QUEUE: Opcode = opcode::write::<libc::c_int>(b'T', 217);

/// An open queue of a tap.
#[derive(Debug)]
pub(super) struct Tap(OwnedFd);

impl Tap {
    pub(super) fn new(queue: OwnedFd) -> Tap {
        Tap(queue)
    }

    /// Says what the driver takes: `offloads` are feature bits.
    pub(super) fn set_offloads(&self, offloads: u64) -> io::Result<()> {
        let flags = libc::c_ulong::from(offload::tun_flags(offloads));
        // SAFETY: the argument is a number, and a descriptor that is no tap refuses.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_OFFLOAD as _, flags) })
    }

    /// Whether the tap gives this queue a part of its frames; only a tap of several queues can be asked.
    pub(super) fn attend(&self, attend: bool) -> io::Result<()> {
        // SAFETY: ifreq is plain data for which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let what = if attend { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = what as libc::c_short;
        // SAFETY: the kernel reads one ifreq, which lives across the call.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_QUEUE as _, &raw const request) })
    }

    /// Sends a frame: its header, and the segments behind theirs.
    pub(super) fn send(
        &self,
        buffers: &mut Buffers,
        memory: &GuestMemory,
        header: &[u8; HEADER_BYTES],
        segments: &[Segment],
    ) -> io::Result<()> {
        buffers.write(self.0.as_fd(), memory, header, (segments, HEADER_BYTES as u32)).map(drop)
    }

    /// Receives a frame with its header into the segments, and what they have no room for into `rest`.
    pub(super) fn receive<'a>(
        &self,
        buffers: &mut Buffers,
        memory: &GuestMemory,
        segments: impl Iterator<Item = &'a Segment>,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        buffers.read(self.0.as_fd(), memory, segments, rest)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
