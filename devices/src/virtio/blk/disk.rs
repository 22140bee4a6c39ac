//! A disk made of raw images, one after another: files or block devices whose bytes are the disk's. No format is ever looked
//! for in them.
//!
//! Says by which steps a request is carried out, each of them one system call on one image; [`super::flight`] takes them.
//! Knows offsets in bytes, not sectors, and trusts them: [`super::request`] has judged them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;

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
    /// What a guest has of an image is not taken from it.
    #[error("image {part} has {had} bytes on the disk already, which can become more, but not {length}")]
    Smaller {
        /// Which part.
        part: usize,
        /// What it shall have.
        length: u64,
        /// What it has.
        had: u64,
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
    /// One that has grown has the same.
    images: Arc<[File]>,
    /// Of each of them.
    places: Vec<Place>,
    cached: bool,
}

/// Where on the disk an image lies, in bytes, and whether it is not to be written.
#[derive(Clone, Debug)]
struct Place {
    start: u64,
    length: u64,
    read_only: bool,
}

impl Place {
    /// Where it ends; none if no disk reaches that far.
    fn end(&self) -> Option<u64> {
        self.start.checked_add(self.length).filter(|&end| i64::try_from(end).is_ok())
    }
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
    pub(super) fn new(parts: Vec<DiskPart>) -> Result<Self, DiskError> {
        let (images, places): (Vec<File>, Vec<Place>) = parts
            .into_iter()
            .map(|DiskPart { image, start, length, read_only }| (image, Place { start, length, read_only }))
            .unzip();
        let mut end = 0;
        for (index, (place, image)) in places.iter().zip(&images).enumerate() {
            for bytes in [place.start, place.length] {
                check_sectors(index, bytes)?;
            }
            if place.length == 0 {
                return Err(DiskError::Empty(index));
            }
            match place.end() {
                Some(place_end) if place.start >= end => end = place_end,
                _ => return Err(DiskError::Overlap(index)),
            }
            check_image(index, image, place.length)?;
        }
        if places.is_empty() {
            return Err(DiskError::NoParts);
        }
        let cached = images.iter().all(is_cached);
        Ok(Disk { images: images.into(), places, cached })
    }

    /// The same disk with more of its last image: `length` bytes of it.
    pub(super) fn grown(&self, length: u64) -> Result<Self, DiskError> {
        let mut places = self.places.clone();
        let index = places.len() - 1;
        let last = &mut places[index];
        check_sectors(index, length)?;
        if length < last.length {
            return Err(DiskError::Smaller { part: index, length, had: last.length });
        }
        last.length = length;
        last.end().ok_or(DiskError::Overlap(index))?;
        check_image(index, &self.images[index], length)?;
        Ok(Disk { images: Arc::clone(&self.images), places, cached: self.cached })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.places.last().and_then(Place::end).unwrap_or(0) / SECTOR_BYTES
    }

    /// The file of part number `part`, which a [`Step`] names.
    pub(super) fn image(&self, part: usize) -> &File {
        &self.images[part]
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
            let writable = self.places.iter().enumerate().filter(|(_, place)| !place.read_only);
            steps.extend(writable.map(|(part, _)| Step { deed: Deed::Sync, part, offset: 0, skip: 0, len: 0 }));
        }
        Ok(steps)
    }

    /// Adds the steps that do `deed` to `len` bytes at `offset`.
    fn add(&self, steps: &mut VecDeque<Step>, deed: Deed, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        for (index, place) in self.places.iter().enumerate() {
            let at = offset + done;
            if done == len || at < place.start {
                break;
            }
            if at >= place.start + place.length {
                continue;
            }
            if deed != Deed::Read && place.read_only {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a write to what is read-only"));
            }
            let (offset, len) = (at - place.start, (len - done).min(place.start + place.length - at));
            steps.push_back(Step { deed, part: index, offset, skip: done, len });
            done += len;
        }
        match done == len {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "a request for what lies between two images")),
        }
    }
}

fn check_sectors(part: usize, bytes: u64) -> Result<(), DiskError> {
    if bytes.is_multiple_of(SECTOR_BYTES) { Ok(()) } else { Err(DiskError::Unaligned { part, bytes }) }
}

/// Whether `image` has so many bytes.
fn check_image(part: usize, mut image: &File, expected: u64) -> Result<(), DiskError> {
    // Works for block devices too, whose metadata do not tell.
    let found = image.seek(SeekFrom::End(0)).map_err(|source| DiskError::Size { part, source })?;
    if found < expected { Err(DiskError::Short { part, expected, found }) } else { Ok(()) }
}

fn is_cached(image: &File) -> bool {
    rustix::fs::fcntl_getfl(image).is_ok_and(|flags| !flags.contains(OFlags::DIRECT))
}
