//! The sandbox server: one VM, the agent in it, its containers, and all that belongs to them on the host.
//!
//! A sandbox's life is a line: [`Ground::prepare`] (folders, undertaker, mount namespace; before the process has threads),
//! [`Sandbox::start`] (the VM boots), [`Sandbox::ready`] (the agent answers), containers, [`Sandbox::end`] (nothing is
//! left). Front ends call these and show the results; knows nothing of command lines, terminals or containerd.

pub mod agent;
pub mod cgroup;
mod changes;
pub mod console;
pub mod container;
mod copy;
pub mod disk_root;
pub mod disks;
pub mod door;
pub mod enlarging;
pub mod figures;
pub mod folder;
pub mod fs_mount;
pub mod guest;
pub mod kept;
mod memory_file;
pub mod mounts;
mod overlay_marks;
mod remove;
mod root_disk;
pub mod saving;
mod served;
mod shown;
pub mod template;
pub mod timings;
mod undertaker;
pub mod vm;
pub mod volumes;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::termios::Termios;
use tatami_protocol::agent::{CreateContainerRequest, NetworkRequest, Stdio};
use tatami_vmm::boot::Origin;
use tatami_vmm::open_files;
use tatami_vmm::probe::{self, ProbeError};
use tatami_vmm::{Resources, StopReason, VmConfig};

use agent::{Agent, AgentError};
use cgroup::Whole;
use container::Container;
use disks::{DeviceImage, DiskError, Disks};
use door::Door;
use enlarging::Enlarger;
use figures::Teller;
use folder::{Client, Folder, FolderError, Lot, Places};
use guest::{Guest, Streams};
use mounts::{MountError, Root, SharedFolder};
use saving::{Ingredients, RestoreError, Saved};
use template::{Key, Templates};
use timings::{Mark, Timings};
use undertaker::Undertaker;
use vm::{Vm, VmError, VmOrder, VmWatch};
use volumes::Volumes;

use crate::guest_files::GuestFile;

