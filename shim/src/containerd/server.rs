//! The server of one sandbox: boots the guest at once, serves containerd's calls, and ends when the last container is gone.
//!
//! Reads as the story of its life. Knows nothing of what the calls do.

#![allow(unsafe_code, reason = "handing the listening socket to the ttrpc server")]

use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use oci_spec::runtime::Spec;
use tatami_vmm::{MAX_NICS, MAX_QUEUE_PAIRS, NicLimits, VmConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::bundle;
use super::events::Events;
use super::growth::Growth;
use super::hooks::HostNamespaces;
use super::network::Namespace;
use super::start::Start;
use super::tasks::{Booted, Policy, Tasks};
use super::{log_file, sandbox_service, task_service};
use crate::configuration::Configuration;
use crate::guest_files::GuestFiles;
use crate::journal;
use crate::network::interfaces::{self, How, Model, Network};
use crate::network::vhost::VhostUse;
use crate::sandbox::cgroup::CgroupPlace;
use crate::sandbox::folder::Client;
use crate::sandbox::template::Templates;
use crate::sandbox::timings::{Mark, Timings};
use crate::sandbox::{Beginning, Ground, Sandbox, Settings};

/// How long the guest may take until its agent announces itself: what a host that is overcommitted many times takes.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long containerd may take at the end for the last events.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long containers may take at the end, when the server is told to end while there are some.
const EVICTION: Duration = Duration::from_secs(3);
/// How long a server lives that nobody asks for anything: its client was killed while it called `start`, and knows nothing of
/// it. A client that lives asks at once, but on a host that is overcommitted many times.
const UNWANTED: Duration = Duration::from_secs(60);

/// What there is before the runtime.
struct Prepared {
    ground: Ground,
    settings: Settings,
    policy: Policy,
    growth: Growth,
    /// How its guest is joined to the network.
    how: How,
}

/// Serves until the sandbox is over; the process's exit status.
pub(super) fn main(start: Start) -> i32 {
    let started = Instant::now();
    let _ = nix::sys::prctl::set_name(c"tatami-shim");
    log_file::start(&start.log, &start.id, start.debug);
    let host = match HostNamespaces::current() {
        Ok(host) => host,
        Err(error) => return give_up(&start, &format!("the host's namespaces: {error}")),
    };
    // Before the process has threads. What goes wrong is told to whoever creates a container.
    let prepared = prepare(&start).map_err(|error| super::explain(&error));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return give_up(&start, &format!("no runtime: {error}")),
    };
    let result = runtime.block_on(serve(start, prepared, host, Timings::starting_at(started)));
    runtime.shutdown_background();
    match result {
        Ok(()) => 0,
        Err(error) => {
            log::error!("{}", super::explain(&error));
            1
        }
    }
}

fn give_up(start: &Start, reason: &str) -> i32 {
    log::error!("{reason}");
    start.address.remove();
    1
}

fn prepare(start: &Start) -> anyhow::Result<Prepared> {
    let annotations = start.spec.as_ref().and_then(|spec| spec.annotations().clone()).unwrap_or_default();
    let set = Configuration::load(start.config_path.as_deref(), &annotations)?;
    if set.debug {
        log_file::say_more();
    }
    if !set.idle.is_empty() {
        log::warn!("the configuration is Kata's, of which some has no meaning here: {}", set.idle.join("; "));
    }
    // The host's kernel knows no limits.
    let by_vmm = set.no_vhost || set.limits != NicLimits::NONE;
    let how = How { model: set.model, vhost: if by_vmm { VhostUse::Off } else { VhostUse::Auto } };
    let files = GuestFiles::find(set.kernel.as_deref(), set.user_space.as_deref())?;
    // The process that cleans up is to hold no namespace, so it comes first.
    let ground = Ground::prepare(&start.places, Some(start.address.name()), None)?;
    journal::begin(ground.state());
    let (namespace, id) = (start.namespace.clone(), start.id.clone());
    ground.note_client(&Client { namespace, id });
    if !set.guest_mounts.is_empty() {
        ground.shared().show_to_guest(&set.guest_mounts).context("sandbox_bind_mounts")?;
    }
    let of_sandbox = bundle::is_of_sandbox(&start.bundle);
    if set.own_cgroup {
        enter_cgroup(&ground, start.spec.as_ref());
    }
    let namespace = start.spec.as_ref().map_or(Namespace::Own, Namespace::of);
    namespace.enter()?;
    if namespace == Namespace::Host {
        log::warn!("the container asks for the host's own network, which no guest can be given: it has none");
    }
    let mut machine = bundle::machine(start.spec.as_ref(), of_sandbox, &set);
    if how.model != Model::None {
        let queues = set.queues.unwrap_or(machine.vcpus.min(MAX_QUEUE_PAIRS));
        // The namespace of the Sandbox API's comes later, with as many interfaces as it has.
        let slots = if start.spec.is_none() { MAX_NICS } else { namespace.slots() };
        machine.nics = interfaces::slots(slots, queues, set.limits);
    }
    machine.validate()?;
    let settings = Settings {
        vm: VmConfig { root_disk: files.initrd.root_disk(set.verity.as_ref())?, ..machine },
        beginning: Beginning::Boot {
            kernel: files.kernel,
            initrd: files.initrd,
            templates: Templates::from_environment(&start.places),
        },
        memory_folder: set.memory.as_ref().and_then(|(_, folder)| folder.clone()),
        served: Vec::new(),
        live_console: false,
        debug_console: set.debug_console,
        boot_limit: set.patience.unwrap_or(BOOT_LIMIT),
    };
    let growth = Growth::new(&settings.vm, bundle::own(&set));
    let policy = Policy {
        no_seccomp: set.no_seccomp,
        pipe_size: set.pipe_size.unwrap_or(0),
        pin_vcpus: set.pin_vcpus,
        guest_hooks: set.guest_hooks.unwrap_or_default(),
    };
    Ok(Prepared { ground, settings, policy, growth, how })
}

