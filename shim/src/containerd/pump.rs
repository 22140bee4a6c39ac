//! Moves bytes between a process's streams and what they lead to on the host, one task a direction.
//!
//! A reader that stops reading stops the process that writes, by back-pressure, and nothing else. A process that is killed
//! must be able to end nevertheless: then what is left of its output is taken into memory, as much as a pipe and the
//! streams hold, so that its end can be told. Idle pumps hold no buffer. Knows nothing of containers.

use std::cell::RefCell;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::logger::Logger;
use super::stdio::{Opened, Sink};
use crate::sandbox::guest::Streams;

/// How much is moved at a time.
const CHUNK: usize = 64 * 1024;
/// How much output of a killed process is kept for a reader that does not read: more than a pipe of the largest size
/// that is ordinary, the streams and the agent hold.
const SPOOL: usize = 4 << 20;
/// How long after a killed process's end its reader may take to read the rest before the end is told regardless.
const LAST_CHANCE: Duration = Duration::from_secs(2);

thread_local! {
    /// What passes through; never held across an await.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A process's streams, connected.
pub(super) struct Io {
    input: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
    /// Our writer's end of the standard input: as long as it is open, there is no end of file.
    keep: Option<OwnedFd>,
    relief: Arc<watch::Sender<bool>>,
    logger: Option<Logger>,
}

/// The outputs of a process that has ended.
pub(super) struct Rest {
    outputs: Vec<JoinHandle<()>>,
    relief: watch::Receiver<bool>,
    logger: Option<Logger>,
}

impl Io {
    /// Connects what was opened on the host with what was attached in the guest.
    pub(super) fn connect(opened: Opened, streams: Streams) -> Io {
        let relief = Arc::new(watch::Sender::new(false));
        let mut io = Io { input: None, outputs: Vec::new(), keep: None, relief, logger: opened.logger };
        let terminal = streams.terminal.map(Arc::new);
        if let (Some(source), Some(stream)) = (opened.stdin, streams.stdin.map(Arc::new).or(terminal.clone())) {
            io.keep = Some(source.keep);
            io.input = Some(tokio::spawn(copy_in(source.pipe, stream, terminal.is_none())));
        }
        if let Some(stream) = streams.stdout.map(Arc::new).or(terminal) {
            io.output(stream, opened.stdout);
        }
        if let Some(stream) = streams.stderr {
            io.output(Arc::new(stream), opened.stderr);
        }
        io
    }

    fn output(&mut self, stream: Arc<UnixStream>, sink: Option<Sink>) {
        self.outputs.push(tokio::spawn(copy_out(stream, sink, self.relief.subscribe())));
    }

    /// No more input will come from us: the process reads the end when no client has the fifo open either.
    pub(super) fn close_stdin(&mut self) {
        self.keep = None;
    }

    /// The process is being killed: whoever reads its output can no longer hold it up.
    pub(super) fn relieve(&self) {
        self.relief.send_replace(true);
    }

    /// The process has ended: its input with it; its output is still to be written.
    pub(super) fn end(&mut self) -> Rest {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        self.keep = None;
        Rest { outputs: std::mem::take(&mut self.outputs), relief: self.relief.subscribe(), logger: self.logger.take() }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        drop(self.end());
    }
}

impl Rest {
    /// Returns when all output is written, or when the process was killed and its reader does not read.
    pub(super) async fn written(mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        let all = async {
            for output in &mut outputs {
                // An error is a panic, which was logged.
                let _ = output.await;
            }
        };
        let patience = async {
            // The sender may be gone; then nobody will say so any more.
            if self.relief.wait_for(|relieved| *relieved).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LAST_CHANCE).await;
        };
        tokio::select! {
            () = all => {}
            () = patience => log::warn!("the output of a killed process is not read: its end is told without"),
        }
        for output in &outputs {
            output.abort();
        }
        if let Some(logger) = self.logger.take() {
            // It may take its time, which nobody waits for.
            tokio::spawn(logger.finish());
        }
    }
}

