//! The messages between the client and the command server in the test host, and their bytes.
//!
//! A TCP connection begins with the server's [`GREETING`], which the client awaits, and the client's [`Hello`]. A *control* connection then carries framed [`ToHost`] and [`FromHost`]
//! messages; a *stream* connection (stdin, stdout or stderr of a session) carries that stream's bytes and nothing else, so
//! that TCP itself is the flow control and end of file is a closed connection.
//!
//! Frame: length (u32, little endian, of what follows), a tag byte, fields. Integers are little endian; a byte string is its
//! length (u32) and its bytes; a list is its count (u32) and its items. Strings are bytes: file names need not be UTF-8.
//! This module does not open connections and does not know what the messages cause.

use std::io::{self, Read, Write};
use std::time::Duration;

/// Longest frame accepted, in bytes: generous for an environment and an argument list (Linux allows 128 KiB an argument).
pub const MAX_FRAME: usize = 8 << 20;

/// Port of the command server inside the host (any would do: nothing else listens there).
pub const PORT: u16 = 7;

/// Length of the secret that each connection must open with, in bytes.
pub const TOKEN_LEN: usize = 32;

/// What the server sends first. A client that spoke first would wait a second: what arrives before the host has answered
/// QEMU's user network is sent again only after the network's shortest time-out.
pub const GREETING: u8 = b'T';

/// How far the host's clock may be off before it is set: setting it is a jump for all that run there.
pub const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// How far off a clock may be some seconds after it was set: beyond that it does not go as fast as time does.
pub const CLOCK_DRIFT: Duration = Duration::from_millis(500);

/// The secret of one running host. Connections come through a loopback port that any local user could open.
pub type Token = [u8; TOKEN_LEN];

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed or ended inside a frame.
    #[error("the connection to the test host broke: {0}")]
    Io(#[from] io::Error),
    /// A frame longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is longer than the {MAX_FRAME} allowed")]
    TooLong(usize),
    /// The frame's bytes are no message of this protocol.
    #[error("malformed frame (tag {tag}, {len} bytes): the two ends are not of one build; run tests/host/run --stop")]
    Malformed {
        /// The frame's tag byte.
        tag: u8,
        /// The frame's length.
        len: usize,
    },
}

/// Which of a session's streams a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Client to command. With a terminal: what is typed.
    Stdin,
    /// Command to client. With a terminal: all that it shows.
    Stdout,
    /// Command to client; absent with a terminal.
    Stderr,
}

impl Stream {
    fn get(fields: &mut Fields<'_>) -> Option<Self> {
        Some(match fields.u8()? {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            _ => return None,
        })
    }
}

/// The first frame of every connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// A control connection follows.
    Control {
        /// The host's secret. The first control connection after boot or restore sets it.
        token: Token,
    },
    /// The bytes of one stream of a session follow.
    Stream {
        /// The host's secret.
        token: Token,
        /// The number that the client chose in [`Run`].
        session: u64,
        /// Which stream.
        stream: Stream,
    },
}

/// Client to host, on a control connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    /// The host has just booted or been restored: mount the shared folders. Answered by `Done`.
    Setup(Setup),
    /// Time of day in nanoseconds since 1970, UTC. A clock that is off by more than [`CLOCK_SLACK`] is set. Answered by `Done`.
    Clock(u64),
    /// Time of day as well, only to be compared: `Failed` if the clock is off by more than [`CLOCK_DRIFT`].
    Compare(u64),
    /// Nothing, for the interrupt that this is. Answered by `Done`.
    Poke,
    /// Make ready to be frozen into a snapshot (load what commands will need, write everything back). Answered by `Done`.
    Prepare,
    /// Start a command. Answered by `Exited` once it has ended, or by `Failed`.
    Run(Run),
    /// Send the session's process group this signal number.
    Signal(i32),
    /// Kill everything that the session started, at once.
    Kill,
    /// The client's terminal has this size now.
    Resize(Size),
    /// Nobody reads this output any more: writing to it is to fail as into a pipe without a reader. (That the stream's
    /// connection is closed would say it too, but QEMU's user network swallows what is sent into a closed one.)
    Deaf(Stream),
}

/// Host to client, on a control connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromHost {
    /// What was asked is done.
    Done,
    /// It could not be done.
    Failed {
        /// The status that the client ends with (127 for a command that was not found, 126 for one that cannot run).
        status: i32,
        /// One line.
        message: String,
    },
    /// The command ended, and all it wrote has been sent.
    Exited {
        /// Its exit status, or 128 + the signal that killed it.
        status: i32,
    },
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub cols: u16,
}

/// What a restored host cannot know by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Fresh randomness, so that two hosts restored from one snapshot differ.
    pub seed: Vec<u8>,
    /// Folders of the developer's machine, mounted at the same path.
    pub shares: Vec<Share>,
}

