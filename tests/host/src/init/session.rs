//! One client's command from start to exit: moves its streams, passes signals on, and ends it when the client goes.
//!
//! The order it keeps: all that the command wrote is sent before its exit status is.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tatami_testhost::wire::{self, FromHost, Run, Size, Stream, ToHost};

use crate::command::{self, Cgroup, PIPE_SIZE};
use crate::serve::Server;

/// After the command's exit, how long a stream that background processes still hold open may stay silent before it is closed.
const LINGER: Duration = Duration::from_millis(300);

/// Between the polite signal to a command whose client is gone, and the end of all it started.
const GRACE: Duration = Duration::from_secs(2);

/// Bytes moved at once.
const CHUNK: usize = 256 << 10;

/// Runs a command for the client at the other end of `control`.
///
/// # Errors
/// The connection's; the command has been ended then.
pub(crate) fn run(server: &Server, mut control: TcpStream, run: &Run) -> Result<()> {
    let stdin = server.take_stream(run.session, Stream::Stdin)?;
    let stdout = server.take_stream(run.session, Stream::Stdout)?;
    let stderr = match run.terminal {
        None => Some(server.take_stream(run.session, Stream::Stderr)?),
        Some(_) => None,
    };
    let started = match command::start(run) {
        Ok(started) => started,
        Err(not) => {
            return Ok(wire::send(&mut control, &FromHost::Failed { status: not.status, message: not.message })?);
        }
    };
    let command::Started { mut child, stdin: input, stdout: output, stderr: errors, cgroup } = started;
    let terminal = run.terminal.is_some();
    let outputs = Outputs {
        terminal: run.terminal.map(|_| output.try_clone()).transpose().context("duplicating the terminal")?,
        stdout: stdout.try_clone().context("duplicating stdout")?,
        stderr: stderr.as_ref().map(TcpStream::try_clone).transpose().context("duplicating stderr")?,
    };
    let running = Arc::new(Running { group: Mutex::new(Some(Pid::from_raw(child.id() as i32))), cgroup });
    let ended = EventFd::new().context("eventfd")?;

    let commands = control.try_clone().context("duplicating the connection")?;
    thread::scope(|threads| {
        let client = Arc::clone(&running);
        threads.spawn(move || client.obey(commands, &outputs));
        let client_input = stdin.try_clone().context("duplicating stdin")?;
        threads.spawn(move || feed(stdin, input, terminal));
        let mut forwarders = vec![];
        for (from, to) in [Some((output, stdout)), errors.zip(stderr)].into_iter().flatten() {
            let ended = &ended;
            forwarders.push(threads.spawn(move || forward(from, to, ended)));
        }
        // First seen, then forgotten by `running`, then reaped: no signal can reach a stranger that got the number anew.
        let pid = Pid::from_raw(child.id() as i32);
        while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
        running.forget();
        let status = child.wait().context("waiting for the command")?;
        ended.write(1)?;
        for forwarder in forwarders {
            let _ = forwarder.join();
        }
        server.write_back();
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        // A client that went away meanwhile needs no answer.
        let _ = wire::send(&mut control, &FromHost::Exited { status });
        // Wakes the threads that read from the client.
        let _ = client_input.shutdown(Shutdown::Both);
        let _ = control.shutdown(Shutdown::Both);
        Ok(())
    })
}

/// What the client can change about the outputs while the command runs.
struct Outputs {
    terminal: Option<OwnedFd>,
    stdout: TcpStream,
    stderr: Option<TcpStream>,
}

impl Outputs {
    fn resize(&self, size: Size) {
        if let Some(terminal) = &self.terminal {
            command::resize(terminal, size);
        }
    }

    /// Makes [`forward`] fail to write, wherever it is; its end of the pipe closes with it.
    fn close(&self, stream: Stream) {
        let connection = if stream == Stream::Stderr { self.stderr.as_ref() } else { Some(&self.stdout) };
        if let Some(connection) = connection {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// A command as those see it who may want to end it.
struct Running {
    /// Its process group; none any more once it has exited.
    group: Mutex<Option<Pid>>,
    cgroup: Cgroup,
}

impl Running {
    /// Does what the client says, until the command has ended or the client is gone, which ends the command.
    fn obey(&self, mut control: TcpStream, outputs: &Outputs) {
        while let Ok(Some(message)) = wire::receive::<ToHost>(&mut control) {
            match message {
                ToHost::Signal(number) => {
                    if let Ok(signal) = Signal::try_from(number) {
                        self.signal(signal);
                    }
                }
                ToHost::Kill if self.runs() => self.cgroup.kill(),
                ToHost::Resize(size) => outputs.resize(size),
                ToHost::Deaf(stream) => outputs.close(stream),
                _ => {}
            }
        }
        if !self.runs() {
            return;
        }
        self.signal(Signal::SIGHUP);
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while self.runs() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        self.cgroup.kill();
    }

    fn signal(&self, signal: Signal) {
        // Held while signalling: `forget` waits.
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = *group {
            let _ = killpg(group, signal);
        }
    }

    fn runs(&self) -> bool {
        self.group.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn forget(&self) {
        *self.group.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Client to command. Ends at the client's end of file, or when the command reads no more.
fn feed(mut from: TcpStream, to: OwnedFd, terminal: bool) {
    let mut to = File::from(to);
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) if to.write_all(&buffer[..n]).is_err() => {
                // Tells the client to stop sending.
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
            Ok(_) => {}
        }
    }
    if terminal {
        // A terminal has no end of file but the character that means it.
        let _ = to.write_all(&[4]);
    }
}

/// Command to client. Ends at end of file; or, once the command has exited, when what it wrote is sent and those who
/// still hold the stream are silent.
fn forward(from: OwnedFd, mut to: TcpStream, ended: &EventFd) {
    let mut from = File::from(from);
    let mut buffer = vec![0; CHUNK];
    // After the exit: how much may still be the command's own, for a background process may write without end.
    let mut rest = None;
    loop {
        let ready = match rest {
            None => readable(&from, Some(ended), PollTimeout::NONE),
            Some(_) => readable(&from, None, PollTimeout::try_from(LINGER).unwrap_or(PollTimeout::ZERO)),
        };
        match ready {
            Ready::Data => {}
            Ready::Ended => {
                rest = Some(2 * PIPE_SIZE);
                continue;
            }
            Ready::Silent => break,
        }
        match from.read(&mut buffer) {
            // A terminal that nobody has open any more says EIO.
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if to.write_all(&buffer[..n]).is_err() {
                    return;
                }
                if let Some(left) = &mut rest {
                    match left.checked_sub(n) {
                        Some(less) => *left = less,
                        None => break,
                    }
                }
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

enum Ready {
    Data,
    Ended,
    Silent,
}

fn readable(from: &File, ended: Option<&EventFd>, timeout: PollTimeout) -> Ready {
    let any = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    let mut fds = vec![PollFd::new(from.as_fd(), any)];
    fds.extend(ended.map(|e| PollFd::new(e.as_fd(), PollFlags::POLLIN)));
    loop {
        match poll(&mut fds, timeout) {
            Ok(0) => return Ready::Silent,
            Ok(_) if fds[0].any() == Some(true) => return Ready::Data,
            Ok(_) => return Ready::Ended,
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => {
                eprintln!("testhost-init: poll: {}", io::Error::from(e));
                return Ready::Silent;
            }
        }
    }
}
