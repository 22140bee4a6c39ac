//! Transfers by way of a buffer of our own: for a disk that was opened without the host's page cache (O_DIRECT), whose kernel takes
//! only buffers that lie at whole sectors, and a driver whose buffers do not.
//!
//! Drivers have no reason to; so these go one after another, and without io_uring.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};

use super::disk::{Deed, Step};
use super::spec::SECTOR_BYTES;
use crate::virtio::{GuestMemory, Segment, ring};

/// Most bytes that are held at once.
const BUFFER_BYTES: u64 = 256 << 10;

/// Whether such a disk can be read into all of these, or written from them, as they lie.
pub(super) fn fit(segments: &[Segment]) -> bool {
    let whole = |value: u64| value.is_multiple_of(SECTOR_BYTES);
    // Guest memory begins at a page of ours.
    segments.iter().all(|segment| whole(segment.address.0) && whole(segment.len.into()))
}

/// Takes `step`, a transfer, or the first part of it; says how many bytes were moved.
pub(super) fn transfer(step: &Step, image: &File, segments: &[Segment], memory: &GuestMemory) -> io::Result<u64> {
    let len = step.len.min(BUFFER_BYTES) as usize;
    // Within one request, whose length is a u32.
    let segments = ring::slice(segments, step.skip as u32, len as u32);
    let mut buffer = vec![0; len + SECTOR_BYTES as usize];
    let begin = buffer.as_ptr().align_offset(SECTOR_BYTES as usize);
    let buffer = &mut buffer[begin..begin + len];
    if step.deed == Deed::Read {
        let read = rustix::io::preadv(image, &mut [IoSliceMut::new(buffer)], step.offset)?;
        return Ok(ring::write(memory, &segments, &buffer[..read]) as u64);
    }
    ring::read(memory, &segments, buffer);
    Ok(rustix::io::pwritev(image, &[IoSlice::new(buffer)], step.offset)? as u64)
}
