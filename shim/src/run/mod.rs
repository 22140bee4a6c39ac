//! The front end of a sandbox for a person at a terminal: `tatami run`.
//!
//! Reads as the story of one run: open what was named, prepare the ground, boot while the container's files are laid out,
//! create, start, wait, take everything away. Knows nothing of how the sandbox does any of it.

pub(crate) mod compose;
pub mod device;
mod folder;
mod isolation;
pub mod network;
pub mod options;
pub mod pump;
mod rates;
mod served;
pub mod signals;
pub(crate) mod size;
pub mod terminal;
pub mod volume;

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use tatami_protocol::agent::Stdio;
use tatami_vmm::VmConfig;
use tatami_vmm::probe;
use tokio::sync::oneshot;

use crate::containerd::hooks::HostNamespaces;
use crate::detached::foreground::Announcement;
use crate::detached::launch::{LaunchError, Order, Work, launch};
use crate::guest_files::{GuestFiles, GuestFilesError};
use crate::images::{self, ImagesError};
use crate::journal;
use crate::logging::complain;
use crate::network::resolv_conf;
use crate::privilege::{self, NotRoot};
use crate::sandbox::container::Container;
use crate::sandbox::disk_root::{DiskFormat, DiskRoot};
use crate::sandbox::disks::{DeviceImage, DeviceSource, DiskError, DiskImage};
use crate::sandbox::folder::Places;
use crate::sandbox::guest::Streams;
use crate::sandbox::kept::Record;
use crate::sandbox::mounts::{HostPath, HostVolume, MountError};
use crate::sandbox::template::Templates;
use crate::sandbox::timings::{Mark, Timings};
use crate::sandbox::{self, Beginning, Ground, Sandbox, Settings};
use crate::spec;
use compose::{Base, ComposeError, LaidOut, Recipe};
use device::Device;
use network::{Network, NetworkError};
use options::{ConsoleKind, OptionsError, RunArguments, RunOptions, Source};
use served::Served;
use signals::{Insistence, Signals};
use terminal::RawMode;

/// Exit status when Tatami itself fails, as docker has it.
pub const TATAMI_FAILED: u8 = 125;
/// Exit status when the command cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Exit status when the command is not found.
const NOT_FOUND: u8 = 127;
/// What the only container of such a sandbox is called.
const CONTAINER: &str = "main";

/// How long a command may go on after the terminal it was started on is gone and it was told so.
const ABANDONED: Duration = Duration::from_secs(10);

