//! A machine on files: its memory in one, everything else in the other, and the way back.
//!
//! The memory file is as long as the guest's RAM, region after region, with holes where the guest never wrote. Any number of
//! machines may start from it at once: each sees it as it is and keeps what it changes to itself, and what none of them
//! changes is in the host's memory once. Whoever keeps the files keeps them unchanged for as long as that.
//!
//! Of the shared folder, what the guest has open is part of it, by names: a machine that goes on must find the same names in its
//! own shared folder from its start. Disk slots must be empty. Open vsock connections end, which the guest is told. Does not know
//! who may use a snapshot, or when it is too old.

#![allow(unsafe_code, reason = "which pages were touched is asked by address")]

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::iter::Peekable;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use tatami_arch::Extent;
use tatami_devices::virtio::GuestMemory;
use vm_memory::{GuestMemory as _, GuestMemoryRegion};

use crate::config::VmConfig;
use crate::kvm::{MachineState, VcpuState};
use crate::memory::{self, MemoryError, Ram};
use crate::virtio::VirtioState;

/// Raised whenever the meaning of the state changes.
const VERSION: u32 = 10;
/// Fewer zero pages than this between two written ones are written as well: every stretch costs a mapping.
const NEGLIGIBLE: u64 = 16;

/// Why a machine cannot be saved, or not come back.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file cannot be read or written.
    #[error("cannot {0} the machine's {1}: {2}")]
    File(&'static str, &'static str, io::Error),
    /// The state is not JSON, or not ours.
    #[error("the saved machine's state cannot be understood: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Another version's.
    #[error(
        "the machine was saved by another version of tatami (format {0}, this one has {VERSION}): restore it with that one"
    )]
    Version(u32),
    /// Another machine's.
    #[error("the saved machine was configured differently: {0}")]
    Configuration(String),
    /// The memory file's length is not the machine's, or a stretch lies outside.
    #[error("the saved machine's memory is damaged: {0}")]
    Damaged(String),
    /// Files are mapped page by page.
    #[error(
        "the machine was saved on a host with smaller pages than the {} KiB of this one: restore it on a host like that one",
        page_size() >> 10
    )]
    Pages,
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Everything but memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    version: u32,
    pub(crate) config: VmConfig,
    pub(crate) machine: MachineState,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) virtio: VirtioState,
    /// Where the memory file holds anything: offsets and lengths in bytes, ascending.
    memory: Vec<(u64, u64)>,
}

/// What every version's state says.
#[derive(Deserialize)]
struct AnyState {
    version: u32,
}

/// A saved machine, as its two files.
#[derive(Debug)]
pub struct Snapshot {
    /// The guest's RAM.
    pub memory: File,
    /// The rest.
    pub state: File,
}

impl State {
    /// What a machine of this configuration is.
    pub(crate) fn new(config: VmConfig, machine: MachineState, vcpus: Vec<VcpuState>, virtio: VirtioState) -> State {
        State { version: VERSION, config, machine, vcpus, virtio, memory: Vec::new() }
    }

    /// Where its memory came from the file.
    pub(crate) fn into_stretches(self) -> Vec<(u64, u64)> {
        self.memory
    }
}

impl Snapshot {
    /// Writes a machine that stands still, whose memory had `stretches` of a file to begin with; the guest-physical addresses in
    /// `closed` must not be touched, and hold nothing.
    ///
    /// # Errors
    /// [`SnapshotError::File`]; the files are of no use then.
    pub(crate) fn write(
        &self,
        memory: &GuestMemory,
        closed: &[Range<u64>],
        stretches: &[(u64, u64)],
        mut state: State,
    ) -> Result<(), SnapshotError> {
        let written = write_memory(memory, closed, stretches, &self.memory);
        state.memory = written.map_err(|error| failed("write", "memory", error))?;
        let mut out = BufWriter::new(&self.state);
        serde_json::to_writer(&mut out, &state)?;
        out.flush().map_err(|error| failed("write", "state", error))
    }

