//! What of a linked `vmlinux` goes where, told by its program headers (ELF-64 Object File Format 1.5, section 7; OpenPOWER ELFv2
//! ABI 1.5, section 4.1).
//!
//! linux-loader reads ELF files for x86_64 only, and takes addresses as they stand, which are the kernel's effective addresses
//! here. Reads no file: the caller gets bytes and puts bytes.

use crate::{ElfMachine, Extent};

/// A piece of the file, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// Where its first byte goes.
    pub address: u64,
    /// How many bytes the file has of it.
    pub file_size: u64,
    /// How many it takes in memory; those behind the file's are zero.
    pub memory_size: u64,
}

/// How a kernel is put into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPlan {
    /// The entry point.
    pub entry: u64,
    /// What goes where, in the file's order; none is empty.
    pub segments: Vec<Segment>,
    /// From the lowest address to the end of the highest.
    pub extent: Extent,
}

/// Why a file cannot be put into memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelPlanError {
    /// Not enough of it was shown, or there is no more.
    #[error("the kernel ends before its program headers do: is the file complete?")]
    Truncated,
    /// Program headers of another size than ELF-64 has.
    #[error("the kernel's program headers have {0} bytes each instead of 56: is it an ELF file for 64 bits?")]
    HeaderSize(u16),
    /// Headers that contradict themselves.
    #[error("the kernel's segment {0} is impossible: is the file damaged?")]
    Impossible(usize),
    /// Nothing to load.
    #[error("the kernel has no segment to load: give the linked vmlinux")]
    Empty,
    /// Execution would begin in nothing.
    #[error("the kernel's entry point, {0:#x}, lies in none of its segments")]
    Entry(u64),
}

/// Where a kernel's effective addresses begin. The processor ignores the top four bits in real mode (Power ISA 3.0B, book III,
/// section 5.7.3), and so does Linux's `__pa`.
const EFFECTIVE: u64 = 0xf << 60;

const ENTRY_AT: usize = 24;
const TABLE_AT: usize = 32;
const ENTRY_SIZE_AT: usize = 54;
const COUNT_AT: usize = 56;
const HEADER_SIZE: usize = 64;
const ENTRY_SIZE: usize = 56;
const PT_LOAD: u32 = 1;

impl KernelPlan {
    /// What the ELF files that this machine boots say of themselves.
    pub const ELF: ElfMachine = ElfMachine { number: 21, name: "ppc64le", ignored: EFFECTIVE };

    /// How many of the file's first bytes hold the headers of any kernel: 64 program headers, where linkers make five.
    pub const WANTED: usize = HEADER_SIZE + 64 * ENTRY_SIZE;

    /// Reads the headers in `start`, the file's first [`Self::WANTED`] bytes or all that it has, which the check of its kind has passed.
    ///
    /// # Errors
    /// Says what is wrong with them. Whether there is memory at all these addresses, only the caller knows.
    pub fn read(start: &[u8]) -> Result<KernelPlan, KernelPlanError> {
        let header: &[u8; HEADER_SIZE] = start.first_chunk().ok_or(KernelPlanError::Truncated)?;
        let entry = real(quad(header, ENTRY_AT));
        let table = usize::try_from(quad(header, TABLE_AT)).map_err(|_| KernelPlanError::Truncated)?;
        let count = usize::from(half(header, COUNT_AT));
        match half(header, ENTRY_SIZE_AT) {
            56 => {}
            other => return Err(KernelPlanError::HeaderSize(other)),
        }
        let end = table.checked_add(count * ENTRY_SIZE).ok_or(KernelPlanError::Truncated)?;
        let table = start.get(table..end).ok_or(KernelPlanError::Truncated)?;
        let mut segments = Vec::new();
        for (index, header) in table.chunks_exact(ENTRY_SIZE).enumerate() {
            segments.extend(segment(header).ok_or(KernelPlanError::Impossible(index))?);
        }
        let lowest = segments.iter().map(|segment| segment.address).min().ok_or(KernelPlanError::Empty)?;
        let highest = segments.iter().map(Segment::end).max().ok_or(KernelPlanError::Empty)?;
        if !segments.iter().any(|segment| (segment.address..segment.address + segment.file_size).contains(&entry)) {
            return Err(KernelPlanError::Entry(entry));
        }
        Ok(KernelPlan { entry, segments, extent: Extent { start: lowest, size: highest - lowest } })
    }
}

impl Segment {
    fn end(&self) -> u64 {
        self.address + self.memory_size
    }
}

