//! How a process is scheduled: policy, priority of input and output, CPUs, and its personality.
//!
//! libcontainer sets these for a container's first process; this does the same for those that join.
#![allow(unsafe_code, reason = "sched_setattr(2) has no wrapper")]

use libcontainer::config::PersonalityDomain;
use libcontainer::oci_spec::runtime::{
    IOPriorityClass, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process,
    Scheduler,
};
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::join::said;

/// Sets what `process` asks for, on the calling process.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn set(process: &Process) -> Result<(), String> {
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        create_syscall().set_io_priority(class, priority.priority()).map_err(said("set ioPriority"))?;
    }
    if let Some(scheduler) = process.scheduler() {
        set_scheduler(scheduler).map_err(said("set the scheduler"))?;
    }
    // The group's own CPUs bound both of these, so the last word alone is needed.
    let affinity = process.exec_cpu_affinity().as_ref();
    let list = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_ref().or(affinity.initial().as_ref()));
    if let Some(list) = list {
        let cpus = cpus(list).ok_or_else(|| format!("execCPUAffinity: {list:?} is no list of CPUs"))?;
        sched_setaffinity(None, &cpus).map_err(said("set execCPUAffinity"))?;
    }
    Ok(())
}

/// Sets the personality of the calling process.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn set_personality(personality: &LinuxPersonality, syscall: &dyn Syscall) -> Result<(), String> {
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => PersonalityDomain::Linux,
        LinuxPersonalityDomain::PerLinux32 => PersonalityDomain::Linux32,
    };
    syscall.personality(domain).map_err(said("set the personality"))
}

fn set_scheduler(scheduler: &Scheduler) -> std::io::Result<()> {
    // SAFETY: sched_attr is plain data for which all zeroes is a valid value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    for flag in scheduler.flags().iter().flatten() {
        attributes.sched_flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        };
    }
    attributes.sched_nice = scheduler.nice().unwrap_or(0);
    attributes.sched_priority = scheduler.priority().unwrap_or(0) as u32;
    attributes.sched_runtime = scheduler.runtime().unwrap_or(0);
    attributes.sched_deadline = scheduler.deadline().unwrap_or(0);
    attributes.sched_period = scheduler.period().unwrap_or(0);
    // SAFETY: the call reads `size` bytes of the structure, which lives across it.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// `0-2,5` as a set.
fn cpus(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= CpuSet::MAX_CPU {
            return None;
        }
        (first..=last).for_each(|cpu| set.set(cpu));
    }
    (set.count() > 0).then_some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        let members = |list| cpus(list).map(|set| (0..16).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>());
        assert_eq!(members("0-2, 5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(members("7"), Some(vec![7]));
        for bad in ["", "x", "3-1", "1-", "999999"] {
            assert_eq!(members(bad), None, "{bad:?}");
        }
    }
}
