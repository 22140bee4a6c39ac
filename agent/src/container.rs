//! One container: made from a specification, started, joined by further processes, removed without a trace.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::oci_spec::runtime::{LinuxResources, Process as ProcessSpec, Spec};
use tatami_protocol::agent::{Stats, Stdio};
use tokio::sync::watch;

use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::guest;
use crate::hooks;
use crate::join::{Joining, Shared};
use crate::launch::{Launcher, Reports};
use crate::limits::{self, Plan};
use crate::nodes::Numbers;
use crate::process::Process;
use crate::reaper::Exit;
use crate::sysctl;
use crate::tmpfs::Tmpfses;
use crate::wire::{Action, Request};

/// Where bundles are: specification and process files of each container.
const BUNDLES: &str = "/run/tatami/containers";
/// Where libcontainer keeps its state.
const STATES: &str = "/run/tatami/state";

/// A container whose first process exists.
pub(crate) struct Container {
    id: String,
    launcher: Launcher,
    cgroup: Cgroup,
    numbers: Numbers,
    hooks: LateHooks,
    init: Arc<Process>,
    /// What processes that join have in common with the first.
    shared: Shared,
    /// Tells whether the first process became its command.
    reports: Mutex<Option<Reports>>,
    execs: Mutex<HashMap<String, Exec>>,
    /// All its processes stand still.
    paused: tokio::sync::RwLock<bool>,
    /// It is deleted: nothing will happen to it any more.
    gone: watch::Sender<bool>,
}

/// What a container is to be.
pub(crate) struct Description<'a> {
    /// `config.json`.
    pub(crate) spec: &'a [u8],
    /// The folder of the guest's own hooks, or nothing.
    pub(crate) guest_hooks: &'a str,
}

/// Hooks that run after creation, which have libcontainer wait for children: work for a creator, not for PID 1.
struct LateHooks {
    start: bool,
    delete: bool,
}

/// A process that joins, or joined, the container.
#[derive(Clone)]
struct Exec {
    process: Arc<Process>,
    spec: Arc<ProcessSpec>,
}

impl Container {
    /// Makes the container up to, but not including, the user's command.
    ///
    /// # Errors
    /// Why there is none; nothing is left of it.
    pub(crate) async fn create(
        launcher: &Launcher,
        id: &str,
        description: Description<'_>,
        stdio: Stdio,
        numbers: Numbers,
    ) -> Result<Self, Error> {
        let cgroup = Cgroup::of(id);
        let Adapted { mut spec, owner, plan, shared } = adapt(description.spec, &cgroup, stdio.terminal, &numbers)?;
        if !description.guest_hooks.is_empty() {
            hooks::add(&mut spec, Path::new(description.guest_hooks));
        }
        let hooks = late_hooks(&spec);
        let bundle = Path::new(BUNDLES).join(id);
        let init = Process::new(stdio);
        let made = async {
            // Here only until the container has them.
            let _filled = Tmpfses::mount(&mut spec, &bundle)?.fill().await?;
            write_bundle(&bundle, &spec).map_err(Error::internal(format!("write {}", bundle.display())))?;
            cgroup.create(&plan)?;
            let describe = |terminal| request(id, Action::Create { bundle: bundle.clone(), terminal });
            let launched = init.launch(launcher, owner, describe).await?;
            cgroup.limit_pids(&plan)?;
            Ok(launched)
        };
        let launched = match made.await {
            Ok(launched) => launched,
            Err(error) => {
                remove(id, &cgroup).await.unwrap_or_else(|rest| log::warn!("remove what is left of {id}: {rest}"));
                return Err(error);
            }
        };
        init.supervise(launched.exit);
        let reports = Mutex::new(Some(launched.reports));
        Ok(Self {
            id: id.to_owned(),
            launcher: launcher.clone(),
            cgroup,
            numbers,
            hooks,
            init,
            shared,
            reports,
            execs: Mutex::default(),
            paused: Default::default(),
            gone: watch::Sender::new(false),
        })
    }

