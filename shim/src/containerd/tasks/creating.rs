//! How a container comes to be: laid out on the host while the guest boots, then made in the guest.
//!
//! From a bundle, as containerd and its like bring it, or from what another front end lays out itself. What happens to a
//! container afterwards is in [`super`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO, TaskStart};
use protobuf::Message;
use tatami_protocol::agent::{CreateContainerRequest, Stdio};

use super::super::arguments::is_id;
use super::super::bundle;
use super::super::container::Container;
use super::super::error::TaskError;
use super::super::events::Topic;
use super::super::hooks;
use super::super::host_ps::asks_the_host;
use super::super::keeper::{self, Keeper};
use super::super::lifecycle::Exit;
use super::super::loopback;
use super::super::memory_watch::MemoryWatch;
use super::super::process::Process;
use super::super::pump::Io;
use super::super::rootfs;
use super::super::share::{self, Share};
use super::super::stdio::{Opened, StdioPaths};
use super::super::translate::{Known, Plan};
use super::removing::release;
use super::{PoisonError, Slot, Tasks, oci_failure};
use crate::sandbox::Machine;
use crate::sandbox::disks::DeviceImage;
use crate::sandbox::mounts::{Layout, Root, SharedFolder};
use crate::sandbox::volumes::GuestVolume;

/// A container that its front end lays out: for one whose specification is not in a bundle.
pub(crate) struct Composed {
    pub(crate) id: String,
    /// The folder that is the container's on the host.
    pub(crate) folder: PathBuf,
    /// How many files and folders of the host it sees.
    pub(crate) volumes: usize,
    /// The names of its streams, for those who ask.
    pub(crate) stdio: StdioPaths,
    /// The streams themselves.
    pub(crate) opened: Opened,
}

/// What a front end lays out for a container of its own.
pub(crate) struct Composition {
    /// As the guest reads it.
    pub(crate) spec: Vec<u8>,
    pub(crate) root: Root,
    /// Its block devices.
    pub(crate) devices: Vec<DeviceImage>,
}

/// A container that is laid out, and not in the guest yet.
struct LaidOut {
    container: Container,
    /// As the guest reads it.
    spec: Vec<u8>,
    root: Root,
    devices: Vec<DeviceImage>,
    /// Its volumes that the guest mounts itself.
    volumes: Vec<GuestVolume>,
    share: Share,
    /// The host's processors that it is to run on, if it says.
    processors: BTreeSet<usize>,
    opened: Opened,
    wanted: Stdio,
}

impl Tasks {
    /// Makes a container up to, but not including, its process.
    ///
    /// # Errors
    /// Why there is none; nothing is left of it.
    pub(in super::super) async fn create(
        self: &std::sync::Arc<Self>,
        request: &CreateTaskRequest,
    ) -> Result<(), TaskError> {
        self.want();
        check_create(request)?;
        let keeper = keeper::of(request.options.as_ref())?;
        let pid = keeper.as_ref().map(Keeper::pid);
        self.create_from(&request.id, created_event(request), async |shared, place| {
            self.lay_out_bundle(request, pid, shared, place).await
        })
        .await?;
        if let Some(keeper) = keeper {
            keeper.watch(self, &request.id, self.process(&request.id, "")?);
        }
        Ok(())
    }

    /// The same from what `lay_out` makes in the shared folder, in a place of the name that it is given: the specification as
    /// the guest reads it, and what the container lies on. It runs where it may block.
    ///
    /// # Errors
    /// Why there is none; nothing is left of it.
    pub(crate) async fn create_composed(
        &self,
        composed: Composed,
        lay_out: impl FnOnce(&SharedFolder, &str) -> Result<Composition, TaskError> + Send + 'static,
    ) -> Result<(), TaskError> {
        self.want();
        let Composed { id, folder, volumes, stdio, opened } = composed;
        let event = TaskCreate { container_id: id.clone(), pid: Tasks::pid(), ..Default::default() };
        let named = id.clone();
        self.create_from(&id, event, async move |shared, place| {
            let (shared, owned_place) = (shared.clone(), place.to_owned());
            let laid_out = tokio::task::spawn_blocking(move || lay_out(&shared, &owned_place));
            let Composition { spec, root, devices } =
                laid_out.await.map_err(TaskError::failed("laying out the container"))??;
            let wanted = stdio.wanted((0, 0));
            let init = Process::new(&named, "", stdio);
            let mut container = Container::new(&named, &folder, place.to_owned(), String::new(), init);
            container.volumes = volumes;
            let (volumes, share, processors) = (Vec::new(), Share::default(), BTreeSet::new());
            Ok(LaidOut { container, spec, root, devices, volumes, share, processors, opened, wanted })
        })
        .await
    }

