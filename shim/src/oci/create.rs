//! `create` and `run`: a sandbox's server, unless the container joins a sandbox that is there; the keeper; the container itself.
//!
//! What can be refused without starting anything is refused first. Should anything fail later, nothing is left.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{ConnectRequest, CreateTaskRequest};
use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::Spec;

use super::keeper::{Duty, Keeper};
use super::namespaces::Files;
use super::options::{Global, Parsed};
use super::remove::{KEEPER, clear_sandbox, remove_cgroup};
use super::store::{Pid, Place, Record, Store, write_whole};
use super::streams::{Console, Fifos};
use super::{Error, NAMESPACE, block_on, system, system_at};
use crate::containerd::address::Address;
use crate::containerd::arguments::is_id;
use crate::containerd::network::fits;
use crate::containerd::start::{Start, leave_server};
use crate::containerd::{bundle, keeper, membership};
use crate::detached::client::{Client, ClientError};
use crate::sandbox::cgroup::CgroupPlace;
use crate::sandbox::folder::Places;

/// How long a server may take to be there, and a container to be made: its guest boots meanwhile.
const SERVER: Duration = Duration::from_secs(120);
const CREATION: Duration = Duration::from_secs(600);

/// The annotation in which engines name themselves, and Podman's name.
const MANAGER: &str = "io.container.manager";
const PODMAN: &str = "libpod";

/// A container that is to be.
struct Order {
    id: String,
    bundle: PathBuf,
    spec: Spec,
    terminal: bool,
    console_socket: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    /// The command ends and the container goes on.
    detached: bool,
}

/// The sandbox that a container is in.
struct Sandbox {
    /// The container that it was made for.
    first: String,
    socket: PathBuf,
}

/// `create`.
///
/// # Errors
/// Why there is no container; nothing is left of it.
pub(super) fn create(global: &Global, parsed: &Parsed) -> Result<u8, Error> {
    Ok(make(global, &Order::of(parsed, true)?)?.1.begin())
}

/// `run`: the container's exit status; with `--detach`, 0.
///
/// # Errors
/// Why it does not run; nothing is left of it.
pub(super) fn run(global: &Global, parsed: &Parsed) -> Result<u8, Error> {
    let order = Order::of(parsed, parsed.has("detach"))?;
    let store = Store::at(&global.root);
    let (record, keeper) = make(global, &order)?;
    if let Err(error) = super::commands::start(&record) {
        keeper.dismiss();
        super::remove::delete(&store, &order.id, true)?;
        return Err(error);
    }
    let status = keeper.begin();
    if !order.detached && !parsed.has("keep") {
        super::remove::delete(&store, &order.id, true)?;
    }
    Ok(status)
}

impl Order {
    fn of(parsed: &Parsed, detached: bool) -> Result<Order, Error> {
        let [id] = parsed.words.as_slice() else {
            return Err(Error::Refused(format!("one container ID is needed, not {} words", parsed.words.len())));
        };
        if !is_id(id) {
            return Err(Error::Id(id.clone()));
        }
        let bundle = parsed.path("bundle").unwrap_or_else(|| PathBuf::from("."));
        let bundle = bundle.canonicalize().map_err(system_at("find the bundle", &bundle))?;
        if !bundle.is_dir() {
            return Err(Error::Refused(format!("the bundle {} is not a folder", bundle.display())));
        }
        let spec = bundle::read(&bundle).map_err(|error| Error::Refused(error.to_string()))?;
        if parsed.number("preserve-fds")?.unwrap_or(0) > 0 {
            return Err(Error::Refused("preserve-fds: a guest cannot have open files of the host".to_owned()));
        }
        let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
        let console_socket = parsed.path("console-socket");
        check_console(terminal, detached, console_socket.as_deref())?;
        let pid_file = parsed.path("pid-file");
        Ok(Order { id: id.clone(), bundle, spec, terminal, console_socket, pid_file, detached })
    }

    fn console_size(&self) -> (u16, u16) {
        let size = self.spec.process().as_ref().and_then(|process| process.console_size());
        let limited = |value: u64| value.min(u16::MAX.into()) as u16;
        size.map_or((0, 0), |size| (limited(size.height()), limited(size.width())))
    }
}