    /// The process of that id; the first one for an empty id.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        if exec_id.is_empty() { Ok(Arc::clone(&self.init)) } else { self.exec(exec_id).map(|exec| exec.process) }
    }

    /// Nobody is at the other end of its processes' streams any more; whoever comes may attach to them.
    pub(crate) fn lose_streams(&self) {
        self.init.lose_streams();
        self.execs().values().for_each(|exec| exec.process.lose_streams());
    }

    /// Announces a process that will join.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a malformed description, [`Error::AlreadyExists`] for a taken id.
    pub(crate) fn add_exec(&self, exec_id: &str, spec: &[u8], stdio: Stdio) -> Result<(), Error> {
        let mut spec: ProcessSpec = serde_json::from_slice(spec)
            .map_err(|cause| Error::InvalidArgument(format!("malformed process description: {cause}")))?;
        adapt_process(&mut spec, stdio.terminal)?;
        let mut execs = self.execs();
        if execs.contains_key(exec_id) {
            return Err(Error::AlreadyExists(format!("process {exec_id} exists already in container {}", self.id)));
        }
        execs.insert(exec_id.to_owned(), Exec { process: Process::new(stdio), spec: Arc::new(spec) });
        Ok(())
    }

    /// Forgets a process that joined.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::FailedPrecondition`] while it runs.
    pub(crate) fn remove_exec(&self, exec_id: &str) -> Result<(), Error> {
        let exec = self.exec(exec_id)?;
        if !exec.process.deletable() {
            return Err(Error::FailedPrecondition(format!("process {exec_id} is running: signal it first")));
        }
        exec.process.close();
        self.execs().remove(exec_id);
        Ok(())
    }

    /// Starts a process and returns its id, once its command runs.
    ///
    /// # Errors
    /// Why it does not run.
    pub(crate) async fn start(&self, exec_id: &str) -> Result<i32, Error> {
        let process = if exec_id.is_empty() { self.start_init().await? } else { self.start_exec(exec_id).await? };
        process.pid().ok_or_else(|| Error::Internal("a process without an id".to_owned()))
    }

    /// Sends signal `number` to one process, or to all.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it has ended.
    pub(crate) fn signal(&self, exec_id: &str, number: i32, all: bool) -> Result<(), Error> {
        match all {
            true => self.cgroup.signal(number).map_err(Error::internal(format!("send signal {number} to all"))),
            false => self.process(exec_id)?.signal(&self.launcher.reaper, number),
        }
    }

    /// The ids of all its processes.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn pids(&self) -> Result<Vec<i32>, Error> {
        self.cgroup.pids().map_err(Error::internal(format!("list the processes of container {}", self.id)))
    }

    /// What it uses.
    pub(crate) fn stats(&self) -> Stats {
        self.cgroup.stats()
    }

    /// Sets the limits that `resources`, a JSON object, names.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that this guest cannot carry out.
    pub(crate) fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let resources: LinuxResources = serde_json::from_slice(resources)
            .map_err(|cause| Error::InvalidArgument(format!("malformed resources: {cause}")))?;
        self.cgroup.update(&plan_of(&resources, &self.numbers)?)
    }

    /// Makes all its processes stand still, or run again.
    ///
    /// # Errors
    /// When one does not stop.
    pub(crate) async fn pause(&self, pause: bool) -> Result<(), Error> {
        let mut paused = self.paused.write().await;
        let doing = if pause { "pause" } else { "resume" };
        self.cgroup.freeze(pause).await.map_err(Error::internal(format!("{doing} container {}", self.id)))?;
        *paused = pause;
        Ok(())
    }

    /// Waits for more than `seen` kills for want of memory.
    ///
    /// # Errors
    /// [`Error::NotFound`] once the container is deleted.
    pub(crate) async fn oom_kills(&self, seen: u64) -> Result<u64, Error> {
        let mut gone = self.gone.subscribe();
        let deleted = || Error::NotFound(format!("container {} is deleted", self.id));
        tokio::select! {
            killed = self.cgroup.oom_kills(seen) => killed.map_err(|cause| match *self.gone.borrow() {
                true => deleted(),
                false => Error::internal("watch the container's memory")(cause),
            }),
            // The sender is in `self`, so it cannot be gone.
            _ = gone.wait_for(|gone| *gone) => Err(deleted()),
        }
    }

    /// Ends every process and removes all that was made for the container.
    ///
    /// # Errors
    /// What could not be removed.
    pub(crate) async fn delete(&self) -> Result<(), Error> {
        self.cgroup.kill().map_err(Error::internal(format!("kill container {}", self.id)))?;
        self.init.ended().await;
        self.init.close();
        let execs: Vec<Exec> = self.execs().drain().map(|(_, exec)| exec).collect();
        for exec in execs {
            exec.process.close();
        }
        if self.hooks.delete
            && let Err(error) = self.launcher.perform(&request(&self.id, Action::Delete)).await
        {
            // The container goes all the same, as the specification of runtimes has it.
            log::warn!("the poststop hooks of container {}: {error}", self.id);
        }
        self.gone.send_replace(true);
        remove(&self.id, &self.cgroup).await
    }

    async fn start_init(&self) -> Result<Arc<Process>, Error> {
        self.init.claim_start()?;
        self.init.connect();
        if self.hooks.start {
            self.launcher.perform(&request(&self.id, Action::Start)).await?;
        } else {
            // All that libcontainer's start does for a container without hooks, but for the state that it writes down.
            let mut signal = NotifySocket::new(Path::new(STATES).join(&self.id).join(NOTIFY_FILE));
            signal.notify_container_start().map_err(|cause| Error::Internal(format!("start the process: {cause}")))?;
        }
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut reports) = reports {
            reports.executed().await?;
        }
        Ok(Arc::clone(&self.init))
    }

    async fn start_exec(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        let Exec { process, spec } = self.exec(exec_id)?;
        // Held until it has joined: what joins a paused container would stop half-way.
        let paused = self.paused.read().await;
        if *paused {
            return Err(Error::FailedPrecondition(format!("container {} is paused: resume it first", self.id)));
        }
        let init = match self.init.pid() {
            Some(pid) if !self.init.has_ended() => pid,
            _ => return Err(Error::FailedPrecondition(format!("container {} does not run", self.id))),
        };
        process.claim_start()?;
        let owner = owner(&spec);
        let joining =
            Joining { process: (*spec).clone(), shared: self.shared.clone(), init, cgroup: self.cgroup.folder() };
        let file = Path::new(BUNDLES).join(&self.id).join(format!("{exec_id}.process.json"));
        let written = serde_json::to_vec(&joining).map_err(Into::into).and_then(|json| fs::write(&file, json));
        written.map_err(Error::internal(format!("write {}", file.display())))?;
        let describe = |terminal| request(&self.id, Action::Join { joining: file.clone(), terminal });
        let launched = process.launch(&self.launcher, owner, describe).await;
        // Read by now, or never.
        let _ = fs::remove_file(&file);
        match launched {
            Ok(launched) => {
                process.connect();
                process.supervise(launched.exit);
                Ok(process)
            }
            Err(error) => {
                process.finish(Exit::now(failed_status(&error))).await;
                Err(error)
            }
        }
    }

    fn exec(&self, exec_id: &str) -> Result<Exec, Error> {
        let found = self.execs().get(exec_id).cloned();
        found.ok_or_else(|| Error::NotFound(format!("no process {exec_id} in container {}", self.id)))
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The specification as this guest carries it out.
struct Adapted {
    spec: Spec,
    /// Who the first process runs as.
    owner: (u32, u32),
    /// Its limits, which the agent sets itself.
    plan: Plan,
    shared: Shared,
}

fn adapt(spec: &[u8], cgroup: &Cgroup, terminal: bool, numbers: &Numbers) -> Result<Adapted, Error> {
    let invalid = |what: &str| Error::InvalidArgument(format!("the specification has no {what}"));
    let mut spec: Spec = serde_json::from_slice(spec)
        .map_err(|cause| Error::InvalidArgument(format!("malformed specification: {cause}")))?;
    let root = spec.root().as_ref().ok_or_else(|| invalid("root"))?.path();
    if !root.is_absolute() {
        return Err(Error::InvalidArgument(format!("root path {} is not absolute", root.display())));
    }
    if !root.is_dir() {
        return Err(Error::InvalidArgument(format!("root path {}: no such folder in the guest", root.display())));
    }
    let process = spec.process_mut().as_mut().ok_or_else(|| invalid("process"))?;
    adapt_process(process, terminal)?;
    let owner = owner(process);
    // The host's groups mean nothing here: one flat level, named like the container.
    let linux = spec.linux_mut().as_mut().ok_or_else(|| invalid("linux section"))?;
    linux.set_cgroups_path(Some(cgroup.path().to_path_buf()));
    sysctl::apply_network(linux)?;
    numbers.renumber_nodes(linux)?;
    let resources = linux.resources().clone().unwrap_or_default();
    linux.set_resources(None);
    let plan = plan_of(&resources, numbers)?;
    guest::check(linux)?;
    let shared = Shared {
        namespaces: Shared::flags(linux.namespaces().as_deref().unwrap_or_default()),
        seccomp: linux.seccomp().clone(),
        personality: linux.personality().clone(),
    };
    Ok(Adapted { spec, owner, plan, shared })
}

fn plan_of(resources: &LinuxResources, numbers: &Numbers) -> Result<Plan, Error> {
    limits::plan(resources, numbers).map_err(|refusal| Error::InvalidArgument(refusal.to_string()))
}

fn adapt_process(process: &mut ProcessSpec, terminal: bool) -> Result<(), Error> {
    process.set_terminal(Some(terminal));
    // libcontainer takes an explicit "no" for a "yes" when it chooses the moment to load a seccomp profile.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    if process.apparmor_profile().as_deref().is_some_and(|profile| ["", "unconfined"].contains(&profile)) {
        process.set_apparmor_profile(None);
    }
    guest::check_process(process)
}

