//! Reads kernel and initrd from their files straight into guest memory.

use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::FileExt;

#[allow(unused_imports, reason = "one of this project's own is no loader of the crate's")]
use linux_loader::loader::KernelLoader;
use tatami_arch::{Extent, Host, KernelFormat, KernelFormatError, KernelHeader, Machine, PlacementError, Region};
use tatami_devices::virtio::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _};

use crate::kvm::KernelFile;

/// Why a kernel or an initrd cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the {0}: {1}")]
    Read(&'static str, io::Error),
    /// It is no kernel for this machine.
    #[error(transparent)]
    Format(#[from] KernelFormatError),
    /// It holds far less than it wants to occupy.
    #[error(
        "the kernel's file has {held} bytes of the {promised} that its header promises: it was cut off; copy or build it anew"
    )]
    Cut {
        /// Bytes of the file.
        held: u64,
        /// Bytes that its header says it takes in memory.
        promised: u64,
    },
    /// Its headers promise what it does not hold, or memory is too small for it.
    #[error("the kernel cannot be loaded (is it complete, and the sandbox's memory large enough?): {0}")]
    Kernel(String),
    /// No room.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The initrd shrank while it was read.
    #[error("the initrd changed while it was read")]
    InitrdChanged,
}

/// What an Image takes in memory beyond its file is what begins as zeroes; no kernel has more of that than of all else, so a
/// file of less than this part was cut off.
const LEAST_HELD: u64 = 2;

/// A kernel in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadedKernel {
    /// Its entry point.
    pub(crate) entry: u64,
    /// What it occupies.
    pub(crate) extent: Extent,
}

/// Checks that `file` is a kernel this host can start, and reads it to where it wants to be.
///
/// # Errors
/// Says what the file is instead, or what is wrong with it.
pub(crate) fn load_kernel(memory: &GuestMemory, file: &mut File) -> Result<LoadedKernel, LoadError> {
    let mut start = [0; KernelFormat::WANTED];
    let len = read_start(file, &mut start).map_err(|error| LoadError::Read("kernel", error))?;
    let KernelHeader { entry, base, size } = Host::KERNEL.check(&start[..len])?;
    let held = file.metadata().map_err(|error| LoadError::Read("kernel", error))?.len();
    if let Some(promised) = size.filter(|promised| held < promised / LEAST_HELD) {
        return Err(LoadError::Cut { held, promised });
    }
    let loaded = KernelFile::load(memory, base.map(GuestAddress), file, None)
        .map_err(|error| LoadError::Kernel(error.to_string()))?;
    let end = size.map_or(loaded.kernel_end, |size| loaded.kernel_end.max(entry + size));
    let Some(size) = end.checked_sub(entry).filter(|size| *size > 0) else {
        return Err(LoadError::Kernel("its entry point lies outside of it".to_owned()));
    };
    // Only what the file has was put into memory; what it wants behind that, and everything that is placed by its end, has to fit, too.
    if !usize::try_from(size).is_ok_and(|size| memory.check_range(GuestAddress(entry), size)) {
        return Err(LoadError::Kernel(format!(
            "from its entry to its end, {entry:#x} to {end:#x}, it is not wholly in memory"
        )));
    }
    Ok(LoadedKernel { entry, extent: Extent { start: entry, size } })
}

/// Reads the initrd to the place that the machine chooses for it.
///
/// # Errors
/// When it does not fit, or cannot be read.
pub(crate) fn load_initrd(
    memory: &GuestMemory,
    ram: &[Region],
    kernel: Extent,
    file: &mut File,
) -> Result<Extent, LoadError> {
    let read = |error| LoadError::Read("initrd", error);
    let size = file.metadata().map_err(read)?.len();
    let extent = Host::place_initrd(ram, kernel, size)?;
    file.rewind().map_err(read)?;
    memory
        .read_exact_volatile_from(GuestAddress(extent.start), file, size as usize)
        .map_err(|_| LoadError::InitrdChanged)?;
    Ok(extent)
}

/// Fills `buffer` from the file's beginning as far as the file goes.
fn read_start(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], len as u64)? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}
