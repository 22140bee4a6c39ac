//! What happens to the sandbox's containers: every call of the Task service, without its wire.
//!
//! The guest boots while the first container is laid out; whoever needs the guest waits for it here. Knows nothing of
//! ttrpc, nor of how the server came to be.

pub(crate) mod creating;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::events::task::{
    TaskDelete, TaskExecAdded, TaskExecStarted, TaskPaused, TaskResumed, TaskStart,
};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use tatami_protocol::agent::{Stats, Stdio};
use tokio::sync::{Notify, watch};

use super::arguments::is_id;
use super::container::{Container, Exec};
use super::error::TaskError;
use super::events::{Events, Topic};
use super::growth::Growth;
use super::hooks::{self, HostNamespaces};
use super::keeper;
use super::lifecycle::{Exit, KILLED, Phase};
use super::loopback;
use super::network as namespace;
use super::pinning::Pinning;
use super::pod::{self, Pod};
use super::process::Process;
use super::pump::Io;
use super::share;
use super::stdio::StdioPaths;
use super::translate::translate_process;
use crate::network::interfaces::{Network, News};
use crate::sandbox;
use crate::sandbox::Machine;
use crate::sandbox::guest::Guest;
use crate::sandbox::mounts::SharedFolder;
use crate::sandbox::saving::Saver;

/// The type of an update's resources that are the size of the machine's balloon.
pub(crate) const BALLOON: &str = "tatami/balloon-mib";

/// The machine, when it is known what became of it: the reason if there is none.
pub(crate) type Booted = Option<Result<Machine, String>>;

/// The sandbox's containers.
pub(crate) struct Tasks {
    namespace: String,
    guest: watch::Receiver<Booted>,
    /// None where the ground could not be prepared; then there is no guest either.
    shared: Option<Arc<SharedFolder>>,
    host: HostNamespaces,
    events: Events,
    containers: Mutex<HashMap<String, Slot>>,
    /// The guest's process id of the first container's first process.
    first: Mutex<Option<u32>>,
    serial: AtomicU32,
    /// Somebody asked for a container or for the sandbox itself.
    wanted: AtomicBool,
    policy: Policy,
    /// Its network namespace is one in which somebody may look for the containers' ports.
    is_pod: AtomicBool,
    /// The guest's questions to Docker's resolver are answered.
    names: AtomicBool,
    /// Somebody asked for the end, and nothing is against it.
    over: Notify,
    /// How the sandbox is saved, or why it cannot be; nothing where its front end does not do so.
    saver: OnceLock<Result<Saver, String>>,
    /// How large it is; as it was made, where its front end does not offer this.
    growth: OnceLock<Growth>,
    /// On which of the host's processors its vCPUs run, if they are pinned.
    pinning: Option<Pinning>,
    /// What the sandbox's network namespace has, for the guest.
    network: Mutex<Option<SandboxNetwork>>,
}

/// What an operator has set for all containers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    /// Their seccomp profiles are left out.
    pub(super) no_seccomp: bool,
    /// Bytes that the pipes of processes' streams hold in the guest, 0 for what is usual.
    pub(super) pipe_size: u32,
    /// vCPUs run on processors of their own, as containers name them.
    pub(super) pin_vcpus: bool,
    /// The folder in the guest whose programs are hooks of every container, or nothing.
    pub(super) guest_hooks: String,
}

/// A network, and news of it as long as nobody follows them.
struct SandboxNetwork {
    network: Arc<Network>,
    news: Option<News>,
}

enum Slot {
    /// Being created: the id is taken, and there is nothing to talk to.
    Busy,
    /// The same, and who wanted it has given it up.
    GivenUp,
    Ready(Arc<Container>),
}

impl Tasks {
    /// None yet.
    pub(crate) fn new(
        namespace: &str,
        guest: watch::Receiver<Booted>,
        shared: Option<Arc<SharedFolder>>,
        host: HostNamespaces,
        events: Events,
        policy: Policy,
    ) -> Arc<Tasks> {
        Arc::new(Tasks {
            namespace: namespace.to_owned(),
            guest,
            shared,
            host,
            events,
            containers: Mutex::default(),
            first: Mutex::default(),
            serial: AtomicU32::new(1),
            wanted: AtomicBool::new(false),
            is_pod: AtomicBool::new(false),
            names: AtomicBool::new(false),
            over: Notify::new(),
            saver: OnceLock::new(),
            growth: OnceLock::new(),
            pinning: policy.pin_vcpus.then(Pinning::default),
            policy,
            network: Mutex::default(),
        })
    }

