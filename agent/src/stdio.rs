//! The two sides of a process's standard streams: pipes and terminals on its own, connections on the server's.
//!
//! The pumps that join the sides are in `pump`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::io::Errno;
use rustix::io::ioctl_fionread;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::termios::{Winsize, isatty, tcsetwinsize};
use tatami_protocol::agent::Stdio;
use tatami_protocol::stream::Kind;
use tokio::io::unix::AsyncFd;

use crate::syscalls::watched;
use crate::transport::Stream;
use crate::wire::{Size, receive_with_fds};

/// What a pipe holds, in bytes. The kernel takes memory for it as it fills.
pub(crate) const PIPE_SIZE: usize = 256 * 1024;
/// More than a terminal can hold, in bytes.
const TERMINAL_SIZE: usize = 64 * 1024;
/// What is worth a message of its own, in bytes: as much as one carries to the host.
const MESSAGE: u64 = 64 * 1024;
/// How long a writer of less than that is left alone.
const GATHERING: Duration = Duration::from_millis(1);
/// After so long without a message, the next is a first word.
const SILENCE: Duration = Duration::from_millis(5);

/// The streams that the server said it would attach, until the process starts.
pub(crate) struct Attachments {
    wanted: HashMap<Kind, Option<Stream>>,
}

impl Attachments {
    /// The slots for `stdio`.
    pub(crate) fn new(stdio: &Stdio) -> Self {
        let kinds: &[(bool, Kind)] = match stdio.terminal {
            true => &[(true, Kind::TERMINAL)],
            false => &[(stdio.stdin, Kind::STDIN), (stdio.stdout, Kind::STDOUT), (stdio.stderr, Kind::STDERR)],
        };
        Self { wanted: kinds.iter().filter(|(wanted, _)| *wanted).map(|(_, kind)| (*kind, None)).collect() }
    }

    /// Whether a stream of this kind is still waited for.
    pub(crate) fn awaits(&self, kind: Kind) -> bool {
        matches!(self.wanted.get(&kind), Some(None))
    }

    /// Keeps `stream` for the process; one that nobody waits for is closed.
    pub(crate) fn attach(&mut self, kind: Kind, stream: Stream) {
        if let Some(slot) = self.wanted.get_mut(&kind) {
            *slot = Some(stream);
        }
    }

    /// What is attached leads nowhere any more, and is to be attached again.
    pub(crate) fn lose(&mut self) {
        self.wanted.values_mut().for_each(|slot| *slot = None);
    }

    /// A stream that was announced and is not attached.
    pub(crate) fn missing(&self) -> Option<Kind> {
        self.wanted.iter().find(|(_, stream)| stream.is_none()).map(|(kind, _)| *kind)
    }

    /// Closes what is attached; nobody can attach again.
    pub(crate) fn close(&mut self) {
        self.wanted.clear();
    }

    /// The stream, once; nobody can attach to that slot again.
    pub(crate) fn take(&mut self, kind: Kind) -> Option<Stream> {
        self.wanted.remove(&kind).flatten()
    }
}

/// The agent's end of a pipe, or of a terminal.
pub(crate) struct End {
    fd: AsyncFd<OwnedFd>,
}

impl End {
    /// Takes `fd`, which becomes non-blocking; the other end stays as it is.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: watched(fd)? })
    }

    /// Sets the size, if this is a terminal.
    ///
    /// # Errors
    /// The kernel's, when it is none.
    pub(crate) fn resize(&self, size: Size) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.fd.get_ref(), size)?)
    }

    /// Reads once there is something; 0 when the other side is closed.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| read_now(fd.get_ref(), buffer)) {
                Ok(result) => return result,
                Err(_would_block) => continue,
            }
        }
    }

    /// Like [`End::read`], but leaves a writer of little time to write more: a message to the host costs as much for a byte as
    /// for many. Unless nothing was `sent` lately: somebody may be waiting for a first word.
    ///
    /// What is read is not lost if the future is dropped before it is ready.
    pub(crate) async fn gather(&self, buffer: &mut [u8], sent: Option<Instant>) -> io::Result<usize> {
        drop(self.fd.readable().await?);
        if sent.is_some_and(|sent| sent.elapsed() < SILENCE)
            && ioctl_fionread(self.fd.get_ref()).is_ok_and(|there| there < MESSAGE)
        {
            tokio::time::sleep(GATHERING).await;
        }
        self.read(buffer).await
    }

    /// How much can have been written and not been read yet, in bytes: the length for a pipe, an upper bound for a terminal.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn backlog(&self) -> io::Result<usize> {
        match isatty(self.fd.get_ref()) {
            // Part of it may be on its way through the line discipline, where it cannot be counted.
            true => Ok(TERMINAL_SIZE),
            false => Ok(ioctl_fionread(self.fd.get_ref())? as usize),
        }
    }

    /// Reads what is there now; `WouldBlock` when that is nothing.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        read_now(self.fd.get_ref(), buffer)
    }

    /// Writes all of `bytes`, at the pace of the other side.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(written) => bytes = &bytes[written?..],
                Err(_would_block) => continue,
            }
        }
        Ok(())
    }
}

