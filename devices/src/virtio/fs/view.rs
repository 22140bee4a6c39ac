//! Guest memory under the type that virtiofsd's library insists on, and the one system call its thread begins with.
//!
//! Knows neither rings nor requests.
#![allow(
    unsafe_code,
    reason = "maps existing guest memory a second time under another type; unshares a thread's file system context"
)]

use std::io;

use virtiofsd::descriptor_utils::Reader;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::virtio::GuestMemory;

/// The library's own dirty bitmap, which it has no name for but in a default of this type.
pub(super) type Bitmap = <Reader<'static> as BitmapOf>::Bitmap;
/// Memory as the library wants it.
pub(super) type Memory = GuestMemoryMmap<Bitmap>;

/// Names the bitmap type of a reader.
pub(super) trait BitmapOf {
    type Bitmap;
}

impl<B> BitmapOf for Reader<'_, B> {
    type Bitmap = B;
}

/// The same RAM at the same addresses as a [`GuestMemory`], which it keeps mapped.
pub(super) struct View {
    memory: Memory,
    guest: GuestMemory,
}

impl View {
    pub(super) fn new(guest: &GuestMemory) -> io::Result<Self> {
        let mut regions = Vec::new();
        for region in guest.iter() {
            let builder = MmapRegionBuilder::new_with_bitmap(region.size(), Bitmap::default())
                .with_mmap_prot(region.prot())
                .with_mmap_flags(region.flags());
            // SAFETY: the pointer and size are those of a mapping that `guest`, kept beside it, holds until the view is dropped;
            // a region built from a raw pointer does not unmap it. Both only hand out volatile access.
            let builder = unsafe { builder.with_raw_mmap_pointer(region.as_ptr()) };
            let mapping = builder.build().map_err(io::Error::other)?;
            let region = GuestRegionMmap::new(mapping, region.start_addr());
            regions.push(region.ok_or_else(|| io::Error::other("a memory region at the end of the address space"))?);
        }
        let memory = Memory::from_regions(regions).map_err(io::Error::other)?;
        Ok(View { memory, guest: guest.clone() })
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn guest(&self) -> &GuestMemory {
        &self.guest
    }
}

/// Gives the calling thread a working directory and umask of its own.
pub(super) fn own_working_directory() -> io::Result<()> {
    // SAFETY: takes no memory; affects the calling thread only.
    match unsafe { libc::unshare(libc::CLONE_FS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
