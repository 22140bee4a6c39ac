//! containerd 2's Sandbox service, for pods whose sandbox has no container of its own.
//!
//! The sandbox boots when its server starts; here it is waited for, looked at and ended. Knows the wire.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::*;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use tokio::sync::watch;
use ttrpc::r#async::{Service, TtrpcContext};

use super::error::TaskError;
use super::lifecycle::{Exit, KILLED};
use super::pod::Pod;
use super::stats;
use super::tasks::Tasks;

/// How long containers may take to end when the sandbox is stopped and its client does not say.
const STOP_LIMIT: Duration = Duration::from_secs(10);

struct SandboxService {
    id: String,
    tasks: Arc<Tasks>,
    pod: Mutex<Pod>,
    created_at: SystemTime,
    started: Mutex<bool>,
    stopped: watch::Sender<Option<Exit>>,
}

/// The service over the sandbox `id`, whose containers are `tasks`.
pub(super) fn services(tasks: &Arc<Tasks>, id: &str) -> HashMap<String, Service> {
    create_sandbox(Arc::new(SandboxService {
        id: id.to_owned(),
        tasks: tasks.clone(),
        pod: Mutex::default(),
        created_at: SystemTime::now(),
        started: Mutex::new(false),
        stopped: watch::Sender::new(None),
    }))
}

impl SandboxService {
    fn check(&self, id: &str) -> Result<(), TaskError> {
        match id == self.id {
            true => Ok(()),
            false => Err(TaskError::NotFound(format!("sandbox {id} in this shim"))),
        }
    }

    fn has_started(&self) -> bool {
        *self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> &'static str {
        // As the CRI plug-in reads it.
        if self.has_started() && self.stopped.borrow().is_none() { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.tasks.want();
        if !request.netns_path.is_empty() {
            self.tasks.move_to_network(Path::new(&request.netns_path)).map_err(TaskError::Failed)?;
        }
        if let Some(options) = request.options.as_ref() {
            let pod = Pod::of(options);
            let pod =
                pod.map_err(|error| TaskError::InvalidArgument(format!("malformed options of the pod: {error}")))?;
            *self.pod.lock().unwrap_or_else(PoisonError::into_inner) = pod;
        }
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let guest = self.tasks.guest().await?;
        self.tasks.join_network(&guest).await.map_err(TaskError::Failed)?;
        let pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.tasks.hold(&guest, &pod).await?;
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let (stopped, vm) = (self.stopped.clone(), guest.vm().clone());
        tokio::spawn(async move {
            vm.over().await;
            stopped.send_if_modified(|exit| exit.is_none() && exit.replace(Exit::now(KILLED)).is_none());
        });
        Ok(StartSandboxResponse {
            pid: Tasks::pid(),
            created_at: Some(self.created_at.into()).into(),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        self.check(&request.sandbox_id)?;
        let mut response = PlatformResponse::default();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        // As Go calls it.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        }
        .to_owned();
        Ok(response)
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, request: StopSandboxRequest) -> ttrpc::Result<StopSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let limit = match request.timeout_secs {
            0 => STOP_LIMIT,
            seconds => Duration::from_secs(seconds.min(600).into()),
        };
        self.tasks.evict(limit).await;
        self.stopped.send_if_modified(|exit| exit.is_none() && exit.replace(Exit::now(0)).is_none());
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, request: WaitSandboxRequest) -> ttrpc::Result<WaitSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let mut stopped = self.stopped.subscribe();
        let exit = stopped.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        let exit = exit.unwrap_or_else(|| Exit::now(KILLED));
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(exit.at.into()).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        self.check(&request.sandbox_id)?;
        let exited = *self.stopped.borrow();
        Ok(SandboxStatusResponse {
            sandbox_id: self.id.clone(),
            pid: Tasks::pid(),
            state: self.state().to_owned(),
            created_at: Some(self.created_at.into()).into(),
            exited_at: exited.map(|exit| exit.at.into()).into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        self.check(&request.sandbox_id)?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.tasks.shut_down(true);
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        self.check(&request.sandbox_id)?;
        let mut response = SandboxMetricsResponse::default();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = Some(SystemTime::now().into()).into();
        metrics.id = self.id.clone();
        let total = stats::metrics(&stats::total(&self.tasks.all_stats().await));
        let value = total.write_to_bytes().map_err(TaskError::failed("the metrics"))?;
        metrics.data = Some(Any { type_url: stats::TYPE.to_owned(), value, ..Default::default() }).into();
        Ok(response)
    }
}
