//! A process on the host that stands for one of the guest's, and that its client waits for and signals: when it ends before that
//! one does, whoever asked for both has ended it, and the other is killed.
//!
//! Clients name it in the type of the message that they ask for the process with. Knows nothing of what a keeper does.

#![allow(unsafe_code, reason = "waiting for a descriptor that tokio has no type of its own for")]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use protobuf::well_known_types::any::Any;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::error::TaskError;
use super::process::Process;
use super::tasks::Tasks;

/// What the name of a type begins with that names a keeper; its process id follows.
pub(super) const TYPE: &str = "tatami.keeper/";

/// A keeper that has not ended yet, or not been seen to.
pub(super) struct Keeper {
    pid: u32,
    end: AsyncFd<OwnedFd>,
}

/// `value` for a process that is kept by `pid`.
pub(crate) fn kept_by(pid: u32, value: Vec<u8>) -> Any {
    Any { type_url: format!("{TYPE}{pid}"), value, ..Default::default() }
}

/// The keeper that `message` names, if it names any. Call it inside a runtime.
///
/// # Errors
/// [`TaskError::InvalidArgument`] when there is no such process.
pub(super) fn of(message: Option<&Any>) -> Result<Option<Keeper>, TaskError> {
    let Some(number) = message.and_then(|message| message.type_url.strip_prefix(TYPE)) else { return Ok(None) };
    let refused = |why: &dyn std::fmt::Display| TaskError::InvalidArgument(format!("the keeper {number}: {why}"));
    let pid = number.parse().ok().and_then(Pid::from_raw).ok_or_else(|| refused(&"not a process id"))?;
    let fd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|error| refused(&error))?;
    // SAFETY: the descriptor stays open, and the same, as long as what owns it.
    let end = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(|error| refused(&error))?;
    Ok(Some(Keeper { pid: pid.as_raw_nonzero().get().unsigned_abs(), end }))
}

impl Keeper {
    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills `process`, of the container `id`, when this ends before it does.
    pub(super) fn watch(self, tasks: &Arc<Tasks>, id: &str, process: Arc<Process>) {
        let (tasks, id) = (tasks.clone(), id.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                _ = process.wait() => return,
                _ = self.end.readable() => {}
            }
            let killed = tasks.kill(&id, process.exec(), libc::SIGKILL as u32, process.exec().is_empty()).await;
            // Usually it has ended, and its keeper after it.
            if let Err(error) = killed {
                log::debug!("the keeper {} has ended; what it stood for: {error}", self.pid);
            }
        });
    }
}
