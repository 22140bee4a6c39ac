//! What server and VMM say to each other: messages over a socket that keeps their borders, with descriptors beside them.
//!
//! A message is a tag byte and a body. Everything but console bytes and forbidden calls is JSON of the types here. Both sides
//! bound what they read; the server reads nothing here that a guest wrote, except console bytes, which it never interprets.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::config::VmConfig;
use crate::stop::StopReason;

/// The largest message, in bytes.
const MESSAGE_LIMIT: usize = 16 << 10;
/// The most console bytes in one message.
pub(crate) const CONSOLE_LIMIT: usize = 4 << 10;
/// The most descriptors in one message.
const DESCRIPTOR_LIMIT: usize = 32;
/// The most images that one disk is made of: each comes as a descriptor.
pub const DISK_PARTS_LIMIT: usize = DESCRIPTOR_LIMIT;
/// The longest text of an error or a log line.
const TEXT_LIMIT: usize = 2 << 10;

const ANCILLARY_SPACE: usize = rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT));

const TAG_JSON: u8 = b'J';
const TAG_CONSOLE: u8 = b'C';
const TAG_FORBIDDEN: u8 = b'F';
/// The most of a thread's name, which is what the kernel keeps.
pub(crate) const THREAD_NAME_BYTES: usize = 16;
const FORBIDDEN_BYTES: usize = 1 + 4 + 3 * 8 + THREAD_NAME_BYTES;

/// What the server sends first. Descriptors come with it, in the order KVM, listening socket, what `origin` says, and
/// a socket for each device that another process serves.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Start {
    /// The machine.
    pub(crate) config: VmConfig,
    /// The folder that becomes the root; a mount point.
    pub(crate) shared_dir: PathBuf,
    /// What the guest begins as.
    pub(crate) origin: OriginKind,
}

/// What the guest begins as, without the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum OriginKind {
    /// A kernel's descriptor is sent.
    Kernel,
    /// A kernel's, and an initrd's or that of the disk in its place.
    KernelAndUserSpace,
    /// Those of a saved machine: memory, state, and where it is on one, that of the disk that its user space is on.
    Snapshot,
}

/// What the server sends later. Each is answered with [`Notice::Answer`], which names its number.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    /// Different from that of every other order to this VMM.
    pub(crate) number: u64,
    /// What to do.
    pub(crate) what: What,
}

/// What an order says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum What {
    /// Put a disk of these parts into an empty slot; their images come as descriptors.
    AttachDisk(u8, Vec<Part>),
    /// Have the disk in a slot end with so many bytes of its last image.
    GrowDisk(u8, u64),
    /// Empty a slot.
    DetachDisk(u8),
    /// Plug into a network slot what comes as descriptors, one for each pair of queues and perhaps one of vhost-net for each.
    PlugNic(u8),
    /// Pull out what is plugged into a network slot.
    PullNic(u8),
    /// Write the machine to two files, memory and state, which come as descriptors; then let it go on, unless it was paused.
    Save,
    /// Have it stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// Say where everything in it stands; its vCPUs stand still for a moment.
    Describe,
    /// Let it have so many MiB of memory in all, of those that it was started with and can be given.
    ResizeMemory(u32),
    /// Have it do without so many MiB of its memory.
    Balloon(u32),
}

/// A part of a disk, without its image; in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// Where on the disk.
    pub(crate) start: u64,
    /// How much of the image.
    pub(crate) length: u64,
    /// It is not to be written.
    pub(crate) read_only: bool,
}

/// What the VMM sends.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Notice {
    /// The machine is built; milliseconds since the VMM began.
    Created(u64),
    /// The guest runs.
    Booting(u64),
    /// A guest program connected to this host port; the stream comes with it.
    GuestConnected(u32),
    /// The order of this number has been carried out, and what there is to say of it; or why not.
    Answer(u64, Result<String, String>),
    /// Something to log.
    Log(LogLevel, String),
    /// The last message.
    Stopped(StopReason),
}

/// `log::Level`, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LogLevel {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// All else.
    Info,
}

/// What goes wrong between server and VMM.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket.
    #[error("the control socket failed: {0}")]
    Socket(#[from] io::Error),
    /// A message that this version does not understand.
    #[error("the other side of the control socket sent a malformed message: {0}")]
    Malformed(String),
}

impl From<Errno> for ControlError {
    fn from(errno: Errno) -> ControlError {
        ControlError::Socket(errno.into())
    }
}

/// A message as it arrived.
#[derive(Debug)]
pub(crate) enum Received {
    /// JSON, and the descriptors beside it.
    Json(Vec<u8>, Vec<OwnedFd>),
    /// Console bytes.
    Console(Vec<u8>),
    /// A thread made a call that it may not.
    Forbidden(Forbidden),
    /// The other side is gone.
    Closed,
}