    /// Takes over a container that runs in the guest already, laid out as `place`: the guest went on from where it was saved.
    ///
    /// # Errors
    /// When the guest does not know it.
    pub(crate) async fn adopt(&self, composed: Composed, place: &str) -> Result<(), TaskError> {
        self.want();
        let Composed { id, folder, volumes, stdio, opened } = composed;
        let claim = self.claim(&id)?;
        let guest = self.guest().await?;
        let streams = guest.attach(&id, "", &stdio.wanted((0, 0))).await?;
        let init = Process::new(&id, "", stdio);
        init.connect(Io::connect(opened, streams));
        init.life().started();
        let mut container = Container::new(&id, &folder, place.to_owned(), String::new(), init);
        container.volumes = volumes;
        let container = std::sync::Arc::new(container);
        claim.settle(container.clone()).map_err(|_| given_up(&id))?;
        if let Some(shared) = &self.shared {
            shared.tell_changes(place, &id, volumes, &guest);
        }
        let memory = MemoryWatch::start(guest.clone(), self.events.clone(), &id, &folder);
        container.init().follow(guest, self.events.clone(), Tasks::pid(), Some(memory));
        Ok(())
    }

    /// Takes note of a container that its front end has made and started, in the place of its name, and whose streams and end are that
    /// one's affair; its first process, for that.
    ///
    /// # Errors
    /// [`TaskError::AlreadyExists`].
    pub(crate) fn note(
        &self,
        id: &str,
        folder: &Path,
        volumes: usize,
        terminal: bool,
    ) -> Result<std::sync::Arc<Process>, TaskError> {
        self.want();
        let claim = self.claim(id)?;
        let init = Process::new(id, "", StdioPaths { terminal, ..StdioPaths::default() });
        init.life().started();
        let mut container = Container::new(id, folder, id.to_owned(), String::new(), init.clone());
        container.volumes = volumes;
        claim.settle(std::sync::Arc::new(container)).map_err(|_| given_up(id))?;
        let event = TaskStart { container_id: id.to_owned(), pid: Tasks::pid(), ..Default::default() };
        self.events.publish(Topic::Start, &event);
        Ok(init)
    }

    /// Takes note of the end of one that was [noted](Tasks::note), and tells whoever waits for it.
    pub(crate) fn note_end(&self, init: &Process, status: u32) {
        init.over(status);
        self.events.publish(Topic::Exit, &init.told(Exit::now(status), Tasks::pid()));
    }

    async fn create_from(
        &self,
        id: &str,
        event: TaskCreate,
        lay_out: impl AsyncFnOnce(&std::sync::Arc<SharedFolder>, &str) -> Result<LaidOut, TaskError>,
    ) -> Result<(), TaskError> {
        let claim = self.claim(id)?;
        let shared = match &self.shared {
            Some(shared) => shared.clone(),
            // Without ground there is no guest, and that tells why.
            None => return self.guest().await.map(drop),
        };
        let place = self.serial.fetch_add(1, super::Ordering::Relaxed).to_string();
        let created = async { self.create_in_guest(lay_out(&shared, &place).await?, &place).await }.await;
        if created.is_err() {
            if let Err(error) = shared.clear(&place) {
                log::warn!("what was laid out for container {id} remains: {error}");
            }
            if let Ok(Machine { guest, volumes, .. }) = self.machine().await {
                volumes.leave(&guest, id).await;
                if let Some(growth) = self.growth.get() {
                    growth.leave(&guest, id).await;
                }
            }
        }
        let (mut container, pid) = created?;
        container.guest_pid = Some(pid);
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(pid);
        let container = std::sync::Arc::new(container);
        if let Err(_claim) = claim.settle(container.clone()) {
            self.remove_container(&container).await?;
            return Err(given_up(id));
        }
        self.events.publish(Topic::Create, &event);
        let guest = self.guest().await?;
        let memory = MemoryWatch::start(guest.clone(), self.events.clone(), container.id(), container.bundle());
        container.init().follow(guest, self.events.clone(), Tasks::pid(), Some(memory));
        Ok(())
    }

