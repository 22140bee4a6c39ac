//! Guest RAM: anonymous memory of this process that the guest sees as its own, given by the host only as the guest touches it.
//!
//! Huge pages are asked for everywhere. Measured with one 128 MiB guest, counting instructions: the boot takes 0.07 s in the guest
//! instead of 0.12, because it takes 17 faults instead of 5,960. A guest of 512 MiB with its agent and an idle container holds 52 MB
//! of the host's memory instead of 47.
//! Memory in a file (memfd) gets no huge pages on a host with the usual settings, and cannot be merged between sandboxes, so
//! it is for what needs it: sharing with other processes. Knows regions, not what is in them.

#![allow(unsafe_code, reason = "advice on memory, and files mapped over it, take addresses")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use tatami_arch::{Extent, Region};
use tatami_devices::virtio::GuestMemory;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// The host's huge page; guest and host addresses must agree in their place within one for KVM to use it.
const HUGE_PAGE: usize = 2 << 20;

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

/// Maps RAM for `regions`.
///
/// # Errors
/// When the host has less in all, or refuses.
pub(crate) fn create(regions: &[Region]) -> Result<GuestMemory, MemoryError> {
    map_all(regions, |mapping, _| {
        advise_huge(mapping);
        Ok(())
    })
}

/// As [`create`], but what lies in `stretches` of `file` (offsets in bytes, as if all regions lay one after the other; page by
/// page, ascending) is in memory to begin with. The file stays as it is.
///
/// # Errors
/// As [`create`].
pub(crate) fn create_from(regions: &[Region], file: &File, stretches: &[Extent]) -> Result<GuestMemory, MemoryError> {
    map_all(regions, |mapping, start| {
        let mut here = stretches.iter().filter_map(|stretch| within(*stretch, start, mapping.size() as u64));
        here.try_for_each(|stretch| map_over(mapping, file, start, stretch))
    })
}

/// Maps RAM for `regions`, each made ready by `prepare`, which is told how much lies before it.
fn map_all(
    regions: &[Region],
    prepare: impl Fn(&MmapRegion, u64) -> io::Result<()>,
) -> Result<GuestMemory, MemoryError> {
    check_host(regions)?;
    let refused = |error: io::Error| MemoryError::Refused(total(regions) >> 20, error);
    let mut mapped = Vec::with_capacity(regions.len());
    let mut start = 0;
    for region in regions {
        let mapping = map_aligned(region.size as usize).map_err(refused)?;
        prepare(&mapping, start).map_err(refused)?;
        start += region.size;
        let placed = GuestRegionMmap::new(mapping, GuestAddress(region.start));
        mapped.push(placed.ok_or_else(|| refused(io::ErrorKind::InvalidInput.into()))?);
    }
    GuestMemoryMmap::from_regions(mapped).map_err(|error| refused(io::Error::other(error)))
}

/// The part of `stretch` that lies in the `size` bytes from `start`.
fn within(stretch: Extent, start: u64, size: u64) -> Option<Extent> {
    let from = stretch.start.max(start);
    let to = stretch.end().min(start + size);
    (from < to).then(|| Extent { start: from, size: to - from })
}

/// Puts a stretch of `file` in the place that it has in `mapping`, which begins at `start` of the file.
fn map_over(mapping: &MmapRegion, file: &File, start: u64, stretch: Extent) -> io::Result<()> {
    let offset = stretch.start - start;
    // SAFETY: the range lies within the mapping, which nothing uses yet; it is unmapped with it.
    let placed = unsafe {
        libc::mmap(
            mapping.as_ptr().add(offset as usize).cast(),
            stretch.size as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            stretch.start as libc::off_t,
        )
    };
    if placed == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Maps `size` bytes at a multiple of [`HUGE_PAGE`], where the kernel lets itself be led to.
fn map_aligned(size: usize) -> io::Result<MmapRegion> {
    let mapping = map(size)?;
    let excess = mapping.as_ptr() as usize % HUGE_PAGE;
    if excess == 0 {
        return Ok(mapping);
    }
    // Linux before 6.7 puts a mapping right below the last one. One that takes up the excess moves the next into place; where
    // it does not, nothing but speed is lost.
    drop(mapping);
    let _excess = map(excess)?;
    map(size)
}

fn map(size: usize) -> io::Result<MmapRegion> {
    MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .map_err(io::Error::other)
}

fn advise_huge(mapping: &MmapRegion) {
    // SAFETY: the range is this mapping's, and the advice changes nothing that can be read from it.
    let advised = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_HUGEPAGE) };
    if advised != 0 {
        log::debug!("this host has no huge pages to give: {}", io::Error::last_os_error());
    }
}

/// RAM in bytes.
pub(crate) fn total(regions: &[Region]) -> u64 {
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
        let memory = create(&REGIONS).unwrap();
        assert_eq!(memory.num_regions(), 2);
        for address in [0x1000, (4 << 30) + 0x1000] {
            memory.write_obj(0x1234_5678u32, GuestAddress(address)).unwrap();
            assert_eq!(memory.read_obj::<u32>(GuestAddress(address)).unwrap(), 0x1234_5678);
        }
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x2000)).unwrap(), 0);
        assert!(memory.write_obj(1u8, GuestAddress(2 << 20)).is_err());
    }

    #[test]
    fn regions_begin_where_huge_pages_do() {
        // The odd mapping spoils the alignment that the process happens to have.
        let _odd = map(0x3000).unwrap();
        let memory = create(&[Region { start: 0, size: 64 << 20 }]).unwrap();
        assert_eq!(memory.iter().next().unwrap().as_ptr() as usize % HUGE_PAGE, 0);
    }

    #[test]
    fn more_than_the_host_has_is_refused_in_words() {
        let error = create(&[Region { start: 0, size: 1 << 50 }]).unwrap_err();
        assert!(error.to_string().starts_with("1073741824 MiB of memory were asked for, this host has "), "{error}");
    }
}