/// Why there is no exit status of a command.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    NotRoot(#[from] NotRoot),
    #[error("the input device is not a terminal: leave out -t, or run it in a terminal")]
    NoTerminal,
    #[error("no such image: {} (a folder or an archive is expected)", .0.display())]
    NoImage(PathBuf),
    #[error(transparent)]
    Images(#[from] ImagesError),
    #[error(transparent)]
    GuestFiles(#[from] GuestFilesError),
    #[error("volume: {0}")]
    Volume(#[source] MountError),
    #[error("--rootfs: {}", .0)]
    Rootfs(String),
    #[error("--device: {0}")]
    Device(#[source] DiskError),
    #[error("--vhost-user-fs {socket}: {source}", socket = socket.display())]
    Files { socket: PathBuf, source: io::Error },
    #[error("--disk-rate needs a disk: --rootfs DISK or --device")]
    DiskRate,
    #[error(transparent)]
    Config(#[from] tatami_vmm::ConfigError),
    #[error(transparent)]
    Network(NetworkError),
    #[error(transparent)]
    Compose(#[from] ComposeError),
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("cannot write the command's output: {0}")]
    Output(#[source] io::Error),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("interrupted before the command ran")]
    Interrupted(i32),
    #[error("ended by force")]
    Forced,
}

impl From<NetworkError> for RunError {
    fn from(error: NetworkError) -> RunError {
        match error {
            NetworkError::Sandbox(error) => RunError::Sandbox(error),
            error => RunError::Network(error),
        }
    }
}

impl RunError {
    /// The exit status that says so.
    fn status(&self) -> u8 {
        match self {
            RunError::Sandbox(sandbox::Error::Command { missing: true, .. }) => NOT_FOUND,
            RunError::Sandbox(sandbox::Error::Command { missing: false, .. }) => NOT_EXECUTABLE,
            RunError::Launch(error) => error.status,
            RunError::Interrupted(signal) => 128 + *signal as u8,
            RunError::Forced => 128 + libc::SIGKILL as u8,
            _ => TATAMI_FAILED,
        }
    }
}

/// Everything that was named on the command line, opened or found, before anything is made.
struct Prepared {
    options: RunOptions,
    recipe: Recipe,
    settings: Settings,
    network: Network,
}

/// Carries out `tatami run`; `started` is when the process did.
pub fn main(arguments: RunArguments, started: Instant) -> ExitCode {
    let detach = arguments.is_detached();
    let carry_out = |prepared| if detach { leave_behind(prepared) } else { in_sandbox(prepared, started) };
    let status = match prepare(arguments).and_then(carry_out) {
        Ok(status) => status,
        Err(error) => {
            complain(&error);
            error.status()
        }
    };
    ExitCode::from(status)
}

/// Finds out what can be wrong without a sandbox.
fn prepare(arguments: RunArguments) -> Result<Prepared, RunError> {
    let options = arguments.validate(|name| std::env::var(name).ok())?;
    privilege::root()?;
    if options.interactive && options.tty && options.detach.is_none() && !io::stdin().is_terminal() {
        return Err(RunError::NoTerminal);
    }
    let base = find_base(&options)?;
    let mut served = Served::default();
    let devices = find_devices(&options.devices, &mut served)?;
    let is_image = |(image, _): &(DeviceImage, _)| matches!(image.source, DeviceSource::Image(_));
    let has_disk = matches!(base, Base::Disk(_)) || devices.iter().any(is_image);
    if options.rates.disk.is_some() && !has_disk {
        return Err(RunError::DiskRate);
    }
    let file_systems = options.files.iter().map(|volume| {
        let found = served.add_files(volume);
        found.map_err(|source| RunError::Files { socket: volume.source.clone(), source })
    });
    let file_systems = file_systems.collect::<Result<_, _>>()?;
    let volumes = options
        .volumes
        .iter()
        .map(|volume| {
            // Only to say at once if it is not there: what is mounted is opened in the sandbox's own namespace.
            HostPath::open(&volume.source)?;
            Ok(HostVolume { source: volume.source.clone(), read_only: volume.read_only, recursive: true })
        })
        .collect::<Result<_, _>>()
        .map_err(RunError::Volume)?;
    probe::open().and_then(probe::check).map_err(sandbox::Error::from)?;
    let files = GuestFiles::find(options.kernel.as_deref(), options.initrd.as_deref())?;
    let network = Network::find(&options.net, &options.publish, options.cpus, options.rates.net)?;
    let vm = VmConfig {
        vcpus: options.cpus,
        max_vcpus: options.cpus,
        memory_mib: options.memory_mib,
        memory_kind: options.memory_kind.unwrap_or_else(|| served.memory_kind()),
        command_line_extra: options.append.clone(),
        console: options.console == Some(ConsoleKind::Serial),
        virtio_console: options.console == Some(ConsoleKind::Virtio),
        virtio_bus: options.virtio_bus,
        root_disk: files.initrd.root_disk(options.verity.as_ref())?,
        folder: options.folder,
        disk_slots: has_disk.into(),
        disk_limit: options.rates.disk.unwrap_or_default(),
        nics: network.slots(),
        vhost_user: served.kinds,
        ..VmConfig::default()
    };
    vm.validate()?;
    let settings = Settings {
        vm,
        beginning: Beginning::Boot {
            kernel: files.kernel,
            initrd: files.initrd,
            templates: Templates::from_environment(&Places::from_environment()),
        },
        memory_folder: options.memory_folder.clone(),
        served: served.sockets,
        live_console: options.console.is_some(),
        debug_console: false,
        boot_limit: options.boot_limit,
    };
    let resolv_conf = match options.dns.is_empty() {
        true => network.resolv_conf(),
        false => resolv_conf::of(&options.dns),
    };
    let recipe = Recipe::new((base, volumes, devices), file_systems, &options, resolv_conf);
    Ok(Prepared { options, recipe, settings, network })
}

/// What the container's root comes from, if it is there. An image is read while the guest boots.
fn find_base(options: &RunOptions) -> Result<Base, RunError> {
    let root = Places::from_environment().root;
    match &options.source {
        Source::Image(path) => match path.to_str().filter(|word| !images::is_file(word)) {
            Some(word) => Ok(Base::Stored(Box::new(images::find(&root, word, options.pull)?), root)),
            None if path.exists() => Ok(Base::Image(path.clone(), root)),
            None => Err(RunError::NoImage(path.clone())),
        },
        Source::Plain(path) => match HostPath::open(path) {
            Ok(folder) if folder.is_folder() => Ok(Base::Plain(path.clone())),
            Ok(_) => find_disk(path, options.read_only),
            Err(error) => Err(RunError::Rootfs(error.to_string())),
        },
    }
}

/// A root on a disk image. What is on it is for the guest to read, but for the one number that names its file system.
fn find_disk(path: &Path, read_only: bool) -> Result<Base, RunError> {
    let failed = |error: &dyn std::fmt::Display| RunError::Rootfs(error.to_string());
    // Only to say at once if it cannot be used: it is opened when the guest is there.
    DiskImage::open(path, read_only).map_err(|error| failed(&error))?;
    let format = DiskFormat::of(path).map_err(|error| failed(&error))?.ok_or_else(|| {
        RunError::Rootfs(format!("{} has no file system that guests know: ext4 and erofs are", path.display()))
    })?;
    let path = std::path::absolute(path).map_err(|error| failed(&error))?;
    Ok(Base::Disk(DiskRoot::of_image(&path, format, read_only)))
}

/// The disks that are to be block devices of the container, if they can be; some are `served` by other processes.
fn find_devices(devices: &[Device], served: &mut Served) -> Result<Vec<(DeviceImage, spec::Device)>, RunError> {
    let find = |(index, device): (usize, &Device)| {
        let missing = |source| RunError::Device(DiskError::Open { path: device.host.clone(), source });
        let described = device.describe(index, served).map_err(missing)?;
        if let DeviceSource::Image(image) = &described.0.source {
            // Only to say at once if it cannot be used: it is opened when the guest is there.
            image.open().map_err(RunError::Device)?;
        }
        Ok(described)
    };
    devices.iter().enumerate().map(find).collect()
}

/// Leaves a server behind that runs it.
fn leave_behind(prepared: Prepared) -> Result<u8, RunError> {
    let Prepared { options, recipe, settings, network } = prepared;
    let limits = options.detach.unwrap_or_default();
    let record = record(&options, &settings);
    let id = launch(Order { work: Work::Run(Box::new((recipe, network))), settings, record, limits })?;
    // The container runs, whether or not somebody reads its id.
    let _ = writeln!(io::stdout(), "{id}");
    Ok(0)
}

/// What is known of a container before it is made.
fn record(options: &RunOptions, settings: &Settings) -> Record {
    let source = match &options.source {
        Source::Image(path) | Source::Plain(path) => path,
    };
    Record {
        id: String::new(),
        container: None,
        name: options.name.clone(),
        image: source.display().to_string(),
        command: options.command.clone(),
        created: SystemTime::now(),
        started: None,
        ended: None,
        auto_remove: options.remove,
        foreground: options.detach.is_none(),
        tty: options.tty,
        interactive: options.interactive,
        stop_signal: options.stop_signal.clone().unwrap_or_default(),
        stop_timeout: options.stop_timeout,
        memory_mib: settings.vm.memory_mib,
        cpus: settings.vm.vcpus,
        host_root: None,
        spec: serde_json::Value::Null,
    }
}

/// From the first thing made to the last one removed; the command's exit status.
fn in_sandbox(prepared: Prepared, started: Instant) -> Result<u8, RunError> {
    let Prepared { options, recipe, settings, mut network } = prepared;
    let terminal = if options.interactive && options.tty { terminal::saved() } else { None };
    let host =
        HostNamespaces::current().map_err(|source| RunError::System { action: "name the namespaces", source })?;
    let record = record(&options, &settings);
    let ground = Ground::prepare(&Places::from_environment(), options.name.as_deref(), terminal)?;
    journal::begin(ground.state());
    let announcement = Announcement::new(&ground, record, host);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| RunError::System { action: "start the runtime", source })?;
    let result = runtime.block_on(async {
        // From here on a signal is a request, and everything is cleared away before the process ends.
        let signals = Signals::catch().map_err(|source| RunError::System { action: "catch signals", source })?;
        let mut sandbox = Sandbox::start(ground, settings, Timings::starting_at(started))?;
        let running = RefCell::new(None);
        let result = tokio::select! {
            result = perform(&mut sandbox, &mut network, (recipe, announcement), &options, &running) => result,
            error = obey(signals, &running) => Err(error),
        };
        let timings = sandbox.end().await;
        network.end().await;
        let timings = timings?;
        if options.timings {
            eprint!("{}", timings.table());
        }
        result
    });
    // A layer that is still being unpacked is not waited for.
    runtime.shutdown_background();
    result
}

/// The run itself.
async fn perform(
    sandbox: &mut Sandbox,
    network: &mut Network,
    (recipe, announcement): (Recipe, Announcement),
    options: &RunOptions,
    running: &RefCell<Option<Container>>,
) -> Result<u8, RunError> {
    let shared = sandbox.shared();
    let hostname = sandbox.id().to_owned();
    let laid_out = tokio::task::spawn_blocking(move || {
        let laid_out = recipe.named(hostname).lay_out(CONTAINER, &shared)?;
        Ok::<_, RunError>((laid_out, Instant::now()))
    });
    // The guest boots meanwhile. Whichever fails first ends the run.
    let ((laid_out, when), ()) =
        tokio::try_join!(async { laid_out.await.expect("laying out does not panic") }, async {
            sandbox.ready().await?;
            Ok(network.connect(sandbox).await?)
        },)?;
    sandbox.timings().pass_at(Mark::ContainerPrepared, when);
    let LaidOut { spec, root, devices, .. } = &laid_out;
    let watched = options.volumes.len();
    let (container, streams) =
        sandbox.create_container(CONTAINER, spec.clone(), stdio(options), (root, devices), watched).await?;
    sandbox.timings().pass(Mark::ContainerCreated);

    let raw = match options.interactive && options.tty {
        true => Some(RawMode::enter().map_err(|source| RunError::System { action: "set up the terminal", source })?),
        false => None,
    };
    let outputs = connect(streams, options).map_err(|source| RunError::System { action: "start a thread", source })?;
    running.replace(Some(container.clone()));
    container.start().await?;
    sandbox.tell_changes(CONTAINER, watched);
    sandbox.timings().pass(Mark::ContainerStarted);
    let shown = announcement.show(sandbox, CONTAINER, (laid_out, network.describe()), watched).await;
    if options.tty
        && let Some((rows, columns)) = terminal::size()
    {
        // It may have changed since the container was created.
        container.resize(rows, columns).await?;
    }
    let status = container.wait().await?;
    for output in outputs {
        // The thread always tells; without an answer there is nothing to report.
        output.await.unwrap_or(Ok(false)).map_err(RunError::Output)?;
    }
    drop(raw);
    if let Some(shown) = shown {
        shown.ended(status).await;
    }
    sandbox.timings().pass(Mark::ContainerEnded);
    Ok(status)
}

/// Passes signals on; returns when one ends the run.
async fn obey(mut signals: Signals, running: &RefCell<Option<Container>>) -> RunError {
    let mut insistence = Insistence::default();
    let mut abandoned = None;
    loop {
        let Some(signal) = signals.next_before(abandoned).await else { return RunError::Forced };
        let container = running.borrow().clone();
        let Some(container) = container else {
            if signals::ends_a_start(signal) {
                return RunError::Interrupted(signal);
            }
            continue;
        };
        if insistence.insists(signal, Instant::now()) {
            return RunError::Forced;
        }
        if signal == libc::SIGHUP && terminal::is_gone() {
            // Nobody will be there to insist, and a shell may not even notice.
            abandoned.get_or_insert(Instant::now() + ABANDONED);
        }
        let result = match (signal, terminal::size()) {
            (libc::SIGWINCH, Some((rows, columns))) => container.resize(rows, columns).await,
            (libc::SIGWINCH, None) => Ok(()),
            (signal, _) => container.signal(signal as u32).await,
        };
        if let Err(error) = result {
            log::info!("signal {signal} was not passed on: {error}");
        }
    }
}

/// Which streams the command gets.
fn stdio(options: &RunOptions) -> Stdio {
    let (rows, columns) = terminal::size().filter(|_| options.tty).unwrap_or_default();
    Stdio {
        stdin: options.interactive,
        stdout: true,
        stderr: !options.tty,
        terminal: options.tty,
        rows: rows.into(),
        columns: columns.into(),
        ..Stdio::default()
    }
}

/// Connects the command's streams with this process's; the outputs tell when they are through.
fn connect(streams: Streams, options: &RunOptions) -> io::Result<Vec<oneshot::Receiver<io::Result<bool>>>> {
    let blocking = |stream: tokio::net::UnixStream| {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        io::Result::Ok(stream)
    };
    let mut outputs = Vec::new();
    if let Some(stream) = streams.stdout {
        outputs.push(pump::output("stdout", blocking(stream)?, own(io::stdout())?)?);
    }
    if let Some(stream) = streams.stderr {
        outputs.push(pump::output("stderr", blocking(stream)?, own(io::stderr())?)?);
    }
    if let Some(stream) = streams.stdin {
        pump::input("stdin", own(io::stdin())?, blocking(stream)?)?;
    }
    if let Some(stream) = streams.terminal {
        let stream = blocking(stream)?;
        if options.interactive {
            pump::input("terminal-in", own(io::stdin())?, stream.try_clone()?)?;
        }
        outputs.push(pump::output("terminal-out", stream, own(io::stdout())?)?);
    }
    Ok(outputs)
}

/// A descriptor of its own for one of the standard streams.
fn own(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_dockers() {
        let command = |missing| sandbox::Error::Command { message: String::new(), missing };
        assert_eq!(RunError::from(command(true)).status(), 127);
        assert_eq!(RunError::from(command(false)).status(), 126);
        assert_eq!(RunError::from(NotRoot).status(), 125);
        assert_eq!(RunError::Interrupted(libc::SIGTERM).status(), 143);
        assert_eq!(RunError::Forced.status(), 137);
    }
}
