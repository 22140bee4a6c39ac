//! A logger program that containerd's `binary://` URIs name: it reads a container's output from descriptors 3 and 4.
//!
//! It closes descriptor 5 when it is ready. Knows nothing of what it does with the output.

#![allow(unsafe_code, reason = "placing descriptors in the child, between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// How long a logger may take until it is ready, and after the output's end until it ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a URI says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoggerCommand {
    pub(super) program: PathBuf,
    /// Its query: names and values, each an argument.
    pub(super) arguments: Vec<String>,
    /// The container it is for.
    pub(super) id: String,
    pub(super) namespace: String,
}

/// A logger that runs.
pub(super) struct Logger {
    child: Child,
}

/// Our ends of its pipes.
pub(super) struct LoggerPipes {
    pub(super) stdout: pipe::Sender,
    pub(super) stderr: pipe::Sender,
}

impl LoggerCommand {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends at once, or is not ready in time.
    pub(super) async fn start(&self) -> io::Result<(Logger, LoggerPipes)> {
        let (stdout, our_stdout) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, our_stderr) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (ready, their_ready) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let theirs = [stdout, stderr, their_ready];
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env("CONTAINER_ID", &self.id)
            .env("CONTAINER_NAMESPACE", &self.namespace)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true);
        let places: Vec<i32> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: only system calls that may be made between fork and exec.
        unsafe { command.pre_exec(move || place(&places)) };
        let child = command.spawn()?;
        drop(theirs);
        wait_ready(ready).await?;
        let pipes = LoggerPipes {
            stdout: pipe::Sender::from_owned_fd(our_stdout)?,
            stderr: pipe::Sender::from_owned_fd(our_stderr)?,
        };
        Ok((Logger { child }, pipes))
    }
}

impl Logger {
    /// Waits for its end, which should follow that of the output.
    pub(super) async fn finish(mut self) {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => log::warn!("the logger ended with {status}"),
            Ok(Err(error)) => log::warn!("the logger: {error}"),
            Err(_) => {
                log::warn!("the logger did not end within {} s of the output's end, and is killed", PATIENCE.as_secs())
            }
        }
    }
}

/// Moves the descriptors `fds` to 3, 4 and 5, where they survive exec.
fn place(fds: &[i32]) -> io::Result<()> {
    let check = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let mut high = [0; 3];
    for (slot, &fd) in high.iter_mut().zip(fds) {
        // Out of the way of those that are placed before it.
        // SAFETY: plain system call on descriptors of this process.
        *slot = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10) })?;
    }
    for (target, &fd) in (3..).zip(&high) {
        // SAFETY: as above; nothing in this child uses what was open as 3 to 5.
        check(unsafe { libc::dup2(fd, target) })?;
    }
    Ok(())
}

async fn wait_ready(ready: OwnedFd) -> io::Result<()> {
    let ready = pipe::Receiver::from_owned_fd(ready)?;
    let wait = async {
        loop {
            ready.readable().await?;
            match ready.try_read(&mut [0; 1]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(drop),
            }
        }
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("it is not ready after {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, wait).await.map_err(late)?
}