    /// Reads the state, which must be a machine's of this configuration.
    ///
    /// # Errors
    /// Says what does not fit.
    pub(crate) fn read(&self, config: &VmConfig) -> Result<State, SnapshotError> {
        let mut text = Vec::new();
        BufReader::new(&self.state).read_to_end(&mut text).map_err(|error| failed("read", "state", error))?;
        // First: another version may say more than this one understands.
        let AnyState { version } = serde_json::from_slice(&text)?;
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let state: State = serde_json::from_slice(&text)?;
        if state.config != *config {
            return Err(SnapshotError::Configuration(format!("{:?} instead of {config:?}", state.config)));
        }
        if state.vcpus.len() != usize::from(config.max_vcpus) {
            return Err(SnapshotError::Damaged(format!("it has {} vCPUs", state.vcpus.len())));
        }
        Ok(state)
    }

    /// Guest RAM for `ram` that begins as the file has it, and leaves the file as it is.
    ///
    /// # Errors
    /// When file and RAM do not fit, or no memory is to be had.
    pub(crate) fn map(&self, state: &State, ram: Ram<'_>) -> Result<GuestMemory, SnapshotError> {
        let length = self.memory.metadata().map_err(|error| failed("read", "memory", error))?.len();
        let wanted = ram.total();
        if length != wanted {
            return Err(SnapshotError::Damaged(format!("{length} bytes instead of {wanted}")));
        }
        check(&state.memory, length)?;
        let stretches: Vec<_> = state.memory.iter().map(|&(start, size)| Extent { start, size }).collect();
        Ok(memory::create_from(ram, &self.memory, &stretches)?)
    }
}

fn failed(what: &'static str, part: &'static str, error: io::Error) -> SnapshotError {
    SnapshotError::File(what, part, error)
}

/// Whether stretches of a file of that length can be mapped.
fn check(stretches: &[(u64, u64)], length: u64) -> Result<(), SnapshotError> {
    let is_within = |&(start, size): &(u64, u64)| size > 0 && start.checked_add(size).is_some_and(|end| end <= length);
    if !stretches.iter().all(is_within) {
        return Err(SnapshotError::Damaged("a stretch of it lies outside".to_owned()));
    }
    match stretches.iter().all(|(start, size)| (start | size).is_multiple_of(page_size() as u64)) {
        true => Ok(()),
        false => Err(SnapshotError::Pages),
    }
}

/// The unit in which memory is kept or left out, in bytes: a page of the host.
fn page_size() -> usize {
    rustix::param::page_size()
}

/// Writes all that is not zero; says where that was. What came from a file, in the stretches `mapped`, is not in memory before
/// it is touched, and not zero for that.
fn write_memory(
    memory: &GuestMemory,
    closed: &[Range<u64>],
    mapped: &[(u64, u64)],
    file: &File,
) -> io::Result<Vec<(u64, u64)>> {
    let mut stretches: Vec<(u64, u64)> = Vec::new();
    let mut mapped = mapped.iter().copied().peekable();
    let mut start = 0;
    for region in memory.iter() {
        let first = region.start_addr().0;
        for open in gaps(first..first + region.len(), closed) {
            let offset = open.start - first;
            // SAFETY: the mapping lives as long as `memory`, no vCPU or device runs that could write to it, and what nobody may touch
            // lies outside.
            let bytes = unsafe {
                std::slice::from_raw_parts(region.as_ptr().add(offset as usize), (open.end - open.start) as usize)
            };
            write_bytes(bytes, start + offset, &mut mapped, file, &mut stretches)?;
        }
        start += region.len();
    }
    file.set_len(start)?;
    Ok(stretches)
}