fn owner(process: &ProcessSpec) -> (u32, u32) {
    (process.user().uid(), process.user().gid())
}

fn late_hooks(spec: &Spec) -> LateHooks {
    let some = |hooks: Option<usize>| hooks.is_some_and(|count| count > 0);
    let hooks = spec.hooks().as_ref();
    LateHooks {
        start: some(hooks.and_then(|hooks| hooks.poststart().as_ref()).map(Vec::len)),
        delete: some(hooks.and_then(|hooks| hooks.poststop().as_ref()).map(Vec::len)),
    }
}

fn write_bundle(bundle: &Path, spec: &Spec) -> std::io::Result<()> {
    fs::create_dir_all(STATES)?;
    fs::create_dir_all(bundle)?;
    fs::write(bundle.join("config.json"), serde_json::to_vec(spec)?)
}

/// Removes group, state and bundle; what is not there is no error.
async fn remove(id: &str, cgroup: &Cgroup) -> Result<(), Error> {
    cgroup.kill().map_err(Error::internal(format!("kill container {id}")))?;
    cgroup.remove().await.map_err(Error::internal(format!("remove the cgroup of container {id}")))?;
    for folder in [Path::new(STATES).join(id), Path::new(BUNDLES).join(id)] {
        match fs::remove_dir_all(&folder) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::internal(format!("remove {}", folder.display()))(cause));
            }
            _ => {}
        }
    }
    Ok(())
}

fn request(id: &str, action: Action) -> Request {
    Request { state: PathBuf::from(STATES), id: id.to_owned(), action }
}

/// The status by which a shell would tell the same.
fn failed_status(error: &Error) -> u32 {
    match error {
        Error::NotFound(_) => 127,
        Error::PermissionDenied(_) => 126,
        _ => 255,
    }
}
