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
/// How long it may take to write a sandbox down: as long as its memory and its files are large.
const SAVING: Duration = Duration::from_secs(3600);
/// How long it may take a server to say how it is.
const GLANCE: Duration = Duration::from_secs(3);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Its server refuses, and says why.
    #[error("{1}")]
    Refused(Code, String),
    /// It is not there, or went away.
    #[error("its sandbox server does not answer: {0}")]
    Lost(String),
}

/// A connection. Cloning is cheap; clones are the same connection.
#[derive(Clone)]
pub(super) struct Client {
    task: TaskClient,
    id: String,
}

/// The streams of a process that joins: fifos.
#[derive(Clone, Debug, Default)]
pub(super) struct ExecStreams {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) terminal: bool,
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
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, ClientError::Refused(Code::NOT_FOUND, _))
    }
}

impl Client {
    /// A connection to the server of `entry`.
    ///
    /// # Errors
    /// [`ClientError::Lost`].
    pub(super) async fn connect(entry: &Entry) -> Result<Client, ClientError> {
        let stream = UnixStream::connect(server::socket(entry.found.state())).await;
        let stream = stream.map_err(|error| ClientError::Lost(error.to_string()))?;
        Ok(Client {
            task: TaskClient::new(Connection::new(Socket::new(stream))),
            id: entry.record.container().to_owned(),
        })
    }

    /// Whether the container stands still.
    pub(super) async fn is_paused(&self) -> Result<bool, ClientError> {
        let request = StateRequest { id: self.id.clone(), ..Default::default() };
        let state = self.task.state(ttrpc::context::with_duration(GLANCE), &request).await?;
        Ok(state.status.value() == Status::PAUSED as i32)
    }

    /// Sends a signal to the process `exec`, the first for an empty id; with `all` to every process of the container.
    pub(super) async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<(), ClientError> {
        let (id, exec_id) = (self.id.clone(), exec.to_owned());
        let request = KillRequest { id, exec_id, signal, all, ..Default::default() };
        Ok(self.task.kill(limit(), &request).await.map(drop)?)
    }

    /// Returns when the process has ended, and its output is written; with its status.
    pub(super) async fn wait(&self, exec: &str) -> Result<u32, ClientError> {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        Ok(self.task.wait(Context::default(), &request).await?.exit_status)
    }

    pub(super) async fn pause(&self) -> Result<(), ClientError> {
        let request = PauseRequest { id: self.id.clone(), ..Default::default() };
        Ok(self.task.pause(limit(), &request).await.map(drop)?)
    }

    pub(super) async fn resume(&self) -> Result<(), ClientError> {
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
    pub(super) async fn save(&self, folder: &Path) -> Result<(), ClientError> {
        let path = folder.display().to_string();
        let request = CheckpointTaskRequest { id: self.id.clone(), path, ..Default::default() };
        let context = ttrpc::context::with_duration(SAVING);
        Ok(self.task.checkpoint(context, &request).await.map(drop)?)
    }

    /// Has a process join the container, `process` of a specification, and starts it.
    pub(super) async fn exec(&self, exec: &str, process: Vec<u8>, streams: &ExecStreams) -> Result<(), ClientError> {
        let spec = Any { value: process, ..Default::default() };
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
        self.task.exec(limit(), &request).await?;
        let request = StartRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        let started = self.task.start(limit(), &request).await;
        if started.is_err() {
            self.delete(exec).await;
        }
        Ok(started.map(drop)?)
    }

    /// Has the server forget a process that has ended.
    pub(super) async fn delete(&self, exec: &str) {
        let request = DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        if let Err(error) = self.task.delete(limit(), &request).await {
            // The sandbox is ending, and everything with it.
            log::debug!("process {exec} is not deleted: {error}");
        }
    }

    /// The server's part in keeping the process's standard input open ends.
    pub(super) async fn close_stdin(&self, exec: &str) -> Result<(), ClientError> {
        let (id, exec_id) = (self.id.clone(), exec.to_owned());
        let request = CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
        Ok(self.task.close_io(limit(), &request).await.map(drop)?)
    }

    /// Gives the process's terminal another size, in characters.
    pub(super) async fn resize(&self, exec: &str, rows: u16, columns: u16) -> Result<(), ClientError> {
        let (id, exec_id) = (self.id.clone(), exec.to_owned());
        let (height, width) = (rows.into(), columns.into());
        let request = ResizePtyRequest { id, exec_id, height, width, ..Default::default() };
        Ok(self.task.resize_pty(limit(), &request).await.map(drop)?)
    }
}

fn limit() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}