    async fn lay_out_bundle(
        &self,
        request: &CreateTaskRequest,
        keeper: Option<u32>,
        shared: &SharedFolder,
        place: &str,
    ) -> Result<LaidOut, TaskError> {
        let bundle_path = Path::new(&request.bundle);
        let mut spec = bundle::read(bundle_path).map_err(|error| TaskError::InvalidArgument(error.to_string()))?;
        let root = rootfs::root(&request.rootfs, &spec, bundle_path)?;
        let host_ps = asks_the_host(&self.namespace, &spec);
        let resolv_conf = loopback::resolv_conf(&spec);
        if self.policy.no_seccomp
            && let Some(linux) = spec.linux_mut()
        {
            linux.set_seccomp(None);
        }
        let (share, processors) = (Share::of(&spec), share::processors_of(&spec));
        let mounts_stay_outside = keeper.is_some() || bundle::is_by_crio(&spec);
        let mut plan = Plan::new(spec, &self.known_namespaces())?;
        let stdio = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let opened = stdio.open(&request.id, &self.namespace).await?;
        if mounts_stay_outside {
            shared.look_in(self.host.mounts().map_err(TaskError::failed("the host's mounts"))?);
        }
        let layout: Layout =
            shared.lay_out(place, &root, &plan.volumes).map_err(|error| TaskError::Failed(error.to_string()))?;
        let init = Process::new(&request.id, "", stdio);
        let mut container =
            Container::new(&request.id, bundle_path, place.to_owned(), plan.version().to_owned(), init.clone());
        container.hooks = std::mem::take(&mut plan.hooks);
        container.volumes = layout.guest_volumes.len();
        container.kept_namespaces = std::mem::take(&mut plan.kept);
        container.host_ps = host_ps;
        container.resolv_conf = resolv_conf;
        container.keeper = keeper;
        let state = hooks::state(&container, "creating");
        self.host.run(&container.hooks.create, &state).await.map_err(|error| TaskError::Failed(error.to_string()))?;
        let wanted = self.streams(init.stdio(), plan.console_size());
        let devices = std::mem::take(&mut plan.devices);
        let volumes = std::mem::take(&mut plan.guest_volumes);
        let spec = plan.finish(&layout)?;
        Ok(LaidOut { container, spec, root, devices, volumes, share, processors, opened, wanted })
    }

    /// Makes it in the guest, and joins its streams; with the id of its first process there.
    async fn create_in_guest(&self, laid_out: LaidOut, place: &str) -> Result<(Container, u32), TaskError> {
        let LaidOut { container, spec, root, devices, volumes: needed, share, processors, opened, wanted } = laid_out;
        let id = container.id();
        let Machine { guest, disks, volumes } = self.machine().await?;
        if let Some(growth) = self.growth.get() {
            growth.admit(&guest, id, share).await?;
        }
        volumes.join(&guest, &needed, id).await?;
        let message = CreateContainerRequest {
            container_id: id.to_owned(),
            spec_json: spec,
            stdio: Some(wanted.clone()).into(),
            guest_hooks: self.policy.guest_hooks.clone(),
            volumes: self.shared.as_ref().map(|shared| shared.volumes(place, container.volumes)).unwrap_or_default(),
            ..Default::default()
        };
        let created = disks.create_container(&guest, message, (&root, &devices), place).await;
        let (pid, disk) = created.map_err(|error| oci_failure("create", error))?;
        container.keep_disk(disk);
        match guest.attach(id, "", &wanted).await {
            Ok(streams) => container.init().connect(Io::connect(opened, streams)),
            Err(error) => {
                let removed = guest.call(guest.agent().delete_container(id)).await;
                match removed {
                    Ok(()) => release(&container).await,
                    Err(error) => log::warn!("container {id} remains in the guest: {error}"),
                }
                return Err(error.into());
            }
        }
        if let Some(pinning) = &self.pinning {
            pinning.note(id, processors);
            self.pin(&guest).await;
        }
        Ok((container, pid))
    }