/// Writes what of `bytes` is not zero to where they begin in the file, and notes where that is.
fn write_bytes(
    bytes: &[u8],
    start: u64,
    mapped: &mut Peekable<impl Iterator<Item = (u64, u64)>>,
    file: &File,
    stretches: &mut Vec<(u64, u64)>,
) -> io::Result<()> {
    let size_of_page = page_size();
    let touched = touched_pages(bytes)?;
    for (index, page) in bytes.chunks(size_of_page).enumerate() {
        let at = start + (index * size_of_page) as u64;
        while mapped.next_if(|&(from, size)| from + size <= at).is_some() {}
        let is_mapped = mapped.peek().is_some_and(|&(from, _)| from <= at);
        let is_touched = is_mapped || touched.get(index).is_none_or(|&touched| touched);
        if !is_touched || is_zero(page) {
            continue;
        }
        match stretches.last_mut() {
            Some((last, size)) if *last >= start && at - (*last + *size) < NEGLIGIBLE * size_of_page as u64 => {
                *size = at + page.len() as u64 - *last
            }
            _ => stretches.push((at, page.len() as u64)),
        }
    }
    for &(at, size) in stretches.iter().filter(|(at, _)| *at >= start) {
        let from = (at - start) as usize;
        file.write_all_at(&bytes[from..from + size as usize], at)?;
    }
    Ok(())
}

/// What of `range` lies in none of `holes`, which are in ascending order.
fn gaps(range: Range<u64>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = range.start;
    for hole in holes.iter().filter(|hole| hole.start < range.end && hole.end > range.start) {
        if hole.start > at {
            gaps.push(at..hole.start);
        }
        at = at.max(hole.end);
    }
    if at < range.end {
        gaps.push(at..range.end);
    }
    gaps
}