/// A program header as a segment: `Some(None)` if there is nothing to load, `None` if it cannot be.
fn segment(header: &[u8]) -> Option<Option<Segment>> {
    let word = header.first_chunk().map(|kind| u32::from_le_bytes(*kind));
    let (offset, address) = (quad(header, 8), real(quad(header, 24)));
    let (file_size, memory_size) = (quad(header, 32), quad(header, 40));
    if word != Some(PT_LOAD) || memory_size == 0 {
        return Some(None);
    }
    offset.checked_add(file_size)?;
    // The sum of two such numbers does not overflow, as the address has been made 60 bits.
    (file_size <= memory_size && memory_size < EFFECTIVE).then_some(Some(Segment {
        offset,
        address,
        file_size,
        memory_size,
    }))
}

/// The real address that an effective one of the kernel's means.
fn real(address: u64) -> u64 {
    address & !EFFECTIVE
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    let mut quad = [0; 8];
    quad.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(quad)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0xc000_0000_0000_0000;

    fn program_header(kind: u32, offset: u64, address: u64, file_size: u64, memory_size: u64) -> Vec<u8> {
        let mut bytes = [kind.to_le_bytes(), 7u32.to_le_bytes()].concat();
        for quad in [offset, address, address, file_size, memory_size, 0x1_0000] {
            bytes.extend(quad.to_le_bytes());
        }
        bytes
    }

    fn file(entry: u64, headers: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(HEADER_SIZE, 0);
        bytes[ENTRY_AT..ENTRY_AT + 8].copy_from_slice(&entry.to_le_bytes());
        bytes[TABLE_AT] = HEADER_SIZE as u8;
        bytes[ENTRY_SIZE_AT] = ENTRY_SIZE as u8;
        bytes[COUNT_AT] = headers.len() as u8;
        bytes.extend(headers.concat());
        bytes
    }

    #[test]
    fn effective_addresses_become_real_ones() {
        const PT_NOTE: u32 = 4;
        let text = program_header(PT_LOAD, 0x1_0000, START, 0x100, 0x100);
        let data = program_header(PT_LOAD, 0x2_0000, START + 0x20_0000, 0x50, 0x1000);
        let nothing = program_header(PT_LOAD, 0x2_0050, START + 0x30_0000, 0, 0);
        let note = program_header(PT_NOTE, 0x2_0000, START + 0x90_0000, 0x50, 0x50);
        let plan = KernelPlan::read(&file(START, &[text, note, data, nothing])).unwrap();
        assert_eq!((plan.entry, plan.extent), (0, Extent { start: 0, size: 0x20_1000 }));
        let segments = [
            Segment { offset: 0x1_0000, address: 0, file_size: 0x100, memory_size: 0x100 },
            Segment { offset: 0x2_0000, address: 0x20_0000, file_size: 0x50, memory_size: 0x1000 },
        ];
        assert_eq!(plan.segments, segments);
    }

    #[test]
    fn damaged_headers_are_told() {
        let with = |entry, header: &[u64; 4]| {
            let [offset, address, file_size, memory_size] = *header;
            KernelPlan::read(&file(entry, &[program_header(PT_LOAD, offset, address, file_size, memory_size)]))
        };
        assert_eq!(with(0, &[0, 0, 2, 1]), Err(KernelPlanError::Impossible(0)));
        assert_eq!(with(0, &[u64::MAX, 0, 2, 2]), Err(KernelPlanError::Impossible(0)));
        assert_eq!(with(0, &[0, 1, 2, u64::MAX]), Err(KernelPlanError::Impossible(0)));
        assert_eq!(with(0x10, &[0, 0, 0x10, 0x20]), Err(KernelPlanError::Entry(0x10)));
        assert_eq!(KernelPlan::read(&file(0, &[])), Err(KernelPlanError::Empty));
    }

    #[test]
    fn what_is_cut_off_is_told() {
        let whole = file(0, &[program_header(PT_LOAD, 0, 0, 8, 8)]);
        for length in 0..whole.len() {
            assert_eq!(KernelPlan::read(&whole[..length]), Err(KernelPlanError::Truncated), "{length}");
        }
        let mut far = whole.clone();
        far[TABLE_AT..TABLE_AT + 8].fill(0xff);
        assert_eq!(KernelPlan::read(&far), Err(KernelPlanError::Truncated));
        let mut odd = whole;
        odd[ENTRY_SIZE_AT] = 32;
        assert_eq!(KernelPlan::read(&odd), Err(KernelPlanError::HeaderSize(32)));
    }

    #[test]
    fn whatever_a_byte_is_nothing_breaks() {
        let whole = file(0, &[program_header(PT_LOAD, 0x1_0000, START, 8, 16)]);
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                if let Ok(plan) = KernelPlan::read(&bytes) {
                    assert!(plan.entry >= plan.extent.start && plan.entry < plan.extent.end(), "{plan:x?}");
                }
            }
        }
    }
}