/// Whether a terminal can be had in this way.
///
/// # Errors
/// [`Error::Refused`], in runc's words.
pub(super) fn check_console(terminal: bool, detached: bool, socket: Option<&Path>) -> Result<(), Error> {
    let refused = |text: &str| Err(Error::Refused(text.to_owned()));
    match socket {
        None if terminal && detached => {
            refused("cannot allocate tty if runc will detach without setting console socket")
        }
        Some(_) if !terminal || !detached => {
            refused("cannot use console socket if runc will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}

/// Makes the container, whose keeper waits for the word.
fn make(global: &Global, order: &Order) -> Result<(Record, Keeper), Error> {
    let store = Store::at(&global.root);
    let place = store.claim(&order.id)?;
    let console = order.console_socket.as_deref().map(|socket| Console::open(socket, order.console_size())).transpose();
    let made = console.and_then(|console| make_in(global, order, &store, &place, console.as_ref()));
    if made.is_err() {
        // What is in the way of the next attempt is told by that one.
        drop(place.remove());
    }
    made
}

fn make_in(
    global: &Global,
    order: &Order,
    store: &Store,
    place: &Place,
    console: Option<&Console>,
) -> Result<(Record, Keeper), Error> {
    let cgroup = enter_cgroup(order);
    let (sandbox, is_own) = match find_sandbox(order, store)? {
        Some(sandbox) => (sandbox, false),
        None => (start_sandbox(global, order, store, place)?, true),
    };
    let made = join(order, place, &sandbox, console, cgroup.clone());
    if made.is_err() {
        if is_own && let Err(error) = clear_sandbox(store, &sandbox.first, Some(&order.bundle)) {
            log::warn!("{error}");
        }
        if let Some(cgroup) = cgroup {
            remove_cgroup(&cgroup, if is_own { KEEPER } else { Duration::ZERO });
        }
    }
    made
}

/// The sandbox that the container is to join: its pod's, as its annotations say or the namespaces that it is to share.
fn find_sandbox(order: &Order, store: &Store) -> Result<Option<Sandbox>, Error> {
    let all = store.all();
    let of = |record: &Record| Sandbox { first: record.sandbox.clone(), socket: record.socket.clone() };
    let shared = membership::shared_with(&order.spec);
    if let Some(other) = all.iter().find(|other| shared.contains(&other.keeper.number) && other.keeper.lives()) {
        return Ok(Some(of(other)));
    }
    let pod = bundle::sandbox_of(&order.id, &order.spec);
    if pod == order.id {
        return Ok(None);
    }
    match all.iter().find(|other| other.id == pod) {
        Some(first) => Ok(Some(of(first))),
        // Podman names pods without a container of their own, too: those share nothing.
        None if annotation(&order.spec, MANAGER) == Some(PODMAN) => Ok(None),
        None => {
            let advice = match bundle::is_further_by_crio(&order.spec) {
                true => ": CRI-O makes it with drop_infra_ctr = false, or for a runtime in whose name is `kata`",
                false => "",
            };
            Err(Error::Refused(format!("the sandbox {pod} of container {} is not there{advice}", order.id)))
        }
    }
}

fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
}

/// Leaves a server behind that boots a guest for the container.
fn start_sandbox(global: &Global, order: &Order, store: &Store, place: &Place) -> Result<Sandbox, Error> {
    let places = Places::from_environment();
    let address = Address::of(&places, &store.root().display().to_string(), NAMESPACE, &order.id);
    let listener = address.bind().map_err(|error| Error::Refused(error.to_string()))?;
    let sandbox = Sandbox { first: order.id.clone(), socket: address.socket().to_owned() };
    File::create(place.folder().join("log")).map_err(system_at("make the log in", place.folder()))?;
    let start = Start {
        listener,
        address,
        places,
        namespace: NAMESPACE.to_owned(),
        id: order.id.clone(),
        debug: global.debug,
        bundle: order.bundle.clone(),
        log: place.folder().to_owned(),
        spec: Some(order.spec.clone()),
        config_path: None,
        events: String::new(),
    };
    leave_server(start).map_err(|error| Error::Refused(crate::containerd::explain(&error)))?;
    Ok(sandbox)
}

/// Makes the container in its sandbox.
fn join(
    order: &Order,
    place: &Place,
    sandbox: &Sandbox,
    console: Option<&Console>,
    cgroup: Option<PathBuf>,
) -> Result<(Record, Keeper), Error> {
    let server = block_on(async {
        let client = Client::at(&sandbox.socket, &order.id).await?;
        let request = ConnectRequest { id: order.id.clone(), ..Default::default() };
        let answer = client.task().0.connect(ttrpc::context::with_duration(SERVER), &request).await;
        Ok(answer.map_err(ClientError::from)?.shim_pid)
    })?;
    // Whoever looks for the container's network looks at its keeper.
    let network = PathBuf::from(format!("/proc/{server}/ns/net"));
    let opened = File::open(&network).map_err(system_at("open", &network))?;
    if sandbox.first != order.id && !fits(&order.spec, &opened).map_err(system("look at its network"))? {
        return Err(Error::Refused(format!(
            "the container is to be in the sandbox {}, but in a network of its own: a machine has one",
            sandbox.first
        )));
    }
    setns(opened, CloneFlags::CLONE_NEWNET).map_err(system_at("join", &network))?;
    let fifos = Fifos::make(place.folder(), order.terminal)?;
    let names = fifos.names.clone();
    let duty =
        Duty { socket: sandbox.socket.clone(), container: order.id.clone(), exec: String::new(), fifos, folder: None };
    let keeper = match order.detached {
        true => {
            let files = Files::of(&order.spec, &order.bundle);
            Keeper::leave(duty, console, Some(&files)).map_err(system("start the keeper"))?
        }
        false => Keeper::Own(duty),
    };
    let request = CreateTaskRequest {
        id: order.id.clone(),
        bundle: order.bundle.display().to_string(),
        stdin: names.stdin,
        stdout: names.stdout,
        stderr: names.stderr,
        terminal: order.terminal,
        options: Some(keeper::kept_by(keeper.pid() as u32, Vec::new())).into(),
        ..Default::default()
    };
    let made = block_on(async {
        let client = Client::at(&sandbox.socket, &order.id).await?;
        let answer = client.task().0.create(ttrpc::context::with_duration(CREATION), &request).await;
        answer.map(drop).map_err(|error| ClientError::from(error).into())
    });
    let made = made.and_then(|()| write_down(order, place, sandbox, (keeper.pid(), cgroup)));
    let made = made.and_then(|record| console.map_or(Ok(()), Console::hand_over).map(|()| record));
    match made {
        Ok(record) => Ok((record, keeper)),
        // Its server kills the container, if there is one, when the keeper is gone.
        Err(error) => {
            keeper.dismiss();
            Err(error)
        }
    }
}

fn write_down(
    order: &Order,
    place: &Place,
    sandbox: &Sandbox,
    (pid, cgroup): (i32, Option<PathBuf>),
) -> Result<Record, Error> {
    let record = Record {
        id: order.id.clone(),
        version: order.spec.version().clone(),
        bundle: order.bundle.clone(),
        keeper: Pid::of(pid).ok_or_else(|| Error::Refused("the container's keeper was killed".to_owned()))?,
        sandbox: sandbox.first.clone(),
        socket: sandbox.socket.clone(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        rootfs: Files::of(&order.spec, &order.bundle).root().to_owned(),
        cgroup,
        annotations: order.spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
    };
    place.write(&record)?;
    if let Some(path) = &order.pid_file {
        write_whole(path, pid.to_string().as_bytes())?;
    }
    Ok(record)
}

/// Moves this process, and with it those that it leaves behind, into a cgroup in the one that the specification names: where the
/// engine looks for what the container uses. None where there is none to be had: the guest keeps the limits.
fn enter_cgroup(order: &Order) -> Option<PathBuf> {
    let path = order.spec.linux().as_ref()?.cgroups_path().as_ref()?.to_str()?;
    let place = CgroupPlace::of(path)?;
    match place.enter() {
        Ok(()) => Some(place.folder().to_owned()),
        Err(error) => {
            log::debug!("the cgroup {}: {error}", place.folder().display());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_had_by_a_socket_or_by_waiting() {
        let socket = Some(Path::new("/s"));
        check_console(true, true, socket).unwrap();
        check_console(true, false, None).unwrap();
        check_console(false, true, None).unwrap();
        for (terminal, detached, socket) in [(true, true, None), (false, true, socket), (true, false, socket)] {
            assert!(check_console(terminal, detached, socket).is_err());
        }
    }
}
