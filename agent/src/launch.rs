//! The agent's side of a creator: start it, hand it the request, read what it reports.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::reaper::{Exit, Reaper};
use crate::syscalls::watched;
use crate::wire::{CREATOR_NAME, CommandFailure, Report, Request, receive_report, send_request};

/// A process that a creator has made, and what will be known of it.
pub(crate) struct Launched {
    /// In the guest's first pid namespace.
    pub(crate) pid: i32,
    /// Its exit, whenever that comes or came.
    pub(crate) exit: oneshot::Receiver<Exit>,
    /// Open as long as the process has not executed its command.
    pub(crate) reports: Reports,
}

/// Has a creator create a process, whose standard streams are `streams`.
///
/// # Errors
/// Why there is no process; a command that cannot run is [`Error::NotFound`] or [`Error::PermissionDenied`].
pub(crate) async fn create(reaper: &Reaper, request: &Request, streams: &[OwnedFd]) -> Result<Launched, Error> {
    let _launching = reaper.launching();
    let mut creator = Creator::start(reaper, request, streams)?;
    match creator.outcome().await? {
        Outcome::Created(pid) => Ok(Launched { pid, exit: reaper.watch(pid), reports: creator.reports }),
        Outcome::Done => Err(Error::Internal("the creator made no process".to_owned())),
    }
}

/// Has a creator do what leaves no process behind.
///
/// # Errors
/// Why it is not done.
pub(crate) async fn perform(reaper: &Reaper, request: &Request) -> Result<(), Error> {
    Creator::start(reaper, request, &[])?.outcome().await.map(|_| ())
}

enum Outcome {
    Created(i32),
    Done,
}

struct Creator {
    reports: Reports,
    exit: oneshot::Receiver<Exit>,
}

impl Creator {
    fn start(reaper: &Reaper, request: &Request, streams: &[OwnedFd]) -> Result<Self, Error> {
        let failed = Error::internal("start the creator");
        let start = || -> io::Result<Self> {
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            // By this path even when the file it was started from is out of reach, as in a guest that left its initramfs.
            let child = Command::new(Path::new("/proc/self/exe"))
                .arg0(CREATOR_NAME)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::from(theirs))
                .stdout(Stdio::null())
                .spawn()?;
            // Reaped by the reaper: the standard library's handle is let go.
            let exit = reaper.watch(child.id() as i32);
            let fds: Vec<_> = streams.iter().map(OwnedFd::as_fd).collect();
            send_request(&ours, request, &fds)?;
            Ok(Self { reports: Reports::new(ours)?, exit })
        };
        start().map_err(failed)
    }

    /// Reads reports until one of them, or the end of the creator, says how it went.
    async fn outcome(&mut self) -> Result<Outcome, Error> {
        let mut command_error = None;
        loop {
            match self.reports.next().await? {
                Some(Report::Created { pid }) if command_error.is_none() => return Ok(Outcome::Created(pid)),
                Some(Report::Created { .. }) => {}
                Some(Report::Done) => return Ok(Outcome::Done),
                Some(Report::Failed { message }) => return Err(command_error.unwrap_or(Error::Internal(message))),
                Some(Report::CommandFailed { failure, message }) => {
                    command_error.get_or_insert(command_failure(failure, message));
                }
                None => return Err(command_error.unwrap_or(self.death().await)),
            }
        }
    }

    async fn death(&mut self) -> Error {
        let status = (&mut self.exit).await.map_or(255, |exit| exit.status);
        Error::Internal(format!("the creator ended with status {status} before it reported (see the guest's console)"))
    }
}

/// The receiving end of a creator's socket.
pub(crate) struct Reports {
    socket: AsyncFd<OwnedFd>,
}

impl Reports {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watched(socket)? })
    }

    /// Waits until the process has become its command.
    ///
    /// # Errors
    /// Why it could not.
    pub(crate) async fn executed(mut self) -> Result<(), Error> {
        loop {
            match self.next().await? {
                Some(Report::CommandFailed { failure, message }) => return Err(command_failure(failure, message)),
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
