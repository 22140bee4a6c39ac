//! What the agent and its creators say to each other, over SEQPACKET socket pairs: one JSON message a packet.
//!
//! A request goes to whichever creator waits, with the socket for its reports and the process's standard streams as passed
//! descriptors. Then the creator reports, and so does the process it makes until it executes the command, which closes the
//! last copy of the socket: that end of file is the proof that the command runs.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv,
    recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// No message is longer, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// Standard input, output and error.
pub(crate) const STREAMS: usize = 3;
/// With a request: the socket for reports, then the streams.
const MAX_FDS: usize = 1 + STREAMS;

/// What the creator shall do, on the container `id` whose state libcontainer keeps below `state`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) state: PathBuf,
    pub(crate) id: String,
    pub(crate) action: Action,
}

/// The kinds of request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Action {
    /// Make the container of a bundle.
    Create { bundle: PathBuf, terminal: Option<Terminal> },
    /// Have a process join the container; a file holds a [`crate::join::Joining`].
    Join { joining: PathBuf, terminal: Option<Terminal> },
    /// Start a created container whose specification has hooks to run then.
    Start,
    /// Delete a stopped container whose specification has hooks to run then.
    Delete,
}

/// The terminal that a process shall have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Terminal {
    /// The socket that takes the terminal's master side.
    pub(crate) socket: PathBuf,
    /// Zero rows or columns: leave the kernel's default.
    pub(crate) size: Size,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Size {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// What comes back.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process exists; the creator is done.
    Created { pid: i32 },
    /// The request is carried out; there is no process to tell of.
    Done,
    /// The creator could not do it.
    Failed { message: String },
    /// The command cannot be executed.
    CommandFailed { failure: CommandFailure, message: String },
}

/// Why a command cannot be executed, as its caller needs to tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CommandFailure {
    /// 127 in a shell.
    NotFound,
    /// 126 in a shell.
    NotExecutable,
}

/// Sends the request with `fds`: where to report, and the streams.
pub(crate) fn send_request(socket: &OwnedFd, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(request)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than a request carries"));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a request and the descriptors that came with it; none when nobody is left to ask.
pub(crate) fn receive_request(socket: impl AsFd) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let (length, fds) = receive_with_fds(socket, &mut bytes)?;
    if length == 0 { Ok(None) } else { Ok(Some((parse(&bytes[..length])?, fds))) }
}

/// Receives one message and the descriptors that came with it.
pub(crate) fn receive_with_fds(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((received.bytes, fds))
}

/// Sends one descriptor, with a byte to carry it.
pub(crate) fn send_fd(socket: impl AsFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(b"+")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Sends a report.
pub(crate) fn send_report(socket: impl AsFd, report: &Report) -> io::Result<()> {
    let bytes = serde_json::to_vec(report)?;
    rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next report, or none when the last copy of the other end is closed.
///
/// # Errors
/// `WouldBlock` when there is none yet and the socket is non-blocking.
pub(crate) fn receive_report(socket: impl AsFd) -> io::Result<Option<Report>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let (_, length) = recv(socket, &mut bytes, RecvFlags::empty())?;
    if length == 0 { Ok(None) } else { parse(&bytes[..length.min(MAX_MESSAGE)]).map(Some) }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_request_arrives_with_its_streams() {
        let (ours, theirs) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let request = Request { state: "/s".into(), id: "c".into(), action: Action::Start };
        send_request(&ours, &request, &[writer.as_fd(), writer.as_fd(), writer.as_fd()]).unwrap();
        let (received, fds) = receive_request(&theirs).unwrap().unwrap();
        assert_eq!((received.id.as_str(), fds.len()), ("c", 3));
        rustix::io::write(&fds[2], b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]).unwrap(), 1);
        drop(ours);
        assert!(receive_request(&theirs).unwrap().is_none());
    }

    #[test]
    fn reports_keep_their_bounds_and_end_with_the_last_copy() {
        let (ours, theirs) = pair();
        let copy = theirs.try_clone().unwrap();
        let failed = Report::CommandFailed { failure: CommandFailure::NotFound, message: "no".into() };
        send_report(&theirs, &Report::Created { pid: 5 }).unwrap();
        send_report(&copy, &failed).unwrap();
        drop((theirs, copy));
        assert_eq!(receive_report(&ours).unwrap(), Some(Report::Created { pid: 5 }));
        assert_eq!(receive_report(&ours).unwrap(), Some(failed));
        assert_eq!(receive_report(&ours).unwrap(), None);
    }
}