    fn known_namespaces(&self) -> Known {
        let first = *self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known =
            Known { pids: first.map(|guest| (Tasks::pid(), guest)).into_iter().collect(), files: Vec::new() };
        for slot in self.lock().values() {
            let Slot::Ready(container) = slot else { continue };
            let Some(guest) = container.guest_pid else { continue };
            known.pids.extend(container.keeper.map(|keeper| (keeper, guest)));
            known.files.extend(container.kept_namespaces.iter().map(|file| (file.clone(), guest)));
        }
        known
    }
}

fn given_up(id: &str) -> TaskError {
    TaskError::Failed(format!("container {id} was given up while it was being created"))
}

/// What of a request can be refused without looking further.
fn check_create(request: &CreateTaskRequest) -> Result<(), TaskError> {
    if !is_id(&request.id) {
        return Err(TaskError::InvalidArgument(format!("the container id {:?} is invalid", request.id)));
    }
    if !request.checkpoint.is_empty() {
        return Err(TaskError::Unimplemented("restoring a container from a checkpoint is not supported".to_owned()));
    }
    let Some(options) = request.options.as_ref() else { return Ok(()) };
    let name = options.type_url.rsplit('/').next().unwrap_or_default();
    let known = ["", "runtimeoptions.v1.Options", "containerd.runc.v1.Options"];
    if !known.contains(&name) && !options.type_url.starts_with(keeper::TYPE) {
        return Err(TaskError::InvalidArgument(format!("runtime options of the type {name:?} are not understood")));
    }
    // Any message shows whether these are the bytes of one.
    let parsed = protobuf::well_known_types::empty::Empty::parse_from_bytes(&options.value);
    parsed.map(drop).map_err(|error| TaskError::InvalidArgument(format!("malformed runtime options: {error}")))
}

fn created_event(request: &CreateTaskRequest) -> TaskCreate {
    let io = TaskIO {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
        ..Default::default()
    };
    let mut event = TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        io: Some(io).into(),
        checkpoint: request.checkpoint.clone(),
        pid: Tasks::pid(),
        ..Default::default()
    };
    for mount in &request.rootfs {
        // The same message, generated a second time.
        let mut copy = Vec::new();
        if mount.write_to_vec(&mut copy).is_ok()
            && let Ok(mount) = Message::parse_from_bytes(&copy)
        {
            event.rootfs.push(mount);
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::Policy;
    use super::*;
    use crate::containerd::events::Events;
    use crate::containerd::hooks::HostNamespaces;

    #[test]
    fn who_gives_up_on_a_container_that_is_being_made_can_have_the_sandbox_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // A guest that boots for ever.
            let (_booted, guest) = tokio::sync::watch::channel(None);
            let host = HostNamespaces::current().unwrap();
            let tasks = Tasks::new("test", guest, None, host, Events::start("test", ""), Policy::default());
            let making = |id: &'static str| {
                let tasks = Arc::clone(&tasks);
                tokio::spawn(async move {
                    tasks.create_from(id, TaskCreate::default(), async |_, _| unreachable!("it has no ground")).await
                })
            };
            let _made = [making("one"), making("other")];
            tokio::task::yield_now().await;
            let is_over = async || tokio::time::timeout(Duration::from_millis(10), tasks.over()).await.is_ok();
            assert!(matches!(tasks.delete("one", "").await, Err(TaskError::NotFound(_))));
            tasks.shut_down(false);
            assert!(!is_over().await, "another is still wanted");
            assert!(matches!(tasks.claim("one"), Err(TaskError::AlreadyExists(_))));
            assert!(matches!(tasks.delete("other", "").await, Err(TaskError::NotFound(_))));
            tasks.shut_down(false);
            assert!(is_over().await);
        });
    }
}