/// A system call that a thread of the VMM made and may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forbidden {
    /// The thread's name, zeros behind it.
    pub(crate) thread: [u8; THREAD_NAME_BYTES],
    /// The call's number on this architecture.
    pub(crate) call: u32,
    /// Its first arguments.
    pub(crate) arguments: [u64; 3],
}

impl Forbidden {
    /// Takes no memory, as [`send_forbidden`] must not.
    fn to_bytes(self) -> [u8; FORBIDDEN_BYTES] {
        let mut bytes = [0; FORBIDDEN_BYTES];
        bytes[0] = TAG_FORBIDDEN;
        bytes[1..5].copy_from_slice(&self.call.to_ne_bytes());
        for (place, argument) in bytes[5..29].chunks_exact_mut(8).zip(self.arguments) {
            place.copy_from_slice(&argument.to_ne_bytes());
        }
        bytes[29..].copy_from_slice(&self.thread);
        bytes
    }

    fn from_bytes(bytes: &[u8; FORBIDDEN_BYTES]) -> Forbidden {
        let (words, thread) = bytes[1..].split_at(28);
        let argument = |at| u64::from_ne_bytes(std::array::from_fn(|byte| words[at + byte]));
        Forbidden {
            thread: std::array::from_fn(|at| thread[at]),
            call: u32::from_ne_bytes(std::array::from_fn(|at| words[at])),
            arguments: [argument(4), argument(12), argument(20)],
        }
    }
}

impl std::fmt::Display for Forbidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = String::from_utf8_lossy(&self.thread);
        let thread = name.trim_end_matches('\0').escape_debug();
        let call = crate::kvm::call_name(self.call).unwrap_or("unknown here");
        let [first, second, third] = self.arguments;
        write!(
            f,
            "the VMM's thread {thread} made a system call that it may not: {} ({call}), arguments {first:#x}, {second:#x}, {third:#x}",
            self.call
        )
    }
}

