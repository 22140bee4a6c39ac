//! The agent's ttrpc service: each method in a few lines, and errors as status codes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tatami_protocol::agent::{
    Changes, ContainerRequest, CreateContainerRequest, CreateContainerResponse, CreateExecRequest, Empty, Figures,
    GrowthRequest, HelloRequest, HelloResponse, MemoryRequest, MemoryResponse, NetworkRequest, OomRequest, OomResponse,
    ProcessList, ProcessRequest, ProcessorsRequest, ProcessorsResponse, ResizeRequest, ShutdownRequest, SignalRequest,
    StartProcessResponse, Stats, UpdateRequest, Volume, VolumeRequest, WaitResponse,
};
use tatami_protocol::agent_ttrpc::Agent;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use crate::container::Container;
use crate::error::Error;
use crate::process::Process;
use crate::sandbox::{Sandbox, check_id};
use crate::server::Shutdown;
use crate::{cgroup, clock, entropy, figures, memory, mounts, network, processors};

/// The answer to a shutdown must be on its way before the machine restarts; no one waits longer than this for it.
const FAREWELL: Duration = Duration::from_millis(5);

/// When the agent came up, in milliseconds since the kernel did.
pub(crate) struct BootTimes {
    started_ms: f64,
    ready_ms: f64,
}

impl BootTimes {
    /// Started then, ready now.
    pub(crate) fn ready_now(started_ms: f64) -> Self {
        Self { started_ms, ready_ms: clock::since_boot_ms() }
    }
}

/// The service over one sandbox.
pub(crate) struct Service {
    sandbox: Arc<Sandbox>,
    times: BootTimes,
    shutdown: Arc<Shutdown>,
}

impl Service {
    /// Serves `sandbox`; `shutdown` runs after a shutdown has been answered.
    pub(crate) fn new(sandbox: Arc<Sandbox>, times: BootTimes, shutdown: Shutdown) -> Self {
        Self { sandbox, times, shutdown: Arc::new(shutdown) }
    }

    fn container(&self, request: &ContainerRequest) -> ttrpc::Result<Arc<Container>> {
        self.sandbox.container(&request.container_id).map_err(status)
    }

    fn process(&self, container_id: &str, exec_id: &str) -> ttrpc::Result<Arc<Process>> {
        self.sandbox.container(container_id).and_then(|container| container.process(exec_id)).map_err(status)
    }
}

