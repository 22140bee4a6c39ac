//! The running host of a checkout, as a client finds it: its folder, its locks, its address; and how to start and end it.
//!
//! In the folder of a host:
//! - `start.lock`: held by the client that looks for, starts or ends the host;
//! - `alive.lock`: held by the keeper for as long as it lives;
//! - `clients.lock`: shared by all who use the host, so that the keeper knows when nobody does;
//! - `state.json`: the [`State`], written when the host is ready.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tatami_testhost::wire::{Share, Token};

use crate::arch::Arch;
use crate::places::{Cache, Hash, Lock, try_lock, wait_lock};
use crate::prepare;
use crate::qemu::{Machine, Parts};

/// All that the keeper needs to start a host and keep it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The host's folder.
    pub(crate) folder: PathBuf,
    /// The developer's checkout: writable at the same path inside.
    pub(crate) checkout: PathBuf,
    /// The cache that all parts share: readable at the same path inside.
    pub(crate) cache: PathBuf,
    /// What it is made of.
    pub(crate) parts: Parts,
    /// What it looks like.
    pub(crate) machine: Machine,
    /// Restored from here; booted where there is none.
    pub(crate) snapshot: Option<PathBuf>,
    /// Seconds without commands after which it ends.
    pub(crate) idle: u64,
}

impl Plan {
    /// The folders that the host sees.
    #[must_use]
    pub(crate) fn shares(&self) -> Vec<Share> {
        let path = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
        vec![
            Share { tag: "cache".into(), path: path(&self.cache), writable: false },
            // Second, so that it wins where one lies in the other.
            Share { tag: "checkout".into(), path: path(&self.checkout), writable: true },
        ]
    }
}

/// A host that takes commands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// The process that keeps it.
    pub(crate) keeper: i32,
    /// Loopback port of its command server.
    pub(crate) port: u16,
    /// Its secret.
    pub(crate) token: Token,
    /// What it was started from.
    pub(crate) plan: Plan,
}

/// What is wanted of a host.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The checkout to be seen inside.
    pub(crate) checkout: PathBuf,
    /// Our PID 1, built.
    pub(crate) init: PathBuf,
    /// Its shape.
    pub(crate) machine: Machine,
    /// Not from a snapshot, and not one that runs.
    pub(crate) cold: bool,
    /// Seconds.
    pub(crate) idle: u64,
}

/// A running host, in use by this process.
#[derive(Debug)]
pub(crate) struct Host {
    /// Where and what.
    pub(crate) state: State,
    _in_use: Lock,
}

/// The folder of the host of a checkout: its ordinary one, or the one that `TATAMI_TESTHOST_NAME` names.
///
/// # Errors
/// No permission.
pub(crate) fn folder(cache: &Cache, checkout: &Path, arch: Arch, icount: bool) -> Result<PathBuf> {
    let key = Hash::default()
        .with(checkout.as_os_str().as_encoded_bytes())
        .with(&[u8::from(icount)])
        .with(arch.name().as_bytes());
    let key = match std::env::var_os("TATAMI_TESTHOST_NAME").filter(|name| !name.is_empty()) {
        Some(name) => key.with(name.as_encoded_bytes()),
        None => key,
    };
    cache.run_folder(&key.name())
}

/// Finds the wanted host or starts it.
///
/// # Errors
/// It cannot be built or does not start.
pub(crate) fn find_or_start(cache: &Cache, wanted: &Wanted) -> Result<Host> {
    let folder = folder(cache, &wanted.checkout, wanted.machine.arch, wanted.machine.icount)?;
    let _starting = lock_start(&folder)?;
    let in_use = lock_use(&folder)?;
    let running = running(&folder)?;
    let images = prepare::images(cache, &wanted.checkout.join("tests/host"), wanted.machine.arch)?;
    let mut plan = Plan {
        checkout: wanted.checkout.clone(),
        cache: cache.shared.clone(),
        parts: Parts { images, init: wanted.init.clone() },
        machine: wanted.machine.clone(),
        snapshot: None,
        idle: wanted.idle,
        folder: folder.clone(),
    };
    // QEMU's machine with an emulated EL2 does not go on after it was restored.
    if !wanted.cold && !wanted.machine.icount && wanted.machine.arch == Arch::X86_64 {
        plan.snapshot = Some(prepare::snapshot(cache, &plan.parts, &plan.machine, &plan.shares())?);
    }
    let in_use = match running {
        None => in_use,
        Some(state) if fits(&state.plan, &plan) && !wanted.cold => return Ok(Host { state, _in_use: in_use }),
        Some(state) => {
            drop(in_use);
            let alone = try_lock(&folder.join("clients.lock"), true)?;
            if alone.is_none() && !wanted.cold {
                eprintln!("testhost: the running host is out of date, but others use it: staying with it");
                return Ok(Host { state, _in_use: lock_use(&folder)? });
            }
            end(&folder, &state)?;
            drop(alone);
            lock_use(&folder)?
        }
    };
    let state = start(&plan)?;
    Ok(Host { state, _in_use: in_use })
}

