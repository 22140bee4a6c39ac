//! The zygote: a child of PID 1 from before it has threads, which forks the creators of containers and processes.
//!
//! A creator must be single-threaded, for libcontainer forks as it pleases; forked here it needs no execve(2) of the agent's
//! own binary, and finds what that has set up. One creator is always ready and waits for the next request. The zygote knows
//! nothing of requests; it ends with the agent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::wire::{Request, send_request};
use crate::{creator, syscalls};

/// The agent's end of the zygote.
pub struct Zygote {
    requests: OwnedFd,
}

impl Zygote {
    /// Forks the zygote. The caller has one thread.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn start() -> io::Result<Self> {
        let (requests, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        if syscalls::fork()? != 0 {
            return Ok(Self { requests });
        }
        drop(requests);
        // Its children reap themselves; nobody may kill it for want of memory, for without it the sandbox is dead.
        syscalls::ignore_children();
        let _ = rustix::thread::set_name(c"tatami-zygote");
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        let ended = breed(&theirs);
        if let Err(cause) = &ended {
            log::error!("the zygote ends: {cause}");
        }
        std::process::exit(i32::from(ended.is_err()));
    }

    /// Hands `request` to a creator, which reports to the other end of `report` and gives the process the `streams`.
    ///
    /// # Errors
    /// When the zygote is gone.
    pub(crate) fn ask(&self, request: &Request, report: OwnedFd, streams: &[OwnedFd]) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(&report).chain(streams).map(OwnedFd::as_fd).collect();
        send_request(&self.requests, request, &fds)
    }
}

/// Forks creators one after the other, each when its elder has got a request; ends when nobody can ask any more.
fn breed(requests: &OwnedFd) -> io::Result<()> {
    loop {
        let (taken, take) = pipe_with(PipeFlags::CLOEXEC)?;
        if syscalls::fork()? == 0 {
            drop(taken);
            creator::main(requests, take);
        }
        drop(take);
        // One byte: a request is taken. None: the creator ended because there will be none.
        if rustix::io::retry_on_intr(|| rustix::io::read(&taken, &mut [0; 1]))? == 0 {
            return Ok(());
        }
    }
}