/// Has all of the sandbox be in the cgroup that its specification names, as far as it can be.
fn enter_cgroup(ground: &Ground, spec: Option<&Spec>) {
    let entered = match spec {
        // It would be known only when server and VMM have their memory already.
        None => Err("containerd's Sandbox API says too late which".to_owned()),
        Some(spec) => {
            let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
            let place = path.and_then(|path| CgroupPlace::of(&path.to_string_lossy()));
            let place = place.ok_or_else(|| "none is named".to_owned());
            place.and_then(|place| ground.whole().enter(&place).map_err(|error| error.to_string()))
        }
    };
    if let Err(reason) = entered {
        log::warn!("sandbox_cgroup_only: the sandbox is in no cgroup of its own: {reason}");
    }
}

async fn serve(
    start: Start,
    prepared: Result<Prepared, String>,
    host: HostNamespaces,
    timings: Timings,
) -> anyhow::Result<()> {
    let (mut network, mut size, mut policy) = (None, None, Policy::default());
    let sandbox = prepared.and_then(|Prepared { ground, settings, policy: set, growth, how }| {
        (size, policy) = (Some(growth), set);
        network = Network::for_guest(&settings.vm, how).map_err(|error| format!("the network namespace: {error}"))?;
        Sandbox::start(ground, settings, timings).map_err(|error| error.to_string())
    });
    let (booted, guest) = watch::channel::<Booted>(None);
    let shared = sandbox.as_ref().ok().map(Sandbox::shared);
    let events = Events::start(&start.namespace, &start.events);
    let tasks = Tasks::new(&start.namespace, guest, shared, host, events.clone(), policy);
    if matches!(start.spec.as_ref().map(Namespace::of), Some(Namespace::Given(_))) {
        tasks.forward_ports();
    }
    if let Some(network) = network {
        tasks.offer_network(network);
    }
    if let Some(growth) = size {
        tasks.offer_growth(growth);
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // SAFETY: the descriptor is a listening unix socket, and nobody else has it.
    let server = unsafe { ttrpc::r#async::Server::new().add_unix_listener(start.listener.into_raw_fd()) }?;
    let mut server = server
        .register_service(task_service::services(&tasks))
        .register_service(sandbox_service::services(&tasks, &start.id));
    server.start().await?;
    let unwanted = tasks.clone();
    tokio::spawn(async move { unwanted.end_unless_wanted(UNWANTED).await });

    let sandbox = match sandbox {
        Ok(sandbox) => boot(sandbox, &booted, &tasks).await,
        Err(reason) => {
            log::error!("{reason}");
            booted.send_replace(Some(Err(reason)));
            None
        }
    };
    tokio::select! {
        () = tasks.over() => {}
        _ = terminate.recv() => tasks.evict(EVICTION).await,
        _ = interrupt.recv() => tasks.evict(EVICTION).await,
    }
    // Nobody new finds the way from here on.
    start.address.remove();
    tasks.leave_network().await;
    if let Some(sandbox) = sandbox {
        sandbox.end().await?;
    }
    events.delivered(FAREWELL).await;
    Ok(())
}

/// Waits for the guest, and tells those who wait for it; none if it does not come, or the end comes first.
async fn boot(mut sandbox: Sandbox, booted: &watch::Sender<Booted>, tasks: &Arc<Tasks>) -> Option<Sandbox> {
    let result = tokio::select! {
        result = sandbox.ready() => result.map_err(|error| error.to_string()),
        () = tasks.over() => {
            // The loop that follows is to see it as well.
            tasks.shut_down(true);
            Err("the sandbox is ending".to_owned())
        }
    };
    sandbox.timings().pass(Mark::ContainerPrepared);
    let machine = result.and_then(|()| sandbox.machine().ok_or_else(|| "the agent is gone".to_owned()));
    let machine = match machine {
        Ok(machine) => tasks.join_network(&machine.guest).await.map(|()| machine),
        Err(reason) => Err(reason),
    };
    if let Err(reason) = &machine {
        log::error!("{reason}");
    }
    booted.send_replace(Some(machine));
    Some(sandbox)
}
