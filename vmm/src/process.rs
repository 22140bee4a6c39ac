//! The VMM process: shuts itself in, builds the machine it is told to, and lives until the guest or the server ends.
//!
//! Everything it has came over its one socket, which is its standard input. [`main`] must be called before anything else in
//! the binary, when [`NAME`] is what the process was started as.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tatami_devices::virtio::{
    BackendError, Balloon, Console, DiskError, Fs, FsConfig, FsError, HostPorts, Mem, Rng, Threads, VhostUser,
    VirtioDevice, Vsock, VsockError,
};

use crate::backing::RamBacking;
use crate::boot::{BootError, BuiltVm, Origin, Parts};
use crate::config::{FIXED_DEVICES, FolderConfig, MemoryKind, VhostUserKind, VmConfig, vhost_user_tag};
use crate::console::ConsoleOutput;
use crate::control::{Channel, ControlError, LogLevel, Notice, OriginKind, Received, Start, bounded, parse};
use crate::disks;
use crate::jail::{self, Jail, JailError};
use crate::ration::Ration;
use crate::seccomp::{self, Facts, SeccompError, Who};
use crate::snapshot::{Snapshot, SnapshotError};
use crate::stop::StopReason;
use crate::supervisor::{self, Adjustable, SupervisorError};
use crate::threads::{ConfineError, VmmThreads};

/// What the process is called: its `argv[0]`.
pub const NAME: &str = "tatami-vmm";

/// The name under which the guest mounts the shared folder.
pub const SHARED_TAG: &str = "shared";

/// What the process exits with after a panic: as a shell shows an abort.
const PANICKED: i32 = 128 + libc::SIGABRT;

