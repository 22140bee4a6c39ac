//! The server of a detached container: starts it, keeps its output, serves the Task service until it has ended, and
//! writes down how.
//!
//! Reads as the story of its life. It is the server that containerd's shim has, with another way in: a container that is laid
//! out here, and a record instead of events.

#![allow(unsafe_code, reason = "handing the listening socket to the ttrpc server")]

use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::launch::Work;
use super::output_log::{self, OutputLog, Stream};
use super::registry::SOCKET;
use crate::containerd::error::TaskError;
use crate::containerd::events::Events;
use crate::containerd::hooks::HostNamespaces;
use crate::containerd::lifecycle::{Exit, KILLED, Phase};
use crate::containerd::stdio::{Opened, Sink, StdioPaths};
use crate::containerd::task_service;
use crate::containerd::tasks::creating::{Composed, Composition};
use crate::containerd::tasks::{Booted, Policy, Tasks};
use crate::log_files::Limits;
use crate::run::compose::{LaidOut, Recipe};
use crate::run::network::{Network, NetworkError};
use crate::sandbox::kept::{Ended, Kept, Record};
use crate::sandbox::saving::{Ingredients, Saver};
use crate::sandbox::timings::Timings;
use crate::sandbox::{self, Ground, Sandbox, Settings};

/// What containers of this front end are in, as containerd's are in its namespaces.
pub(super) const NAMESPACE: &str = "tatami";
/// How long a container may take to end when its server is told to.
const EVICTION: Duration = Duration::from_secs(3);
/// How long what was started beside the first process may take to end after it, and the log to be written.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);

/// What there is before the runtime.
pub(super) struct Prepared {
    pub(super) ground: Ground,
    pub(super) host: HostNamespaces,
    pub(super) work: Work,
    pub(super) settings: Settings,
    pub(super) kept: Kept,
    pub(super) record: Record,
    pub(super) limits: Limits,
}

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: std::io::Error },
    #[error("interrupted before the command ran")]
    Interrupted,
}

/// Serves until the container has ended. `started` is called when its command runs; nothing is left if it never does. The
/// other end of `caller` is whoever waits for that.
pub(super) async fn serve(
    prepared: Prepared,
    mut caller: UnixStream,
    started: impl FnOnce(UnixStream),
) -> Result<(), StartError> {
    let Prepared { ground, host, work, settings, kept, mut record, limits } = prepared;
    let (state, data) = (ground.state().to_owned(), ground.data().to_owned());
    let (mut network, task) = match work {
        Work::Run(made_of) => (made_of.1, Task::Make(Box::new(made_of.0))),
        // Before there is a machine: it has these files open.
        Work::GoOn(saved, folder) => {
            let (saved, network) = *saved;
            let ingredients = ground.lay_out_saved(&saved, &folder)?;
            let described = network.describe();
            (network, Task::GoOn(Box::new(Ingredients { network: described, ..ingredients })))
        }
    };
    let mut sandbox = Sandbox::start(ground, settings, Timings::starting_at(std::time::Instant::now()))?;
    let (booted, guest) = watch::channel::<Booted>(None);
    let tasks =
        Tasks::new(NAMESPACE, guest, Some(sandbox.shared()), host, Events::start(NAMESPACE, ""), Policy::default());
    let beginning = async {
        let mut server = listen(&state, &tasks)?;
        server.start().await.map_err(|error| TaskError::Failed(error.to_string()))?;
        let host = (&kept, limits, state.as_path());
        let (output, ingredients) = match task {
            Task::Make(recipe) => {
                make((&mut sandbox, &mut network), &booted, &tasks, host, *recipe, &mut record).await?
            }
            Task::GoOn(ingredients) => {
                let machine = (&mut sandbox, &mut network);
                (go_on(machine, &booted, &tasks, host, &ingredients, &mut record).await?, *ingredients)
            }
        };
        let saver = Saver::new((sandbox.vm().clone(), sandbox.settings()), &data, record.clone(), ingredients);
        tasks.offer_saving(saver);
        Ok::<_, StartError>((server, output))
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("catch signals"))?;
    let begun = tokio::select! {
        begun = beginning => begun,
        _ = terminate.recv() => Err(StartError::Interrupted),
        _ = caller.read_u8() => Err(StartError::Interrupted),
    };
    let (_server, output) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            sandbox.end().await?;
            network.end().await;
            return Err(error);
        }
    };
    started(caller);
    let exit = ended(&tasks, record.container(), &mut terminate).await;
    let _ = tokio::time::timeout(LAST_WORDS, output.written()).await;
    let lost = (exit.status == KILLED).then(|| sandbox.vm().progress().stopped).flatten();
    let error = match lost {
        Some(_) => sandbox.vm().verdict().await.map(|error| error.to_string()),
        None => None,
    };
    record.ended = Some(Ended { status: exit.status, at: exit.at, error });
    if let Err(error) = kept.write(&record) {
        log::error!("cannot write down how the container ended: {error}");
    }
    let _ = tokio::time::timeout(LAST_WORDS, others(&tasks, record.container())).await;
    sandbox.end().await?;
    network.end().await;
    Ok(())
}

