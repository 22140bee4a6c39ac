//! Requests in the kernel's hands: an io_uring that can do to a disk what this process can do by itself, and nothing else.
//!
//! A filter on system calls does not see what goes through such a ring. So the kernel is told, before the ring's first use, which
//! operations it takes: those four that a thread of role `Io` may make as system calls anyway. That cannot be undone, and nothing
//! else can be registered with it afterwards. Needs Linux 5.10; before 5.12 the ring counts against RLIMIT_MEMLOCK, since then
//! against the memory cgroup.
#![allow(unsafe_code, reason = "what is submitted points to buffers that must outlive it, which no lifetime can say")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Once;

use io_uring::{IoUring, opcode, register::Restriction, squeue, types};

use super::disk::{Deed, Step};
use super::flight::{Buffers, Flight, PUNCH, ZERO};
use crate::virtio::GuestMemory;

/// Entries of the submission queue. More than that are submitted in several turns.
const ENTRIES: u32 = 64;
/// Most kernel threads that do for a ring what would make its user wait; they count as threads of this process.
const WAITERS: u32 = 4;

/// All that a ring may be asked to do.
const OPERATIONS: [u8; 4] = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];

/// A ring, and the requests that are in it.
pub(super) struct Uring {
    ring: IoUring,
    flights: Vec<Option<Flight>>,
    vacant: Vec<usize>,
    /// Keeps what the kernel reads and writes mapped.
    memory: Option<GuestMemory>,
}

impl Uring {
    /// A ring for at most `depth` requests at once; none where the kernel refuses, which is said once for all.
    pub(super) fn new(depth: u32) -> Option<Uring> {
        static REFUSED: Once = Once::new();
        match restricted(depth) {
            Ok(ring) => Some(Uring { ring, flights: Vec::new(), vacant: Vec::new(), memory: None }),
            Err(error) => {
                REFUSED.call_once(|| log::info!("disks go without io_uring, one request at a time: {error}"));
                None
            }
        }
    }

    /// Which guest's memory the requests are about.
    pub(super) fn set_memory(&mut self, memory: GuestMemory) {
        debug_assert!(self.is_idle());
        self.memory = Some(memory);
    }

    /// Readable when a request has come back: to be watched.
    pub(super) fn event(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.vacant.len() == self.flights.len()
    }

    /// Prepares the next step of `flight`, which must have one; [`Uring::submit`] hands it to the kernel.
    ///
    /// # Errors
    /// When the kernel takes no more, with the flight.
    pub(super) fn launch(&mut self, mut flight: Flight) -> Result<(), Box<(Flight, io::Error)>> {
        let entry = match self.entry(&mut flight) {
            Ok(entry) => entry,
            Err(error) => return Err(Box::new((flight, error))),
        };
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        // SAFETY: the flight, and with it the descriptor and the buffers, stays in `flights` until the kernel has answered; the guest
        // memory that the buffers are in stays mapped by `memory`; `drop` waits before letting go of either.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(place as u64)) };
        if pushed.is_err() {
            self.vacant.push(place);
            return Err(Box::new((flight, io::ErrorKind::WouldBlock.into())));
        }
        // Moving the flight does not move its buffers, which are on the heap.
        self.flights[place] = Some(flight);
        Ok(())
    }

    /// Hands over what was launched.
    ///
    /// # Errors
    /// When the kernel takes nothing for another reason than being busy.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It needs room or memory, which answers give it.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) && self.is_taken() => {
                    self.wait()?;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next request that the kernel has answered, with what became of its step.
    pub(super) fn land(&mut self) -> Option<(Flight, io::Result<u64>)> {
        let answer = self.ring.completion().next()?;
        let place = answer.user_data() as usize;
        let flight = self.flights.get_mut(place)?.take()?;
        self.vacant.push(place);
        let result = answer.result();
        Some((flight, u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))))
    }

    /// Waits until at least one request has been answered, if any is under way.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        while !self.is_idle() && self.ring.completion().is_empty() {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The next step of `flight` as the kernel is told of it, and room for that.
    fn entry(&mut self, flight: &mut Flight) -> io::Result<squeue::Entry> {
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        let memory = self.memory.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let (step, image, buffers) = flight.next(memory)?.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(entry(&step, image, buffers))
    }

    /// Whether the kernel has some of what is under way.
    fn is_taken(&mut self) -> bool {
        self.flights.len() - self.vacant.len() > self.ring.submission().len()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while !self.is_idle() {
            if let Err(error) = self.wait() {
                // The kernel may still write there: let it.
                log::error!("io_uring does not give back {} requests: {error}", self.flights.len() - self.vacant.len());
                std::mem::forget((self.memory.take(), std::mem::take(&mut self.flights)));
                return;
            }
            while self.land().is_some() {}
        }
    }
}

/// Whether this host's kernel gives this process rings for disks.
///
/// # Errors
/// Why not.
pub fn uring_works() -> io::Result<()> {
    restricted(1).map(drop)
}

/// A ring that is good for nothing but disks.
fn restricted(depth: u32) -> io::Result<IoUring> {
    let ring: IoUring = IoUring::builder()
        .setup_cqsize(depth.next_power_of_two().max(2 * ENTRIES))
        .setup_r_disabled()
        .build(ENTRIES)?;
    let submitter = ring.submitter();
    // Linux 5.15; without it, there may be four a processor.
    let _ = submitter.register_iowq_max_workers(&mut [WAITERS, 0]);
    submitter.register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

fn entry(step: &Step, image: RawFd, buffers: &Buffers) -> squeue::Entry {
    let (image, from, count) = (types::Fd(image), buffers.as_ptr(), buffers.len());
    let allocate = |mode| opcode::Fallocate::new(image, step.len).offset(step.offset).mode(mode);
    match step.deed {
        Deed::Read => opcode::Readv::new(image, from, count).offset(step.offset).build(),
        Deed::Write => opcode::Writev::new(image, from, count).offset(step.offset).build(),
        Deed::Sync => opcode::Fsync::new(image).flags(types::FsyncFlags::DATASYNC).build(),
        Deed::Punch => allocate(PUNCH.bits() as i32).build(),
        Deed::Zero => allocate(ZERO.bits() as i32).build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_does_nothing_but_disk_operations() {
        let Ok(mut ring) = restricted(128) else {
            eprintln!("not tested: this kernel refuses io_uring");
            return;
        };
        let file = tempfile::tempfile().unwrap();
        let image = types::Fd(file.as_raw_fd());
        let mut ask = |entry: squeue::Entry| {
            // SAFETY: none of these has buffers.
            unsafe { ring.submission().push(&entry).unwrap() };
            ring.submit_and_wait(1).unwrap();
            ring.completion().next().unwrap().result()
        };
        assert_eq!(ask(opcode::Fsync::new(image).build()), 0);
        let forbidden = [
            opcode::Nop::new().build(),
            opcode::Close::new(image).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::OpenAt::new(image, c"/etc/passwd".as_ptr()).build(),
            // What is allowed, but linked to something, or by another's leave.
            opcode::Fsync::new(image).build().flags(squeue::Flags::IO_LINK),
            opcode::Fsync::new(image).build().flags(squeue::Flags::ASYNC),
        ];
        for entry in forbidden {
            assert_eq!(ask(entry), -libc::EACCES);
        }
        ring.submitter().register_files(&[file.as_raw_fd()]).expect_err("registering files");
    }
}
