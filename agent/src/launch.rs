//! The agent's side of a creator: hand it the request, read what it reports.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::reaper::{Exit, Reaper};
use crate::syscalls::watched;
use crate::wire::{Action, CommandFailure, Report, Request, receive_report};
use crate::zygote::Zygote;

/// A process that a creator has made, and what will be known of it.
pub(crate) struct Launched {
    /// In the guest's first pid namespace.
    pub(crate) pid: i32,
    /// Its exit, whenever that comes or came.
    pub(crate) exit: oneshot::Receiver<Exit>,
    /// Open as long as the process has not executed its command.
    pub(crate) reports: Reports,
}

/// Makes processes: asks the zygote's creators, and follows what comes of it.
#[derive(Clone)]
pub(crate) struct Launcher {
    pub(crate) reaper: Reaper,
    zygote: Arc<Zygote>,
}

impl Launcher {
    /// One that has `zygote` do the work.
    pub(crate) fn new(zygote: Zygote) -> Self {
        Self { reaper: Reaper::default(), zygote: Arc::new(zygote) }
    }

    /// Has a creator create a process, whose standard streams are `streams`. One that joins has become its command.
    ///
    /// # Errors
    /// Why there is no process; a command that cannot run is [`Error::NotFound`] or [`Error::PermissionDenied`].
    pub(crate) async fn create(&self, request: &Request, streams: &[OwnedFd]) -> Result<Launched, Error> {
        let _launching = self.reaper.launching();
        let mut reports = self.ask(request, streams)?;
        let Outcome::Created(pid) = reports.outcome().await? else {
            return Err(Error::Internal("the creator made no process".to_owned()));
        };
        let exit = self.reaper.watch(pid);
        if matches!(request.action, Action::Join { .. }) {
            reports.executed().await?;
        }
        Ok(Launched { pid, exit, reports })
    }

    /// Has a creator do what leaves no process behind.
    ///
    /// # Errors
    /// Why it is not done.
    pub(crate) async fn perform(&self, request: &Request) -> Result<(), Error> {
        self.ask(request, &[])?.outcome().await.map(drop)
    }

    fn ask(&self, request: &Request, streams: &[OwnedFd]) -> Result<Reports, Error> {
        let ask = || -> io::Result<Reports> {
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            self.zygote.ask(request, theirs, streams)?;
            Reports::new(ours)
        };
        ask().map_err(Error::internal("ask a creator"))
    }
}

enum Outcome {
    Created(i32),
    Done,
}

/// The receiving end of a creator's socket.
pub(crate) struct Reports {
    socket: AsyncFd<OwnedFd>,
}

impl Reports {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watched(socket)? })
    }

    /// Reads reports until one of them, or the end of the creator, says how it went.
    async fn outcome(&mut self) -> Result<Outcome, Error> {
        let mut command_error = None;
        loop {
            match self.next().await? {
                Some(Report::Created { pid }) if command_error.is_none() => return Ok(Outcome::Created(pid)),
                Some(Report::Created { .. }) => {}
                Some(Report::Done) => return Ok(Outcome::Done),
                Some(Report::Failed { message }) => return Err(command_error.unwrap_or(Error::Internal(message))),
                Some(Report::CommandFailed { failure, message }) => {
                    command_error.get_or_insert(command_failure(failure, message));
                }
                None => {
                    let message = "the creator ended before it reported (see the guest's console)";
                    return Err(command_error.unwrap_or_else(|| Error::Internal(message.to_owned())));
                }
            }
        }
    }

    /// Waits until the process has become its command.
    ///
    /// # Errors
    /// Why it could not.
    pub(crate) async fn executed(&mut self) -> Result<(), Error> {
        loop {
            match self.next().await? {
                Some(Report::CommandFailed { failure, message }) => return Err(command_failure(failure, message)),
                Some(Report::Failed { message }) => return Err(Error::Internal(message)),
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Report>, Error> {
        let failed = Error::internal("read the creator's report");
        let next = async {
            loop {
                let mut ready = self.socket.readable().await?;
                match ready.try_io(|socket| receive_report(socket.get_ref())) {
                    Ok(report) => return report,
                    Err(_would_block) => continue,
                }
            }
        };
        next.await.map_err(failed)
    }
}

fn command_failure(failure: CommandFailure, message: String) -> Error {
    match failure {
        CommandFailure::NotFound => Error::NotFound(message),
        CommandFailure::NotExecutable => Error::PermissionDenied(message),
    }
}