/// How long an orderly shutdown may take before the VM is ended without one.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// Why a sandbox does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its folders cannot be had.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A mount cannot be made.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// This host has no KVM for us.
    #[error(transparent)]
    Kvm(#[from] ProbeError),
    /// The VM could not be made of what was given.
    #[error("{error} (kernel {kernel}, initrd {initrd})")]
    Create {
        /// What the VMM said.
        error: VmError,
        /// The guest's kernel.
        kernel: GuestFile,
        /// The guest's initrd.
        initrd: GuestFile,
    },
    /// There is no VM, or none any more.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A disk cannot be had.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The agent would not or could not.
    #[error(transparent)]
    Agent(AgentError),
    /// The container's command cannot be executed.
    #[error("{message}")]
    Command {
        /// As the agent says it.
        message: String,
        /// There is no such file, rather than one that may not be executed.
        missing: bool,
    },
    /// A saved machine does not go on.
    #[error("cannot go on from {} (files memory and state): {error}", folder.display())]
    GoOn {
        /// Where it was saved.
        folder: PathBuf,
        /// What the VMM said.
        error: VmError,
    },
    /// A folder does not hold what is needed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A process that serves a device is not there.
    #[error("cannot connect to the vhost-user back end at {}: {source}", path.display())]
    Backend {
        /// Where it should listen.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no file for the VM's memory.
    #[error("cannot have guest memory in a file in {}: {source}", folder.display())]
    Memory {
        /// Where it should be.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that the VM needs cannot be opened.
    #[error("cannot open {what} {file}: {source}")]
    Open {
        /// What it is for.
        what: &'static str,
        /// Which.
        file: GuestFile,
        /// Why not.
        source: io::Error,
    },
    /// The operating system refused something else.
    #[error("cannot {action}: {source}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// Whether it says that there is no guest to be asked any more. A connection to the agent is lost with the VM, and that may
    /// be noticed first.
    pub fn is_of_dead_guest(&self) -> bool {
        matches!(self, Error::Vm(_) | Error::Agent(AgentError::Lost { .. } | AgentError::Door(_)))
    }
}

/// How a sandbox's VM is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The VM's configuration, valid.
    pub vm: VmConfig,
    /// What its guest begins as.
    pub beginning: Beginning,
    /// The folder in which memory of the kind [`MemoryKind::File`] is to lie.
    ///
    /// [`MemoryKind::File`]: tatami_vmm::MemoryKind::File
    pub memory_folder: Option<PathBuf>,
    /// Where the processes listen that serve [`VmConfig::vhost_user`].
    pub served: Vec<PathBuf>,
    /// Show the guest's serial output on standard error as it comes.
    pub live_console: bool,
    /// Who reaches the guest from the host may have a shell in it, outside containers.
    pub debug_console: bool,
    /// How long the guest may take until the agent announces itself.
    pub boot_limit: Duration,
}

/// What a guest begins as.
#[derive(Clone, Debug)]
pub enum Beginning {
    /// It boots, or goes on from where one like it had booted.
    Boot {
        /// The guest's kernel, an ELF file.
        kernel: GuestFile,
        /// The guest's initrd.
        initrd: GuestFile,
        /// Where to find a machine like this one that has booted already, and to leave one.
        templates: Option<Templates>,
    },
    /// It goes on as it was saved.
    Saved {
        /// Where that lies.
        folder: PathBuf,
        /// The disk that its own root is on, if it is on one.
        root_disk: Option<GuestFile>,
    },
}

/// What lies ready on the host before there is a VM. Fields are dropped in this order: mounts before folders.
#[derive(Debug)]
pub struct Ground {
    shared: Arc<SharedFolder>,
    whole: Arc<Whole>,
    undertaker: Undertaker,
    folder: Folder,
}

/// A sandbox whose VM was started.
pub struct Sandbox {
    vm: Vm,
    agent: Option<Agent>,
    /// Tells others what the guest uses, as long as there is an agent to ask.
    teller: Option<Teller>,
    /// Has volumes grow, as long as there is.
    enlarger: Option<Enlarger>,
    door: Door,
    disks: Disks,
    volumes: Volumes,
    ground: Ground,
    timings: Timings,
    settings: Settings,
    /// The template that this is to become, or went on from.
    template: Option<Template>,
}

/// What containers are made with. Cloning is cheap.
#[derive(Clone)]
pub struct Machine {
    /// The guest that they are in.
    pub guest: Guest,
    /// Its slots for their disks.
    pub disks: Disks,
    /// What it has mounted for several of them.
    pub volumes: Volumes,
}

/// What a template has to do with a sandbox.
enum Template {
    /// It went on from this one.
    Used(Key),
    /// It boots, and can be kept as this one.
    Wanted(Key),
}

impl Ground {
    /// Makes the folders, starts the undertaker and leaves the host's mount namespace.
    ///
    /// Call it while the process has one thread. `terminal` is set to the attributes given if the process dies in disorder.
    ///
    /// # Errors
    /// [`Error::Folder`] (a name that is taken, for instance), [`Error::Mount`], [`Error::System`].
    pub fn prepare(places: &Places, name: Option<&str>, terminal: Option<(OwnedFd, Termios)>) -> Result<Ground, Error> {
        let lot = Lot::choose(places)?;
        let undertaker = Undertaker::start(&lot, terminal)
            .map_err(|source| Error::System { action: "start the process that cleans up", source })?;
        let folder = Folder::create(places, lot, name)?;
        mounts::enter_namespace()?;
        let shared = Arc::new(SharedFolder::create(&folder)?);
        let whole = Arc::new(Whole::new(folder.state()));
        Ok(Ground { shared, whole, undertaker, folder })
    }

    /// The sandbox's id.
    pub fn id(&self) -> &str {
        self.folder.id()
    }

    /// Says what the client calls the sandbox that it is for. Whoever looks at a host's sandboxes can do without.
    pub fn note_client(&self, client: &Client) {
        if let Err(error) = self.folder.note_client(client) {
            log::warn!("the sandbox will not be known by its client's name for it: {error}");
        }
    }

    /// The sandbox's folder in memory.
    pub fn state(&self) -> &Path {
        self.folder.state()
    }

    /// Where containers' files are laid out.
    pub fn shared(&self) -> &Arc<SharedFolder> {
        &self.shared
    }

    /// The sandbox among the host's cgroups.
    pub fn whole(&self) -> &Arc<Whole> {
        &self.whole
    }

    /// Where what containers write is kept.
    pub fn data(&self) -> &Path {
        self.folder.data()
    }

    /// Lays out the container of the sandbox that was saved in `folder`, for its machine to go on with.
    ///
    /// # Errors
    /// [`Error::Restore`].
    pub fn lay_out_saved(&self, saved: &Saved, folder: &Path) -> Result<Ingredients, Error> {
        Ok(saved.lay_out(folder, &self.shared, self.state())?)
    }

    /// Takes everything away again.
    ///
    /// # Errors
    /// [`Error::System`] when something could not be removed.
    pub fn clear(self) -> Result<(), Error> {
        let Ground { shared, whole, undertaker, folder } = self;
        // Other parts may still hold on to them; that must keep neither the mounts nor the cgroup.
        shared.detach();
        whole.leave();
        undertaker.bury().map_err(|source| Error::System { action: "remove the sandbox's folders", source })?;
        drop(folder);
        Ok(())
    }
}

impl Sandbox {
    /// Starts the VMM, which boots the guest while the caller goes on. Call it inside a tokio runtime, on the main thread:
    /// the VMM dies with the thread that started it.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Vm`]; the ground is cleared then.
    pub fn start(ground: Ground, settings: Settings, mut timings: Timings) -> Result<Sandbox, Error> {
        // Each process in it costs its server some seven, and there may be hundreds at a time.
        if let Err(error) = open_files::raise() {
            log::warn!("few files can be open at a time: {error}");
        }
        let (door, listener) = Door::create(ground.folder.state())
            .map_err(|source| Error::System { action: "create the VMM's socket", source })?;
        let (origin, template) = settings.origin()?;
        let shared_dir = ground.shared.path().to_owned();
        let vhost_user = settings.served.iter().map(|path| served::connect(path)).collect::<Result<_, _>>()?;
        let bytes = settings.vm.all_memory_bytes();
        let memory = settings.memory_folder.as_ref().map(|folder| memory_file::create(folder, bytes)).transpose()?;
        let VmConfig { max_vcpus, disk_slots, folder, ref nics, vhost_user: ref served, .. } = settings.vm;
        // Two for each pair of a network's queues: vhost's thread is counted as the VMM's. And two for each device that another
        // process serves, one of which watches the clock.
        let twice: usize = nics.iter().map(|nic| usize::from(nic.queue_pairs)).sum::<usize>() + served.len();
        let threads = u32::from(max_vcpus) + u32::from(disk_slots) + u32::from(folder.queues) + 2 * twice as u32;
        let cgroup = cgroup::create(ground.folder.id(), ground.folder.state(), threads);
        let cgroup = cgroup.inspect_err(|error| log::warn!("the VMM runs without a cgroup of its own: {error}")).ok();
        let kvm = probe::open()?;
        let resources = Resources { kvm, origin, memory, shared_dir, vsock_listener: listener, vhost_user, cgroup };
        let vm = Vm::start(&settings.vm, resources, settings.live_console)?;
        if let Err(error) = ground.folder.note_vmm(vm.watch().pid()) {
            log::warn!("which process the VMM is will not be known: {error}");
        }
        timings.pass(Mark::VmmSpawned);
        let disks = Disks::new(vm.watch().clone(), &settings.vm);
        let volumes = Volumes::new(disks.clone());
        Ok(Sandbox {
            vm,
            agent: None,
            teller: None,
            enlarger: None,
            door,
            disks,
            volumes,
            ground,
            timings,
            settings,
            template,
        })
    }

    /// Its id: twelve hexadecimal digits.
    pub fn id(&self) -> &str {
        self.ground.folder.id()
    }

    /// Where containers' files are laid out; may be used from any thread.
    pub fn shared(&self) -> Arc<SharedFolder> {
        self.ground.shared().clone()
    }

    /// The clock of its start-up.
    pub fn timings(&mut self) -> &mut Timings {
        &mut self.timings
    }

    /// A view of its VM.
    pub fn vm(&self) -> &VmWatch {
        self.vm.watch()
    }

    /// How its VM was to be.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns when the agent has answered.
    ///
    /// # Errors
    /// [`Error::Vm`] with the guest's last lines when it never does.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let watch = self.vm.watch().clone();
        let announced = watch.ready(self.settings.boot_limit).await;
        let progress = watch.progress();
        if let Some(booting) = progress.booting {
            self.timings.pass_at(Mark::Booting, booting);
        }
        if let Err(error) = announced {
            // That the host has no memory to give says nothing of what the machine was to go on from.
            if !matches!(progress.stopped, Some(StopReason::NoMemory(_))) {
                self.distrust_template();
            }
            return Err(if progress.created.is_some() { error.into() } else { self.creation_failed(error) });
        }
        self.leave_template(&watch).await;
        let connect = async {
            let agent = Agent::connect(self.door.clone(), Some(watch.clone())).await?;
            let moved = matches!(self.settings.beginning, Beginning::Saved { .. });
            let hello = agent.hello(moved, self.settings.debug_console).await?;
            Ok((agent, hello))
        };
        let (agent, hello) = match watch.while_alive(connect).await? {
            Ok(greeted) => greeted,
            Err(error @ AgentError::Refused { .. }) => return Err(Error::Agent(error)),
            Err(error) => {
                self.distrust_template();
                return Err(watch.verdict().await.map_or(Error::Agent(error), Error::Vm));
            }
        };
        let began = match (&self.template, &self.settings.beginning) {
            (_, Beginning::Saved { .. }) => "goes on from where it was saved",
            (Some(Template::Used(_)), _) => "goes on from a template",
            _ => "has booted",
        };
        log::info!("the guest {began}: Linux {}, agent {}", hello.kernel_release, hello.agent_version);
        if let (Some(booting), Some(announced)) = (progress.booting, progress.ready) {
            // The guest's own clock says how much of the time until the announcement was the agent's.
            let agents = match (&self.template, &self.settings.beginning) {
                (Some(Template::Used(_)), _) | (_, Beginning::Saved { .. }) => Ok(Duration::ZERO),
                _ => Duration::try_from_secs_f64((hello.agent_ready_ms - hello.agent_started_ms) / 1e3),
            };
            let started = announced.checked_sub(agents.unwrap_or_default()).unwrap_or(announced);
            self.timings.pass_at(Mark::AgentStarted, started.max(booting));
        }
        self.timings.pass(Mark::AgentReady);
        let guest = Guest::new(agent.clone(), watch);
        let teller = Teller::start(self.ground.state(), guest.clone(), self.volumes.clone());
        self.teller = teller.inspect_err(|error| log::warn!("nobody is told what the guest uses: {error}")).ok();
        let enlarger = Enlarger::start(self.ground.state(), guest, self.volumes.clone());
        self.enlarger = enlarger.inspect_err(|error| log::warn!("no volume can grow: {error}")).ok();
        self.agent = Some(agent);
        Ok(())
    }

    /// Keeps the machine as it is now, if it is to become a template. A sandbox can do without.
    async fn leave_template(&mut self, vm: &VmWatch) {
        let (Some(Template::Wanted(key)), Some(templates)) = (&self.template, self.settings.templates()) else {
            return;
        };
        let kept = async {
            let (draft, files) = templates.draft(key).map_err(VmError::Watch)?;
            vm.order(VmOrder::Save(files)).await?;
            draft.publish();
            Ok::<_, VmError>(())
        };
        if let Err(error) = kept.await {
            log::warn!("the machine is not kept for later sandboxes: {error}");
        }
    }

    /// A machine that went on from a template and does not answer: the next one boots.
    fn distrust_template(&self) {
        if let (Some(Template::Used(key)), Some(templates)) = (&self.template, self.settings.templates()) {
            log::warn!("the template of this machine is removed");
            templates.remove(key);
        }
    }

    /// The guest, once its agent is [`ready`](Sandbox::ready).
    pub fn guest(&self) -> Option<Guest> {
        self.agent.clone().map(|agent| Guest::new(agent, self.vm.watch().clone()))
    }

    /// What containers are made with, once its agent is [`ready`](Sandbox::ready).
    pub fn machine(&self) -> Option<Machine> {
        let (disks, volumes) = (self.disks.clone(), self.volumes.clone());
        self.guest().map(|guest| Machine { guest, disks, volumes })
    }

    /// Has the guest's network interfaces set up.
    ///
    /// # Errors
    /// [`Error::Agent`], [`Error::Vm`].
    ///
    /// # Panics
    /// When the agent is not [`ready`](Sandbox::ready).
    pub async fn configure_network(&self, request: NetworkRequest) -> Result<(), Error> {
        let guest = self.guest().expect("the agent is ready");
        guest.call(guest.agent().configure_network(request)).await
    }

    fn creation_failed(&self, error: VmError) -> Error {
        match self.settings.beginning.clone() {
            Beginning::Boot { kernel, initrd, .. } => Error::Create { error, kernel, initrd },
            Beginning::Saved { folder, .. } => Error::GoOn { folder, error },
        }
    }

    /// Creates a container from a specification whose paths are the guest's, and whose root and `volumes` were laid out, `on` that
    /// root and with these block devices.
    ///
    /// # Errors
    /// [`Error::Command`] when its command cannot be executed, [`Error::Agent`], [`Error::Vm`].
    ///
    /// # Panics
    /// When the agent is not [`ready`](Sandbox::ready).
    pub async fn create_container(
        &self,
        id: &str,
        spec_json: Vec<u8>,
        stdio: Stdio,
        on: (&Root, &[DeviceImage]),
        volumes: usize,
    ) -> Result<(Container, Streams), Error> {
        let guest = self.guest().expect("the agent is ready");
        // Its disk, if it has one, stays as long as the sandbox.
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec_json,
            stdio: Some(stdio.clone()).into(),
            volumes: self.ground.shared.volumes(id, volumes),
            ..Default::default()
        };
        self.disks.create_container(&guest, request, on, id).await?;
        Container::attach(guest, id, &stdio).await
    }

    /// Has those in the guest told who watch files of the container's volumes, when somebody on the host changes them.
    pub fn tell_changes(&self, container: &str, volumes: usize) {
        if let Some(guest) = self.guest() {
            self.ground.shared.tell_changes(container, container, volumes, &guest);
        }
    }

    /// Ends it, in order if the guest still answers, and removes everything that belongs to it; the clock comes back.
    ///
    /// # Errors
    /// [`Error::System`] when something could not be removed.
    pub async fn end(self) -> Result<Timings, Error> {
        let Sandbox { vm, agent, teller, enlarger, ground, mut timings, .. } = self;
        drop((teller, enlarger));
        if let Some(agent) = agent
            && let Ok(Err(error)) = vm.watch().while_alive(agent.shutdown(SHUTDOWN_LIMIT)).await
        {
            log::debug!("the guest did not shut down in order: {error}");
        }
        // What the guest wrote is on the host by now: there is no need to watch it reset itself.
        vm.end().await;
        ground.clear()?;
        timings.pass(Mark::Removed);
        Ok(timings)
    }
}

