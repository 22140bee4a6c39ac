//! Reads a `vmlinux` into guest memory, in the place of linux-loader, which has no loader for this architecture's, and under the
//! same names.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use tatami_arch::ppc64le::{KernelPlan, KernelPlanError, Segment};
use tatami_devices::virtio::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _};

/// A linked kernel.
pub(crate) struct Vmlinux;

/// A kernel in memory.
pub(crate) struct Loaded {
    /// The first address past it.
    pub(crate) kernel_end: u64,
}

/// Why it is not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmlinuxError {
    /// Its headers.
    #[error(transparent)]
    Plan(#[from] KernelPlanError),
    /// The file.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// Memory is too small, or the file shorter than its headers say.
    #[error("its segment for {0:#x} could not be read into memory: {1}")]
    Segment(u64, vm_memory::GuestMemoryError),
    /// What the file does not have of it would not be in memory.
    #[error("it takes memory up to {0:#x}, where there is none")]
    Beyond(u64),
}

impl Vmlinux {
    /// Reads the file's segments to the real addresses that its headers give; places that the caller would like are not looked at,
    /// because the kernel's first code stands where the processor takes exceptions.
    ///
    /// # Errors
    /// When the file or memory does not have what the headers say. Memory behind what the file has is zero already.
    pub(crate) fn load(
        memory: &GuestMemory,
        _: Option<GuestAddress>,
        file: &mut File,
        _: Option<GuestAddress>,
    ) -> Result<Loaded, VmlinuxError> {
        file.rewind()?;
        let mut start = Vec::with_capacity(KernelPlan::WANTED);
        file.take(KernelPlan::WANTED as u64).read_to_end(&mut start)?;
        let plan = KernelPlan::read(&start)?;
        let end = plan.extent.end();
        let whole = usize::try_from(plan.extent.size)
            .is_ok_and(|size| memory.check_range(GuestAddress(plan.extent.start), size));
        if !whole {
            return Err(VmlinuxError::Beyond(end));
        }
        for Segment { offset, address, file_size, .. } in plan.segments {
            file.seek(SeekFrom::Start(offset))?;
            memory
                .read_exact_volatile_from(GuestAddress(address), file, file_size as usize)
                .map_err(|error| VmlinuxError::Segment(address, error))?;
        }
        Ok(Loaded { kernel_end: end })
    }
}
