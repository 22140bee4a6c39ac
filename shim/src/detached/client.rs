//! A client of a container's server: the Task service's calls that the commands need.
//!
//! Every call but the waiting ones has a limit, so that a server that does not answer is told and not waited for.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, DeleteRequest, ExecProcessRequest, KillRequest, PauseRequest,
    ResizePtyRequest, ResumeRequest, StartRequest, StateRequest, UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::shim_async::TaskClient;
use containerd_shim_protos::types::task::Status;
use protobuf::well_known_types::any::Any;
use tokio::net::UnixStream;
use ttrpc::Code;
use ttrpc::asynchronous::Client as Connection;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

use super::registry::Entry;
use super::server;
use crate::containerd::tasks::BALLOON;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a call may take that is about one process of many: as long as the server waits for the agent. Hundreds may be before it.
const TURN: Duration = Duration::from_secs(300);
/// How long it may take to write a sandbox down: as long as its memory and its files are large.
const SAVING: Duration = Duration::from_secs(3600);
/// How long it may take a server to say how it is.
const GLANCE: Duration = Duration::from_secs(3);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Its server refuses, and says why.
    #[error("{1}")]
    Refused(Code, String),
    /// It is not there, or went away.
    #[error("its sandbox server does not answer: {0}")]
    Lost(String),
}

/// A connection. Cloning is cheap; clones are the same connection.
#[derive(Clone)]
pub(crate) struct Client {
    task: TaskClient,
    id: String,
}

/// The streams of a process that joins: fifos.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExecStreams {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

impl From<ttrpc::Error> for ClientError {
    fn from(error: ttrpc::Error) -> ClientError {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                let (code, text) = (status.code(), status.message().to_owned());
                // The kind stands at the end for containerd's users.
                let kinds = [": failed precondition", ": not found", ": already exists", ": invalid argument"];
                let text = kinds.iter().find_map(|kind| text.strip_suffix(kind)).unwrap_or(&text).to_owned();
                ClientError::Refused(code, text)
            }
            error => ClientError::Lost(error.to_string()),
        }
    }
}

impl ClientError {
    /// Whether the server says that there is no such process, or none any more.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, ClientError::Refused(Code::NOT_FOUND, _))
    }
}

impl Client {
    /// A connection to the server of `entry`.
    ///
    /// # Errors
    /// [`ClientError::Lost`].
    pub(super) async fn connect(entry: &Entry) -> Result<Client, ClientError> {
        Client::at(&server::socket(entry.found.state()), entry.record.container()).await
    }

    /// A connection to the server that listens at `socket`, about its container `id`.
    ///
    /// # Errors
    /// [`ClientError::Lost`].
    pub(crate) async fn at(socket: &Path, id: &str) -> Result<Client, ClientError> {
        let stream = UnixStream::connect(socket).await.map_err(|error| ClientError::Lost(error.to_string()))?;
        Ok(Client { task: TaskClient::new(Connection::new(Socket::new(stream))), id: id.to_owned() })
    }

    /// For the calls that only some clients make.
    pub(crate) fn task(&self) -> (&TaskClient, &str) {
        (&self.task, &self.id)
    }

    /// Whether the container stands still.
    pub(crate) async fn is_paused(&self) -> Result<bool, ClientError> {
        let request = StateRequest { id: self.id.clone(), ..Default::default() };
        let state = self.task.state(ttrpc::context::with_duration(GLANCE), &request).await?;
        Ok(state.status.value() == Status::PAUSED as i32)
    }

    /// Sends a signal to the process `exec`, the first for an empty id; with `all` to every process of the container.
    pub(crate) async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<(), ClientError> {
        let (id, exec_id) = (self.id.clone(), exec.to_owned());
        let request = KillRequest { id, exec_id, signal, all, ..Default::default() };
        Ok(self.task.kill(limit(), &request).await.map(drop)?)
    }

    /// Returns when the process has ended, and its output is written; with its status.
    pub(crate) async fn wait(&self, exec: &str) -> Result<u32, ClientError> {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        Ok(self.task.wait(Context::default(), &request).await?.exit_status)
    }

    pub(crate) async fn pause(&self) -> Result<(), ClientError> {
        let request = PauseRequest { id: self.id.clone(), ..Default::default() };
        Ok(self.task.pause(limit(), &request).await.map(drop)?)
    }

    pub(crate) async fn resume(&self) -> Result<(), ClientError> {
        let request = ResumeRequest { id: self.id.clone(), ..Default::default() };
        Ok(self.task.resume(limit(), &request).await.map(drop)?)
    }

    /// Has the machine do without `mib` MiB of its memory.
    pub(super) async fn balloon(&self, mib: u32) -> Result<(), ClientError> {
        let resources = Any { type_url: BALLOON.to_owned(), value: mib.to_le_bytes().to_vec(), ..Default::default() };
        let request =
            UpdateTaskRequest { id: self.id.clone(), resources: Some(resources).into(), ..Default::default() };
        Ok(self.task.update(limit(), &request).await.map(drop)?)
    }

    /// Has the server write the sandbox to `folder`, an absolute path.
    pub(crate) async fn save(&self, folder: &Path) -> Result<(), ClientError> {
        let path = folder.display().to_string();
        let request = CheckpointTaskRequest { id: self.id.clone(), path, ..Default::default() };
        let context = ttrpc::context::with_duration(SAVING);
        Ok(self.task.checkpoint(context, &request).await.map(drop)?)
    }

    /// Has a process join the container, `process` of a specification, and starts it.
    pub(crate) async fn exec(&self, exec: &str, process: Vec<u8>, streams: &ExecStreams) -> Result<(), ClientError> {
        self.exec_as(exec, Any { value: process, ..Default::default() }, streams).await
    }

    /// The same in the form of the wire.
    pub(crate) async fn exec_as(&self, exec: &str, spec: Any, streams: &ExecStreams) -> Result<(), ClientError> {
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal: streams.terminal,
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.task.exec(turn(), &request).await?;
        let request = StartRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        let started = self.task.start(turn(), &request).await;
        if started.is_err() {
            self.delete(exec).await;
        }
        Ok(started.map(drop)?)
    }

    /// Has the server forget a process that has ended.
    pub(crate) async fn delete(&self, exec: &str) {
        let request = DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        if let Err(error) = self.task.delete(turn(), &request).await {
            // The sandbox is ending, and everything with it.
            log::debug!("process {exec} is not deleted: {error}");
        }
    }

    /// The server's part in keeping the process's standard input open ends.
    pub(crate) async fn close_stdin(&self, exec: &str) -> Result<(), ClientError> {
        let (id, exec_id) = (self.id.clone(), exec.to_owned());
        let request = CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
        Ok(self.task.close_io(turn(), &request).await.map(drop)?)
    }

    /// Gives the process's terminal another size, in characters.
    pub(crate) async fn resize(&self, exec: &str, rows: u16, columns: u16) -> Result<(), ClientError> {
        let (id, exec_id) = (self.id.clone(), exec.to_owned());
        let (height, width) = (rows.into(), columns.into());
        let request = ResizePtyRequest { id, exec_id, height, width, ..Default::default() };
        Ok(self.task.resize_pty(limit(), &request).await.map(drop)?)
    }
}

fn limit() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}

fn turn() -> Context {
    ttrpc::context::with_duration(TURN)
}
