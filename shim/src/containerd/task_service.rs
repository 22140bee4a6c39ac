//! The Task service over ttrpc: each method in a few lines, under the names of both its versions.
//!
//! Calls run in tasks of their own, so that a client that gives up leaves nothing half done. Knows the wire; what happens
//! is in [`super::tasks`].

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::*;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::types::task::{ProcessInfo, Status};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::r#async::{Service, TtrpcContext};

use super::error::TaskError;
use super::lifecycle::Phase;
use super::stats;
use super::tasks::{BALLOON, Tasks};

/// The names under which containerd 2 and containerd 1 ask for the same messages.
const NAMES: [&str; 2] = ["containerd.task.v3.Task", "containerd.task.v2.Task"];

#[derive(Clone)]
struct TaskService {
    tasks: Arc<Tasks>,
}

/// The service over `tasks`.
pub(crate) fn services(tasks: &Arc<Tasks>) -> HashMap<String, Service> {
    let service = Arc::new(TaskService { tasks: tasks.clone() });
    let one = |name: &str| create_task(service.clone()).into_values().map(|made| (name.to_owned(), made)).next();
    NAMES.iter().filter_map(|name| one(name)).collect()
}

impl TaskService {
    /// Carries out `work` whether or not the client waits for it.
    async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
    ) -> ttrpc::Result<T> {
        let result = tokio::spawn(work).await.unwrap_or_else(|error| Err(TaskError::Failed(error.to_string())));
        result.map_err(|error| {
            log::debug!("{call}: {error}");
            error.into()
        })
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let tasks = self.tasks.clone();
        self.run("create", async move { tasks.create(&request).await }).await?;
        Ok(CreateTaskResponse { pid: Tasks::pid(), ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let tasks = self.tasks.clone();
        self.run("start", async move { tasks.start(&request.id, &request.exec_id).await }).await?;
        Ok(StartResponse { pid: Tasks::pid(), ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let tasks = self.tasks.clone();
        let exit = self.run("delete", async move { tasks.delete(&request.id, &request.exec_id).await }).await?;
        Ok(DeleteResponse {
            pid: Tasks::pid(),
            exit_status: exit.status,
            exited_at: Some(exit.at.into()).into(),
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.tasks.add_exec(&request)?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        self.tasks.resize(&request.id, &request.exec_id, request.height, request.width).await?;
        Ok(Empty::default())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.tasks.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let stdio = process.stdio();
        let mut response = StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: container.bundle().display().to_string(),
            pid: Tasks::pid(),
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..Default::default()
        };
        let status = match process.phase() {
            Phase::Created => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Paused => Status::PAUSED,
            Phase::Stopped(exit) => {
                response.exit_status = exit.status;
                response.exited_at = Some(exit.at.into()).into();
                Status::STOPPED
            }
        };
        // The same enumeration, generated a second time.
        response.status = protobuf::EnumOrUnknown::from_i32(status as i32);
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let pids = self.tasks.pids(&request.id).await?;
        let mut response = PidsResponse::new();
        for pid in pids {
            let info = ProcessInfo { pid, ..Default::default() };
            let bytes = info.write_to_bytes().map_err(TaskError::failed("the list of processes"))?;
            let info = Message::parse_from_bytes(&bytes).map_err(TaskError::failed("the list of processes"))?;
            response.processes.push(info);
        }
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let tasks = self.tasks.clone();
        self.run("pause", async move { tasks.pause(&request.id).await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let tasks = self.tasks.clone();
        self.run("resume", async move { tasks.resume(&request.id).await }).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let tasks = self.tasks.clone();
        self.run("checkpoint", async move { tasks.save(&request.id, request.path.as_ref()).await }).await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let tasks = self.tasks.clone();
        let KillRequest { id, exec_id, signal, all, .. } = request;
        self.run("kill", async move { tasks.kill(&id, &exec_id, signal, all).await }).await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let process = self.tasks.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let tasks = self.tasks.clone();
        let resources = request.resources.unwrap_or_default();
        let update = async move {
            match resources.type_url.as_str() {
                BALLOON => tasks.inflate_balloon(&request.id, &resources.value).await,
                _ => tasks.update(&request.id, &resources.value).await,
            }
        };
        self.run("update", update).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let exit = self.tasks.process(&request.id, &request.exec_id)?.wait().await;
        Ok(WaitResponse { exit_status: exit.status, exited_at: Some(exit.at.into()).into(), ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let metrics = stats::metrics(&self.tasks.stats(&request.id).await?);
        let value = metrics.write_to_bytes().map_err(TaskError::failed("the metrics"))?;
        let any = Any { type_url: stats::TYPE.to_owned(), value, ..Default::default() };
        Ok(StatsResponse { stats: Some(any).into(), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(ConnectResponse { shim_pid: Tasks::pid(), task_pid: Tasks::pid(), version, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.tasks.shut_down(request.now);
        Ok(Empty::default())
    }
}