/// Ends the host in `folder`, if one runs; says whether one did.
///
/// # Errors
/// It does not end.
pub(crate) fn stop(folder: &Path) -> Result<bool> {
    let _starting = lock_start(folder)?;
    match running(folder)? {
        Some(state) => end(folder, &state).map(|()| true),
        None => Ok(false),
    }
}

/// The host that runs in `folder`. A keeper that died leaves a state behind, but not its lock.
///
/// # Errors
/// No permission.
pub(crate) fn running(folder: &Path) -> Result<Option<State>> {
    if try_lock(&folder.join("alive.lock"), true)?.is_some() {
        return Ok(None);
    }
    let text = match fs::read(folder.join("state.json")) {
        Ok(text) => text,
        // It is just ending: whoever waits for the lock of its clients sees it gone.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).context("the state of the running host"),
    };
    Ok(serde_json::from_slice(&text).ok())
}

fn lock_start(folder: &Path) -> Result<Lock> {
    wait_lock(&folder.join("start.lock"), true, "another run is starting or stopping the test host")
}

fn lock_use(folder: &Path) -> Result<Lock> {
    wait_lock(&folder.join("clients.lock"), false, "the test host is ending after its idle time")
}

/// Whether a host that runs serves who wants `new`. How it came up and when it ends do not matter.
fn fits(old: &Plan, new: &Plan) -> bool {
    let same_start = old.snapshot.is_none() || old.snapshot == new.snapshot;
    old.machine == new.machine && old.parts.images == new.parts.images && old.cache == new.cache && same_start
}

/// Starts the keeper and waits until its host takes commands.
fn start(plan: &Plan) -> Result<State> {
    let log_path = plan.folder.join("keeper.log");
    let log = fs::File::create(&log_path)?;
    let _ = fs::remove_file(plan.folder.join("state.json"));
    let wait = Duration::from_secs(5);
    // A predecessor that is being reaped may hold the lock for another moment.
    let gone = Instant::now() + wait;
    while try_lock(&plan.folder.join("alive.lock"), true)?.is_none() {
        if Instant::now() > gone {
            bail!("a keeper of the test host hangs in {}; see keeper.log there", plan.folder.display());
        }
        thread::sleep(Duration::from_millis(10));
    }
    let mut keeper = Command::new(std::env::current_exe()?)
        .arg("--keep")
        .arg(serde_json::to_string(plan)?)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the keeper of the test host")?;
    let began = Instant::now();
    let mut told = false;
    loop {
        if let Some(state) = running(&plan.folder)? {
            return Ok(state);
        }
        if keeper.try_wait()?.is_some() {
            bail!("the test host did not start:\n{}", fs::read_to_string(log_path).unwrap_or_default().trim_end());
        }
        if !told && began.elapsed() > Duration::from_secs(2) {
            let how = if plan.snapshot.is_some() { "restoring" } else { "booting" };
            eprintln!("testhost: {how} the test host");
            told = true;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn end(folder: &Path, state: &State) -> Result<()> {
    // The lock that it holds says that the number is still the keeper's.
    let _ = kill(Pid::from_raw(state.keeper), Signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(10);
    while try_lock(&folder.join("alive.lock"), true)?.is_none() {
        if Instant::now() > deadline {
            let _ = kill(Pid::from_raw(state.keeper), Signal::SIGKILL);
            bail!("the keeper of the test host (process {}) did not end by itself: killed", state.keeper);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
