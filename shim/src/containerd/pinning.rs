//! vCPUs on processors of the host's own: each thread on one, where containers name as many as the guest has vCPUs.
//!
//! Where they name another number, vCPUs run wherever the VMM may. Knows threads by their names, and nothing of what they do.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// What the VMM's threads of vCPUs are called, before the vCPU's number.
const THREAD: &str = "vcpu";

/// Which processors a sandbox's containers name.
#[derive(Debug, Default)]
pub(super) struct Pinning(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    named: HashMap<String, BTreeSet<usize>>,
    pinned: bool,
}

impl Pinning {
    /// The container `id` is to run on these.
    pub(super) fn note(&self, id: &str, processors: BTreeSet<usize>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).named.insert(id.to_owned(), processors);
    }

    /// It is gone.
    pub(super) fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).named.remove(id);
    }

    /// Has each of the first `vcpus` threads of the process `vmm` run on a processor of its own, or all of them anywhere.
    pub(super) fn follow(&self, vmm: u32, vcpus: u8) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let places = state.places(vcpus.into());
        if places.is_none() && !state.pinned {
            return;
        }
        state.pinned = places.is_some();
        for (number, thread) in threads(vmm) {
            let place = places.as_ref().and_then(|places| places.get(number).copied());
            match set(thread, place) {
                Ok(()) => {}
                // It has ended.
                Err(Errno::ESRCH) => {}
                Err(error) => log::warn!("vCPU {number} does not run where it should, {place:?}: {error}"),
            }
        }
    }
}

impl State {
    /// A processor for each vCPU, if there are as many.
    fn places(&self, vcpus: usize) -> Option<Vec<usize>> {
        let all: BTreeSet<usize> = self.named.values().flatten().copied().collect();
        (all.len() == vcpus).then(|| all.into_iter().collect())
    }
}

/// The threads of a process's vCPUs, each with the number of its vCPU.
fn threads(process: u32) -> Vec<(usize, Pid)> {
    let entries = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| {
        let thread = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((name.trim().strip_prefix(THREAD)?.parse().ok()?, Pid::from_raw(thread)))
    };
    entries.filter_map(number).collect()
}

/// Has a thread run on one processor, or on all that its process may.
fn set(thread: Pid, processor: Option<usize>) -> nix::Result<()> {
    let mut processors = CpuSet::new();
    match processor {
        Some(one) => processors.set(one)?,
        // The kernel takes away what there is not, and what the cgroup does not have.
        None => (0..CpuSet::count()).try_for_each(|each| processors.set(each))?,
    }
    sched_setaffinity(thread, &processors)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use nix::sched::sched_getaffinity;

    use super::*;

    fn on(list: &[usize]) -> BTreeSet<usize> {
        list.iter().copied().collect()
    }

    #[test]
    fn there_is_a_processor_for_each_vcpu_or_there_is_none() {
        let pinning = Pinning::default();
        let places = |vcpus| pinning.0.lock().unwrap().places(vcpus);
        assert_eq!(places(1), None);
        pinning.note("pause", on(&[]));
        pinning.note("a", on(&[5, 3]));
        assert_eq!((places(1), places(2), places(3)), (None, Some(vec![3, 5]), None));
        pinning.note("b", on(&[3, 4]));
        assert_eq!((places(2), places(3)), (None, Some(vec![3, 4, 5])));
        pinning.forget("a");
        assert_eq!(places(2), Some(vec![3, 4]));
    }

    #[test]
    fn threads_of_that_name_are_pinned_and_let_go() {
        let (end, ended) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let body = move || {
            tell.send(nix::unistd::gettid()).unwrap();
            // Until the other end is dropped.
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().name("vcpu0".to_owned()).spawn(body).unwrap();
        let id = told.recv().unwrap();
        let may = || {
            let set = sched_getaffinity(id).unwrap();
            (0..CpuSet::count()).filter(|number| set.is_set(*number).unwrap()).collect::<Vec<_>>()
        };
        let before = may();
        let (pinning, process) = (Pinning::default(), std::process::id());
        pinning.note("a", on(&before[before.len() - 1..]));
        pinning.follow(process, 1);
        assert_eq!(may(), before[before.len() - 1..]);
        pinning.follow(process, 2);
        assert_eq!(may(), before);
        drop(end);
        thread.join().unwrap();
    }
}