impl Settings {
    /// What the guest begins as: a machine kept earlier, or a kernel that boots.
    fn origin(&self) -> Result<(Origin, Option<Template>), Error> {
        let (kernel, initrd, templates) = match &self.beginning {
            Beginning::Boot { kernel, initrd, templates } => (kernel, initrd, templates),
            Beginning::Saved { folder, root_disk } => {
                let image = root_disk.as_ref().map(|disk| open(ROOT_DISK, disk)).transpose()?;
                return Ok((Origin::Snapshot { files: saving::open(folder)?, root_disk: image }, None));
            }
        };
        // A guest whose console somebody watches is to be seen booting; and what other processes know of one is not kept.
        let VmConfig { console, virtio_console, ref root_disk, ref vhost_user, .. } = self.vm;
        let boots = console || virtio_console || !vhost_user.is_empty();
        let templates = templates.as_ref().filter(|_| !boots);
        let key = templates.and_then(|templates| templates.key(&self.vm, kernel, initrd).ok());
        if let (Some(templates), Some(key)) = (templates, &key)
            && let Some(snapshot) = templates.find(key)
        {
            let root_disk = root_disk.as_ref().map(|_| open(ROOT_DISK, initrd)).transpose()?;
            return Ok((Origin::Snapshot { files: snapshot, root_disk }, Some(Template::Used(key.clone()))));
        }
        let kernel = open("the guest kernel", kernel)?;
        let user_space = Some(open("the initrd", initrd)?);
        Ok((Origin::Kernel { kernel, user_space }, key.map(Template::Wanted)))
    }

    fn templates(&self) -> Option<&Templates> {
        match &self.beginning {
            Beginning::Boot { templates, .. } => templates.as_ref(),
            Beginning::Saved { .. } => None,
        }
    }
}

const ROOT_DISK: &str = "the disk of the guest's root";

fn open(what: &'static str, file: &GuestFile) -> Result<File, Error> {
    file.open().map_err(|source| Error::Open { what, file: file.clone(), source })
}