/// One shared folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// 9p mount tag.
    pub tag: String,
    /// Absolute path, there and here.
    pub path: Vec<u8>,
    /// Whether commands may write to it.
    pub writable: bool,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Chosen by the client at random; its stream connections name it.
    pub session: u64,
    /// Program and arguments; the program is searched in PATH.
    pub argv: Vec<Vec<u8>>,
    /// Added to the host's own environment.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working folder.
    pub cwd: Vec<u8>,
    /// A terminal of this size, or three pipes.
    pub terminal: Option<Size>,
}

/// A message that has a tag and fields.
pub trait Message: Sized {
    /// Appends tag and fields.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads fields; `None` where they are not this message's.
    fn decode(tag: u8, fields: &mut Fields<'_>) -> Option<Self>;
}

/// Sends one message as one frame, in one write.
///
/// # Errors
/// The connection's, or [`WireError::TooLong`].
pub fn send<M: Message>(to: &mut impl Write, message: &M) -> Result<(), WireError> {
    let mut frame = vec![0; 4];
    message.encode(&mut frame);
    let len = frame.len() - 4;
    if len > MAX_FRAME {
        return Err(WireError::TooLong(len));
    }
    frame[..4].copy_from_slice(&(len as u32).to_le_bytes());
    to.write_all(&frame)?;
    Ok(to.flush()?)
}

/// Receives one message; `None` at the end of the connection (between frames).
///
/// # Errors
/// [`WireError`]: the connection broke, or the bytes are no message.
pub fn receive<M: Message>(from: &mut impl Read) -> Result<Option<M>, WireError> {
    let mut len = [0; 4];
    match from.read(&mut len[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut len[1..])?,
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_FRAME {
        return Err(WireError::TooLong(len));
    }
    let mut frame = vec![0; len];
    from.read_exact(&mut frame)?;
    let tag = frame.first().copied().unwrap_or(0);
    let mut fields = Fields(frame.get(1..).unwrap_or_default());
    match M::decode(tag, &mut fields) {
        Some(message) if fields.0.is_empty() => Ok(Some(message)),
        _ => Err(WireError::Malformed { tag, len }),
    }
}

/// The undecoded rest of a frame.
#[derive(Debug)]
pub struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take(&mut self, len: usize) -> Option<&[u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn bytes(&mut self) -> Option<Vec<u8>> {
        let len = self.u32()? as usize;
        self.take(len).map(<[u8]>::to_vec)
    }
    fn string(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?).ok()
    }
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u32()?;
        // Not preallocated: the count is the peer's word, the bytes behind it are what counts.
        (0..count).map(|_| item(self)).collect()
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], mut item: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend((items.len() as u32).to_le_bytes());
    items.iter().for_each(|i| item(out, i));
}

impl Size {
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.rows.to_le_bytes());
        out.extend(self.cols.to_le_bytes());
    }
    fn get(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { rows: fields.u16()?, cols: fields.u16()? })
    }
}

impl Message for Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Control { token } => {
                out.push(1);
                out.extend(token);
            }
            Self::Stream { token, session, stream } => {
                out.push(2);
                out.extend(token);
                out.extend(session.to_le_bytes());
                out.push(*stream as u8);
            }
        }
    }
    fn decode(tag: u8, fields: &mut Fields<'_>) -> Option<Self> {
        let token = fields.array()?;
        Some(match tag {
            1 => Self::Control { token },
            2 => Self::Stream { token, session: fields.u64()?, stream: Stream::get(fields)? },
            _ => return None,
        })
    }
}

