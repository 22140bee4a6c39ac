//! What a person's terminal and a process in a container have to do with each other: signals, window sizes, input, the end.
//!
//! Knows nothing of how the process came to be.

use std::io;
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

/// Waits for the process `exec`, and passes signals and window sizes on meanwhile. Who insists is obeyed: the process is killed.
pub(super) async fn wait(client: &Client, exec: &str, mut signals: Signals) -> Result<Outcome, Error> {
    let mut insistence = Insistence::default();
    let mut waiting = Box::pin(client.wait(exec));
    loop {
        let signal = tokio::select! {
            status = &mut waiting => return Ok(status.map_or(Outcome::Lost, |status| Outcome::Ended(status.min(255) as u8))),
            signal = signals.next() => signal,
        };
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

/// Sends standard input into the fifo at `path`; tells when it is at its end.
pub(super) fn send_input(path: &str) -> io::Result<oneshot::Receiver<()>> {
    // The server has both ends open; if it does not any more, the process has ended.
    let fifo = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    pump::input_of("stdin", io::stdin().as_fd().try_clone_to_owned()?, fifo)
}
