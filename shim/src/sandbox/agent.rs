//! The server's side of the control channel: what the agent can be asked, with limits on how long it may take to answer.
//!
//! Knows the calls; nothing of when they are due, and of its VM only that it can be asked where it stands.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tatami_protocol::agent::{
    Change, Changes, ContainerRequest, CreateContainerRequest, CreateExecRequest, Empty, Figures, GrowthRequest,
    HelloRequest, HelloResponse, MemoryRequest, NetworkRequest, OomRequest, ProcessRequest, ProcessorsRequest,
    ResizeRequest, ShutdownRequest, SignalRequest, Stats, Stdio, UpdateRequest, Volume, VolumeRequest, WaitResponse,
};
use tatami_protocol::agent_ttrpc::AgentClient;
use tatami_protocol::stream::{Kind, StreamHeader};
use tatami_vmm::process::SHARED_TAG;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use ttrpc::Code;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

use super::door::{Door, DoorError};
use super::vm::VmWatch;

/// How long the agent may take to answer a call that does not wait for a process: on a host that is overcommitted fifty times, too.
const PATIENCE: Duration = Duration::from_secs(300);
/// After how long without an answer it is looked where the guest stands.
const SUSPICION: Duration = Duration::from_secs(60);
/// How long it then has to answer something easy.
const GLANCE: Duration = Duration::from_secs(10);
/// How many streams are attached at the same time: of connections that the agent has not taken yet, the guest's kernel keeps 128, and
/// refuses the others.
const ATTACHING: usize = 64;

/// Random bytes for the guest: as many as its generator's key has, at most 256, of which there is never a part only.
const ENTROPY: usize = 32;