    /// The process on the host that stands for every process of the guest: this one.
    pub(super) fn pid() -> u32 {
        std::process::id()
    }

    /// Returns when the sandbox is to end.
    pub(crate) async fn over(&self) {
        self.over.notified().await;
    }

    /// From now on whoever connects to loopback in the sandbox's network namespace reaches the guest's.
    pub(super) fn forward_ports(&self) {
        self.is_pod.store(true, Ordering::Relaxed);
    }

    /// The streams that a process gets in the guest, on a terminal of `size` if on any.
    fn streams(&self, stdio: &StdioPaths, size: (u32, u32)) -> Stdio {
        Stdio { pipe_size: self.policy.pipe_size, ..stdio.wanted(size) }
    }

    /// Somebody knows of the sandbox, and will end it.
    pub(super) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Asks for the sandbox's end if nobody has wanted anything of it after `limit`.
    pub(super) async fn end_unless_wanted(&self, limit: std::time::Duration) {
        tokio::time::sleep(limit).await;
        if !self.wanted.load(Ordering::Relaxed) {
            log::warn!("nobody has asked for a container within {} s: the sandbox ends", limit.as_secs());
            self.shut_down(true);
        }
    }

    /// Asks for the sandbox's end; it comes if no container is left that anybody wants, or with `now`.
    pub(crate) fn shut_down(&self, now: bool) {
        if now || self.lock().values().all(|slot| matches!(slot, Slot::GivenUp)) {
            self.over.notify_one();
        }
    }

    /// Waits for the guest.
    ///
    /// # Errors
    /// [`TaskError::Failed`] says why there is none.
    pub(super) async fn guest(&self) -> Result<Guest, TaskError> {
        self.machine().await.map(|machine| machine.guest)
    }

    async fn machine(&self) -> Result<Machine, TaskError> {
        let mut booted = self.guest.clone();
        let booted = booted.wait_for(Option::is_some).await.ok().and_then(|booted| booted.clone());
        let gone = || Err("the sandbox is ending".to_owned());
        booted.unwrap_or_else(gone).map_err(TaskError::Failed)
    }