/// Why the process ends before the guest has run.
#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Filter(#[from] SeccompError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("cannot share files with the guest: {0}")]
    Fs(#[from] FsError),
    #[error("the guest's root: {0}")]
    Root(#[from] DiskError),
    #[error("cannot connect sockets to the guest: {0}")]
    Vsock(#[from] VsockError),
    #[error("device {0}: {1}")]
    VhostUser(usize, BackendError),
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    #[error("the VMM cannot start: {0}")]
    Io(#[from] io::Error),
}

impl From<ProcessError> for StopReason {
    fn from(error: ProcessError) -> StopReason {
        let text = bounded(error.to_string());
        match error {
            ProcessError::Boot(BootError::Memory(_) | BootError::Snapshot(SnapshotError::Memory(_))) => {
                StopReason::NoMemory(text)
            }
            _ => StopReason::Error(text),
        }
    }
}

/// Runs the process to its end.
pub fn main() -> ! {
    let began = Instant::now();
    let status = match prepare() {
        Ok(channel) => {
            let outcome = live(&channel, began);
            let reason = outcome.unwrap_or_else(|error| error.into());
            // The server may be gone; then nobody wants to know.
            let _ = channel.send(&Notice::Stopped(reason), &[], true);
            0
        }
        // Nobody to tell: the server sees the socket close, and this status.
        Err(_) => 1,
    };
    std::process::exit(status)
}

/// Before anything is known: what holds for every VMM, and its one connection.
fn prepare() -> Result<Arc<Channel>, ProcessError> {
    jail::close_inherited()?;
    jail::share_one_heap();
    jail::die_with_parent()?;
    // Started through /proc/self/exe, it would be called `exe` where processes are listed.
    rustix::thread::set_name(c"tatami-vmm").map_err(io::Error::from)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
    let channel = Arc::new(Channel::new(socket));
    report_to(&channel);
    Ok(channel)
}

/// From the server's message to the guest's end.
fn live(channel: &Arc<Channel>, began: Instant) -> Result<StopReason, ProcessError> {
    let (start, mut sent) = match channel.receive(true)? {
        Some(Received::Json(body, descriptors)) => (parse::<Start>(&body)?, descriptors.into_iter()),
        _ => return Err(ControlError::Malformed("it does not begin with a start".to_owned()).into()),
    };
    let jail = Jail::enter(&start.shared_dir)?;
    for lacking in &jail.lacking {
        log::warn!("the VMM runs without {lacking}");
    }
    let mut next = || sent.next().ok_or_else(|| ControlError::Malformed("a descriptor is missing".to_owned()));
    let kvm = next()?;
    let listener = UnixListener::from(next()?);
    let mut file = || next().map(File::from);
    let mut origin = match start.origin {
        OriginKind::Kernel => Origin::Kernel { kernel: file()?, user_space: None },
        OriginKind::KernelAndUserSpace => Origin::Kernel { kernel: file()?, user_space: Some(file()?) },
        OriginKind::Snapshot => {
            let files = Snapshot { memory: file()?, state: file()? };
            Origin::Snapshot { files, root_disk: start.config.root_disk.as_ref().map(|_| file()).transpose()? }
        }
    };
    let memory = if start.config.memory_kind == MemoryKind::File { Some(file()?) } else { None };
    let sockets = start.config.vhost_user.iter().map(|_| next().map(UnixStream::from)).collect::<Result<_, _>>()?;

    let adjustable = Adjustable::new(&start.config)?;
    let threads: Arc<dyn Threads> = Arc::new(VmmThreads::confined(channel.as_fd())?);
    let mut devices = devices(&start, jail, (listener, sockets), &adjustable, channel, &threads)?;
    if start.config.root_disk.is_some() {
        let image = match &mut origin {
            Origin::Kernel { user_space, .. } => user_space.take(),
            Origin::Snapshot { root_disk, .. } => root_disk.take(),
        };
        let image = image.ok_or_else(|| ControlError::Malformed("the root disk's image is missing".to_owned()))?;
        devices.insert(0, disks::root_disk(image, &threads)?);
    }
    let serial = Box::new(ConsoleOutput::new(Arc::clone(channel)));
    let spare = adjustable.spare.clone();
    let vm = BuiltVm::new(&start.config, Parts { kvm, origin, memory, devices, spare, serial, threads })?;
    // Whatever the guest does comes after this.
    seccomp::confine(Who::Supervisor, Facts::new(channel.as_fd().as_raw_fd()))?;
    let elapsed = || began.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    channel.send(&Notice::Created(elapsed()), &[], true)?;
    let vm = vm.start()?;
    channel.send(&Notice::Booting(elapsed()), &[], true)?;
    Ok(supervisor::supervise(vm, adjustable, channel)?)
}

/// The guest's devices, in the order in which it finds them.
fn devices(
    start: &Start,
    jail: Jail,
    (listener, sockets): (UnixListener, Vec<UnixStream>),
    adjustable: &Adjustable,
    channel: &Arc<Channel>,
    threads: &Arc<dyn Threads>,
) -> Result<Vec<Box<dyn VirtioDevice>>, ProcessError> {
    let restored = start.origin == OriginKind::Snapshot;
    let backing = Arc::new(RamBacking::new(start.config.memory_kind, restored));
    let root = jail.root.to_string_lossy().into_owned();
    let FolderConfig { queues, cache } = start.config.folder;
    let files = FsConfig { tag: SHARED_TAG.to_owned(), root, cache, queues, proc_self_fd: jail.proc_self_fd };
    let ports = Box::new(ServerPorts(Arc::clone(channel)));
    let balloon = Balloon::new(adjustable.balloon.clone(), Arc::clone(&backing) as _, Arc::clone(threads));
    let fixed: [Box<dyn VirtioDevice>; FIXED_DEVICES] = [
        Box::new(Fs::new(files, Arc::clone(threads))?),
        Box::new(Vsock::new(start.config.vsock_cid.into(), listener, ports, Arc::clone(threads))?),
        Box::new(Rng::new(Arc::clone(threads))),
        Box::new(balloon.with_reporting(start.config.page_reporting)),
    ];
    let mut devices = Vec::from(fixed);
    devices.extend(vhost_user(&start.config, sockets, threads)?);
    if let Some(spare) = &adjustable.spare {
        devices.push(Box::new(Mem::new(spare.clone(), backing, Arc::clone(threads))));
    }
    if start.config.virtio_console {
        let output = Box::new(ConsoleOutput::new(Arc::clone(channel)));
        devices.push(Box::new(Console::new(output, Arc::clone(threads))));
    }
    devices.extend(adjustable.disks.devices(&start.config, threads)?);
    devices.extend(adjustable.nics.devices(threads));
    Ok(devices)
}

/// The devices that are served by whoever is at the other end of `sockets`.
fn vhost_user(
    config: &VmConfig,
    sockets: Vec<UnixStream>,
    threads: &Arc<dyn Threads>,
) -> Result<Vec<Box<dyn VirtioDevice>>, ProcessError> {
    let device = |(index, (kind, socket)): (usize, (&VhostUserKind, UnixStream))| {
        let threads = Arc::clone(threads);
        let device = match *kind {
            VhostUserKind::Disk { read_only } => VhostUser::disk(socket, config.max_vcpus, read_only, threads),
            VhostUserKind::Files => VhostUser::files(socket, &vhost_user_tag(index), config.max_vcpus, threads),
        };
        Ok(Box::new(device.map_err(|error| ProcessError::VhostUser(index, error))?) as _)
    };
    config.vhost_user.iter().zip(sockets).enumerate().map(device).collect()
}

/// Host ports, all of which the server decides about: it gets the other end of whatever the guest connects to.
struct ServerPorts(Arc<Channel>);

impl HostPorts for ServerPorts {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        let (guest, server) = UnixStream::pair().ok()?;
        // A server that is too busy to hear of it refuses.
        self.0.send(&Notice::GuestConnected(port), &[server.as_fd()], false).ok()?;
        Some(guest)
    }
}

/// Sends what is logged, and what a panic says, to the server: nothing else here can be written to. A guest can break its devices
/// over and over, so lines are rationed.
fn report_to(channel: &Arc<Channel>) {
    struct Report(Arc<Channel>, Mutex<Ration>);

    impl log::Log for Report {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Info
        }

        fn log(&self, record: &log::Record<'_>) {
            let level = match record.level() {
                log::Level::Error => LogLevel::Error,
                log::Level::Warn => LogLevel::Warn,
                _ if self.enabled(record.metadata()) => LogLevel::Info,
                _ => return,
            };
            let ration = self.1.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
            let Some(withheld) = ration else { return };
            let note = if withheld > 0 { format!(" (lines withheld before it: {withheld})") } else { String::new() };
            // A server that does not read loses log lines, and nothing else.
            let _ = self.0.send(&Notice::Log(level, bounded(format!("{}{note}", record.args()))), &[], false);
        }

        fn flush(&self) {}
    }

    if log::set_boxed_logger(Box::new(Report(Arc::clone(channel), Mutex::new(Ration::new(Instant::now()))))).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    let channel = Arc::clone(channel);
    std::panic::set_hook(Box::new(move |panic| {
        let _ = channel.send(&Notice::Log(LogLevel::Error, bounded(panic.to_string())), &[], false);
        // The first process of a namespace does not get the signal by which a panic would end it.
        if cfg!(panic = "abort") {
            std::process::exit(PANICKED);
        }
    }));
}
