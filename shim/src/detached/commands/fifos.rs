//! The streams of a process that joins a container: fifos in the sandbox's folder, as containerd's clients have them.
//!
//! They go with the sandbox should this process be killed.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::client::ExecStreams;

/// The fifos of a process, in a folder of their own, which goes with this.
pub(super) struct Fifos {
    folder: PathBuf,
    pub(super) streams: ExecStreams,
}

impl Fifos {
    /// Those of the process `exec`, in its sandbox's folder. One that has a terminal has no standard error of its own.
    ///
    /// # Errors
    /// What the operating system said.
    pub(super) fn make(state: &Path, exec: &str, stdin: bool, tty: bool) -> io::Result<Fifos> {
        let folder = state.join("exec").join(exec);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut fifos = Fifos { folder, streams: ExecStreams { terminal: tty, ..ExecStreams::default() } };
        let make = |name: &str| -> io::Result<String> {
            let path = fifos.folder.join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
            Ok(path.display().to_string())
        };
        let stdin = if stdin { make("stdin")? } else { String::new() };
        let stdout = make("stdout")?;
        let stderr = if tty { String::new() } else { make("stderr")? };
        fifos.streams = ExecStreams { stdin, stdout, stderr, terminal: tty };
        Ok(fifos)
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        // It may be gone with its sandbox.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Opens a fifo for reading, whether or not somebody writes.
///
/// # Errors
/// What the operating system said.
pub(super) fn open_fifo(path: &str) -> io::Result<File> {
    let fifo = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    rustix::io::ioctl_fionbio(&fifo, false)?;
    Ok(fifo)
}