/// Sends `forbidden` if the other side has room; to be called where a signal has interrupted anything, so it takes no memory.
pub(crate) fn send_forbidden(socket: BorrowedFd<'_>, forbidden: &Forbidden) {
    let bytes = forbidden.to_bytes();
    // By the one call for sending that every thread may make. Whoever reads nothing sees the process's end.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut SendAncillaryBuffer::default(), flags);
}

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Two ends.
    ///
    /// # Errors
    /// When no descriptors are to be had.
    pub(crate) fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (here, there) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel { socket: here }, there))
    }

    /// Takes over an end.
    pub(crate) fn new(socket: OwnedFd) -> Channel {
        Channel { socket }
    }

    /// Sends `message` with `descriptors`. With `wait` false, an other side that does not read is an error (`WouldBlock`).
    ///
    /// # Errors
    /// When the other side is gone, or the message too long.
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        wait: bool,
    ) -> Result<(), ControlError> {
        let mut bytes = vec![TAG_JSON];
        serde_json::to_writer(&mut bytes, message).map_err(|error| ControlError::Malformed(error.to_string()))?;
        self.send_bytes(&bytes, descriptors, wait)
    }

    /// Sends console bytes, at most [`CONSOLE_LIMIT`] of them, if the other side has room.
    ///
    /// # Errors
    /// As [`Channel::send`] without waiting.
    pub(crate) fn send_console(&self, output: &[u8]) -> Result<(), ControlError> {
        let mut bytes = Vec::with_capacity(1 + output.len());
        bytes.push(TAG_CONSOLE);
        bytes.extend_from_slice(output);
        self.send_bytes(&bytes, &[], false)
    }

    fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>], wait: bool) -> Result<(), ControlError> {
        if bytes.len() > MESSAGE_LIMIT || descriptors.len() > DESCRIPTOR_LIMIT {
            return Err(ControlError::Malformed("a message of this side is too long".to_owned()));
        }
        let mut space = [MaybeUninit::uninit(); ANCILLARY_SPACE];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let flags = if wait { SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL | SendFlags::DONTWAIT };
        loop {
            match rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next message; with `wait` false, `None` if there is none yet.
    ///
    /// # Errors
    /// When the socket fails or the message breaks a bound.
    pub(crate) fn receive(&self, wait: bool) -> Result<Option<Received>, ControlError> {
        let mut bytes = vec![0; MESSAGE_LIMIT + 1];
        let mut space = [MaybeUninit::uninit(); ANCILLARY_SPACE];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = if wait { RecvFlags::CMSG_CLOEXEC } else { RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT };
        let message = loop {
            match rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
                Ok(message) => break message,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET) => return Ok(Some(Received::Closed)),
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut descriptors = Vec::new();
        for item in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(sent) = item {
                descriptors.extend(sent);
            }
        }
        if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(ControlError::Malformed("it is too long".to_owned()));
        }
        bytes.truncate(message.bytes);
        match bytes.first() {
            None => Ok(Some(Received::Closed)),
            Some(&TAG_JSON) => Ok(Some(Received::Json(bytes.split_off(1), descriptors))),
            Some(&TAG_CONSOLE) if bytes.len() <= CONSOLE_LIMIT + 1 => Ok(Some(Received::Console(bytes.split_off(1)))),
            Some(&TAG_FORBIDDEN) if bytes.len() == FORBIDDEN_BYTES => {
                Ok(Some(Received::Forbidden(Forbidden::from_bytes(&std::array::from_fn(|at| bytes[at])))))
            }
            Some(tag) => Err(ControlError::Malformed(format!("tag {tag:#x}, {} bytes", bytes.len()))),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads a JSON body.
///
/// # Errors
/// When it is not a `T`.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ControlError> {
    serde_json::from_slice(body).map_err(|error| ControlError::Malformed(error.to_string()))
}

/// `text` cut to what a message may carry, so that sending it cannot fail for its length.
pub(crate) fn bounded(mut text: String) -> String {
    if text.len() > TEXT_LIMIT {
        let mut end = TEXT_LIMIT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (Channel, Channel) {
        let (here, there) = Channel::pair().unwrap();
        (here, Channel::new(there))
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (server, vmm) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        let start =
            Start { config: VmConfig::default(), shared_dir: "/x".into(), origin: OriginKind::KernelAndUserSpace };
        server.send(&start, &[writer.as_fd()], true).unwrap();
        drop(writer);
        let Some(Received::Json(body, mut descriptors)) = vmm.receive(true).unwrap() else { panic!() };
        assert_eq!(parse::<Start>(&body).unwrap(), start);
        assert_eq!(descriptors.len(), 1);
        let mut writer = io::PipeWriter::from(descriptors.remove(0));
        writer.write_all(b"hello").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_forbidden_call_arrives_whole_and_is_told_in_words() {
        let (server, vmm) = pair();
        let sent = Forbidden {
            thread: *b"vcpu0\0\n\0\0\0\0\0\0\0\0\0",
            call: libc::SYS_execve as u32,
            arguments: [1, u64::MAX, 0],
        };
        send_forbidden(vmm.as_fd(), &sent);
        let Ok(Some(Received::Forbidden(received))) = server.receive(false) else { panic!() };
        assert_eq!(received, sent);
        let number = libc::SYS_execve;
        let text = received.to_string();
        assert!(text.starts_with("the VMM's thread vcpu0\\0\\n made a system call that it may not: "), "{text}");
        // Not every architecture has a list of names at hand.
        let name = crate::kvm::call_name(sent.call).unwrap_or("unknown here");
        assert!(["execve", "unknown here"].contains(&name), "{name}");
        assert!(text.ends_with(&format!("{number} ({name}), arguments 0x1, 0xffffffffffffffff, 0x0")), "{text}");
    }

    #[test]
    fn nothing_yet_and_nothing_more_are_different() {
        let (server, vmm) = pair();
        assert!(server.receive(false).unwrap().is_none());
        vmm.send_console(b"last words").unwrap();
        drop(vmm);
        assert!(matches!(server.receive(false).unwrap(), Some(Received::Console(text)) if text == b"last words"));
        assert!(matches!(server.receive(false).unwrap(), Some(Received::Closed)));
    }

    #[test]
    fn a_side_that_does_not_read_does_not_hold_up_the_other() {
        let (_server, vmm) = pair();
        let outcome = (0..10_000).find_map(|_| vmm.send_console(&[b'x'; CONSOLE_LIMIT]).err());
        assert!(matches!(outcome, Some(ControlError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock));
    }

    #[test]
    fn bounds_are_kept_on_both_sides() {
        let (server, vmm) = pair();
        assert!(matches!(vmm.send(&"x".repeat(MESSAGE_LIMIT), &[], true), Err(ControlError::Malformed(_))));
        for bytes in [
            vec![TAG_CONSOLE; CONSOLE_LIMIT + 2],
            vec![b'?'],
            vec![TAG_FORBIDDEN; FORBIDDEN_BYTES - 1],
            vec![TAG_JSON; MESSAGE_LIMIT + 7],
        ] {
            rustix::net::send(&vmm.socket, &bytes, SendFlags::empty()).unwrap();
            assert!(matches!(server.receive(true), Err(ControlError::Malformed(_))), "{} bytes", bytes.len());
        }
        assert!(parse::<Start>(b"{}").is_err());
        assert_eq!(bounded("ä".repeat(TEXT_LIMIT)).len(), TEXT_LIMIT);
    }
}