/// What comes of the sandbox.
enum Task {
    Make(Box<Recipe>),
    GoOn(Box<Ingredients>),
}

fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::System { action, source }
}

/// The service at the sandbox's socket, not started yet.
pub(super) fn listen(state: &Path, tasks: &Arc<Tasks>) -> Result<ttrpc::r#async::Server, StartError> {
    let listener = UnixListener::bind(state.join(SOCKET)).map_err(system("listen for commands"))?;
    // SAFETY: the descriptor is a listening unix socket, and nobody else has it.
    let server = unsafe { ttrpc::r#async::Server::new().add_unix_listener(listener.into_raw_fd()) };
    let server = server.map_err(|error| TaskError::Failed(error.to_string()))?;
    Ok(server.register_service(task_service::services(tasks)))
}

/// Boots, lays out, creates and starts, and writes the record.
async fn make(
    (sandbox, network): (&mut Sandbox, &mut Network),
    booted: &watch::Sender<Booted>,
    tasks: &Arc<Tasks>,
    host: (&Kept, Limits, &Path),
    recipe: Recipe,
    record: &mut Record,
) -> Result<(Output, Ingredients), StartError> {
    let id = record.id.clone();
    let recipe = recipe.named(id.clone());
    let volumes = recipe.volumes();
    let described = network.describe();
    let (composed, output) = compose(record, host, volumes).await?;
    let (tell, told) = oneshot::channel();
    let creating = tasks.create_composed(composed, move |shared, place| {
        let LaidOut { spec, root, host_root, stop_signal, volumes: all, devices } =
            recipe.lay_out(place, shared).map_err(|error| TaskError::Failed(error.to_string()))?;
        let ingredients = Ingredients {
            place: place.to_owned(),
            root: root.clone(),
            volumes: all,
            watched: volumes,
            devices: !devices.is_empty(),
            network: described,
        };
        // Who wanted to know may be gone: then there is no container either.
        let _ = tell.send((spec.clone(), host_root, stop_signal, ingredients));
        Ok(Composition { spec, root, devices })
    });
    let booting = async {
        let ready = ready(sandbox, network).await;
        announce(sandbox, booted, &ready);
        ready
    };
    tokio::try_join!(booting, async { creating.await.map_err(StartError::from) })?;
    let told = told.await.map_err(|_| TaskError::Failed("the container was not laid out".to_owned()))?;
    let (spec, host_root, stop_signal, ingredients) = told;
    note_layout(record, &spec, host_root, stop_signal);
    tasks.start(&id, "").await?;
    note_start(host.0, record)?;
    Ok((output, ingredients))
}

/// Has the machine go on from where it was saved, takes over its container, and writes the record.
async fn go_on(
    (sandbox, network): (&mut Sandbox, &mut Network),
    booted: &watch::Sender<Booted>,
    tasks: &Arc<Tasks>,
    host: (&Kept, Limits, &Path),
    ingredients: &Ingredients,
    record: &mut Record,
) -> Result<Output, StartError> {
    let (composed, output) = compose(record, host, ingredients.watched).await?;
    let ready = ready(sandbox, network).await;
    announce(sandbox, booted, &ready);
    ready?;
    tasks.adopt(composed, &ingredients.place).await?;
    record.host_root = Some(sandbox.shared().path().join(&ingredients.place).join("rootfs"));
    note_start(host.0, record)?;
    Ok(output)
}

/// Returns when the agent has answered, and the guest is joined to its network.
async fn ready(sandbox: &mut Sandbox, network: &mut Network) -> Result<(), StartError> {
    sandbox.ready().await?;
    Ok(network.connect(sandbox).await?)
}

/// The container as its tasks are told of it, its output on the way to a log that begins.
async fn compose(
    record: &Record,
    (kept, limits, state): (&Kept, Limits, &Path),
    volumes: usize,
) -> Result<(Composed, Output), StartError> {
    let log = OutputLog::create(kept.folder(), limits).map_err(system("begin the container's log"))?;
    let stdio = StdioPaths {
        stdin: if record.interactive { make_stdin(state)? } else { String::new() },
        stdout: format!("file://{}", output_log::newest(kept.folder()).display()),
        stderr: if record.tty { String::new() } else { output_log::newest(kept.folder()).display().to_string() },
        terminal: record.tty,
    };
    let (opened, output) = Output::open(&stdio, log).await?;
    let (id, folder) = (record.container().to_owned(), kept.folder().to_owned());
    Ok((Composed { id, folder, volumes, stdio, opened }, output))
}