/// Which pages the host has given so far; empty, for all, where it cannot be told. Looking at a page that was never touched is
/// slow, and there are many.
fn touched_pages(bytes: &[u8]) -> io::Result<Vec<bool>> {
    // The call means "in memory", and a page that was swapped out is not.
    if nix::sys::sysinfo::sysinfo()?.swap_total() > 0 {
        return Ok(Vec::new());
    }
    let mut states = vec![0_u8; bytes.len().div_ceil(page_size())];
    // SAFETY: the range is mapped, and there is a byte for each of its pages.
    if unsafe { libc::mincore(bytes.as_ptr().cast_mut().cast(), bytes.len(), states.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(states.into_iter().map(|state| state & 1 != 0).collect())
}

fn is_zero(page: &[u8]) -> bool {
    // Eight at a time: a machine's memory is a lot of zeros.
    page.as_chunks::<8>().0.iter().all(|word| u64::from_ne_bytes(*word) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemoryKind;
    use tatami_arch::Region;
    use vm_memory::{Bytes, GuestAddress};

    const REGIONS: [Region; 2] = [Region { start: 0, size: 4 << 20 }, Region { start: 4 << 30, size: 2 << 20 }];
    const RAM: Ram<'_> = Ram { regions: &REGIONS, closed: None, kind: MemoryKind::Anonymous, file: None };

    /// As long as a page of the host, of 64 KiB at most.
    fn page() -> u64 {
        page_size() as u64
    }

    fn written() -> [u64; 5] {
        [page(), 3 * page() + 8, 0x20_0000, (4 << 30) + 5 * page(), (4 << 30) + (2 << 20) - page()]
    }

    fn saved() -> (File, Vec<(u64, u64)>) {
        let memory = memory::create(RAM).unwrap();
        for address in written() {
            memory.write_obj(address, GuestAddress(address)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        let stretches = write_memory(&memory, &[], &[], &file).unwrap();
        (file, stretches)
    }

    #[test]
    fn memory_comes_back_and_changes_stay_private() {
        let (file, stretches) = saved();
        let extents: Vec<_> = stretches.iter().map(|&(start, size)| Extent { start, size }).collect();
        let machines = [(); 2].map(|()| memory::create_from(RAM, &file, &extents).unwrap());
        for address in written() {
            machines[0].write_obj(!address, GuestAddress(address)).unwrap();
            assert_eq!(machines[1].read_obj::<u64>(GuestAddress(address)).unwrap(), address);
        }
        assert_eq!(machines[1].read_obj::<u64>(GuestAddress(0x10_0000)).unwrap(), 0);
        let third = memory::create_from(RAM, &file, &extents).unwrap();
        let [_, second, ..] = written();
        assert_eq!(third.read_obj::<u64>(GuestAddress(second)).unwrap(), second);
    }

    #[test]
    fn what_came_from_a_file_is_saved_again_whether_or_not_it_is_in_memory() {
        let (file, stretches) = saved();
        let extents: Vec<_> = stretches.iter().map(|&(start, size)| Extent { start, size }).collect();
        let memory = memory::create_from(RAM, &file, &extents).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        memory.write_obj(7_u64, GuestAddress(0x3c_0000)).unwrap();
        let second = tempfile::tempfile().unwrap();
        let again = write_memory(&memory, &[], &stretches, &second).unwrap();
        let mut expected = stretches;
        expected.insert(2, (0x3c_0000, page()));
        assert_eq!(again, expected);
        let extents: Vec<_> = again.iter().map(|&(start, size)| Extent { start, size }).collect();
        let memory = memory::create_from(RAM, &second, &extents).unwrap();
        for address in written() {
            assert_eq!(memory.read_obj::<u64>(GuestAddress(address)).unwrap(), address);
        }
    }

    #[test]
    fn what_was_never_written_is_left_out() {
        let (file, stretches) = saved();
        assert_eq!(file.metadata().unwrap().len(), 6 << 20);
        // The first two are near enough to be one.
        let alone = [0x20_0000, (4 << 20) + 5 * page(), (6 << 20) - page()].map(|start| (start, page()));
        assert_eq!((stretches[0], &stretches[1..]), ((page(), 3 * page()), alone.as_slice()));
    }

    #[test]
    fn what_nobody_may_touch_is_left_out_unread() {
        let closed = Region { start: 8 << 30, size: 6 << 20 };
        let memory = memory::create(Ram { closed: Some(closed), ..RAM }).unwrap();
        let middle = GuestAddress((8 << 30) + (2 << 20));
        tatami_devices::virtio::Backing::open(
            &crate::RamBacking::new(MemoryKind::Anonymous, false),
            &memory,
            middle,
            2 << 20,
        )
        .unwrap();
        memory.write_obj(7_u64, middle).unwrap();
        let file = tempfile::tempfile().unwrap();
        let holes = [closed.start..closed.start + (2 << 20), closed.start + (4 << 20)..closed.end()];
        let stretches = write_memory(&memory, &holes, &[], &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 12 << 20);
        assert_eq!(stretches, [(8 << 20, page())]);
    }

    #[test]
    fn stretches_that_cannot_be_mapped_are_refused() {
        let length = 8 * page();
        assert!(check(&[(0, page()), (2 * page(), 6 * page())], length).is_ok());
        for outside in [(0, 9 * page()), (8 * page(), page()), (0, 0), (u64::MAX, page())] {
            assert!(matches!(check(&[outside], length), Err(SnapshotError::Damaged(_))), "{outside:?}");
        }
        for between in [(page() / 2, page()), (page(), page() / 2)] {
            assert!(matches!(check(&[between], length), Err(SnapshotError::Pages)), "{between:?}");
        }
    }

    #[test]
    fn gaps_are_what_holes_leave() {
        let left = |holes: &[(u64, u64)]| -> Vec<(u64, u64)> {
            let holes: Vec<_> = holes.iter().map(|(start, end)| *start..*end).collect();
            gaps(10..20, &holes).into_iter().map(|gap| (gap.start, gap.end)).collect()
        };
        assert_eq!(left(&[]), [(10, 20)]);
        assert_eq!(left(&[(0, 5), (5, 12), (14, 16), (30, 40)]), [(12, 14), (16, 20)]);
        assert_eq!(left(&[(10, 20)]), []);
        assert_eq!(left(&[(18, 30)]), [(10, 18)]);
    }
}
