//! A shell of the guest's own, for whoever looks around in it from the host: outside all containers, and only where the server has
//! allowed it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Access, Mode, OFlags, access, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tatami_protocol::stream::{ACCEPTED, REFUSED};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::stdio::End;
use crate::syscalls;
use crate::transport::Stream;
use crate::wire::Size;

/// Where shells are, the best one first.
const SHELLS: [&str; 4] = ["/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh"];
const NOT_ALLOWED: &str =
    "the sandbox is not configured to have a debug console: debug_console_enabled of its [agent.…] section";
const NO_SHELL: &str =
    "the guest's own root has no shell: it takes a disk with one (`image` of the configuration; make distribution)";
/// Bytes that are moved at once.
const BUFFER: usize = 4096;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts a shell, and moves bytes until it has ended. What is refused is refused with the reason behind that.
///
/// Of a `size` it is on a terminal, which hangs up when nobody is at the other end any more; of none it reads what it is to do to the end.
///
/// # Errors
/// What went wrong with the stream.
pub(crate) async fn serve(mut stream: Stream, allowed: bool, size: Size) -> io::Result<()> {
    let shell = SHELLS.into_iter().find(|path| access(*path, Access::EXEC_OK).is_ok());
    let started = match shell {
        _ if !allowed => Err(NOT_ALLOWED.to_owned()),
        None => Err(NO_SHELL.to_owned()),
        Some(shell) => start(shell, size).map_err(|cause| format!("the shell {shell}: {cause}")),
    };
    let side = match started {
        Ok(side) => side,
        Err(reason) => {
            stream.write_all(&[REFUSED]).await?;
            stream.write_all(reason.as_bytes()).await?;
            return stream.shutdown().await;
        }
    };
    stream.write_all(&[ACCEPTED]).await?;
    match side {
        Side::Terminal(end) => on_terminal(stream, &end).await,
        Side::Socket(socket) => to_its_end(stream, socket).await,
    }
}

/// Our side of a shell.
enum Side {
    /// The master side of its terminal.
    Terminal(End),
    /// The other end of all its streams.
    Socket(UnixStream),
}

async fn on_terminal(stream: Stream, end: &End) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let typed = async {
        let mut buffer = [0; BUFFER];
        loop {
            match reader.read(&mut buffer).await? {
                0 => return Ok(()),
                length => end.write_all(&buffer[..length]).await?,
            }
        }
    };
    let shown = async {
        let mut buffer = [0; BUFFER];
        loop {
            match end.read(&mut buffer).await? {
                0 => return Ok(()),
                length => writer.write_all(&buffer[..length]).await?,
            }
        }
    };
    let result: io::Result<()> = tokio::select! {
        result = typed => result,
        result = shown => result,
    };
    writer.shutdown().await?;
    result
}

async fn to_its_end(stream: Stream, mut socket: UnixStream) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut said, mut told) = socket.split();
    let telling = async {
        // It may not want to hear all.
        let _ = tokio::io::copy(&mut reader, &mut told).await;
        let _ = told.shutdown().await;
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        () = telling => Ok(()),
        result = tokio::io::copy(&mut said, &mut writer) => result.map(drop),
    };
    writer.shutdown().await?;
    result
}

/// Starts `shell`; our side of it.
fn start(shell: &str, size: Size) -> io::Result<Side> {
    let home = if Path::new("/root").is_dir() { "/root" } else { "/" };
    let mut command = Command::new(shell);
    command.env_clear().env("PATH", PATH).env("HOME", home).env("TERM", "linux").current_dir(home);
    let (side, theirs): (Side, OwnedFd) = if size.rows > 0 {
        let (end, slave) = terminal(size)?;
        syscalls::lead_session(&mut command);
        (Side::Terminal(end), slave)
    } else {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        (Side::Socket(UnixStream::from_std(ours)?), theirs.into())
    };
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    // Whoever reaps all children reaps it as well.
    command.spawn().map(|_| side)
}

/// A terminal: its master side, and the other.
fn terminal(size: Size) -> io::Result<(End, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = open(ptsname(&master, Vec::new())?, flags, Mode::empty())?;
    let end = End::new(master)?;
    end.resize(size)?;
    Ok((end, slave))
}
