//! A container in the sandbox: its state, and what can be asked of it.
//!
//! Knows nothing of how the container's files came to be there, nor of who reads its streams.

use std::sync::{Arc, Mutex, PoisonError};

use tatami_protocol::agent::Stdio;
use ttrpc::Code;

use super::Error;
use super::guest::{Guest, Streams};

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It exists, but its process does not run yet.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended with this status: 0 to 255, or 128 + n for signal n.
    Stopped(u8),
}

/// A container that was created. Cloning is cheap; clones are the same container.
#[derive(Clone)]
pub struct Container {
    id: String,
    guest: Guest,
    state: Arc<Mutex<State>>,
}

impl Container {
    /// Attaches to the streams of one that the agent has just created.
    pub(super) async fn attach(guest: Guest, id: &str, stdio: &Stdio) -> Result<(Container, Streams), Error> {
        let state = Arc::new(Mutex::new(State::Created));
        let streams = guest.attach(id, "", stdio).await?;
        let container = Container { id: id.to_owned(), guest, state };
        Ok((container, streams))
    }

    /// Its id, unique in the sandbox.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts its process.
    ///
    /// # Errors
    /// [`Error::Command`] when there is no such command; otherwise as every call.
    pub async fn start(&self) -> Result<(), Error> {
        self.guest.call(self.guest.agent().start(&self.id, "")).await?;
        self.enter(State::Running);
        Ok(())
    }

    /// Sends its process a signal; a process that has ended takes it silently.
    ///
    /// # Errors
    /// [`Error::Agent`] or [`Error::Vm`].
    pub async fn signal(&self, signal: u32) -> Result<(), Error> {
        match self.guest.call(self.guest.agent().signal(&self.id, "", signal, false)).await {
            Err(Error::Agent(error)) if error.code() == Some(Code::NOT_FOUND) => Ok(()),
            result => result,
        }
    }

    /// Gives its terminal another size, in characters.
    ///
    /// # Errors
    /// [`Error::Agent`] or [`Error::Vm`].
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        self.guest.call(self.guest.agent().resize(&self.id, "", rows, columns)).await
    }

    /// Waits for its process's end; its output is in the streams by then.
    ///
    /// # Errors
    /// [`Error::Vm`] when the guest ends first.
    pub async fn wait(&self) -> Result<u8, Error> {
        let response = self.guest.call(self.guest.agent().wait(&self.id, "")).await?;
        let status = response.exit_status.min(255) as u8;
        self.enter(State::Stopped(status));
        Ok(status)
    }

    fn enter(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}
