//! The VMM process: shuts itself in, builds the machine it is told to, and lives until the guest or the server ends.
//!
//! Everything it has came over its one socket, which is its standard input. [`main`] must be called before anything else in
//! the binary, when [`NAME`] is what the process was started as.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use tatami_devices::virtio::{Fs, FsConfig, FsError, HostPorts, Rng, Threads, VirtioDevice, Vsock, VsockError};

use crate::boot::{BootError, BuiltVm, Origin, Parts, RunningVm};
use crate::console::ConsoleOutput;
use crate::control::{
    Channel, ControlError, LogLevel, Notice, Order, OriginKind, Received, Start, What, bounded, parse,
};
use crate::disks::DiskSlots;
use crate::jail::{self, Jail, JailError};
use crate::ration::Ration;
use crate::snapshot::Snapshot;
use crate::stop::StopReason;
use crate::threads::VmmThreads;

/// What the process is called: its `argv[0]`.
pub const NAME: &str = "tatami-vmm";

/// The name under which the guest mounts the shared folder.
pub const SHARED_TAG: &str = "shared";

/// Why the process ends before the guest has run.
#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("cannot share files with the guest: {0}")]
    Fs(#[from] FsError),
    #[error("cannot connect sockets to the guest: {0}")]
    Vsock(#[from] VsockError),
    #[error("the VMM's event loop failed: {0}")]
    Loop(#[from] event_manager::Error),
    #[error("the VMM cannot start: {0}")]
    Io(#[from] io::Error),
}

/// Runs the process to its end.
pub fn main() -> ! {
    let began = Instant::now();
    let status = match prepare() {
        Ok(channel) => {
            let outcome = live(&channel, began);
            let reason = outcome.unwrap_or_else(|error| StopReason::Error(bounded(error.to_string())));
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
    let origin = match start.origin {
        OriginKind::Kernel => Origin::Kernel { kernel: file()?, initrd: None },
        OriginKind::KernelAndInitrd => Origin::Kernel { kernel: file()?, initrd: Some(file()?) },
        OriginKind::Snapshot => Origin::Snapshot(Snapshot { memory: file()?, state: file()? }),
    };

    let slots = DiskSlots::new(start.config.disk_slots);
    let devices = devices(&start, jail, listener, &slots, channel)?;
    let serial = Box::new(ConsoleOutput::new(Arc::clone(channel)));
    let vm = BuiltVm::new(&start.config, Parts { kvm, origin, devices, serial })?;
    let elapsed = || began.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    channel.send(&Notice::Created(elapsed()), &[], true)?;
    let vm = vm.start()?;
    channel.send(&Notice::Booting(elapsed()), &[], true)?;
    supervise(vm, slots, channel)
}

/// The guest's devices, in the order in which it finds them.
fn devices(
    start: &Start,
    jail: Jail,
    listener: UnixListener,
    slots: &DiskSlots,
    channel: &Arc<Channel>,
) -> Result<Vec<Box<dyn VirtioDevice>>, ProcessError> {
    let threads: Arc<dyn Threads> = Arc::new(VmmThreads);
    let root = jail.root.to_string_lossy().into_owned();
    let files = FsConfig { tag: SHARED_TAG.to_owned(), root, proc_self_fd: jail.proc_self_fd };
    let ports = Box::new(ServerPorts(Arc::clone(channel)));
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![
        Box::new(Fs::new(files, Arc::clone(&threads))?),
        Box::new(Vsock::new(start.config.vsock_cid.into(), listener, ports, Arc::clone(&threads))?),
        Box::new(Rng::new(Arc::clone(&threads))),
    ];
    devices.extend(slots.devices(&threads));
    Ok(devices)
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

/// Carries out the server's orders until the guest stops or the server goes away.
fn supervise(vm: RunningVm, slots: DiskSlots, channel: &Arc<Channel>) -> Result<StopReason, ProcessError> {
    let mut manager = EventManager::new()?;
    let id = manager.add_subscriber(Supervisor { vm: Some(vm), slots, channel: Arc::clone(channel), end: None });
    loop {
        if let Some(end) = manager.subscriber_mut(id)?.end.take() {
            return end;
        }
        manager.run()?;
    }
}

struct Supervisor {
    vm: Option<RunningVm>,
    slots: DiskSlots,
    channel: Arc<Channel>,
    end: Option<Result<StopReason, ProcessError>>,
}

const TOKEN_STOPPED: u32 = 0;
const TOKEN_CONTROL: u32 = 1;

impl Supervisor {
    /// Carries out what the server has ordered.
    fn obey(&mut self) -> Result<(), ProcessError> {
        match self.channel.receive(false)? {
            Some(Received::Json(body, descriptors)) => {
                let Order { number, what } = parse(&body)?;
                let result = match what {
                    What::Save => self.save(descriptors)?,
                    What::AttachDisk(slot, parts) => told(self.slots.attach(slot, parts, descriptors)),
                    What::DetachDisk(slot) => told(self.slots.detach(slot)),
                };
                Ok(self.channel.send(&Notice::Answer(number, result.map_err(bounded)), &[], true)?)
            }
            None => Ok(()),
            Some(Received::Closed) => std::process::exit(1),
            Some(Received::Console(_)) => {
                Err(ControlError::Malformed("the server sends console bytes".to_owned()).into())
            }
        }
    }

    /// Writes the machine to the files sent, and lets it go on whether or not that could be done.
    fn save(&mut self, files: Vec<OwnedFd>) -> Result<Result<(), String>, ProcessError> {
        let Ok([memory, state]) = <[OwnedFd; 2]>::try_from(files) else {
            return Ok(Err("two files are needed to save a machine".to_owned()));
        };
        let Some(vm) = self.vm.take() else { return Ok(Err("the machine has stopped".to_owned())) };
        let vm = vm.pause()?;
        let saved = vm.save(&Snapshot { memory: memory.into(), state: state.into() });
        self.vm = Some(vm.start()?);
        Ok(told(saved))
    }
}

/// A failure as the server is told of it.
fn told<E: std::error::Error>(result: Result<(), E>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let added = match &self.vm {
            Some(vm) => ops
                .add(Events::with_data(vm.stopped(), TOKEN_STOPPED, EventSet::IN))
                .and_then(|()| ops.add(Events::with_data_raw(raw(&self.channel), TOKEN_CONTROL, EventSet::IN))),
            None => Ok(()),
        };
        self.end = added.err().map(|error| Err(error.into()));
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match events.data() {
            TOKEN_STOPPED => {
                let Some(vm) = self.vm.take() else { return };
                let reason = vm.stop_reason().unwrap_or(StopReason::GuestReset);
                let counts = vm.stop();
                log::info!(
                    "the guest left its vCPUs {} times for device memory and {} times for ports",
                    counts.memory,
                    counts.ports
                );
                self.end = Some(Ok(reason));
            }
            _ => {
                if let Err(error) = self.obey() {
                    self.end = Some(Err(error));
                }
            }
        }
    }
}

fn raw(channel: &Channel) -> std::os::fd::RawFd {
    use std::os::fd::AsRawFd;
    channel.as_fd().as_raw_fd()
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
            let note =
                if withheld > 0 { format!(" ({withheld} lines before it were withheld)") } else { String::new() };
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
    }));
}