fn read_now(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    match rustix::io::read(fd, buffer) {
        // How a terminal says that nobody has its other side open any more.
        Err(Errno::IO) => Ok(0),
        result => Ok(result?),
    }
}

/// The agent's ends of a process's streams; none where the process has /dev/null.
#[derive(Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<Arc<End>>,
    pub(crate) stdout: Option<Arc<End>>,
    pub(crate) stderr: Option<Arc<End>>,
    /// The master side; then there are no others.
    pub(crate) terminal: Option<Arc<End>>,
}

impl Ends {
    /// Where a stream of this kind is read from by the process, and where it writes to it.
    pub(crate) fn sides(&self, kind: Kind) -> (Option<Arc<End>>, Option<Arc<End>>) {
        match kind {
            Kind::STDIN => (self.stdin.clone(), None),
            Kind::STDOUT => (None, self.stdout.clone()),
            Kind::STDERR => (None, self.stderr.clone()),
            Kind::TERMINAL => (self.terminal.clone(), self.terminal.clone()),
            Kind::UNKNOWN | Kind::FORWARD | Kind::NAMES | Kind::CONSOLE | Kind::LOG => (None, None),
        }
    }
}

/// Makes the pipes for `stdio`: the agent's ends, and the process's three streams.
///
/// The pipes belong to the user of the process, who may want to open /dev/stdout anew.
///
/// # Errors
/// When descriptors or memory ran out.
pub(crate) fn pipes(stdio: &Stdio, owner: (u32, u32)) -> io::Result<(Ends, Vec<OwnedFd>)> {
    let mut ends = Ends::default();
    let mut streams = Vec::new();
    let size = if stdio.pipe_size > 0 { stdio.pipe_size as usize } else { PIPE_SIZE };
    let mut pipe = |wanted: bool, process_reads: bool| -> io::Result<Option<Arc<End>>> {
        if !wanted {
            streams.push(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?);
            return Ok(None);
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // A smaller one is slower, no less right.
        let _ = fcntl_setpipe_size(&writer, size);
        let (ours, theirs) = if process_reads { (writer, reader) } else { (reader, writer) };
        fchown(&theirs, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
        streams.push(theirs);
        Ok(Some(Arc::new(End::new(ours)?)))
    };
    ends.stdin = pipe(stdio.stdin, true)?;
    ends.stdout = pipe(stdio.stdout, false)?;
    ends.stderr = pipe(stdio.stderr, false)?;
    Ok((ends, streams))
}

/// The socket over which a creator's child hands over the master side of its terminal.
pub(crate) struct TerminalSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// Where those sockets are; short, because a unix socket's address is.
const TERMINALS: &str = "/run/tatami/terminals";

impl TerminalSocket {
    /// Listens at a path of its own.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new() -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(TERMINALS)?;
        let path = Path::new(TERMINALS).join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal, which was sent before its process was reported.
    ///
    /// # Errors
    /// When it was not.
    pub(crate) fn receive(self) -> io::Result<End> {
        let (sender, _) = self.listener.accept()?;
        let (_, fds) = receive_with_fds(&sender, &mut [0; 64])?;
        let master = fds.into_iter().next();
        End::new(master.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a message without a terminal"))?)
    }
}

impl Drop for TerminalSocket {
    fn drop(&mut self) {
        // Left behind it would only be clutter in a tmpfs.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::fcntl_getpipe_size;

    #[tokio::test]
    async fn pipes_hold_what_is_asked_for_or_what_is_usual() {
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let size = |pipe_size| {
            let stdio = Stdio { stdout: true, pipe_size, ..Default::default() };
            fcntl_getpipe_size(&pipes(&stdio, owner).unwrap().1[1]).unwrap()
        };
        // A pipe has whole pages, of up to 64 KiB.
        assert_eq!((size(128 << 10), size(0)), (128 << 10, PIPE_SIZE));
    }
}
