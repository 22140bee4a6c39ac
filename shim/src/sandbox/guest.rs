//! The guest of a sandbox whose agent has answered: calls to it that end when its VM does.
//!
//! Every call is raced against the VM's end, so none hangs on a guest that is gone. Knows nothing of containers' states.

use tatami_protocol::agent::Stdio;
use tatami_protocol::stream::Kind;
use tokio::net::UnixStream;
use ttrpc::Code;

use super::Error;
use super::agent::{Agent, AgentError};
use super::vm::VmWatch;

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

/// A guest that can be asked. Cloning is cheap; clones ask the same guest.
#[derive(Clone)]
pub struct Guest {
    agent: Agent,
    vm: VmWatch,
}

impl Guest {
    pub(super) fn new(agent: Agent, vm: VmWatch) -> Guest {
        Guest { agent, vm }
    }

    /// What is asked, for [`Guest::call`].
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Its machine.
    pub fn vm(&self) -> &VmWatch {
        &self.vm
    }

    /// Waits for `work`, or the VM's end; a VM that ended is the better explanation of a call that failed.
    ///
    /// # Errors
    /// [`Error::Vm`] when the guest is gone, [`Error::Command`] for a command that cannot be executed, [`Error::Agent`].
    pub async fn call<T>(&self, work: impl Future<Output = Result<T, AgentError>>) -> Result<T, Error> {
        match self.vm.while_alive(work).await? {
            Ok(value) => Ok(value),
            Err(AgentError::Refused { call: "CreateContainer" | "StartProcess", code, message })
                if matches!(code, Code::NOT_FOUND | Code::PERMISSION_DENIED) =>
            {
                Err(Error::Command { message, missing: code == Code::NOT_FOUND })
            }
            Err(error @ AgentError::Refused { .. }) => Err(Error::Agent(error)),
            Err(error) => Err(self.vm.verdict().await.map_or(Error::Agent(error), Error::Vm)),
        }
    }

    /// Attaches to the streams of a process that was created with `stdio`.
    ///
    /// # Errors
    /// As [`Guest::call`].
    pub async fn attach(&self, container: &str, exec: &str, stdio: &Stdio) -> Result<Streams, Error> {
        let attach = async |wanted: bool, kind: Kind| match wanted {
            true => self.call(self.agent.attach(container, exec, kind)).await.map(Some),
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
}
