//! The kinds of kernel that machines boot, told by a file's first bytes.
//!
//! Knows headers only; reading what they promise into memory is the loader's business.

use crate::elf::{ElfHeader, ElfMachine};
use crate::image::ImageHeader;

/// What a machine boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFormat {
    /// A linked `vmlinux`, whose segments say where they go.
    Elf(ElfMachine),
    /// aarch64's `Image`, which goes anywhere.
    Image {
        /// Where this machine has it, a multiple of 2 MiB.
        base: u64,
    },
}

/// What a kernel's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelHeader {
    /// The entry point.
    pub entry: u64,
    /// What it is loaded relative to, where it does not say so itself.
    pub base: Option<u64>,
    /// How many bytes from its entry on are its own, where it says so.
    pub size: Option<u64>,
}

/// Why a file cannot be booted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelFormatError {
    /// Shorter than an ELF header, or without its magic number.
    #[error("the kernel is not an ELF file: give the uncompressed vmlinux")]
    NotElf,
    /// A compressed image with its own decompressor.
    #[error(
        "the kernel is a bzImage: give the uncompressed vmlinux instead (scripts/extract-vmlinux of the kernel's source extracts it)"
    )]
    BzImage,
    /// 32-bit or big endian.
    #[error("the kernel is not a 64-bit little-endian ELF file")]
    WrongClass,
    /// Another architecture.
    #[error("the kernel is for another architecture (ELF machine {found}), this host runs {expected}")]
    WrongMachine {
        /// The file's `e_machine`.
        found: u16,
        /// The host's architecture.
        expected: &'static str,
    },
    /// An object file or the like.
    #[error("the kernel is an ELF file of type {0}, not an executable: give the linked vmlinux")]
    NotExecutable(u16),
    /// Without the magic number of aarch64's images.
    #[error("the kernel is not an aarch64 Image: give arch/arm64/boot/Image of the kernel's build{0}")]
    NotImage(&'static str),
    /// From before Linux 3.17, or for big-endian processors.
    #[error("the kernel's Image {0}: this machine boots little-endian ones of Linux 4.6 and later")]
    UnfitImage(&'static str),
}

impl KernelFormat {
    /// How many of the file's first bytes [`KernelFormat::check`] wants to see, where the file has them.
    pub const WANTED: usize = ElfHeader::WANTED;

    /// Checks the beginning of a file against what is booted here.
    ///
    /// # Errors
    /// Says what the file is instead.
    pub fn check(self, start: &[u8]) -> Result<KernelHeader, KernelFormatError> {
        match self {
            KernelFormat::Elf(machine) => {
                let ElfHeader { entry } = ElfHeader::check(start, machine)?;
                Ok(KernelHeader { entry, base: None, size: None })
            }
            KernelFormat::Image { base } => {
                let ImageHeader { text_offset, size } = ImageHeader::check(start)?;
                Ok(KernelHeader { entry: base + text_offset, base: Some(base), size: Some(size) })
            }
        }
    }
}
