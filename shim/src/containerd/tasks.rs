//! What happens to the sandbox's containers: every call of the Task service, without its wire. How they come, what is done to their
//! processes, what they use and how they go is in a module each, as is the sandbox's network.
//!
//! The guest boots while the first container is laid out; whoever needs the guest waits for it here. Knows nothing of
//! ttrpc, nor of how the server came to be.

pub(crate) mod creating;
mod network;
mod processes;
mod removing;
mod resources;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tatami_protocol::agent::Stdio;
use tokio::sync::{Notify, watch};

use self::network::SandboxNetwork;
use super::container::Container;
use super::error::TaskError;
use super::events::Events;
use super::growth::Growth;
use super::hooks::HostNamespaces;
use super::lifecycle::Phase;
use super::pinning::Pinning;
use super::pod::{self, Pod};
use super::process::Process;
use super::stdio::StdioPaths;
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