impl Message for ToHost {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Setup(setup) => {
                out.push(1);
                put_bytes(out, &setup.seed);
                put_list(out, &setup.shares, |out, share| {
                    put_bytes(out, share.tag.as_bytes());
                    put_bytes(out, &share.path);
                    out.push(u8::from(share.writable));
                });
            }
            Self::Prepare => out.push(2),
            Self::Run(run) => {
                out.push(3);
                out.extend(run.session.to_le_bytes());
                put_list(out, &run.argv, |out, arg| put_bytes(out, arg));
                put_list(out, &run.env, |out, (name, value)| {
                    put_bytes(out, name);
                    put_bytes(out, value);
                });
                put_bytes(out, &run.cwd);
                out.push(u8::from(run.terminal.is_some()));
                if let Some(size) = run.terminal {
                    size.put(out);
                }
            }
            Self::Signal(number) => {
                out.push(4);
                out.extend(number.to_le_bytes());
            }
            Self::Kill => out.push(5),
            Self::Resize(size) => {
                out.push(6);
                size.put(out);
            }
            Self::Deaf(stream) => out.extend([7, *stream as u8]),
            Self::Clock(time) => {
                out.push(8);
                out.extend(time.to_le_bytes());
            }
            Self::Compare(time) => {
                out.push(9);
                out.extend(time.to_le_bytes());
            }
            Self::Poke => out.push(10),
        }
    }
    fn decode(tag: u8, fields: &mut Fields<'_>) -> Option<Self> {
        Some(match tag {
            1 => Self::Setup(Setup {
                seed: fields.bytes()?,
                shares: fields.list(|f| Some(Share { tag: f.string()?, path: f.bytes()?, writable: f.u8()? != 0 }))?,
            }),
            2 => Self::Prepare,
            3 => Self::Run(Run {
                session: fields.u64()?,
                argv: fields.list(Fields::bytes)?,
                env: fields.list(|f| Some((f.bytes()?, f.bytes()?)))?,
                cwd: fields.bytes()?,
                terminal: match fields.u8()? {
                    0 => None,
                    _ => Some(Size::get(fields)?),
                },
            }),
            4 => Self::Signal(fields.i32()?),
            5 => Self::Kill,
            6 => Self::Resize(Size::get(fields)?),
            7 => Self::Deaf(Stream::get(fields)?),
            8 => Self::Clock(fields.u64()?),
            9 => Self::Compare(fields.u64()?),
            10 => Self::Poke,
            _ => return None,
        })
    }
}

impl Message for FromHost {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Done => out.push(1),
            Self::Failed { status, message } => {
                out.push(2);
                out.extend(status.to_le_bytes());
                put_bytes(out, message.as_bytes());
            }
            Self::Exited { status } => {
                out.push(3);
                out.extend(status.to_le_bytes());
            }
        }
    }
    fn decode(tag: u8, fields: &mut Fields<'_>) -> Option<Self> {
        Some(match tag {
            1 => Self::Done,
            2 => Self::Failed { status: fields.i32()?, message: fields.string()? },
            3 => Self::Exited { status: fields.i32()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<M: Message + PartialEq + std::fmt::Debug>(message: M) {
        let mut bytes = Vec::new();
        send(&mut bytes, &message).unwrap();
        // A reader that returns one byte at a time: frames do not arrive in one piece.
        let mut slow =
            bytes.chunks(1).fold(Box::new(io::empty()) as Box<dyn Read>, |read, byte| Box::new(read.chain(byte)));
        assert_eq!(receive::<M>(&mut slow).unwrap().as_ref(), Some(&message));
        assert!(receive::<M>(&mut slow).unwrap().is_none());
        drop(slow);
        for cut in 1..bytes.len() {
            assert!(receive::<M>(&mut &bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
        }
        // A byte too many inside the frame is noticed as well.
        let len = (bytes.len() - 4 + 1) as u32;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes.push(0);
        assert!(matches!(receive::<M>(&mut &bytes[..]), Err(WireError::Malformed { .. })));
    }

    #[test]
    fn every_message_survives_the_wire() {
        there_and_back(Hello::Control { token: [7; TOKEN_LEN] });
        for stream in [Stream::Stdin, Stream::Stdout, Stream::Stderr] {
            there_and_back(Hello::Stream { token: [9; TOKEN_LEN], session: u64::MAX, stream });
        }
        there_and_back(ToHost::Setup(Setup {
            seed: vec![1, 2, 3],
            shares: vec![Share { tag: "src".into(), path: b"/a\xff".to_vec(), writable: true }],
        }));
        there_and_back(ToHost::Clock(u64::MAX));
        there_and_back(ToHost::Compare(1));
        there_and_back(ToHost::Prepare);
        there_and_back(ToHost::Poke);
        for terminal in [None, Some(Size { rows: 24, cols: 300 })] {
            there_and_back(ToHost::Run(Run {
                session: 3,
                argv: vec![b"sh".to_vec(), vec![], vec![0xff, 0, 10]],
                env: vec![(b"A".to_vec(), b"=".to_vec())],
                cwd: b"/".to_vec(),
                terminal,
            }));
        }
        there_and_back(ToHost::Signal(-1));
        there_and_back(ToHost::Kill);
        there_and_back(ToHost::Resize(Size { rows: 1, cols: u16::MAX }));
        there_and_back(ToHost::Deaf(Stream::Stderr));
        there_and_back(FromHost::Done);
        there_and_back(FromHost::Failed { status: 127, message: "no such command".into() });
        there_and_back(FromHost::Exited { status: 137 });
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let bytes = u32::MAX.to_le_bytes();
        assert!(matches!(receive::<ToHost>(&mut &bytes[..]), Err(WireError::TooLong(_))));
        // A list that claims four billion items and has none ends at once.
        let bytes = [13, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255];
        assert!(matches!(receive::<ToHost>(&mut &bytes[..]), Err(WireError::Malformed { .. })));
    }
}
