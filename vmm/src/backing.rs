//! Guest RAM going back to the host, and being opened and closed to the guest, a stretch at a time, while it runs.
//!
//! Three kinds of memory need three ways. Anonymous memory is dropped. Memory in a file that others may have mapped is cut
//! out of the file. And where a saved machine's file is mapped copy-on-write, dropping a page would bring back what the file
//! has in its place, which is neither what the guest left there nor zeros: fresh memory is mapped over it.
//!
//! Knows no device, and trusts none: every stretch is held against the regions first.

#![allow(unsafe_code, reason = "memory is given back by address")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use tatami_devices::virtio::{Backing, GuestMemory};
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryRegion, GuestRegionMmap};

use crate::config::MemoryKind;
use crate::memory::{HUGE_PAGE, advise_merging};

/// What is behind a machine's RAM.
#[derive(Clone, Copy, Debug)]
pub struct RamBacking {
    kind: MemoryKind,
    /// Parts of a saved machine's file are mapped into it.
    restored: bool,
    /// Bytes that can only be given back together: a page.
    granule: u64,
}

impl RamBacking {
    /// Behind the RAM of a machine that booted, or goes on from a saved one.
    pub fn new(kind: MemoryKind, restored: bool) -> RamBacking {
        let granule = match kind {
            MemoryKind::HugePages => HUGE_PAGE,
            // Asked for now: a confined thread may not.
            MemoryKind::Anonymous | MemoryKind::Mergeable | MemoryKind::Shared | MemoryKind::File => {
                rustix::param::page_size() as u64
            }
        };
        RamBacking { kind, restored, granule }
    }

    /// Gives back what is behind `len` bytes at `offset` of `region`, whole granules.
    fn free(&self, region: &GuestRegionMmap, offset: u64, len: u64) -> io::Result<()> {
        match region.file_offset() {
            Some(file) => punch(file.file(), file.start() + offset, len),
            None if self.restored => self.map_afresh(region, offset, len, libc::PROT_READ | libc::PROT_WRITE),
            None => drop_pages(region, offset, len),
        }
    }

    /// Puts fresh memory in the place of what is there.
    fn map_afresh(&self, region: &GuestRegionMmap, offset: u64, len: u64, protection: libc::c_int) -> io::Result<()> {
        map_over(region, offset, len, protection)?;
        match self.kind {
            // What was said of the mapping before it does not hold for this one.
            MemoryKind::Mergeable => advise_merging(host_address(region, offset).cast(), len as usize),
            _ => Ok(()),
        }
    }
}

