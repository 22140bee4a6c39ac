//! Guest memory under the type that virtiofsd's library insists on, and the one system call its thread begins with.
//!
//! Knows neither rings nor requests.
#![allow(
    unsafe_code,
    reason = "maps existing guest memory a second time under another type; unshares a thread's file system context"
)]

use std::io;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::virtio::GuestMemory;

/// Memory as the library wants it, with a dirty bitmap for migration that stays empty here.
pub(super) type Memory = GuestMemoryMmap<BitmapMmapRegion>;

/// Where private memory is: beyond all addresses that a guest's RAM can have.
pub(super) const DESK: GuestAddress = GuestAddress(1 << 60);

/// The same RAM at the same addresses as a [`GuestMemory`], which it keeps mapped; and private memory beyond it, which no chain
/// of the guest's can name, because chains are checked against the guest's own.
pub(super) struct View {
    memory: Memory,
    guest: GuestMemory,
}

impl View {
    pub(super) fn new(guest: &GuestMemory, desk_bytes: usize) -> io::Result<Self> {
        let mut regions = Vec::new();
        for region in guest.iter() {
            let builder = MmapRegionBuilder::new_with_bitmap(region.size(), BitmapMmapRegion::default())
                .with_mmap_prot(region.prot())
                .with_mmap_flags(region.flags());
            // SAFETY: the pointer and size are those of a mapping that `guest`, kept beside it, holds until the view is dropped;
            // a region built from a raw pointer does not unmap it. Both only hand out volatile access.
            let builder = unsafe { builder.with_raw_mmap_pointer(region.as_ptr()) };
            let mapping = builder.build().map_err(io::Error::other)?;
            regions.push(place(mapping, region.start_addr())?);
        }
        regions.push(place(MmapRegion::new(desk_bytes).map_err(io::Error::other)?, DESK)?);
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

fn place(mapping: MmapRegion<BitmapMmapRegion>, start: GuestAddress) -> io::Result<GuestRegionMmap<BitmapMmapRegion>> {
    GuestRegionMmap::new(mapping, start).ok_or_else(|| io::Error::other("a memory region beyond the end of addresses"))
}

/// Gives the calling thread a working directory and umask of its own.
pub(super) fn own_working_directory() -> io::Result<()> {
    // SAFETY: takes no memory; affects the calling thread only.
    match unsafe { libc::unshare(libc::CLONE_FS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
