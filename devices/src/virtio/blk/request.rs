//! What a chain asks of a disk: taken apart and judged, without doing it.
//!
//! Pure: reads the header out of guest memory and touches no file.

use super::spec::{
    HEADER_BYTES, IDENTITY_BYTES, RANGE_BYTES, RANGE_SECTORS_MAX, RANGE_UNMAP, RANGES_MAX, SECTOR_BYTES, Status,
    TYPE_DISCARD, TYPE_FLUSH, TYPE_IDENTIFY, TYPE_READ, TYPE_WRITE, TYPE_WRITE_ZEROES,
};
use crate::virtio::{Chain, Fault, GuestMemory, Segment, ring};

/// One request, its addresses in bytes and within the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill these segments from `offset`.
    Read { offset: u64, into: Vec<Segment> },
    /// Write these segments to `offset`.
    Write { offset: u64, from: Vec<Segment> },
    /// Make what was written last.
    Flush,
    /// Say who you are.
    Identify { into: Vec<Segment> },
    /// These contents are not needed any more.
    Discard(Vec<Range>),
    /// Make these contents zero.
    WriteZeroes(Vec<Range>),
}

impl Request {
    /// Bytes that it moves between guest and disk.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Request::Read { into: segments, .. } | Request::Write { from: segments, .. } => {
                ring::total(segments).into()
            }
            _ => 0,
        }
    }

    /// Where they are in the guest.
    pub(super) fn into_segments(self) -> Vec<Segment> {
        match self {
            Request::Read { into: segments, .. } | Request::Write { from: segments, .. } => segments,
            _ => Vec::new(),
        }
    }
}

/// A part of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Its space may be given back.
    pub(super) unmap: bool,
}

/// A chain's request, or the status to answer with; and the byte that takes the status.
pub(super) struct Parsed {
    pub(super) request: Result<Request, Status>,
    pub(super) status: Segment,
}

/// Takes `chain` apart, which is for a disk of `sectors` sectors.
///
/// # Errors
/// When it lacks a header or a byte for the status, so that it cannot even be answered.
pub(super) fn parse(memory: &GuestMemory, chain: &Chain, sectors: u64) -> Result<Parsed, Fault> {
    let (readable, writable) = (chain.readable(), chain.writable());
    let mut header = [0; HEADER_BYTES];
    if ring::read(memory, readable, &mut header) < HEADER_BYTES {
        return Err(Fault::Request("a block request without a header".into()));
    }
    let room = ring::total(writable).checked_sub(1);
    let status = room.and_then(|room| ring::slice(writable, room, 1).pop());
    let (Some(room), Some(status)) = (room, status) else {
        return Err(Fault::Request("a block request without room for its status".into()));
    };
    let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
    let sent = ring::total(readable) - HEADER_BYTES as u32;
    let payload = || ring::slice(readable, HEADER_BYTES as u32, sent);
    let request = match kind {
        TYPE_READ => {
            extent(sector, room, sectors).map(|offset| Request::Read { offset, into: ring::slice(writable, 0, room) })
        }
        TYPE_WRITE => extent(sector, sent, sectors).map(|offset| Request::Write { offset, from: payload() }),
        TYPE_FLUSH => Ok(Request::Flush),
        TYPE_IDENTIFY if (room as usize) < IDENTITY_BYTES => Err(Status::Error),
        TYPE_IDENTIFY => Ok(Request::Identify { into: ring::slice(writable, 0, IDENTITY_BYTES as u32) }),
        TYPE_DISCARD => ranges(memory, &payload(), sectors, 0).map(Request::Discard),
        TYPE_WRITE_ZEROES => ranges(memory, &payload(), sectors, RANGE_UNMAP).map(Request::WriteZeroes),
        _ => Err(Status::Unsupported),
    };
    Ok(Parsed { request, status })
}

/// Where `len` bytes at `sector` begin, if they are whole sectors of the disk.
fn extent(sector: u64, len: u32, sectors: u64) -> Result<u64, Status> {
    let len = u64::from(len);
    let end = sector.checked_add(len / SECTOR_BYTES).ok_or(Status::Error)?;
    if len % SECTOR_BYTES != 0 || end > sectors {
        return Err(Status::Error);
    }
    // Within the disk, whose size in bytes is a u64.
    Ok(sector * SECTOR_BYTES)
}

/// The ranges in `segments` of a disk of `disk` sectors, of which `flags` are allowed.
fn ranges(memory: &GuestMemory, segments: &[Segment], disk: u64, flags: u32) -> Result<Vec<Range>, Status> {
    let len = ring::total(segments) as usize;
    if len == 0 || !len.is_multiple_of(RANGE_BYTES) || len > RANGES_MAX as usize * RANGE_BYTES {
        return Err(Status::Error);
    }
    let mut bytes = [0; RANGES_MAX as usize * RANGE_BYTES];
    ring::read(memory, segments, &mut bytes[..len]);
    let range = |bytes: &[u8]| {
        let (sector, sectors, flag) = (u64_at(bytes, 0), u32_at(bytes, 8), u32_at(bytes, 12));
        if flag & !flags != 0 {
            // 5.2.6.2: unknown flags are unsupported.
            return Err(Status::Unsupported);
        }
        let end = sector.checked_add(u64::from(sectors)).ok_or(Status::Error)?;
        if sectors > RANGE_SECTORS_MAX || end > disk {
            return Err(Status::Error);
        }
        let (offset, len) = (sector * SECTOR_BYTES, u64::from(sectors) * SECTOR_BYTES);
        Ok(Range { offset, len, unmap: flag & RANGE_UNMAP != 0 })
    };
    bytes[..len].chunks_exact(RANGE_BYTES).map(range).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
