//! The header of aarch64's `Image` (Linux: Documentation/arch/arm64/booting.rst, section 4).

use crate::kernel::KernelFormatError;

/// What an image that may be booted says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageHeader {
    /// Bytes from a multiple of 2 MiB to where it wants to begin.
    pub(crate) text_offset: u64,
    /// Bytes that it takes in memory, with what is not in the file.
    pub(crate) size: u64,
}

const SIZE: usize = 64;
const TEXT_OFFSET_AT: usize = 8;
const IMAGE_SIZE_AT: usize = 16;
const FLAGS_AT: usize = 24;
const MAGIC_AT: usize = 56;
const MAGIC: &[u8; 4] = b"ARM\x64";

const FLAG_BIG_ENDIAN: u64 = 1;
/// It may lie anywhere in memory, and uses what lies below it.
const FLAG_ANYWHERE: u64 = 1 << 3;
/// A kernel must begin within the 2 MiB that its base is a multiple of; the bound keeps sums of addresses small.
const LARGEST_OFFSET: u64 = 2 << 20;
/// More than any kernel; keeps sums of addresses small.
const LARGEST_SIZE: u64 = 1 << 32;

impl ImageHeader {
    /// Checks the beginning of a file.
    ///
    /// # Errors
    /// Says what the file is instead.
    pub(crate) fn check(start: &[u8]) -> Result<ImageHeader, KernelFormatError> {
        if start.len() < SIZE || start[MAGIC_AT..MAGIC_AT + 4] != *MAGIC {
            return Err(KernelFormatError::NotImage(match start {
                [0x7f, b'E', b'L', b'F', ..] => " (this is an ELF file)",
                [0x1f, 0x8b, ..] => ", uncompressed (this is gzip)",
                [b'M', b'Z', ..] => ", uncompressed (this unpacks itself with EFI's help)",
                _ => "",
            }));
        }
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&start[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (text_offset, size, flags) = (word(TEXT_OFFSET_AT), word(IMAGE_SIZE_AT), word(FLAGS_AT));
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(KernelFormatError::UnfitImage("is big endian"));
        }
        if size == 0 || flags & FLAG_ANYWHERE == 0 {
            return Err(KernelFormatError::UnfitImage("wants to lie at the beginning of memory"));
        }
        if text_offset >= LARGEST_OFFSET || size > LARGEST_SIZE {
            return Err(KernelFormatError::UnfitImage("has a header that is damaged"));
        }
        Ok(ImageHeader { text_offset, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        bytes[16..24].copy_from_slice(&0x123_0000u64.to_le_bytes());
        bytes[FLAGS_AT] = 0xa;
        bytes[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        bytes
    }

    #[test]
    fn an_image_tells_its_place_and_size() {
        assert_eq!(ImageHeader::check(&header()), Ok(ImageHeader { text_offset: 0, size: 0x123_0000 }));
        let mut bytes = header();
        bytes[TEXT_OFFSET_AT + 2] = 8;
        assert_eq!(ImageHeader::check(&bytes), Ok(ImageHeader { text_offset: 0x8_0000, size: 0x123_0000 }));
    }

    #[test]
    fn whatever_else_is_named() {
        let told = |bytes: &[u8]| ImageHeader::check(bytes).unwrap_err().to_string();
        assert!(told(b"#!/bin/sh").ends_with("of the kernel's build"));
        assert!(told(&header()[..SIZE - 1]).ends_with("of the kernel's build"));
        assert!(told(b"\x7fELF\x02\x01").contains("this is an ELF file"));
        assert!(told(b"\x1f\x8b\x08").contains("this is gzip"));
        let with = |at: usize, value: u8| {
            let mut bytes = header();
            bytes[at] = value;
            told(&bytes)
        };
        assert!(told(b"MZ").contains("unpacks itself"));
        assert!(with(FLAGS_AT, 0xb).contains("big endian"));
        assert!(with(FLAGS_AT, 2).contains("beginning of memory"));
        assert!(with(TEXT_OFFSET_AT + 3, 1).contains("damaged"));
        assert!(with(IMAGE_SIZE_AT + 7, 1).contains("damaged"));
    }
}
