//! A disk made of raw images, one after another: files or block devices whose bytes are the disk's. No format is ever looked
//! for in them.
//!
//! Says by which steps a request is carried out, each of them one system call on one image; [`super::flight`] takes them.
//! Knows offsets in bytes, not sectors, and trusts them: [`super::request`] has judged them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use rustix::fs::OFlags;

use super::request::{Range, Request};
use super::spec::SECTOR_BYTES;
use crate::virtio::ring;

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
    cached: bool,
}

/// What is to last when it has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// What came before a flush: the driver knows that there is a cache.
    Flushed,
    /// Every change: it knows of none (5.2.6.2).
    Always,
    /// Nothing.
    Never,
}

/// One system call on one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) deed: Deed,
    /// Index of the part.
    pub(super) part: usize,
    /// Where in the image, in bytes.
    pub(super) offset: u64,
    /// How many bytes of the request come before it.
    pub(super) skip: u64,
    /// Bytes.
    pub(super) len: u64,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// preadv: the guest gets what the image has.
    Read,
    /// pwritev: the image gets what the guest has.
    Write,
    /// fdatasync of the whole image.
    Sync,
    /// fallocate: gives space back; what was there is zero afterwards.
    Punch,
    /// fallocate: makes zero and keeps the space. Where the file system cannot, it is taken for [`Deed::Punch`].
    Zero,
}

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
        if parts.is_empty() {
            return Err(DiskError::NoParts);
        }
        let cached = parts.iter().all(|part| is_cached(&part.image));
        Ok(Disk { parts, cached })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.parts.last().map_or(0, |last| (last.start + last.length) / SECTOR_BYTES)
    }

    /// The file of part number `part`, which a [`Step`] names.
    pub(super) fn image(&self, part: usize) -> &File {
        &self.parts[part].image
    }

    /// Whether all of it goes through the host's page cache: not opened with O_DIRECT.
    pub(super) fn is_cached(&self) -> bool {
        self.cached
    }

    /// The steps that `request` takes.
    ///
    /// # Errors
    /// When some of what is asked for is nowhere, or must not be written: then nothing is to be done, not even a part.
    pub(super) fn plan(&self, request: &Request, last: Last) -> io::Result<VecDeque<Step>> {
        let mut steps = VecDeque::new();
        match request {
            Request::Read { offset, into } => self.add(&mut steps, Deed::Read, *offset, ring::total(into).into())?,
            Request::Write { offset, from } => self.add(&mut steps, Deed::Write, *offset, ring::total(from).into())?,
            Request::Discard(ranges) => {
                for &Range { offset, len, .. } in ranges {
                    self.add(&mut steps, Deed::Punch, offset, len)?;
                }
            }
            Request::WriteZeroes(ranges) => {
                for &Range { offset, len, unmap } in ranges {
                    self.add(&mut steps, if unmap { Deed::Punch } else { Deed::Zero }, offset, len)?;
                }
            }
            Request::Flush | Request::Identify { .. } => {}
        }
        let syncs = match last {
            Last::Flushed => matches!(request, Request::Flush),
            Last::Always => !matches!(request, Request::Read { .. } | Request::Identify { .. }),
            Last::Never => false,
        };
        if syncs {
            let writable = self.parts.iter().enumerate().filter(|(_, part)| !part.read_only);
            steps.extend(writable.map(|(part, _)| Step { deed: Deed::Sync, part, offset: 0, skip: 0, len: 0 }));
        }
        Ok(steps)
    }

    /// Adds the steps that do `deed` to `len` bytes at `offset`.
    fn add(&self, steps: &mut VecDeque<Step>, deed: Deed, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        for (index, part) in self.parts.iter().enumerate() {
            let at = offset + done;
            if done == len || at < part.start {
                break;
            }
            if at >= part.start + part.length {
                continue;
            }
            if deed != Deed::Read && part.read_only {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a write to what is read-only"));
            }
            let (offset, len) = (at - part.start, (len - done).min(part.start + part.length - at));
            steps.push_back(Step { deed, part: index, offset, skip: done, len });
            done += len;
        }
        match done == len {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "a request for what lies between two images")),
        }
    }
}

fn is_cached(image: &File) -> bool {
    rustix::fs::fcntl_getfl(image).is_ok_and(|flags| !flags.contains(OFlags::DIRECT))
}