/// A connection to the agent. Cloning is cheap, and clones may call at the same time.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    door: Door,
    /// Who may attach just now.
    turns: Arc<Semaphore>,
    vm: Option<VmWatch>,
}

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no connection.
    #[error("cannot reach the agent: {0}")]
    Door(#[from] DoorError),
    /// This host has no random numbers.
    #[error("no random numbers for the guest: {0}")]
    Random(#[from] io::Error),
    /// The agent answered that it cannot.
    #[error("{message}")]
    Refused {
        /// What it was asked.
        call: &'static str,
        /// The kind of refusal.
        code: Code,
        /// The agent's words.
        message: String,
    },
    /// The connection ended before the answer came.
    #[error("the connection to the agent was lost during {call}: {reason}")]
    Lost {
        /// What it was asked.
        call: &'static str,
        /// What the connection said.
        reason: String,
    },
    /// No answer.
    #[error("the agent did not answer {call} within {} s{whereabouts}", PATIENCE.as_secs())]
    Silent {
        /// What it was asked.
        call: &'static str,
        /// Where the guest stood meanwhile, if it was looked for.
        whereabouts: String,
    },
}

impl Agent {
    /// Connects. The agent must have said that it listens. If it is silent for long, `vm` is asked where it stands.
    ///
    /// # Errors
    /// [`AgentError::Door`] when it does not.
    pub async fn connect(door: Door, vm: Option<VmWatch>) -> Result<Agent, AgentError> {
        let connected = tokio::time::timeout(PATIENCE, door.connect(tatami_protocol::CONTROL_PORT)).await;
        let Ok(stream) = connected else {
            let stands = async |vm: &VmWatch| format!("; the guest stands: {}", vm.describe().await);
            let whereabouts = if let Some(vm) = &vm { stands(vm).await } else { String::new() };
            return Err(AgentError::Silent { call: "connect", whereabouts });
        };
        let turns = Arc::new(Semaphore::new(ATTACHING));
        Ok(Agent { client: AgentClient::new(Client::new(Socket::new(stream?))), door, turns, vm })
    }

    /// Greets it: sets the guest's clock, gives its random generator a new start, and has it mount the shared folder. With `moved` it
    /// hears that the machine was saved with containers in it, and that processes' streams will be attached once more; with `debug_console`,
    /// that there is to be a shell in the guest for who asks for it.
    ///
    /// # Errors
    /// [`AgentError`], as from every call.
    pub async fn hello(&self, moved: bool, debug_console: bool) -> Result<HelloResponse, AgentError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut entropy = vec![0; ENTROPY];
        rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty()).map_err(io::Error::from)?;
        let request = HelloRequest {
            host_time_ns: now.as_nanos() as i64,
            entropy,
            shared_tag: SHARED_TAG.to_owned(),
            moved,
            debug_console,
            ..Default::default()
        };
        self.answer("Hello", self.client.hello(Context::default(), &request)).await
    }

    /// Has the guest's network interfaces named, addressed and brought up.
    ///
    /// # Errors
    /// [`AgentError::Refused`] for an interface that is not there, or an address that cannot be.
    pub async fn configure_network(&self, request: NetworkRequest) -> Result<(), AgentError> {
        self.answer("ConfigureNetwork", self.client.configure_network(Context::default(), &request)).await.map(drop)
    }

    /// Makes a container, up to but not including its process; returns the process's id in the guest.
    ///
    /// # Errors
    /// [`AgentError::Refused`] with NOT_FOUND or PERMISSION_DENIED when the spec's command cannot be executed.
    pub async fn create_container(&self, request: CreateContainerRequest) -> Result<u32, AgentError> {
        Ok(self.answer("CreateContainer", self.client.create_container(Context::default(), &request)).await?.pid)
    }

    /// Mounts a volume, for the containers to come.
    ///
    /// # Errors
    /// [`AgentError::Refused`] when it cannot be mounted: then nothing of it is, and nothing uses its disk.
    pub async fn mount_volume(&self, volume: Volume) -> Result<(), AgentError> {
        self.answer("MountVolume", self.client.mount_volume(Context::default(), &volume)).await.map(drop)
    }

    /// Unmounts a volume whose containers are deleted.
    ///
    /// # Errors
    /// [`AgentError::Refused`] when it is not mounted, or still in use.
    pub async fn unmount_volume(&self, folder: &str) -> Result<(), AgentError> {
        let request = VolumeRequest { folder: folder.to_owned(), ..Default::default() };
        self.answer("UnmountVolume", self.client.unmount_volume(Context::default(), &request)).await.map(drop)
    }

    /// Has a volume's part of its disk, and the file system on it, become `length` bytes long, as the disk has.
    ///
    /// # Errors
    /// [`AgentError::Refused`] for what does not grow.
    pub async fn grow_volume(&self, folder: &str, length: u64) -> Result<(), AgentError> {
        let request = GrowthRequest { folder: folder.to_owned(), length, ..Default::default() };
        self.answer("GrowVolume", self.client.grow_volume(Context::default(), &request)).await.map(drop)
    }

    /// Announces a process that joins a container; its command is looked for when it is started.
    ///
    /// # Errors
    /// [`AgentError::Refused`] with ALREADY_EXISTS for an id that is taken.
    pub async fn create_exec(
        &self,
        container: &str,
        exec: &str,
        process_json: Vec<u8>,
        stdio: Stdio,
    ) -> Result<(), AgentError> {
        let request = CreateExecRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            process_json,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        self.answer("CreateExec", self.client.create_exec(Context::default(), &request)).await.map(drop)
    }

    /// Forgets a process that joined, and has ended or was never started.
    ///
    /// # Errors
    /// [`AgentError::Refused`] while it runs.
    pub async fn delete_exec(&self, container: &str, exec: &str) -> Result<(), AgentError> {
        let request = process(container, exec);
        self.answer("DeleteExec", self.client.delete_exec(Context::default(), &request)).await.map(drop)
    }

    /// Attaches to one of a process's streams. All must be attached before the process is started.
    ///
    /// # Errors
    /// [`AgentError::Door`] when the process has no such stream, or it is attached already.
    pub async fn attach(&self, container: &str, exec: &str, kind: Kind) -> Result<UnixStream, AgentError> {
        let header = StreamHeader {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            kind: kind.into(),
            ..Default::default()
        };
        let attached = async {
            // An error would say that nobody gets a turn any more, which nobody says.
            let _turn = self.turns.acquire().await;
            self.door.stream(&header).await
        };
        Ok(self.limited("attach", attached).await??)
    }

    /// Connects to a port of the guest's loopback.
    ///
    /// # Errors
    /// [`AgentError::Door`] when nobody listens there.
    pub async fn forward(&self, port: u16) -> Result<UnixStream, AgentError> {
        let header = StreamHeader { kind: Kind::FORWARD.into(), port: port.into(), ..Default::default() };
        Ok(self.limited("attach", self.door.stream(&header)).await??)
    }

    /// Has the agent take containers' questions at 127.0.0.11, which come over the stream as [`names`] has them.
    ///
    /// [`names`]: tatami_protocol::names
    ///
    /// # Errors
    /// [`AgentError::Door`] when it does so already.
    pub async fn names(&self) -> Result<UnixStream, AgentError> {
        let header = StreamHeader { kind: Kind::NAMES.into(), ..Default::default() };
        Ok(self.limited("attach", self.door.stream(&header)).await??)
    }

    /// Starts a process that was created.
    ///
    /// # Errors
    /// [`AgentError::Refused`] with NOT_FOUND or PERMISSION_DENIED when its command cannot be executed.
    pub async fn start(&self, container: &str, exec: &str) -> Result<u32, AgentError> {
        let request = process(container, exec);
        Ok(self.answer("StartProcess", self.client.start_process(Context::default(), &request)).await?.pid)
    }

    /// Sends a signal, to one process or to all of the container.
    ///
    /// # Errors
    /// [`AgentError::Refused`] with NOT_FOUND when the process is gone.
    pub async fn signal(&self, container: &str, exec: &str, signal: u32, all: bool) -> Result<(), AgentError> {
        let request = SignalRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.answer("SignalProcess", self.client.signal_process(Context::default(), &request)).await.map(drop)
    }

    /// Gives a process's terminal another size.
    ///
    /// # Errors
    /// [`AgentError::Refused`] when it has none.
    pub async fn resize(&self, container: &str, exec: &str, rows: u16, columns: u16) -> Result<(), AgentError> {
        let request = ResizeRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            rows: rows.into(),
            columns: columns.into(),
            ..Default::default()
        };
        self.answer("ResizeTerminal", self.client.resize_terminal(Context::default(), &request)).await.map(drop)
    }

    /// Waits for a process's end, as long as it takes.
    ///
    /// # Errors
    /// [`AgentError::Lost`] when the guest ends first.
    pub async fn wait(&self, container: &str, exec: &str) -> Result<WaitResponse, AgentError> {
        let request = process(container, exec);
        let result = self.client.wait_process(Context::default(), &request).await;
        result.map_err(|error| explain("WaitProcess", error))
    }

    /// Removes a container that has ended.
    ///
    /// # Errors
    /// [`AgentError::Refused`] when it has not.
    pub async fn delete_container(&self, id: &str) -> Result<(), AgentError> {
        self.answer("DeleteContainer", self.client.delete_container(Context::default(), &container(id))).await.map(drop)
    }

    /// The ids, in the guest, of a container's processes.
    ///
    /// # Errors
    /// [`AgentError`], as from every call.
    pub async fn processes(&self, id: &str) -> Result<Vec<u32>, AgentError> {
        let request = container(id);
        Ok(self.answer("ListProcesses", self.client.list_processes(Context::default(), &request)).await?.pids)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// [`AgentError`], as from every call.
    pub async fn stats(&self, id: &str) -> Result<Stats, AgentError> {
        self.answer("GetStats", self.client.get_stats(Context::default(), &container(id))).await
    }

    /// What the guest as a whole uses, and each of its containers.
    ///
    /// # Errors
    /// [`AgentError`], as from every call.
    pub async fn figures(&self) -> Result<Figures, AgentError> {
        self.answer("GetFigures", self.client.get_figures(Context::default(), &Empty::default())).await
    }

    /// Gives a container other limits: `linux.resources` of a specification, in which what is missing stays as it is.
    ///
    /// # Errors
    /// [`AgentError::Refused`] for a limit that the guest cannot hold.
    pub async fn update(&self, id: &str, resources_json: Vec<u8>) -> Result<(), AgentError> {
        let request = UpdateRequest { container_id: id.to_owned(), resources_json, ..Default::default() };
        self.answer("UpdateContainer", self.client.update_container(Context::default(), &request)).await.map(drop)
    }

    /// Has all processes of a container stand still.
    ///
    /// # Errors
    /// [`AgentError`], as from every call.
    pub async fn pause(&self, id: &str) -> Result<(), AgentError> {
        self.answer("PauseContainer", self.client.pause_container(Context::default(), &container(id))).await.map(drop)
    }

    /// Has them go on.
    ///
    /// # Errors
    /// [`AgentError`], as from every call.
    pub async fn resume(&self, id: &str) -> Result<(), AgentError> {
        self.answer("ResumeContainer", self.client.resume_container(Context::default(), &container(id))).await.map(drop)
    }

    /// Returns when the guest's kernel has killed more than `seen` processes of a container for want of memory, and how
    /// many it were.
    ///
    /// # Errors
    /// [`AgentError::Refused`] with NOT_FOUND when the container is deleted.
    pub async fn wait_oom(&self, id: &str, seen: u64) -> Result<u64, AgentError> {
        let request = OomRequest { container_id: id.to_owned(), seen, ..Default::default() };
        let result = self.client.wait_oom(Context::default(), &request).await;
        result.map(|response| response.killed).map_err(|error| explain("WaitOom", error))
    }

    /// Tells it of changes on the host.
    ///
    /// # Errors
    /// [`AgentError::Refused`] with UNIMPLEMENTED when the guest's kernel cannot tell those who watch.
    pub async fn tell_changes(&self, changes: Vec<Change>) -> Result<(), AgentError> {
        let request = Changes { changes, ..Default::default() };
        self.answer("TellChanges", self.client.tell_changes(Context::default(), &request)).await.map(drop)
    }

    /// Has so many of the guest's processors run, of those that its machine was made with; says how many do.
    ///
    /// # Errors
    /// [`AgentError::Refused`] when there are fewer, or one does not come up or go down.
    pub async fn set_processors(&self, online: u32) -> Result<u32, AgentError> {
        let request = ProcessorsRequest { online, ..Default::default() };
        Ok(self.answer("SetProcessors", self.client.set_processors(Context::default(), &request)).await?.online)
    }

    /// Returns when so many bytes of memory have come to what the guest began with, or after a while; says how many have.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn await_memory(&self, added_bytes: u64) -> Result<u64, AgentError> {
        let request = MemoryRequest { added_bytes, ..Default::default() };
        Ok(self.answer("AwaitMemory", self.client.await_memory(Context::default(), &request)).await?.added_bytes)
    }

    /// Ends all containers and syncs; the guest then resets itself.
    ///
    /// # Errors
    /// [`AgentError::Silent`] when that takes longer than `patience`.
    pub async fn shutdown(&self, patience: Duration) -> Result<(), AgentError> {
        let request = ShutdownRequest::default();
        let call = self.client.shutdown(Context::default(), &request);
        match tokio::time::timeout(patience, call).await {
            Ok(result) => result.map(drop).map_err(|error| explain("Shutdown", error)),
            Err(_) => Err(AgentError::Silent { call: "Shutdown", whereabouts: String::new() }),
        }
    }
}