/// Copies everything from `stream` to `sink`; without a sink, it is read and forgotten.
async fn copy_out(stream: Arc<UnixStream>, mut sink: Option<Sink>, mut relief: watch::Receiver<bool>) {
    let mut pending = Pending::default();
    let (mut open, mut forgotten) = (true, false);
    while open || !pending.is_empty() {
        let relieved = forgotten || *relief.borrow();
        tokio::select! {
            // Errors show in the call that follows.
            _ = stream.readable(), if open && (pending.is_empty() || (relieved && pending.len() < SPOOL)) => {
                open = pending.fill(&stream, &mut sink);
            }
            _ = writable(sink.as_ref()), if !pending.is_empty() => {
                if let Some(Err(error)) = sink.as_mut().map(|sink| pending.drain(sink)) {
                    give_up(&error);
                    return;
                }
            }
            changed = relief.changed(), if !relieved => forgotten = changed.is_err(),
        }
        if pending.broken {
            return;
        }
    }
}

/// Output that could not be written at once.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    written: usize,
    broken: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Reads what is there and writes as much as is taken; whether more may come.
    fn fill(&mut self, stream: &UnixStream, sink: &mut Option<Sink>) -> bool {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(CHUNK, 0);
            let length = match stream.try_read(buffer) {
                Ok(0) => return false,
                Ok(length) => length,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return true;
                }
                // The VMM is gone; its end is reported elsewhere.
                Err(_) => return false,
            };
            let mut rest = &buffer[..length];
            let Some(sink) = sink else { return true };
            if self.is_empty() {
                match write_some(sink, &mut rest) {
                    Ok(()) => {}
                    Err(error) => {
                        give_up(&error);
                        self.broken = true;
                        return false;
                    }
                }
            }
            if self.written > CHUNK {
                self.bytes.drain(..self.written);
                self.written = 0;
            }
            self.bytes.extend_from_slice(rest);
            true
        })
    }

    /// Writes as much as is taken.
    fn drain(&mut self, sink: &mut Sink) -> io::Result<()> {
        let mut rest = &self.bytes[self.written..];
        write_some(sink, &mut rest)?;
        self.written = self.bytes.len() - rest.len();
        if self.is_empty() {
            *self = Pending::default();
        }
        Ok(())
    }
}

/// Writes from the front of `rest` until nothing is left or nothing is taken.
fn write_some(sink: &mut Sink, rest: &mut &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        let result = match sink {
            Sink::Pipe(pipe) => pipe.try_write(rest),
            Sink::File(file) => file.write(rest),
        };
        match result {
            Ok(length) => *rest = &rest[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn writable(sink: Option<&Sink>) {
    if let Some(Sink::Pipe(pipe)) = sink {
        // An error shows when it is written to.
        let _ = pipe.writable().await;
    }
}

/// The stream is closed, and the process finds out as it would on this host.
fn give_up(error: &io::Error) {
    if error.kind() != io::ErrorKind::BrokenPipe {
        log::warn!("a process's output cannot be written: {error}");
    }
}

/// Copies everything from `source` to `stream`; at its end shuts it down, with `shutdown`.
async fn copy_in(source: pipe::Receiver, stream: Arc<UnixStream>, shutdown: bool) {
    loop {
        if source.readable().await.is_err() {
            break;
        }
        let chunk = BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(CHUNK, 0);
            let length = source.try_read(buffer)?;
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                match stream.try_write(rest) {
                    Ok(length) => rest = &rest[length..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            Ok((length, rest.to_vec()))
        });
        match chunk {
            Ok((0, _)) => break,
            Ok((_, rest)) => {
                if write_all(&stream, &rest).await.is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The process does not read any more, or is gone.
            Err(_) => return,
        }
    }
    if shutdown {
        // Fails only when the other side is gone already.
        let _ = rustix::net::shutdown(&*stream, rustix::net::Shutdown::Write);
    }
}

async fn write_all(stream: &UnixStream, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(length) => rest = &rest[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
