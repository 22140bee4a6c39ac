//! What the host kernel's vhost-net is asked (`linux/vhost.h`), by numbers that are right wherever this runs.
//!
//! What requests carry is the crate `vhost`'s. Its numbers, and its calls with them, are made by macros that know the way of most architectures
//! alone: powerpc has the size in 13 bits and the direction in three. Knows no queues and no guest.

#![allow(unsafe_code, reason = "requests take addresses")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::ioctl::{Opcode, opcode};
use vhost::vhost_kern::vhost_binding::{vhost_memory_region, vhost_vring_addr, vhost_vring_file, vhost_vring_state};
use vmm_sys_util::eventfd::EventFd;

const VHOST: u8 = 0xaf;
const GET_FEATURES: Opcode = opcode::read::<u64>(VHOST, 0x00);
const SET_FEATURES: Opcode = opcode::write::<u64>(VHOST, 0x00);
const SET_OWNER: Opcode = opcode::none(VHOST, 0x01);
/// As long as the table without its regions.
const SET_MEM_TABLE: Opcode = opcode::write::<[u32; 2]>(VHOST, 0x03);
const SET_VRING_NUM: Opcode = opcode::write::<vhost_vring_state>(VHOST, 0x10);
const SET_VRING_ADDR: Opcode = opcode::write::<vhost_vring_addr>(VHOST, 0x11);
const SET_VRING_BASE: Opcode = opcode::write::<vhost_vring_state>(VHOST, 0x12);
const SET_VRING_KICK: Opcode = opcode::write::<vhost_vring_file>(VHOST, 0x20);
const SET_VRING_CALL: Opcode = opcode::write::<vhost_vring_file>(VHOST, 0x21);
const SET_VRING_ERR: Opcode = opcode::write::<vhost_vring_file>(VHOST, 0x22);
const NET_SET_BACKEND: Opcode = opcode::write::<vhost_vring_file>(VHOST, 0x30);

/// The most regions of memory: machines have three.
const REGIONS: usize = 8;

/// `struct vhost_memory`.
#[repr(C)]
struct MemoryTable {
    count: u32,
    padding: u32,
    regions: [vhost_memory_region; REGIONS],
}

/// An open `/dev/vhost-net`.
#[derive(Clone, Copy)]
pub(super) struct VhostNet<'a>(pub(super) BorrowedFd<'a>);

impl VhostNet<'_> {
    /// Which features it knows.
    pub(super) fn features(self) -> io::Result<u64> {
        let mut features = 0_u64;
        // SAFETY: the kernel writes eight bytes, which live across the call.
        self.checked(unsafe { libc::ioctl(self.0.as_raw_fd(), GET_FEATURES as _, &raw mut features) })?;
        Ok(features)
    }

    /// It works for this process from now on.
    pub(super) fn set_owner(self) -> io::Result<()> {
        // SAFETY: takes nothing.
        self.checked(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_OWNER as _, 0) })
    }

    /// Which features the driver has chosen.
    pub(super) fn set_features(self, features: u64) -> io::Result<()> {
        self.hand_over(SET_FEATURES, &features)
    }

    /// Where the guest's memory is.
    pub(super) fn set_memory(self, regions: &[vhost_memory_region]) -> io::Result<()> {
        let mut table = MemoryTable { count: regions.len() as u32, padding: 0, regions: Default::default() };
        let places = table.regions.get_mut(..regions.len()).ok_or(io::ErrorKind::InvalidInput)?;
        places.copy_from_slice(regions);
        self.hand_over(SET_MEM_TABLE, &table)
    }

    /// How many descriptors queue `index` has.
    pub(super) fn set_size(self, index: u32, size: u16) -> io::Result<()> {
        self.hand_over(SET_VRING_NUM, &vhost_vring_state { index, num: size.into() })
    }

    /// Which of the driver's descriptors is the next.
    pub(super) fn set_base(self, index: u32, next: u16) -> io::Result<()> {
        self.hand_over(SET_VRING_BASE, &vhost_vring_state { index, num: next.into() })
    }

    /// Where a queue's parts are.
    pub(super) fn set_areas(self, areas: &vhost_vring_addr) -> io::Result<()> {
        self.hand_over(SET_VRING_ADDR, areas)
    }

    /// What is written when the driver is to be interrupted.
    pub(super) fn set_call(self, index: u32, event: &EventFd) -> io::Result<()> {
        self.hand_over(SET_VRING_CALL, &vhost_vring_file { index, fd: event.as_raw_fd() })
    }

    /// What is written when there is something in the queue that it cannot use.
    pub(super) fn set_fault(self, index: u32, event: &EventFd) -> io::Result<()> {
        self.hand_over(SET_VRING_ERR, &vhost_vring_file { index, fd: event.as_raw_fd() })
    }

    /// What the driver's kicks write.
    pub(super) fn set_kick(self, index: u32, event: &EventFd) -> io::Result<()> {
        self.hand_over(SET_VRING_KICK, &vhost_vring_file { index, fd: event.as_raw_fd() })
    }

    /// Between which tap and the queue it moves frames, or that it stops.
    pub(super) fn set_tap(self, index: u32, tap: Option<&File>) -> io::Result<()> {
        self.hand_over(NET_SET_BACKEND, &vhost_vring_file { index, fd: tap.map_or(-1, File::as_raw_fd) })
    }

    fn hand_over<T>(self, request: Opcode, what: &T) -> io::Result<()> {
        // SAFETY: the kernel only reads, no more than what the request's structure has, which is what is handed over here.
        self.checked(unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, &raw const *what) })
    }

    fn checked(self, result: i32) -> io::Result<()> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn requests_have_their_sizes() {
        // The numbers are rustix's to make; that of the table does not count what follows its head.
        assert_eq!(offset_of!(MemoryTable, regions), size_of::<[u32; 2]>());
        assert_eq!(
            (size_of::<vhost_vring_addr>(), size_of::<vhost_vring_state>(), size_of::<vhost_vring_file>()),
            (40, 8, 8)
        );
    }
}