/// Tells who waits for the guest what became of it.
fn announce(sandbox: &Sandbox, booted: &watch::Sender<Booted>, ready: &Result<(), StartError>) {
    let machine = match ready {
        Ok(()) => sandbox.machine().ok_or_else(|| "the agent is gone".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    booted.send_replace(Some(machine));
}

/// Enters into a record what is known of a container that lies ready.
pub(super) fn note_layout(record: &mut Record, spec: &[u8], host_root: Option<PathBuf>, stop_signal: Option<String>) {
    record.spec = serde_json::from_slice(spec).unwrap_or_default();
    record.host_root = host_root;
    if record.stop_signal.is_empty() {
        record.stop_signal = stop_signal.unwrap_or_else(|| "SIGTERM".to_owned());
    }
    record.command = command_of(&record.spec).unwrap_or_else(|| record.command.clone());
}

pub(super) fn note_start(kept: &Kept, record: &mut Record) -> Result<(), StartError> {
    record.started = Some(SystemTime::now());
    kept.write(record).map_err(system("write the container's record"))
}

fn command_of(spec: &serde_json::Value) -> Option<Vec<String>> {
    serde_json::from_value(spec.get("process")?.get("args")?.clone()).ok()
}

/// Makes the fifo that standard input comes through.
fn make_stdin(state: &Path) -> Result<String, StartError> {
    let path = state.join(STDIN);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))
        .map_err(|error| system("make the standard input")(error.into()))?;
    Ok(path.display().to_string())
}

/// The fifo of a container's standard input, in its sandbox's folder.
pub(super) const STDIN: &str = "stdin";

/// Returns when the first process has ended, or was ended because the server is to.
async fn ended(tasks: &Arc<Tasks>, id: &str, terminate: &mut tokio::signal::unix::Signal) -> Exit {
    let Ok(process) = tasks.process(id, "") else { return Exit::now(KILLED) };
    tokio::select! {
        exit = process.wait() => return exit,
        () = tasks.over() => {}
        _ = terminate.recv() => {}
    }
    tasks.evict(EVICTION).await;
    tokio::time::timeout(LAST_WORDS, process.wait()).await.unwrap_or_else(|_| Exit::now(KILLED))
}

/// Returns when the processes that joined have ended, and who waits for them was told.
pub(super) async fn others(tasks: &Arc<Tasks>, id: &str) {
    let Ok(container) = tasks.container(id) else { return };
    for process in container.processes() {
        if !matches!(process.phase(), Phase::Created) {
            process.wait().await;
        }
    }
    // Answers are on their way.
    tokio::task::yield_now().await;
}

/// The container's output on its way to the log.
struct Output {
    writers: Vec<JoinHandle<()>>,
}

impl Output {
    /// The streams of a container whose output goes to `log`.
    async fn open(stdio: &StdioPaths, log: OutputLog) -> Result<(Opened, Output), StartError> {
        let input = StdioPaths { stdin: stdio.stdin.clone(), ..StdioPaths::default() };
        let mut opened = input.open("", NAMESPACE).await?;
        let log = Arc::new(Mutex::new(log));
        let mut writers = Vec::new();
        let mut sink = |stream| -> std::io::Result<Option<Sink>> {
            let (reader, writer): (OwnedFd, OwnedFd) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            let reader = pipe::Receiver::from_owned_fd(reader)?;
            writers.push(tokio::spawn(write_log(reader, stream, log.clone())));
            Ok(Some(Sink::Pipe(pipe::Sender::from_owned_fd(writer)?)))
        };
        opened.stdout = sink(Stream::Stdout).map_err(system("make a pipe"))?;
        if !stdio.terminal {
            opened.stderr = sink(Stream::Stderr).map_err(system("make a pipe"))?;
        }
        Ok((opened, Output { writers }))
    }

    /// Returns when everything is in the log.
    async fn written(self) {
        for writer in self.writers {
            // An error is a panic, which was logged.
            let _ = writer.await;
        }
    }
}

async fn write_log(mut reader: pipe::Receiver, stream: Stream, log: Arc<Mutex<OutputLog>>) {
    let mut buffer = vec![0; 32 * 1024];
    let mut failed = false;
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let written = log.lock().unwrap_or_else(PoisonError::into_inner).write(stream, &buffer[..length]);
                if let (Err(error), false) = (written, failed) {
                    // The container goes on: what it does matters more than what it says.
                    failed = true;
                    log::error!("the container's log: {error}");
                }
            }
        }
    }
}

/// Where the socket of the sandbox in `state` is.
pub(super) fn socket(state: &Path) -> PathBuf {
    state.join(SOCKET)
}
