//! A container in the sandbox: its state, and what can be asked of it.
//!
//! Every call to the agent is raced against the VM's end, so none hangs on a guest that is gone. Knows nothing of how the
//! container's files came to be there, nor of who reads its streams.

use std::sync::{Arc, Mutex, PoisonError};

use tatami_protocol::agent::Stdio;
use tatami_protocol::stream::Kind;
use tokio::net::UnixStream;
use ttrpc::Code;

use super::Error;
use super::agent::{Agent, AgentError};
use super::vm::VmWatch;

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

/// The streams of a process, attached; those that it does not have are `None`.
#[derive(Debug, Default)]
pub struct Streams {
    /// Towards the process. Shutting down writing is its end of file.
    pub stdin: Option<UnixStream>,
    /// From the process.
    pub stdout: Option<UnixStream>,
    /// From the process.
    pub stderr: Option<UnixStream>,
    /// Both ways, instead of the three.
    pub terminal: Option<UnixStream>,
}

/// A container that was created. Cloning is cheap; clones are the same container.
#[derive(Clone)]
pub struct Container {
    id: String,
    agent: Agent,
    vm: VmWatch,
    state: Arc<Mutex<State>>,
}

impl Container {
    /// Has the agent create it and attaches to its streams.
    pub(super) async fn create(
        agent: Agent,
        vm: VmWatch,
        id: &str,
        spec_json: Vec<u8>,
        stdio: Stdio,
    ) -> Result<(Container, Streams), Error> {
        let state = Arc::new(Mutex::new(State::Created));
        let container = Container { id: id.to_owned(), agent, vm, state };
        container.call(container.agent.create_container(id, spec_json, stdio.clone())).await?;
        let streams = container.attach(&stdio).await?;
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
        self.call(self.agent.start(&self.id, "")).await?;
        self.enter(State::Running);
        Ok(())
    }

    /// Sends its process a signal; a process that has ended takes it silently.
    ///
    /// # Errors
    /// [`Error::Agent`] or [`Error::Vm`].
    pub async fn signal(&self, signal: u32) -> Result<(), Error> {
        match self.call(self.agent.signal(&self.id, "", signal, false)).await {
            Err(Error::Agent(error)) if error.code() == Some(Code::NOT_FOUND) => Ok(()),
            result => result,
        }
    }

    /// Gives its terminal another size, in characters.
    ///
    /// # Errors
    /// [`Error::Agent`] or [`Error::Vm`].
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        self.call(self.agent.resize(&self.id, "", rows, columns)).await
    }

    /// Waits for its process's end; its output is in the streams by then.
    ///
    /// # Errors
    /// [`Error::Vm`] when the guest ends first.
    pub async fn wait(&self) -> Result<u8, Error> {
        let response = self.call(self.agent.wait(&self.id, "")).await?;
        let status = response.exit_status.min(255) as u8;
        self.enter(State::Stopped(status));
        Ok(status)
    }

    async fn attach(&self, stdio: &Stdio) -> Result<Streams, Error> {
        let attach = async |wanted: bool, kind: Kind| match wanted {
            true => self.call(self.agent.attach(&self.id, "", kind)).await.map(Some),
            false => Ok(None),
        };
        if stdio.terminal {
            return Ok(Streams { terminal: attach(true, Kind::TERMINAL).await?, ..Streams::default() });
        }
        let (stdin, stdout, stderr) = tokio::try_join!(
            attach(stdio.stdin, Kind::STDIN),
            attach(stdio.stdout, Kind::STDOUT),
            attach(stdio.stderr, Kind::STDERR),
        )?;
        Ok(Streams { stdin, stdout, stderr, terminal: None })
    }

    /// Waits for `work`, or the VM's end; a VM that ended is the better explanation of a call that failed.
    async fn call<T>(&self, work: impl Future<Output = Result<T, AgentError>>) -> Result<T, Error> {
        super::ask(&self.vm, work).await
    }

    fn enter(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}