    /// The container `id`.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        match self.lock().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            _ => Err(TaskError::NotFound(format!("container {id}"))),
        }
    }

    /// A process of a container.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(crate) fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>, TaskError> {
        self.container(id)?.process(exec)
    }

    /// Starts a process that was created.
    ///
    /// # Errors
    /// Why it does not run.
    pub(crate) async fn start(&self, id: &str, exec: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        if !exec.is_empty() {
            return self.start_exec(&container, exec).await;
        }
        let guest = self.guest().await?;
        let process = container.init();
        let starting = process.starting().await;
        process.life().may_start()?;
        // Docker lays the network out between the container's creation and its start.
        self.join_network(&guest).await.map_err(TaskError::Failed)?;
        // And says only then whom its processes ask for names.
        if !self.names.load(Ordering::Relaxed)
            && container.resolv_conf.as_deref().is_some_and(loopback::asks_docker)
            && !self.names.swap(true, Ordering::Relaxed)
        {
            loopback::answer_names(guest.clone());
        }
        guest.call(guest.agent().start(id, "")).await.map_err(|error| oci_failure("start", error))?;
        process.life().started();
        if let Some(shared) = &self.shared {
            shared.tell_changes(container.place(), id, container.volumes, &guest);
        }
        let event = TaskStart { container_id: id.to_owned(), pid: Tasks::pid(), ..Default::default() };
        self.events.publish(Topic::Start, &event);
        drop(starting);
        let state = hooks::state(&container, "running");
        if let Err(error) = self.host.run(&container.hooks.poststart, &state).await {
            log::warn!("{error}");
        }
        Ok(())
    }

    /// Adds a process that will join a container.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] for what is not understood, [`TaskError::AlreadyExists`],
    /// [`TaskError::FailedPrecondition`] when the container has ended.
    pub(super) fn add_exec(self: &Arc<Self>, request: &ExecProcessRequest) -> Result<(), TaskError> {
        let container = self.container(&request.id)?;
        if !is_id(&request.exec_id) {
            return Err(TaskError::InvalidArgument(format!("the process id {:?} is invalid", request.exec_id)));
        }
        container.init().life().may_change("exec in")?;
        let mut spec: ProcessSpec = serde_json::from_slice(&request.spec.value)
            .map_err(|error| TaskError::InvalidArgument(format!("the process is not a valid description: {error}")))?;
        translate_process(&mut spec);
        let size = spec.console_size().map_or((0, 0), |size| (size.height() as u32, size.width() as u32));
        let json = serde_json::to_vec(&spec).map_err(TaskError::failed("the process's description"))?;
        let stdio = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let keeper = keeper::of(request.spec.as_ref())?;
        let process = Process::new(&request.id, &request.exec_id, stdio);
        container.add(Exec { process: process.clone(), spec: Arc::new(json), size })?;
        if let Some(keeper) = keeper {
            keeper.watch(self, &request.id, process);
        }
        let event =
            TaskExecAdded { container_id: request.id.clone(), exec_id: request.exec_id.clone(), ..Default::default() };
        self.events.publish(Topic::ExecAdded, &event);
        Ok(())
    }

    async fn start_exec(&self, container: &Container, exec_id: &str) -> Result<(), TaskError> {
        let exec = container.exec(exec_id)?;
        let guest = self.guest().await?;
        let process = &exec.process;
        let _starting = process.starting().await;
        process.life().may_start()?;
        if let Err(error) = self.run_exec(container.id(), &exec, &guest).await {
            process.over(255);
            return Err(error);
        }
        process.life().started();
        let event = TaskExecStarted {
            container_id: container.id().to_owned(),
            exec_id: exec_id.to_owned(),
            pid: Tasks::pid(),
            ..Default::default()
        };
        self.events.publish(Topic::ExecStarted, &event);
        process.follow(guest, self.events.clone(), Tasks::pid(), None);
        Ok(())
    }

    /// Makes the process in the guest, joins its streams and starts it; nothing is left in the guest if that fails.
    async fn run_exec(&self, id: &str, exec: &Exec, guest: &Guest) -> Result<(), TaskError> {
        let process = &exec.process;
        let opened = process.stdio().open(id, &self.namespace).await?;
        let wanted = self.streams(process.stdio(), exec.size);
        let agent = guest.agent();
        guest.call(agent.create_exec(id, process.exec(), exec.spec.to_vec(), wanted.clone())).await?;
        let run = async {
            let streams = guest.attach(id, process.exec(), &wanted).await?;
            process.connect(Io::connect(opened, streams));
            guest.call(agent.start(id, process.exec())).await.map_err(|error| oci_failure("exec", error))
        };
        if let Err(error) = run.await {
            let removed = guest.call(agent.delete_exec(id, process.exec())).await;
            removed.unwrap_or_else(|error| log::debug!("process {} remains in the guest: {error}", process.exec()));
            return Err(error);
        }
        Ok(())
    }

    /// From now on the sandbox can be saved, or it is known why not.
    pub(crate) fn offer_saving(&self, saver: Result<Saver, String>) {
        // It is offered once.
        let _ = self.saver.set(saver);
    }

    /// Writes the sandbox, whose only container this is, to `folder`, and has it go on.
    ///
    /// # Errors
    /// [`TaskError::Unimplemented`] where that is not done, [`TaskError::FailedPrecondition`] for what cannot be saved or stands
    /// still, [`TaskError::Failed`].
    pub(super) async fn save(&self, id: &str, folder: &Path) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let saver = match self.saver.get() {
            None => return Err(TaskError::Unimplemented("checkpoints are not supported".to_owned())),
            Some(saver) => saver.as_ref().map_err(|reason| TaskError::FailedPrecondition(reason.clone()))?,
        };
        match container.init().phase() {
            Phase::Running => {}
            Phase::Paused => {
                return Err(TaskError::FailedPrecondition(
                    "it is paused: have it go on with `tatami resume`".to_owned(),
                ));
            }
            Phase::Created | Phase::Stopped(_) => {
                return Err(TaskError::FailedPrecondition("its command does not run".to_owned()));
            }
        }
        saver.save(folder).await.map_err(|error| TaskError::Failed(error.to_string()))
    }

    /// From now on the sandbox is as large as its containers need.
    pub(super) fn offer_growth(&self, growth: Growth) {
        // It is offered once.
        let _ = self.growth.set(growth);
    }

    /// Has vCPUs run where containers, by now, say.
    async fn pin(&self, guest: &Guest) {
        if let (Some(pinning), Some(growth)) = (&self.pinning, self.growth.get()) {
            pinning.follow(guest.vm().pid(), growth.vcpus().await);
        }
    }

    /// From now on this is the sandbox's network.
    pub(super) fn offer_network(&self, (network, news): (Network, News)) {
        let network = SandboxNetwork { network: Arc::new(network), news: Some(news) };
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = Some(network);
    }

    /// From now on the sandbox's network is what the namespace at `path` has. This thread moves there: whoever looks for the sandbox's
    /// namespace looks at it.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn move_to_network(&self, path: &Path) -> Result<(), String> {
        namespace::enter(path).map_err(|error| super::explain(&error))?;
        self.forward_ports();
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = &*network {
            let opened = former.network.here().map_err(|error| format!("the network namespace: {error}"))?;
            *network = Some(SandboxNetwork { network: Arc::new(opened.0), news: Some(opened.1) });
        }
        Ok(())
    }

    /// Joins the guest to the network as far as it is there, and to what will come.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) async fn join_network(&self, guest: &Guest) -> Result<(), String> {
        let (network, news) = match &mut *self.network.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(SandboxNetwork { network, news }) => (network.clone(), news.take()),
            None => return Ok(()),
        };
        if let Some(news) = news {
            network.keep_following(news, guest.clone());
            if self.is_pod.load(Ordering::Relaxed)
                && let Err(error) = loopback::forward(guest.clone())
            {
                log::warn!("no ports are forwarded to the pod: {error}");
            }
        }
        network.follow(guest).await.map_err(|error| error.to_string())
    }

    /// Has the guest hold the pod together, whose containers come later: their namespaces are those of this one's first process.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) async fn hold(&self, guest: &Guest, pod: &Pod) -> Result<(), TaskError> {
        if self.first.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let pid = guest.call(guest.agent().create_container(pod.holder())).await?;
        guest.call(guest.agent().start(pod::ID, "")).await?;
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(pid);
        Ok(())
    }

    /// Leaves the network as it was found.
    pub(super) async fn leave_network(&self) {
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(SandboxNetwork { network, .. }) = network {
            network.end().await;
        }
    }

    /// Sends a signal to a process, or with `all` to all of a container.
    ///
    /// # Errors
    /// [`TaskError::NotFound`] when it has ended.
    pub(super) async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if !all {
            process.life().may_signal()?;
        }
        if signal == libc::SIGKILL as u32 {
            let first = exec.is_empty();
            container.processes().iter().filter(|each| first || each.exec() == exec).for_each(|each| each.relieve());
        }
        let guest = self.guest().await?;
        match guest.call(guest.agent().signal(id, exec, signal, all)).await {
            Ok(()) => Ok(()),
            Err(error) => process.explain_signal(error).await,
        }
    }

    /// Removes a process that has ended or was never started, or a container with all that belongs to it.
    ///
    /// # Errors
    /// [`TaskError::FailedPrecondition`] while it runs; [`TaskError::NotFound`] for a container that is still being made: it goes as soon
    /// as it is.
    pub(super) async fn delete(&self, id: &str, exec: &str) -> Result<Exit, TaskError> {
        let container = self.container(id).inspect_err(|_| self.give_up(id))?;
        let process = container.process(exec)?;
        process.life().delete()?;
        let removed = match exec.is_empty() {
            true => self.remove_container(&container).await,
            false => self.remove_exec(&container, &process).await,
        };
        if let Err(error) = removed {
            process.life().not_deleted();
            return Err(error);
        }
        let exit = process.life().exit().unwrap_or_else(|| Exit::now(if exec.is_empty() { KILLED } else { 0 }));
        if exec.is_empty() {
            self.events.publish(Topic::Delete, &deleted_event(id, exit));
            self.lock().remove(id);
        }
        Ok(exit)
    }

    async fn remove_container(&self, container: &Container) -> Result<(), TaskError> {
        let Machine { guest, volumes, .. } = self.machine().await?;
        removed(guest.call(guest.agent().delete_container(container.id())).await)?;
        release(container).await;
        volumes.leave(&guest, container.id()).await;
        if let Some(growth) = self.growth.get() {
            growth.leave(&guest, container.id()).await;
        }
        if let Some(pinning) = &self.pinning {
            pinning.forget(container.id());
            self.pin(&guest).await;
        }
        if let Some(shared) = &self.shared
            && let Err(error) = shared.clear(container.place())
        {
            // It goes with the sandbox.
            log::warn!("what was laid out for container {} remains: {error}", container.id());
        }
        let state = hooks::state(container, "stopped");
        if let Err(error) = self.host.run(&container.hooks.poststop, &state).await {
            log::warn!("{error}");
        }
        Ok(())
    }

    async fn remove_exec(&self, container: &Container, process: &Process) -> Result<(), TaskError> {
        if process.phase() != Phase::Created {
            let guest = self.guest().await?;
            removed(guest.call(guest.agent().delete_exec(container.id(), process.exec())).await)?;
        }
        container.remove(process.exec());
        Ok(())
    }

    /// Kills every container and waits, at most `limit`, until their ends are told.
    pub(crate) async fn evict(&self, limit: std::time::Duration) {
        let containers: Vec<Arc<Container>> = self
            .lock()
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready(container) => Some(container.clone()),
                Slot::Busy | Slot::GivenUp => None,
            })
            .collect();
        let all = async {
            for container in &containers {
                if let Err(error) = self.kill(container.id(), "", libc::SIGKILL as u32, true).await {
                    log::debug!("container {}: {error}", container.id());
                }
            }
            for container in &containers {
                container.init().wait().await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            log::warn!("containers did not end within {} s", limit.as_secs());
        }
    }

    /// Has all processes of a container stand still.
    ///
    /// # Errors
    /// [`TaskError::FailedPrecondition`] if it does not run.
    pub(super) async fn pause(&self, id: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        container.init().life().may_pause()?;
        let guest = self.guest().await?;
        guest.call(guest.agent().pause(id)).await?;
        container.init().life().paused();
        let event = TaskPaused { container_id: id.to_owned(), ..Default::default() };
        self.events.publish(Topic::Paused, &event);
        Ok(())
    }

    /// Has them go on.
    ///
    /// # Errors
    /// [`TaskError::FailedPrecondition`] if it does not stand still.
    pub(super) async fn resume(&self, id: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        container.init().life().may_resume()?;
        let guest = self.guest().await?;
        guest.call(guest.agent().resume(id)).await?;
        container.init().life().resumed();
        let event = TaskResumed { container_id: id.to_owned(), ..Default::default() };
        self.events.publish(Topic::Resumed, &event);
        Ok(())
    }

    /// Gives a process's terminal another size, in characters.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] if it has none.
    pub(super) async fn resize(&self, id: &str, exec: &str, rows: u32, columns: u32) -> Result<(), TaskError> {
        let process = self.process(id, exec)?;
        process.life().may_change("resize the terminal of")?;
        let limit = |value: u32| value.min(u16::MAX.into()) as u16;
        if !exec.is_empty() && process.phase() == Phase::Created {
            // The guest does not know it yet; clients say it again after the start.
            return Ok(());
        }
        let guest = self.guest().await?;
        Ok(guest.call(guest.agent().resize(id, exec, limit(rows), limit(columns))).await?)
    }

    /// Gives a container other limits.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] for limits that are not understood.
    pub(super) async fn update(&self, id: &str, resources_json: &[u8]) -> Result<(), TaskError> {
        let container = self.container(id)?;
        container.init().life().may_change("update")?;
        let limits: LinuxResources = serde_json::from_slice(resources_json)
            .map_err(|error| TaskError::InvalidArgument(format!("the limits are not understood: {error}")))?;
        let guest = self.guest().await?;
        let change = async { Ok(guest.call(guest.agent().update(id, resources_json.to_vec())).await?) };
        match self.growth.get() {
            Some(growth) => growth.change(&guest, id, &limits, change).await,
            None => change.await,
        }?;
        if let Some(pinning) = &self.pinning {
            if let Some(processors) = share::processors(&limits) {
                pinning.note(id, processors);
            }
            self.pin(&guest).await;
        }
        Ok(())
    }

    /// Has the sandbox's machine do without so many MiB of its memory, four bytes, the lowest first.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] for what is no number, [`TaskError::Failed`] for more than it has.
    pub(super) async fn inflate_balloon(&self, id: &str, mib: &[u8]) -> Result<(), TaskError> {
        self.container(id)?.init().life().may_change("take memory from")?;
        let no_number = |_| TaskError::InvalidArgument("the balloon's size is no number of MiB".to_owned());
        let mib = u32::from_le_bytes(mib.try_into().map_err(no_number)?);
        let guest = self.guest().await?;
        guest.vm().inflate_balloon(mib).await.map_err(|error| TaskError::Failed(error.to_string()))
    }

    /// The processes of a container, by their ids in the guest; for Docker, which looks for them on the host, the one that
    /// stands for them there.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(super) async fn pids(&self, id: &str) -> Result<Vec<u32>, TaskError> {
        let container = self.container(id)?;
        if matches!(container.init().phase(), Phase::Stopped(_)) {
            return Ok(Vec::new());
        }
        if container.host_ps {
            return Ok(vec![Tasks::pid()]);
        }
        let guest = self.guest().await?;
        Ok(guest.call(guest.agent().processes(id)).await?)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// [`TaskError::NotFound`], [`TaskError::FailedPrecondition`] when it has ended.
    pub(super) async fn stats(&self, id: &str) -> Result<Stats, TaskError> {
        let container = self.container(id)?;
        container.init().life().may_change("measure")?;
        let guest = self.guest().await?;
        Ok(guest.call(guest.agent().stats(id)).await?)
    }

    /// What each container uses that runs.
    pub(super) async fn all_stats(&self) -> Vec<Stats> {
        let ids: Vec<String> = self.lock().keys().cloned().collect();
        let mut all = Vec::new();
        for id in ids {
            // One that has ended, or is not there yet, uses nothing.
            all.extend(self.stats(&id).await);
        }
        all
    }

    /// Who asks for a container's removal while it is made waits for it no longer: a client whose time is up, which then forgets it.
    fn give_up(&self, id: &str) {
        if let Some(slot @ Slot::Busy) = self.lock().get_mut(id) {
            log::warn!("container {id} is given up by its client while it is being created");
            *slot = Slot::GivenUp;
        }
    }

    fn claim<'a>(&'a self, id: &'a str) -> Result<Claim<'a>, TaskError> {
        let mut containers = self.lock();
        if containers.contains_key(id) {
            return Err(TaskError::AlreadyExists(format!("container {id}")));
        }
        containers.insert(id.to_owned(), Slot::Busy);
        Ok(Claim { tasks: self, id })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the guest answered to a removal: what is not there any more is removed, with the guest or without.
fn removed(answer: Result<(), sandbox::Error>) -> Result<(), TaskError> {
    match answer {
        Ok(()) => Ok(()),
        Err(error) if error.is_of_dead_guest() => Ok(()),
        Err(error) => match TaskError::from(error) {
            TaskError::NotFound(_) => Ok(()),
            error => Err(error),
        },
    }
}

/// Takes out the disk of a container that is gone from the guest.
async fn release(container: &Container) {
    if let Some(disk) = container.take_disk()
        && let Err(error) = disk.detach().await
    {
        log::debug!("the disk of container {}: {error}", container.id());
    }
}

/// Holds an id; lets it go when dropped.
struct Claim<'a> {
    tasks: &'a Tasks,
    id: &'a str,
}

impl Claim<'_> {
    /// The container is there from now on; back comes the claim of one that was given up.
    fn settle(self, container: Arc<Container>) -> Result<(), Self> {
        let mut containers = self.tasks.lock();
        if matches!(containers.get(self.id), Some(Slot::GivenUp)) {
            drop(containers);
            return Err(self);
        }
        containers.insert(self.id.to_owned(), Slot::Ready(container));
        drop(containers);
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.tasks.lock().remove(self.id);
    }
}

/// A failure in the words in which clients look for its reason.
fn oci_failure(what: &str, error: sandbox::Error) -> TaskError {
    match error {
        sandbox::Error::Command { message, .. } => TaskError::Failed(format!("OCI runtime {what} failed: {message}")),
        error => error.into(),
    }
}

fn deleted_event(id: &str, exit: Exit) -> TaskDelete {
    TaskDelete {
        container_id: id.to_owned(),
        id: id.to_owned(),
        pid: Tasks::pid(),
        exit_status: exit.status,
        exited_at: Some(exit.at.into()).into(),
        ..Default::default()
    }
}
