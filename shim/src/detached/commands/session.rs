//! What a person's terminal and a process in a container have to do with each other: signals, window sizes, input, the end.
//!
//! Knows nothing of how the process came to be.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use tokio::sync::oneshot;

use super::super::Error;
use super::super::client::Client;
use crate::run::pump;
use crate::run::signals::{Insistence, Signals};
use crate::run::terminal;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With this status.
    Ended(u8),
    /// Its server went away first.
    Lost,
}

/// Catches signals from here on.
pub(super) fn catch_signals() -> Result<Signals, Error> {
    Signals::catch().map_err(|source| Error::System { action: "catch signals", source })
}

/// What it means that the terminal goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hangup {
    /// The process is told.
    PassedOn,
    /// The person leaves, and the process goes on.
    Leaves,
}

/// Waits for the process `exec`, and passes signals and window sizes on meanwhile. Who insists is obeyed: the process is killed.
pub(super) async fn wait(client: &Client, exec: &str, mut signals: Signals, hangup: Hangup) -> Result<Outcome, Error> {
    let mut insistence = Insistence::default();
    let mut waiting = Box::pin(client.wait(exec));
    loop {
        let signal = tokio::select! {
            status = &mut waiting => return Ok(status.map_or(Outcome::Lost, |status| Outcome::Ended(status.min(255) as u8))),
            signal = signals.next() => signal,
        };
        if signal == libc::SIGHUP && hangup == Hangup::Leaves {
            return Err(Error::Interrupted(signal));
        }
        if insistence.insists(signal, Instant::now()) {
            drop(client.kill(exec, libc::SIGKILL as u32, false).await);
            return Err(Error::Interrupted(signal));
        }
        let result = match (signal, terminal::size()) {
            (libc::SIGWINCH, Some((rows, columns))) => client.resize(exec, rows, columns).await,
            (libc::SIGWINCH, None) => Ok(()),
            (signal, _) => client.kill(exec, signal as u32, false).await,
        };
        if let Err(error) = result {
            log::info!("signal {signal} was not passed on: {error}");
        }
    }
}

/// Sends standard input into the fifo at `path`; tells when it is at its end. With `leave`, Ctrl-P Ctrl-Q is its end as well, and
/// told there.
pub(super) fn send_input(path: &str, leave: Option<oneshot::Sender<()>>) -> io::Result<oneshot::Receiver<()>> {
    // The server has both ends open; if it does not any more, the process has ended.
    let fifo = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let keys = Keys { fifo, leave, held: false };
    pump::input_of("stdin", io::stdin().as_fd().try_clone_to_owned()?, keys)
}

/// What docker's users type to leave a container that goes on.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// Passes keys on, but for those that mean this process.
struct Keys<W> {
    fifo: W,
    leave: Option<oneshot::Sender<()>>,
    /// The first key of the sequence was typed.
    held: bool,
}

impl<W: Write> Write for Keys<W> {
    fn write(&mut self, keys: &[u8]) -> io::Result<usize> {
        if self.leave.is_none() {
            return self.fifo.write(keys);
        }
        let mut passed = Vec::with_capacity(keys.len() + 1);
        for &key in keys {
            if self.held && key == LEAVE[1] {
                self.fifo.write_all(&passed)?;
                // Whoever waits for it may be gone: then there is nothing to leave.
                let _ = self.leave.take().map(|leave| leave.send(()));
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if std::mem::replace(&mut self.held, key == LEAVE[0]) {
                passed.push(LEAVE[0]);
            }
            if !self.held {
                passed.push(key);
            }
        }
        self.fifo.write_all(&passed)?;
        Ok(keys.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.fifo.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_that_leave_are_not_passed_on_and_others_are() {
        let (leave, mut left) = oneshot::channel();
        let mut keys = Keys { fifo: Vec::new(), leave: Some(leave), held: false };
        for typed in [&b"a\x10b"[..], b"\x10", b"\x10c", b"\x11"] {
            keys.write_all(typed).unwrap();
        }
        assert_eq!(keys.fifo, b"a\x10b\x10\x10c\x11");
        assert!(left.try_recv().is_err());
        assert!(keys.write_all(b"d\x10\x11e").is_err());
        assert!(left.try_recv().is_ok() && keys.fifo.ends_with(b"\x11d"));
        let mut plain = Keys { fifo: Vec::new(), leave: None, held: false };
        plain.write_all(&LEAVE).unwrap();
        assert_eq!(plain.fifo, LEAVE);
    }
}
