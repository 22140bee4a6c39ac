//! The host's way to a port of the guest: the VMM's unix socket with the `CONNECT port` convention.
//!
//! Knows the convention, and the stream header that the agent's stream port wants; nothing of what the connections carry.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::net::RecvFlags;
use tatami_protocol::stream::{self, Kind, StreamHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// The socket's name in the sandbox's folder.
const SOCKET: &str = "vsock.sock";
/// The longest answer to `CONNECT` that is read, in bytes: `OK 4294967295` and the line's end.
const MAX_ANSWER: usize = 16;
/// The longest reason that is read for which there is no console, in bytes.
const MAX_REASON: u64 = 1000;

/// Where the guest's ports are reached. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Door {
    folder: Arc<OwnedFd>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The VMM's socket failed.
    #[error("the VMM's socket: {0}")]
    Socket(#[from] io::Error),
    /// The guest does not listen there.
    #[error("the guest does not accept connections on port {0}")]
    Closed(u32),
    /// The VMM answered something else than the convention says.
    #[error("the VMM answered {0:?} to CONNECT")]
    Answer(String),
    /// The header cannot be sent.
    #[error(transparent)]
    Header(#[from] stream::HeaderError),
    /// The agent knows no such stream.
    #[error("the agent refuses the stream {0}")]
    Refused(String),
    /// The agent says why there is no shell.
    #[error("{0}")]
    NoConsole(String),
}

impl Door {
    /// The door in `folder`, and the listener that the VMM answers it with.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn create(folder: &Path) -> io::Result<(Door, std::os::unix::net::UnixListener)> {
        let door = Door::of(folder)?;
        let listener = std::os::unix::net::UnixListener::bind(door.path())?;
        listener.set_nonblocking(true)?;
        Ok((door, listener))
    }

    /// The door in `folder`, for another process than the one that has made it.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn of(folder: &Path) -> io::Result<Door> {
        let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Door { folder: Arc::new(folder) })
    }

    /// A connection to the guest's `port`.
    ///
    /// # Errors
    /// [`DoorError::Closed`] when nobody listens there.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, DoorError> {
        let mut stream = UnixStream::connect(self.path()).await?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") && answer.len() < MAX_ANSWER {
            match take_line(&stream, MAX_ANSWER - answer.len()).await {
                Ok(part) if part.is_empty() => return Err(DoorError::Closed(port)),
                Ok(part) => answer.extend(part),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(DoorError::Closed(port)),
                Err(error) => return Err(error.into()),
            }
        }
        if answer.starts_with(b"OK ") && answer.ends_with(b"\n") {
            Ok(stream)
        } else {
            Err(DoorError::Answer(String::from_utf8_lossy(&answer).into_owned()))
        }
    }

    /// A standard stream of a process in the guest.
    ///
    /// # Errors
    /// [`DoorError::Refused`] when the agent knows no such stream, or gave it to somebody already.
    pub async fn stream(&self, header: &StreamHeader) -> Result<UnixStream, DoorError> {
        let mut stream = self.connect(tatami_protocol::STREAM_PORT).await?;
        stream.write_all(&stream::encode(header)?).await?;
        match stream.read_u8().await {
            Ok(stream::ACCEPTED) => Ok(stream),
            _ => Err(DoorError::Refused(format!("{:?} of {}", header.kind, header.container_id))),
        }
    }

    /// A shell in the guest itself, on a terminal of that many rows and columns; of none, one that reads what it is to do to the end.
    ///
    /// # Errors
    /// [`DoorError::NoConsole`] when there is to be none.
    pub async fn console(&self, (rows, columns): (u16, u16)) -> Result<UnixStream, DoorError> {
        let (kind, rows, columns) = (Kind::CONSOLE.into(), rows.into(), columns.into());
        let mut stream = self.connect(tatami_protocol::STREAM_PORT).await?;
        stream.write_all(&stream::encode(&StreamHeader { kind, rows, columns, ..Default::default() })?).await?;
        if stream.read_u8().await? == stream::ACCEPTED {
            return Ok(stream);
        }
        let mut reason = Vec::new();
        stream.take(MAX_REASON).read_to_end(&mut reason).await?;
        // A guest's words, for somebody's terminal.
        Err(DoorError::NoConsole(String::from_utf8_lossy(&reason).replace(char::is_control, " ")))
    }

    /// The log of the guest's kernel: each byte that is sent is answered with what has come to it since the one before.
    ///
    /// # Errors
    /// [`DoorError::Refused`] when the agent is one that does not know of it.
    pub async fn log(&self) -> Result<UnixStream, DoorError> {
        self.stream(&StreamHeader { kind: Kind::LOG.into(), ..Default::default() }).await
    }

    /// The socket's path: short however long the folder's is, as the address of a unix socket must be.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", self.folder.as_raw_fd()))
    }
}

/// What has arrived of a line, at most `limit` bytes, and nothing of what follows the line; empty at the end of the stream.
async fn take_line(stream: &UnixStream, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = [0; MAX_ANSWER];
    let bytes = &mut bytes[..limit];
    stream
        .async_io(Interest::READABLE, || {
            // Looked at first, so that nothing behind the line's end is taken.
            let (seen, _) = rustix::net::recv(stream, &mut *bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
            let length = bytes[..seen].iter().position(|&byte| byte == b'\n').map_or(seen, |end| end + 1);
            let (taken, _) = rustix::net::recv(stream, &mut bytes[..length], RecvFlags::DONTWAIT)?;
            Ok(bytes[..taken].to_vec())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};

    /// Answers the first connection with `answer`, then sends back what it was told.
    fn vmm(answer: &'static str) -> (tempfile::TempDir, Door, std::thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let (door, listener) = Door::create(dir.path()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
            if answer.starts_with("OK") && line.contains("1025") {
                let mut prefix = [0; 4];
                lines.read_exact(&mut prefix).unwrap();
                let mut body = vec![0; stream::body_length(prefix).unwrap()];
                lines.read_exact(&mut body).unwrap();
                line += &stream::decode(&body).unwrap().container_id;
                (&stream).write_all(&[stream::ACCEPTED, b'!']).unwrap();
            }
            line
        });
        (dir, door, thread)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn what_follows_the_answer_is_not_taken() {
        let (_dir, door, thread) = vmm("OK 1073741824\nrest");
        let mut rest = String::new();
        block_on(async {
            let mut stream = door.connect(7).await.unwrap();
            stream.read_to_string(&mut rest).await.unwrap();
        });
        assert_eq!(thread.join().unwrap(), "CONNECT 7\n");
        assert_eq!(rest, "rest");
    }

    #[test]
    fn a_stream_says_whose_it_is() {
        let (_dir, door, thread) = vmm("OK 1\n");
        let header = StreamHeader { container_id: "c1".into(), kind: Kind::STDOUT.into(), ..Default::default() };
        let byte = block_on(async { door.stream(&header).await.unwrap().read_u8().await.unwrap() });
        assert_eq!(byte, b'!');
        assert_eq!(thread.join().unwrap(), "CONNECT 1025\nc1");
    }

    #[test]
    fn refusals_and_nonsense_are_told_apart() {
        for (answer, closed) in [("", true), ("OK 1", true), ("NO\n", false), ("OK 99999999999999999999\n", false)] {
            let (_dir, door, thread) = vmm(answer);
            let error = block_on(door.connect(7)).unwrap_err();
            assert_eq!(matches!(error, DoorError::Closed(7)), closed, "{answer:?}: {error}");
            thread.join().unwrap();
        }
    }
}
