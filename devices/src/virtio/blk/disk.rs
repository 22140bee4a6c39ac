//! A disk made of raw images, one after another: files or block devices whose bytes are the disk's. No format is ever looked
//! for in them.
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

/// One image of a disk, and where on the disk it lies; all in bytes.
#[derive(Debug)]
pub struct DiskPart {
    /// The image: an open file or block device. Opened for reading only, it cannot be written whatever is said here.
    pub image: File,
    /// Where it begins on the disk: a multiple of 512, not before the end of the part before.
    pub start: u64,
    /// How much of it is on the disk, from its first byte on: a multiple of 512, not 0, and no more than the image has.
    pub length: u64,
    /// Every write to it fails.
    pub read_only: bool,
}

/// Why parts do not make a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Nothing there.
    #[error("a disk needs at least one image")]
    NoParts,
    /// An empty image cannot be told from an empty slot.
    #[error("image {0} is empty")]
    Empty(usize),
    /// The disk's unit is 512 bytes.
    #[error("image {part}: {bytes} is not a multiple of 512 bytes, as a disk's places and sizes are")]
    Unaligned {
        /// Which part.
        part: usize,
        /// The place or size.
        bytes: u64,
    },
    /// Its place is taken, or beyond what a disk can have.
    #[error("image {0} does not lie behind the one before it")]
    Overlap(usize),
    /// The image has fewer bytes than the disk shall.
    #[error("image {part} has {found} bytes, fewer than the {expected} that the disk shall have of it")]
    Short {
        /// Which part.
        part: usize,
        /// On the disk.
        expected: u64,
        /// In the image.
        found: u64,
    },
    /// The size of an image cannot be found out.
    #[error("cannot find out the size of image {part}: {source}")]
    Size {
        /// Which part.
        part: usize,
        /// Why not.
        source: io::Error,
    },
}

/// An open disk.
#[derive(Debug)]
pub(super) struct Disk {
    parts: Vec<DiskPart>,
}

/// The piece of a transfer that lies in one part.
struct Piece<'a> {
    part: &'a DiskPart,
    /// Where in the image.
    offset: u64,
    /// How many bytes of the transfer come before it.
    done: u64,
    len: u64,
}

/// A system call that moves bytes between a descriptor and buffers.
type Move = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off64_t) -> isize;

impl Disk {
    /// Checks that `parts` make a disk.
    pub(super) fn new(mut parts: Vec<DiskPart>) -> Result<Self, DiskError> {
        let mut end = 0;
        for (index, part) in parts.iter_mut().enumerate() {
            for bytes in [part.start, part.length] {
                if bytes % SECTOR_BYTES != 0 {
                    return Err(DiskError::Unaligned { part: index, bytes });
                }
            }
            if part.length == 0 {
                return Err(DiskError::Empty(index));
            }
            let part_end = part.start.checked_add(part.length).filter(|&end| i64::try_from(end).is_ok());
            match part_end {
                Some(part_end) if part.start >= end => end = part_end,
                _ => return Err(DiskError::Overlap(index)),
            }
            // Works for block devices too, whose metadata do not tell.
            let found = part.image.seek(SeekFrom::End(0)).map_err(|source| DiskError::Size { part: index, source })?;
            if found < part.length {
                return Err(DiskError::Short { part: index, expected: part.length, found });
            }
        }
        if parts.is_empty() { Err(DiskError::NoParts) } else { Ok(Disk { parts }) }
    }

    pub(super) fn sectors(&self) -> u64 {
        self.parts.last().map_or(0, |last| (last.start + last.length) / SECTOR_BYTES)
    }

    pub(super) fn read(&self, memory: &GuestMemory, into: &[Segment], offset: u64) -> io::Result<()> {
        for piece in self.pieces(offset, ring::total(into).into(), false)? {
            piece.transfer(libc::preadv64, memory, into)?;
        }
        Ok(())
    }

    pub(super) fn write(&self, memory: &GuestMemory, from: &[Segment], offset: u64) -> io::Result<()> {
        for piece in self.pieces(offset, ring::total(from).into(), true)? {
            piece.transfer(libc::pwritev64, memory, from)?;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.parts.iter().filter(|part| !part.read_only).try_for_each(|part| part.image.sync_data())
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
        for piece in self.pieces(range.offset, range.len, true)? {
            rustix::fs::fallocate(&piece.part.image, flags, piece.offset, piece.len)?;
        }
        Ok(())
    }

    /// Where `len` bytes at `offset` are.
    ///
    /// # Errors
    /// When some of them are nowhere, or `writing` and they may not be written: nothing is done by halves.
    fn pieces(&self, offset: u64, len: u64, writing: bool) -> io::Result<Vec<Piece<'_>>> {
        let (mut pieces, mut done) = (Vec::new(), 0);
        for part in &self.parts {
            let at = offset + done;
            if done == len || at < part.start {
                break;
            }
            if at >= part.start + part.length {
                continue;
            }
            if writing && part.read_only {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a write to what is read-only"));
            }
            let (offset, len) = (at - part.start, (len - done).min(part.start + part.length - at));
            pieces.push(Piece { part, offset, done, len });
            done += len;
        }
        match done == len {
            true => Ok(pieces),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "a request for what lies between two images")),
        }
    }
}

impl Piece<'_> {
    /// Moves this piece's share of `segments`, in as many calls as it takes.
    fn transfer(&self, call: Move, memory: &GuestMemory, segments: &[Segment]) -> io::Result<()> {
        let mut moved = 0;
        while moved < self.len {
            // Within one request, whose length is a u32.
            let (skip, len) = ((self.done + moved) as u32, (self.len - moved) as u32);
            let mut buffers = Vec::with_capacity(segments.len().min(BUFFERS_MAX));
            for segment in ring::slice(segments, skip, len).iter().take(BUFFERS_MAX) {
                let slice = memory.get_slice(segment.address, segment.len as usize).map_err(io::Error::other)?;
                let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                buffers.push(libc::iovec { iov_base, iov_len: slice.len() });
            }
            let at = i64::try_from(self.offset + moved).map_err(io::Error::other)?;
            // SAFETY: the buffers lie in guest RAM, which `memory` keeps mapped for the call; the guest may write there at the same
            // time, and nothing here has a reference into it.
            let count =
                unsafe { call(self.part.image.as_raw_fd(), buffers.as_ptr(), buffers.len() as libc::c_int, at) };
            match count {
                // The image has shrunk since it was opened.
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                // At most what was asked for, which fits.
                1.. => moved += count as u64,
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