impl Agent {
    async fn answer<T>(
        &self,
        call: &'static str,
        future: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        self.limited(call, future).await?.map_err(|error| explain(call, error))
    }

    /// Waits for an answer, but not for ever: if there is none for long, says in the log and in the error where the guest stands.
    async fn limited<T>(&self, call: &'static str, future: impl Future<Output = T>) -> Result<T, AgentError> {
        let mut future = std::pin::pin!(future);
        if let Ok(answer) = tokio::time::timeout(SUSPICION, &mut future).await {
            return Ok(answer);
        }
        let whereabouts = self.whereabouts().await;
        log::warn!("the agent has not answered {call} for {} s; {whereabouts}", SUSPICION.as_secs());
        match tokio::time::timeout(PATIENCE - SUSPICION, future).await {
            Ok(answer) => {
                log::warn!("the agent has answered {call} after all");
                Ok(answer)
            }
            Err(_) => Err(AgentError::Silent { call, whereabouts: format!("; {whereabouts}") }),
        }
    }

    /// Where the guest stands, and whether the agent answers anything.
    async fn whereabouts(&self) -> String {
        let guest = match &self.vm {
            Some(vm) => vm.describe().await,
            None => "nobody knows where".to_owned(),
        };
        let request = Empty::default();
        let figures = self.client.get_figures(Context::default(), &request);
        let answers = match tokio::time::timeout(GLANCE, figures).await {
            Ok(Ok(_)) => "answers",
            Ok(Err(_)) => "refuses",
            Err(_) => "does not answer",
        };
        format!("it {answers} another call, and the guest stands: {guest}")
    }
}

impl AgentError {
    /// The kind of refusal, if the agent answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            AgentError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

fn container(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: id.to_owned(), ..Default::default() }
}

fn process(container: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: container.to_owned(), exec_id: exec.to_owned(), ..Default::default() }
}

fn explain(call: &'static str, error: ttrpc::Error) -> AgentError {
    match error {
        ttrpc::Error::RpcStatus(status) => {
            AgentError::Refused { call, code: status.code(), message: status.message().to_owned() }
        }
        other => AgentError::Lost { call, reason: other.to_string() },
    }
}
