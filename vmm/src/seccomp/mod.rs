//! Filters on system calls: each thread may make those that its role needs, with the arguments that it needs, and no other.
//!
//! What a role needs is data ([`calls`], and what differs between processors in `kvm/ARCH/calls.rs`); here it becomes a program
//! for the kernel. A call that is not in it is not carried out. The kernel stops the thread by a signal instead
//! (SECCOMP_RET_TRAP), whose handler tells the server which thread made which call and ends the process ([`report`]). Of the
//! alternatives, killing tells nobody what it was, and a listener in the server (SECCOMP_RET_USER_NOTIF) can be in one filter
//! of a thread only. A thread that somebody has taken over gains nothing by the signal: the call has not happened, no role may
//! change the handler, and blocking the signal turns it into death.
//!
//! Filters are inherited, and all that a thread has must agree. So the threads of devices, which a vCPU's thread asks for, are
//! started by a thread that does nothing else ([`crate::threads`]): its filter is what all roles together may do, and starting
//! threads. Knows nothing of machines and devices.

mod calls;
pub(crate) mod report;

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use tatami_devices::virtio::Role;

pub(crate) use self::calls::{Call, Test, when};
use crate::kvm::FILTERED;

/// Why a thread cannot be confined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// The rules make no program.
    #[error("the filter on system calls for {0:?} is no program: {1}")]
    Rules(Who, BackendError),
    /// The kernel does not take it.
    #[error("this host's kernel takes no filter on system calls (CONFIG_SECCOMP_FILTER): {0}")]
    Kernel(#[from] seccompiler::Error),
}

/// Whose calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The thread that hears the server, once the machine is built.
    Supervisor,
    /// The thread that starts the others.
    Spawner,
    /// One of those.
    Thread(Role),
}

/// What rules refer to that differs from one VMM to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The socket to the server.
    control: RawFd,
    /// This process, as it sees itself.
    process: u32,
}

impl Facts {
    /// Those of this process.
    pub(crate) fn new(control: RawFd) -> Facts {
        Facts { control, process: std::process::id() }
    }
}

/// Confines the calling thread, and what it starts from now on, for good.
///
/// # Errors
/// When the kernel does not take the filter; the thread must not go on then.
pub(crate) fn confine(who: Who, facts: Facts) -> Result<(), SeccompError> {
    if who == Who::Spawner {
        // glibc starts threads by clone3, whose flags lie in memory where no filter sees them. Where a kernel has no such call, it
        // uses clone.
        let absent = SeccompAction::Errno(libc::ENOSYS as u32);
        let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        install(who, rules, SeccompAction::Allow, absent)?;
    }
    let allowed = rules(&calls::of(who), facts).map_err(|error| SeccompError::Rules(who, error))?;
    install(who, allowed, SeccompAction::Trap, SeccompAction::Allow)
}

/// The instruction that a program begins with, but for one: it compares the caller's architecture.
const ARCHITECTURE_AT: usize = 1;

fn install(who: Who, rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<(), SeccompError> {
    let broken = |error| SeccompError::Rules(who, error);
    let (architecture, number) = FILTERED;
    let filter = SeccompFilter::new(rules, otherwise, listed, architecture).map_err(broken)?;
    let mut program = BpfProgram::try_from(filter).map_err(broken)?;
    if let Some(number) = number {
        program[ARCHITECTURE_AT].k = number;
    }
    Ok(seccompiler::apply_filter(&program)?)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The lists as rules: calls that stand there more than once may be made in any of the ways.
fn rules(lists: &[&[Call]], facts: Facts) -> Result<Rules, BackendError> {
    // None where the arguments do not matter, whatever else is said.
    let mut ways: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for call in lists.iter().copied().flatten() {
        let entry = ways.entry(call.number).or_insert_with(|| Some(Vec::new()));
        if call.tests.is_empty() {
            *entry = None;
        } else if let Some(rules) = entry {
            let conditions = call.tests.iter().map(|test| condition(*test, facts)).collect::<Result<_, _>>()?;
            rules.push(SeccompRule::new(conditions)?);
        }
    }
    Ok(ways.into_iter().map(|(number, rules)| (number, rules.unwrap_or_default())).collect())
}

/// All that are tested are ints, or flags in the lower half of a long, except pointers.
fn condition(test: Test, facts: Facts) -> Result<SeccompCondition, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    let (argument, width, operator, value) = match test {
        Test::Is(argument, value) => (argument, Dword, SeccompCmpOp::Eq, value),
        Test::IsNull(argument) => (argument, Qword, SeccompCmpOp::Eq, 0),
        Test::Lacks(argument, bits) => (argument, Dword, SeccompCmpOp::MaskedEq(bits), 0),
        Test::IsControl(argument) => (argument, Dword, SeccompCmpOp::Eq, facts.control as u64),
        Test::IsSelf(argument) => (argument, Dword, SeccompCmpOp::Eq, facts.process.into()),
    };
    SeccompCondition::new(argument, width, operator, value)
}

#[cfg(test)]
mod tests;