impl Backing for RamBacking {
    fn release(&self, memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()> {
        let (region, offset) = place(memory, address, len)?;
        let (start, end) = (offset.next_multiple_of(self.granule), (offset + len) / self.granule * self.granule);
        if start >= end { Ok(()) } else { self.free(region, start, end - start) }
    }

    fn open(&self, memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()> {
        let (region, offset) = place(memory, address, len)?;
        if let (MemoryKind::HugePages, Some(file)) = (self.kind, region.file_offset()) {
            // There may be none left, which the guest must hear now and not by a fault.
            allocate(file.file(), file.start() + offset, len)?;
        }
        protect(region, offset, len, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn close(&self, memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()> {
        let (region, offset) = place(memory, address, len)?;
        // In this order: in between, nobody can fetch back what goes.
        protect(region, offset, len, libc::PROT_NONE)?;
        let freed = match region.file_offset() {
            Some(file) => punch(file.file(), file.start() + offset, len),
            None if self.restored => self.map_afresh(region, offset, len, libc::PROT_NONE),
            None => drop_pages(region, offset, len),
        };
        freed.inspect_err(|_| {
            // What could be taken away can be given back.
            let _ = protect(region, offset, len, libc::PROT_READ | libc::PROT_WRITE);
        })
    }
}

/// The region that all of the stretch lies in, and where in it.
fn place(memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<(&GuestRegionMmap, u64)> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, "it is not guest memory");
    let region = memory.find_region(address).ok_or_else(outside)?;
    let offset = address.0 - region.start_addr().0;
    match offset.checked_add(len) {
        Some(end) if end <= region.len() => Ok((region, offset)),
        _ => Err(outside()),
    }
}

/// Where `offset` of `region` is in this process.
fn host_address(region: &GuestRegionMmap, offset: u64) -> *mut libc::c_void {
    // In bounds, as `place` has found; nothing is read through it here.
    region.as_ptr().wrapping_add(offset as usize).cast()
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn drop_pages(region: &GuestRegionMmap, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the range lies in a mapping that lives as long as `region`, and holds nothing but what the guest gave up.
    checked(unsafe { libc::madvise(host_address(region, offset), len as usize, libc::MADV_DONTNEED) })
}

fn protect(region: &GuestRegionMmap, offset: u64, len: u64, protection: libc::c_int) -> io::Result<()> {
    // SAFETY: the range lies in a mapping that lives as long as `region`. A vCPU that touches what it may not leaves the guest with
    // an error, and a device's thread ends the process.
    checked(unsafe { libc::mprotect(host_address(region, offset), len as usize, protection) })
}

fn map_over(region: &GuestRegionMmap, offset: u64, len: u64, protection: libc::c_int) -> io::Result<()> {
    // SAFETY: the range lies in a mapping that lives as long as `region`; the new one takes its place at once, so that a vCPU or
    // device that touches it meanwhile finds the one or the other, and is unmapped with the rest.
    let placed = unsafe {
        libc::mmap(
            host_address(region, offset),
            len as usize,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if placed == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
}

fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, 0, offset, len)
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: plain numbers and an open descriptor.
    checked(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, Ram};
    use tatami_arch::{Extent, Region};
    use vm_memory::Bytes;

    const REGIONS: [Region; 2] = [Region { start: 0, size: 4 << 20 }, Region { start: 4 << 30, size: 2 << 20 }];
    const RAM: Ram<'_> = Ram { regions: &REGIONS, closed: None, kind: MemoryKind::Anonymous, file: None };
    const BOTH: [MemoryKind; 2] = [MemoryKind::Anonymous, MemoryKind::Shared];

    fn word(memory: &GuestMemory, address: u64) -> u64 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn fill(memory: &GuestMemory) {
        for address in (0..4 << 20).chain(4 << 30..(4 << 30) + (2 << 20)).step_by(0x1000) {
            memory.write_obj(address | 1, GuestAddress(address)).unwrap();
        }
    }

    fn filled(kind: MemoryKind) -> GuestMemory {
        let memory = memory::create(Ram { kind, ..RAM }).unwrap();
        fill(&memory);
        memory
    }

    #[test]
    fn whole_pages_go_and_their_neighbours_stay() {
        let page = rustix::param::page_size() as u64;
        for kind in BOTH {
            let memory = filled(kind);
            let left = |pages: &[u64]| -> Vec<bool> { pages.iter().map(|at| word(&memory, at * page) != 0).collect() };
            let backing = RamBacking::new(kind, false);
            backing.release(&memory, GuestAddress(3 * page), 2 * page).unwrap();
            assert_eq!(left(&[2, 3, 4, 5]), [true, false, false, true]);
            backing.release(&memory, GuestAddress(5 * page + page / 2), page).unwrap();
            assert_eq!(left(&[5, 6]), [true, true], "no page is in it as a whole");
            backing.release(&memory, GuestAddress(7 * page - 16), page + 32).unwrap();
            assert_eq!(left(&[6, 7, 8]), [true, false, true]);
            backing.release(&memory, GuestAddress(4 << 30), page).unwrap();
            assert_eq!([4 << 30, (4 << 30) + page].map(|at| word(&memory, at)), [0, (4 << 30) + page + 1]);
            memory.write_obj(7_u64, GuestAddress(3 * page)).unwrap();
            assert_eq!(word(&memory, 3 * page), 7, "and may be used again");
        }
    }

    #[test]
    fn a_restored_machines_pages_do_not_come_back_as_they_were_saved() {
        let page = rustix::param::page_size() as u64;
        let file = tempfile::tempfile().unwrap();
        file.set_len(6 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xee; 16 * page as usize], 0).unwrap();
        for kind in BOTH {
            let stretch = Extent { start: 0, size: 16 * page };
            let memory = memory::create_from(Ram { kind, ..RAM }, &file, &[stretch]).unwrap();
            memory.write_obj(1_u64, GuestAddress(2 * page)).unwrap();
            let backing = RamBacking::new(kind, true);
            // Changed and unchanged pages of the file, and memory beyond it.
            backing.release(&memory, GuestAddress(2 * page), 32 * page).unwrap();
            assert_eq!([2, 3, 15, 16].map(|at| word(&memory, at * page)), [0; 4]);
            assert_eq!(word(&memory, page), u64::from_ne_bytes([0xee; 8]));
            fill(&memory);
            assert_eq!(word(&memory, 3 * page), 3 * page + 1);
        }
    }

    #[test]
    fn what_is_not_ram_is_refused() {
        let memory = filled(MemoryKind::Anonymous);
        let wrong =
            [(4 << 20, 0x1000), ((4 << 20) - 0x1000, 0x2000), (0, u64::MAX), (u64::MAX - 0xfff, 0x1000), (0, 5 << 20)];
        for (address, len) in wrong.map(|(address, len)| (GuestAddress(address), len)) {
            for restored in [false, true] {
                let backing = RamBacking::new(MemoryKind::Anonymous, restored);
                let calls = [
                    backing.release(&memory, address, len),
                    backing.open(&memory, address, len),
                    backing.close(&memory, address, len),
                ];
                for result in calls {
                    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{len:#x} at {address:?}");
                }
            }
        }
        assert_eq!(word(&memory, 0x3000), 0x3001);
    }

    /// Whether a page may be written, found out without dying: the kernel copies to it in our name.
    fn is_open(memory: &GuestMemory, address: u64) -> bool {
        let (region, offset) = place(memory, GuestAddress(address), 0x1000).unwrap();
        let file = File::open("/dev/zero").unwrap();
        // SAFETY: the kernel checks the address, which is this test's guest's memory.
        let read = unsafe { libc::read(file.as_raw_fd(), host_address(region, offset + 0x100), 8) };
        read == 8
    }

    #[test]
    fn closed_memory_cannot_be_touched_and_opens_as_zeros() {
        for kind in BOTH {
            let closed = Some(Region { start: 8 << 30, size: 8 << 20 });
            let memory = memory::create(Ram { kind, closed, ..RAM }).unwrap();
            let backing = RamBacking::new(kind, false);
            let at = |block: u64| (8 << 30) + (block << 21);
            assert!(!is_open(&memory, at(0)) && is_open(&memory, 0x1000));
            backing.open(&memory, GuestAddress(at(1)), 4 << 20).unwrap();
            assert_eq!([0, 1, 2, 3].map(|block| is_open(&memory, at(block))), [false, true, true, false]);
            memory.write_obj(7_u64, GuestAddress(at(1))).unwrap();
            memory.write_obj(8_u64, GuestAddress(at(2))).unwrap();
            backing.close(&memory, GuestAddress(at(1)), 2 << 20).unwrap();
            assert_eq!([1, 2].map(|block| is_open(&memory, at(block))), [false, true]);
            backing.open(&memory, GuestAddress(at(1)), 2 << 20).unwrap();
            assert_eq!([1, 2].map(|block| word(&memory, at(block))), [0, 8]);
        }
    }
}
