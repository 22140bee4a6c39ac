//! A process's streams on the host: fifos that its server opens, and a terminal whose other end goes to whoever asked for it.
//!
//! The fifos lie in the folder of the container, or of the process that joins it. Moving bytes is the keeper's.

#![allow(unsafe_code, reason = "a terminal's size, and becoming its process")]

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::pty::{Winsize, openpty};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::{Error, system, system_at};
use crate::detached::client::ExecStreams;

/// Of the folder that a container's or a process's fifos are in.
pub(super) struct Fifos {
    pub(super) names: ExecStreams,
    /// Our ends of the outputs, each with the standard stream that it leads to.
    pub(super) outputs: Vec<(File, i32)>,
}

/// A terminal on the host, in whose other end keys are typed.
pub(super) struct Console {
    socket: UnixStream,
    master: OwnedFd,
    /// Raw: the guest's own terminal knows what lines and control keys are.
    slave: OwnedFd,
}

impl Fifos {
    /// Makes them in `folder`.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn make(folder: &Path, terminal: bool) -> Result<Fifos, Error> {
        let make = |name: &str| {
            let path = folder.join(name);
            nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).map_err(system_at("make the fifo", &path))?;
            Ok::<_, Error>(path.display().to_string())
        };
        let stderr = if terminal { String::new() } else { make("stderr")? };
        let names = ExecStreams { stdin: make("stdin")?, stdout: make("stdout")?, stderr, terminal };
        let mut outputs = vec![(open_output(&names.stdout)?, 1)];
        if !terminal {
            outputs.push((open_output(&names.stderr)?, 2));
        }
        Ok(Fifos { names, outputs })
    }
}

/// Opens a fifo for reading before somebody writes. It is to be read when the server has opened its end.
fn open_output(path: &str) -> Result<File, Error> {
    let fifo = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let fifo = fifo.map_err(system_at("open", Path::new(path)))?;
    rustix::io::ioctl_fionbio(&fifo, false).map_err(system_at("open", Path::new(path)))?;
    Ok(fifo)
}

/// Opens the server's fifo for a process's input, if the server has it open: else the process has ended.
pub(super) fn open_input(path: &str) -> io::Result<File> {
    let fifo = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    rustix::io::ioctl_fionbio(&fifo, false)?;
    Ok(fifo)
}

impl Console {
    /// Makes a terminal of this size (rows, columns; 0 if nobody says) for whoever listens at `socket`.
    ///
    /// # Errors
    /// When nobody does, or the host has no terminals.
    pub(super) fn open(socket: &Path, (rows, columns): (u16, u16)) -> Result<Console, Error> {
        let connection = UnixStream::connect(socket).map_err(system_at("connect to the console socket", socket))?;
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).map_err(system("make a terminal"))?;
        let mut settings = tcgetattr(&pair.slave).map_err(system("set up the terminal"))?;
        cfmakeraw(&mut settings);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &settings).map_err(system("set up the terminal"))?;
        Ok(Console { socket: connection, master: pair.master, slave: pair.slave })
    }

    /// Hands over the end in which keys are typed.
    ///
    /// # Errors
    /// When nobody takes it.
    pub(super) fn hand_over(&self) -> Result<(), Error> {
        let fds = [self.master.as_raw_fd()];
        // Its name goes with it, which some write down.
        let name = [IoSlice::new(b"/dev/ptmx")];
        let message = [ControlMessage::ScmRights(&fds)];
        let sent = sendmsg::<()>(self.socket.as_raw_fd(), &name, &message, MsgFlags::empty(), None);
        sent.map(drop).map_err(system("hand over the terminal"))
    }
}

impl Console {
    /// Makes it this process's terminal and standard streams, in a process that leads a session and does not drop this: its size and its
    /// end are told here.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn take(&self) -> io::Result<()> {
        for stream in 0..=2 {
            // SAFETY: replaces a standard stream, which nobody in this process has a handle to that would be confused by it.
            if unsafe { libc::dup2(self.slave.as_raw_fd(), stream) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: standard input is a terminal; the call touches no memory.
        if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // As long as this process had the other end as well, it would not hear of its end.
        for fd in [self.master.as_raw_fd(), self.socket.as_raw_fd()] {
            // SAFETY: what owns it is not dropped here, as said above.
            unsafe { libc::close(fd) };
        }
        Ok(())
    }
}

/// Rows and columns of a terminal, if somebody has said how large it is.
pub(super) fn size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel fills the structure that the pointer names.
    let asked = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (asked == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_terminal_has_no_fifo_for_errors() {
        let dir = tempfile::tempdir().unwrap();
        let fifos = Fifos::make(dir.path(), true).unwrap();
        assert!(fifos.names.stderr.is_empty() && fifos.names.terminal && fifos.outputs.len() == 1);
        assert!(!dir.path().join("stderr").exists());
        assert_eq!(open_input(&fifos.names.stdin).unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }

    #[test]
    fn a_console_socket_that_nobody_listens_on_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let error = Console::open(&path, (0, 0)).err().unwrap().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        drop(UnixListener::bind(&path).unwrap());
        assert!(Console::open(&path, (0, 0)).is_err());
    }

    #[test]
    fn keys_arrive_unchanged_and_the_size_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let console = Console::open(&path, (30, 90)).unwrap();
        console.hand_over().unwrap();
        assert_eq!(size(&console.slave), Some((30, 90)));
        let Console { master, slave, .. } = console;
        let (mut master, mut slave) = (File::from(master), File::from(slave));
        master.write_all(b"a\x03\r").unwrap();
        let mut keys = [0; 3];
        slave.read_exact(&mut keys).unwrap();
        assert_eq!(&keys, b"a\x03\r");
    }
}
