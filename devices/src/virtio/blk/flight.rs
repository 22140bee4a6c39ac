//! A request on its way through its steps, whoever takes them: a system call that waits, or a ring of the kernel's.
//!
//! Knows no queue but the number of its own, and no policy.
#![allow(unsafe_code, reason = "preadv and pwritev straight into guest memory, which no safe reference may point into")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use vm_memory::GuestMemory as _;

use super::bounce;
use super::disk::{Deed, Disk, Step};
use crate::virtio::{Chain, GuestMemory, Segment, ring};

/// Most buffers in one system call (IOV_MAX).
const BUFFERS_MAX: usize = 1024;

/// How a hole is made.
pub(super) const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
/// How a range is made zero that keeps its space.
pub(super) const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// A request that is being carried out.
pub(super) struct Flight {
    /// Which of the device's queues it came from.
    pub(super) queue: u16,
    /// What to give back.
    pub(super) chain: Chain,
    /// The byte that takes the status.
    pub(super) status: Segment,
    /// How many bytes the guest gets if all goes well.
    pub(super) gain: u32,
    disk: Arc<Disk>,
    /// The guest's side of a transfer.
    segments: Vec<Segment>,
    steps: VecDeque<Step>,
    buffers: Buffers,
    /// The guest's side does not lie as the disk needs it.
    bounces: bool,
}

/// The buffers of one step. They must stay where they are while the kernel has them.
#[derive(Default)]
pub(super) struct Buffers(Vec<libc::iovec>);

// SAFETY: the pointers lead into guest RAM, which belongs to no thread.
unsafe impl Send for Buffers {}

impl Buffers {
    pub(super) fn as_ptr(&self) -> *const libc::iovec {
        self.0.as_ptr()
    }

    /// At most IOV_MAX.
    pub(super) fn len(&self) -> u32 {
        self.0.len() as u32
    }
}

impl Flight {
    /// A request from queue `queue` that came as `chain`, and takes `steps` on `disk` to or from `segments`.
    pub(super) fn new(
        (queue, chain, status): (u16, Chain, Segment),
        disk: Arc<Disk>,
        segments: Vec<Segment>,
        steps: VecDeque<Step>,
    ) -> Flight {
        let gain = match steps.front() {
            Some(Step { deed: Deed::Read, .. }) => ring::total(&segments),
            _ => 0,
        };
        let bounces = !disk.is_cached() && !bounce::fit(&segments);
        Flight { queue, chain, status, gain, disk, segments, steps, buffers: Buffers::default(), bounces }
    }

    /// Whether it needs buffers of our own, which [`Flight::complete`] has.
    pub(super) fn bounces(&self) -> bool {
        self.bounces
    }

    /// Whether its disk is in the host's page cache as far as it can be.
    pub(super) fn is_cached(&self) -> bool {
        self.disk.is_cached()
    }

    /// The next step, its descriptor and its buffers in `memory`; none when all are taken.
    ///
    /// # Errors
    /// When the buffers are not in memory, which checking the chain has ruled out.
    pub(super) fn next(&mut self, memory: &GuestMemory) -> io::Result<Option<(Step, RawFd, &Buffers)>> {
        let Some(&step) = self.steps.front() else { return Ok(None) };
        self.buffers.0.clear();
        if matches!(step.deed, Deed::Read | Deed::Write) {
            // Within one request, whose length is a u32.
            for segment in ring::slice(&self.segments, step.skip as u32, step.len as u32).iter().take(BUFFERS_MAX) {
                let slice = memory.get_slice(segment.address, segment.len as usize).map_err(io::Error::other)?;
                let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                self.buffers.0.push(libc::iovec { iov_base, iov_len: slice.len() });
            }
        }
        Ok(Some((step, self.disk.image(step.part).as_raw_fd(), &self.buffers)))
    }

    /// Takes note of what became of the step that [`Flight::next`] gave: bytes moved, or nothing for steps that move none. A step
    /// that moved fewer bytes than it should is taken again from there.
    ///
    /// # Errors
    /// When the request has failed by it.
    pub(super) fn advance(&mut self, result: io::Result<u64>) -> io::Result<()> {
        let Some(step) = self.steps.front_mut() else { return Ok(()) };
        match (step.deed, result) {
            // The image has shrunk since it was opened.
            (Deed::Read | Deed::Write, Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (Deed::Read | Deed::Write, Ok(moved)) if moved < step.len => {
                (step.offset, step.skip, step.len) = (step.offset + moved, step.skip + moved, step.len - moved);
            }
            (_, Ok(_)) => {
                self.steps.pop_front();
            }
            (_, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (Deed::Zero, Err(error)) if error.kind() == io::ErrorKind::Unsupported => step.deed = Deed::Punch,
            (_, Err(error)) => return Err(error),
        }
        Ok(())
    }

    /// Takes all steps that are left, and waits for each.
    ///
    /// # Errors
    /// Those of the first step that failed.
    pub(super) fn complete(&mut self, memory: &GuestMemory) -> io::Result<()> {
        let bounces = self.bounces;
        while let Some((step, image, buffers)) = self.next(memory)? {
            let result = match step.deed {
                Deed::Read | Deed::Write if bounces => {
                    bounce::transfer(&step, self.disk.image(step.part), &self.segments, memory)
                }
                _ => perform(&step, image, buffers, 0),
            };
            self.advance(result)?;
        }
        Ok(())
    }

    /// Takes a step of reading if that needs no waiting, because the page cache has it.
    ///
    /// # Errors
    /// When the request has failed by it.
    pub(super) fn attempt(&mut self, memory: &GuestMemory) -> io::Result<()> {
        if let Some((step @ Step { deed: Deed::Read, .. }, image, buffers)) = self.next(memory)? {
            match perform(&step, image, buffers, libc::RWF_NOWAIT) {
                // Not there, or a file system that cannot say.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Unsupported) => {}
                result => self.advance(result)?,
            }
        }
        Ok(())
    }

    /// Whether every step has been taken.
    pub(super) fn is_complete(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether it writes.
    pub(super) fn is_write(&self) -> bool {
        matches!(self.steps.front(), Some(Step { deed: Deed::Write, .. }))
    }
}

/// The system call of one step, on an image that is open; says how many bytes were moved.
fn perform(step: &Step, image: RawFd, buffers: &Buffers, flags: libc::c_int) -> io::Result<u64> {
    let (from, count) = (buffers.as_ptr(), buffers.len() as libc::c_int);
    let at = i64::try_from(step.offset).map_err(io::Error::other)?;
    let len = i64::try_from(step.len).map_err(io::Error::other)?;
    // SAFETY: the descriptor is the disk's, which the flight holds. The buffers lie in guest RAM, which the caller keeps mapped for
    // the call; the guest may write there at the same time, and nothing here has a reference into it.
    let result = unsafe {
        match step.deed {
            Deed::Read if flags != 0 => libc::preadv2(image, from, count, at, flags),
            Deed::Read => libc::preadv64(image, from, count, at),
            Deed::Write => libc::pwritev64(image, from, count, at),
            Deed::Sync => libc::fdatasync(image) as isize,
            Deed::Punch => libc::fallocate64(image, PUNCH.bits() as libc::c_int, at, len) as isize,
            Deed::Zero => libc::fallocate64(image, ZERO.bits() as libc::c_int, at, len) as isize,
        }
    };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}