#[async_trait]
impl Agent for Service {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        if request.host_time_ns > 0
            && let Err(cause) = clock::set_ns(request.host_time_ns)
        {
            log::warn!("set the clock: {cause}");
        }
        // Before anything else draws random numbers.
        entropy::add(&request.entropy).map_err(|cause| internal("reseed the random generator", &cause))?;
        self.sandbox.offer_console(request.debug_console);
        if request.moved {
            self.sandbox.lose_streams();
        }
        if !request.shared_tag.is_empty() {
            mounts::share(&request.shared_tag).map_err(|cause| internal("share files", &cause))?;
        }
        Ok(HelloResponse {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            agent_started_ms: self.times.started_ms,
            agent_ready_ms: self.times.ready_ms,
            ..Default::default()
        })
    }

    async fn configure_network(&self, _: &TtrpcContext, request: NetworkRequest) -> ttrpc::Result<Empty> {
        network::configure(&request).map_err(status)?;
        Ok(Empty::default())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let pid = self.sandbox.create(request).await.map_err(status)?;
        Ok(CreateContainerResponse { pid: pid as u32, ..Default::default() })
    }

    async fn delete_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.sandbox.delete(&request.container_id).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn mount_volume(&self, _: &TtrpcContext, request: Volume) -> ttrpc::Result<Empty> {
        self.sandbox.mount_volume(&request).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn unmount_volume(&self, _: &TtrpcContext, request: VolumeRequest) -> ttrpc::Result<Empty> {
        self.sandbox.unmount_volume(&request.folder).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn grow_volume(&self, _: &TtrpcContext, request: GrowthRequest) -> ttrpc::Result<Empty> {
        self.sandbox.grow_volume(&request.folder, request.length).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn create_exec(&self, _: &TtrpcContext, request: CreateExecRequest) -> ttrpc::Result<Empty> {
        check_id(&request.exec_id).map_err(status)?;
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let stdio = request.stdio.into_option().unwrap_or_default();
        container.add_exec(&request.exec_id, &request.process_json, stdio).map_err(status)?;
        Ok(Empty::default())
    }

    async fn start_process(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<StartProcessResponse> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let pid = container.start(&request.exec_id).await.map_err(status)?;
        Ok(StartProcessResponse { pid: pid as u32, ..Default::default() })
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let number = i32::try_from(request.signal).unwrap_or(i32::MAX);
        container.signal(&request.exec_id, number, request.all).map_err(status)?;
        Ok(Empty::default())
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        process.resize(request.rows, request.columns).map_err(status)?;
        Ok(Empty::default())
    }

    async fn wait_process(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitResponse> {
        let exit = self.process(&request.container_id, &request.exec_id)?.wait().await;
        Ok(WaitResponse { exit_status: exit.status, exited_at_ns: exit.at_ns, ..Default::default() })
    }

    async fn delete_exec(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        container.remove_exec(&request.exec_id).map_err(status)?;
        Ok(Empty::default())
    }

    async fn list_processes(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<ProcessList> {
        let pids = self.container(&request)?.pids().map_err(status)?;
        Ok(ProcessList { pids: pids.into_iter().map(|pid| pid as u32).collect(), ..Default::default() })
    }

    async fn get_stats(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Stats> {
        Ok(self.container(&request)?.stats())
    }

    async fn get_figures(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Figures> {
        let (containers, volumes) = (self.sandbox.figures(), self.sandbox.volume_figures());
        Ok(Figures { containers, volumes, ..figures::read(Path::new(figures::PROC)) })
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        container.update(&request.resources_json).map_err(status)?;
        Ok(Empty::default())
    }

    async fn pause_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.container(&request)?.pause(true).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.container(&request)?.pause(false).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: OomRequest) -> ttrpc::Result<OomResponse> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let killed = container.oom_kills(request.seen).await.map_err(status)?;
        Ok(OomResponse { killed, ..Default::default() })
    }

    async fn tell_changes(&self, _: &TtrpcContext, request: Changes) -> ttrpc::Result<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        // Looks files up, which the host may take its time for.
        let told = tokio::task::spawn_blocking(move || sandbox.tell(&request.changes)).await;
        told.map_err(|cause| internal("tell of changes", &cause))?
            .map_err(|cause| ttrpc::Error::RpcStatus(ttrpc::get_status(Code::UNIMPLEMENTED, cause.to_string())))?;
        Ok(Empty::default())
    }

    async fn set_processors(&self, _: &TtrpcContext, request: ProcessorsRequest) -> ttrpc::Result<ProcessorsResponse> {
        // The kernel moves all work off a processor before it goes down.
        let set = move || processors::set_online(Path::new(processors::FOLDER), request.online);
        let set = tokio::task::spawn_blocking(set).await.map_err(|cause| internal("set processors", &cause))?;
        let processors = set.map_err(status)?;
        Ok(ProcessorsResponse { online: processors.online, present: processors.present, ..Default::default() })
    }

    async fn await_memory(&self, _: &TtrpcContext, request: MemoryRequest) -> ttrpc::Result<MemoryResponse> {
        let added_bytes = memory::added(request.added_bytes).await.map_err(status)?;
        Ok(MemoryResponse { added_bytes, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        if let Err(cause) = cgroup::kill_all_containers() {
            log::warn!("kill the containers: {cause}");
        }
        self.sandbox.unmount_all().await;
        rustix::fs::sync();
        let shutdown = Arc::clone(&self.shutdown);
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            shutdown();
        });
        Ok(Empty::default())
    }
}

/// A step that should not fail in a guest of ours.
fn internal(step: &str, cause: &dyn std::fmt::Display) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, format!("{step}: {cause}")))
}

fn status(error: Error) -> ttrpc::Error {
    let code = match &error {
        Error::NotFound(_) => Code::NOT_FOUND,
        Error::AlreadyExists(_) => Code::ALREADY_EXISTS,
        Error::InvalidArgument(_) => Code::INVALID_ARGUMENT,
        Error::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
        Error::PermissionDenied(_) => Code::PERMISSION_DENIED,
        Error::Internal(_) => Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.to_string()))
}
