//! Tells whether a file's first bytes are a kernel that can start, and names what they are if not.
//!
//! Knows only headers; reading segments into memory is the loader's business.

use crate::kernel::KernelFormatError;

/// What a kernel image must say of itself: `EI_CLASS` 64-bit, `EI_DATA` little endian, and this `e_machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfMachine {
    /// `e_machine`, as the ELF specification numbers it.
    pub number: u16,
    /// The architecture's name in messages.
    pub name: &'static str,
    /// Bits of the file's addresses that mean nothing before the kernel has set up translation.
    pub ignored: u64,
}

/// The header of an ELF file that may be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ElfHeader {
    /// `e_entry`.
    pub(crate) entry: u64,
}

impl ElfHeader {
    /// How many of the file's first bytes [`ElfHeader::check`] wants to see, where the file has them.
    pub(crate) const WANTED: usize = 0x206;

    /// Checks the beginning of a file against what `machine` boots.
    ///
    /// # Errors
    /// Says what the file is instead.
    pub(crate) fn check(start: &[u8], machine: ElfMachine) -> Result<ElfHeader, KernelFormatError> {
        const ET_EXEC: u16 = 2;
        const ET_DYN: u16 = 3;
        if start.len() < 64 || start[..4] != *b"\x7fELF" {
            // Linux/x86 boot protocol: the setup header's magic lies at 0x202.
            let bzimage = start.get(0x202..0x206) == Some(b"HdrS");
            return Err(if bzimage { KernelFormatError::BzImage } else { KernelFormatError::NotElf });
        }
        let half = |at: usize| u16::from_le_bytes([start[at], start[at + 1]]);
        if start[4] != 2 || start[5] != 1 {
            return Err(KernelFormatError::WrongClass);
        }
        if half(18) != machine.number {
            return Err(KernelFormatError::WrongMachine { found: half(18), expected: machine.name });
        }
        if !matches!(half(16), ET_EXEC | ET_DYN) {
            return Err(KernelFormatError::NotExecutable(half(16)));
        }
        let mut entry = [0; 8];
        entry.copy_from_slice(&start[24..32]);
        Ok(ElfHeader { entry: u64::from_le_bytes(entry) & !machine.ignored })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: ElfMachine = ElfMachine { number: 62, name: "x86_64", ignored: 0 };

    fn header() -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 2;
        bytes[18] = 62;
        bytes[24..32].copy_from_slice(&0x0100_0000u64.to_le_bytes());
        bytes
    }

    #[test]
    fn a_vmlinux_passes_and_tells_its_entry() {
        assert_eq!(ElfHeader::check(&header(), X86_64), Ok(ElfHeader { entry: 0x0100_0000 }));
    }

    #[test]
    fn whatever_else_is_named() {
        let with = |at: usize, value: u8| {
            let mut bytes = header();
            bytes[at] = value;
            ElfHeader::check(&bytes, X86_64).unwrap_err()
        };
        assert_eq!(ElfHeader::check(b"#!/bin/sh", X86_64), Err(KernelFormatError::NotElf));
        assert_eq!(ElfHeader::check(&header()[..63], X86_64), Err(KernelFormatError::NotElf));
        assert_eq!(with(4, 1), KernelFormatError::WrongClass);
        assert_eq!(with(5, 2), KernelFormatError::WrongClass);
        assert_eq!(with(18, 183), KernelFormatError::WrongMachine { found: 183, expected: "x86_64" });
        assert_eq!(with(16, 1), KernelFormatError::NotExecutable(1));
        let mut bzimage = vec![0; ElfHeader::WANTED];
        bzimage[0x202..].copy_from_slice(b"HdrS");
        assert_eq!(ElfHeader::check(&bzimage, X86_64), Err(KernelFormatError::BzImage));
    }
}
