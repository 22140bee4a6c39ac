//! Guest RAM: memory of this process that the guest sees as its own, given by the host only as the guest touches it.
//!
//! Knows regions, not what is in them.

use std::io;
use std::os::fd::AsFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use tatami_arch::Region;
use tatami_devices::virtio::GuestMemory;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Why guest memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Promised more than there could ever be.
    #[error("{wanted} MiB of memory were asked for, this host has {total} MiB: ask for less")]
    MoreThanHost {
        /// MiB asked for.
        wanted: u64,
        /// MiB that the host has.
        total: u64,
    },
    /// The kernel would not give it.
    #[error("cannot have {0} MiB of guest memory: {1}")]
    Refused(u64, io::Error),
}

/// RAM in a memory file, mapped shared, so that other processes can be given parts of it.
///
/// # Errors
/// When the host has less in all, or refuses.
pub(crate) fn shared(regions: &[Region]) -> Result<GuestMemory, MemoryError> {
    let refused = |error: io::Error| MemoryError::Refused(total(regions) >> 20, error);
    check_host(regions)?;
    let file = memfd_create("guest-memory", MFdFlags::MFD_CLOEXEC).map_err(|errno| refused(errno.into()))?;
    ftruncate(file.as_fd(), total(regions) as i64).map_err(|errno| refused(errno.into()))?;
    let file = std::sync::Arc::new(std::fs::File::from(file));
    let mut offset = 0;
    map(regions, |region| {
        let part = FileOffset::from_arc(std::sync::Arc::clone(&file), offset);
        offset += region.size;
        MmapRegionBuilder::new(region.size as usize)
            .with_file_offset(part)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
    })
}

/// RAM of this process alone.
///
/// # Errors
/// When the host has less in all, or refuses.
pub(crate) fn anonymous(regions: &[Region]) -> Result<GuestMemory, MemoryError> {
    check_host(regions)?;
    map(regions, |region| {
        MmapRegionBuilder::new(region.size as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
    })
}

fn map(
    regions: &[Region],
    mut builder: impl FnMut(&Region) -> MmapRegionBuilder<()>,
) -> Result<GuestMemory, MemoryError> {
    let refused = |error: io::Error| MemoryError::Refused(total(regions) >> 20, error);
    let mut mapped = Vec::with_capacity(regions.len());
    for region in regions {
        let mapping = builder(region).build().map_err(|error| refused(io::Error::other(error)))?;
        let placed = GuestRegionMmap::new(mapping, GuestAddress(region.start));
        mapped.push(placed.ok_or_else(|| refused(io::Error::from(io::ErrorKind::InvalidInput)))?);
    }
    GuestMemoryMmap::from_regions(mapped).map_err(|error| refused(io::Error::other(error)))
}

fn total(regions: &[Region]) -> u64 {
    regions.iter().map(|region| region.size).sum()
}

/// Memory is given as the guest touches it, so the kernel promises anything; what can never be kept is refused here.
fn check_host(regions: &[Region]) -> Result<(), MemoryError> {
    let host =
        nix::sys::sysinfo::sysinfo().map_err(|errno| MemoryError::Refused(total(regions) >> 20, errno.into()))?;
    if total(regions) > host.ram_total() {
        return Err(MemoryError::MoreThanHost { wanted: total(regions) >> 20, total: host.ram_total() >> 20 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemory as _};

    const REGIONS: [Region; 2] = [Region { start: 0, size: 2 << 20 }, Region { start: 4 << 30, size: 1 << 20 }];

    #[test]
    fn both_sides_of_a_hole_hold_what_is_written() {
        for memory in [shared(&REGIONS).unwrap(), anonymous(&REGIONS).unwrap()] {
            assert_eq!(memory.num_regions(), 2);
            for address in [0x1000, (4 << 30) + 0x1000] {
                memory.write_obj(0x1234_5678u32, GuestAddress(address)).unwrap();
                assert_eq!(memory.read_obj::<u32>(GuestAddress(address)).unwrap(), 0x1234_5678);
            }
            assert_eq!(memory.read_obj::<u32>(GuestAddress(0x2000)).unwrap(), 0);
            assert!(memory.write_obj(1u8, GuestAddress(2 << 20)).is_err());
        }
    }

    #[test]
    fn more_than_the_host_has_is_refused_in_words() {
        let error = shared(&[Region { start: 0, size: 1 << 50 }]).unwrap_err();
        assert!(error.to_string().starts_with("1073741824 MiB of memory were asked for, this host has "), "{error}");
    }
}
