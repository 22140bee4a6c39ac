//! A raw image: a file or block device whose bytes are the disk's. No format is ever looked for in them.
//!
//! Knows offsets in bytes, not sectors, and trusts them: [`super::request`] has judged them.
#![allow(unsafe_code, reason = "preadv and pwritev straight into guest memory, which no safe reference may point into")]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use rustix::fs::FallocateFlags;
use vm_memory::GuestMemory as _;

use super::request::Range;
use super::spec::SECTOR_BYTES;
use crate::virtio::{GuestMemory, Segment, ring};

/// Most buffers in one system call (IOV_MAX).
const BUFFERS_MAX: usize = 1024;

/// An open image.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    sectors: u64,
}

/// A system call that moves bytes between a descriptor and buffers.
type Move = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off64_t) -> isize;

impl Disk {
    /// Takes an image; what does not fill a sector at its end is not part of the disk.
    pub(super) fn new(mut file: File) -> io::Result<Self> {
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR_BYTES;
        Ok(Disk { file, sectors })
    }

    #[cfg(test)]
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn read(&self, memory: &GuestMemory, into: &[Segment], offset: u64) -> io::Result<()> {
        self.transfer(libc::preadv64, memory, into, offset)
    }

    pub(super) fn write(&self, memory: &GuestMemory, from: &[Segment], offset: u64) -> io::Result<()> {
        self.transfer(libc::pwritev64, memory, from, offset)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives a range's space back; its contents are zero afterwards.
    pub(super) fn discard(&self, range: Range) -> io::Result<()> {
        self.allocate(range, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)
    }

    /// Makes a range zero, keeping its space unless it may go (or the file system cannot do it otherwise).
    pub(super) fn write_zeroes(&self, range: Range) -> io::Result<()> {
        if !range.unmap {
            let kept = self.allocate(range, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE);
            if !matches!(&kept, Err(error) if error.kind() == io::ErrorKind::Unsupported) {
                return kept;
            }
        }
        self.discard(range)
    }

    fn allocate(&self, range: Range, flags: FallocateFlags) -> io::Result<()> {
        if range.len == 0 {
            return Ok(());
        }
        Ok(rustix::fs::fallocate(&self.file, flags, range.offset, range.len)?)
    }

    /// Moves all of `segments`, in as many calls as it takes.
    fn transfer(&self, call: Move, memory: &GuestMemory, segments: &[Segment], offset: u64) -> io::Result<()> {
        let total = ring::total(segments);
        let mut done = 0;
        while done < total {
            let mut buffers = Vec::with_capacity(segments.len().min(BUFFERS_MAX));
            for segment in ring::slice(segments, done, total - done).iter().take(BUFFERS_MAX) {
                let slice = memory.get_slice(segment.address, segment.len as usize).map_err(io::Error::other)?;
                let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                buffers.push(libc::iovec { iov_base, iov_len: slice.len() });
            }
            let at = i64::try_from(offset + u64::from(done)).map_err(io::Error::other)?;
            // SAFETY: the buffers lie in guest RAM, which `memory` keeps mapped for the call; the guest may write there at the same
            // time, and nothing here has a reference into it.
            let moved = unsafe { call(self.file.as_raw_fd(), buffers.as_ptr(), buffers.len() as libc::c_int, at) };
            match moved {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                // At most what was asked for, which fits.
                1.. => done += moved as u32,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}
