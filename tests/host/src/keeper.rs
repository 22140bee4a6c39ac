//! The process that keeps one host: starts QEMU, tells the host what it cannot know, and ends it when it should end.
//!
//! It outlives the client that started it, is in nobody's way (own session, no terminal), and takes QEMU with it however it
//! ends. No command's bytes pass through it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::setsid;
use tatami_testhost::wire::{CLOCK_SLACK, Setup, TOKEN_LEN, ToHost, Token};

use crate::arch::Arch;
use crate::connection::Connection;
use crate::host::{Plan, State};
use crate::places::try_lock;
use crate::qemu::{Life, Qemu};

/// Between two looks at QEMU and at the clients, in milliseconds.
const LOOK: u16 = 250;

/// Between two times that the host is told the time.
const CLOCK_PERIOD: Duration = Duration::from_secs(60);

/// Keeps a host until it ends.
///
/// # Errors
/// It does not start, or ended by itself; the log holds the reason.
pub(crate) fn keep(plan: Plan) -> Result<()> {
    setsid().context("a session of its own")?;
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    let alive = try_lock(&plan.folder.join("alive.lock"), true)?;
    let Some(_alive) = alive else {
        bail!("another keeper runs in {}", plan.folder.display());
    };
    // Shared with other hosts restored from it; in its way is only who would remove it.
    let _used = match &plan.snapshot {
        Some(snapshot) => Some(try_lock(&snapshot.join("lock"), false)?.context("the snapshot is being removed")?),
        None => None,
    };
    if let Some(snapshot) = &plan.snapshot {
        // Its time of last use, by which snapshots are kept or removed.
        let _ = File::options().write(true).open(snapshot.join("lock")).and_then(|f| f.set_modified(SystemTime::now()));
    }
    let mut qemu = bring_up(&plan)?;
    let token = random::<TOKEN_LEN>()?;
    let port = qemu.port()?;
    let connection = tell(&plan, port, token)?;
    // Where time counts instructions, it has nothing to do with ours.
    let hangs = if plan.machine.icount { Arc::default() } else { watch(connection, plan.machine.arch) };
    let folder = plan.folder.clone();
    let idle_limit = Duration::from_secs(plan.idle);
    write_state(&State { keeper: std::process::id() as i32, port, token, plan })?;

    let clients = folder.join("clients.lock");
    let mut idle_since = Instant::now();
    let result = loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, LOOK)? > 0 {
            break Ok(());
        }
        if let Err(e) = qemu.check() {
            break Err(e);
        }
        if hangs.load(Ordering::Relaxed) {
            break Err(anyhow!("the test host hangs: ended"));
        }
        match try_lock(&clients, true)? {
            None => idle_since = Instant::now(),
            Some(nobody) if idle_since.elapsed() > idle_limit => {
                println!("no command for {} s: ending", idle_limit.as_secs());
                let _ = fs::remove_file(folder.join("state.json"));
                drop(qemu);
                // Held to the last, so that no client joins a host that ends.
                drop(nobody);
                return Ok(());
            }
            Some(_) => {}
        }
    };
    let _ = fs::remove_file(folder.join("state.json"));
    result
}

fn bring_up(plan: &Plan) -> Result<Qemu> {
    let shares = plan.shares();
    match &plan.snapshot {
        Some(snapshot) => {
            let mut qemu = Qemu::start(&plan.parts, &plan.machine, Life::Restore(snapshot), &shares, &plan.folder)?;
            qemu.resume(snapshot)?;
            Ok(qemu)
        }
        None => {
            let mut qemu = Qemu::start(&plan.parts, &plan.machine, Life::Boot, &shares, &plan.folder)?;
            qemu.wait_booted()?;
            Ok(qemu)
        }
    }
}

fn tell(plan: &Plan, port: u16, token: Token) -> Result<Connection> {
    let mut connection = Connection::open(port, token)?;
    connection.ask(&ToHost::Setup(Setup { seed: random::<64>()?.to_vec(), shares: plan.shares() }))?;
    // A host just restored answers slowly at first; the time it is told must not be old.
    for _ in 0..10 {
        let asked = Instant::now();
        connection.tell_time()?;
        if asked.elapsed() < CLOCK_SLACK {
            break;
        }
    }
    Ok(connection)
}

/// Tells the host the time every [`CLOCK_PERIOD`] (this machine may have slept), and so learns whether it still answers; pokes it
/// meanwhile where it needs that.
fn watch(mut connection: Connection, arch: Arch) -> Arc<AtomicBool> {
    let hangs = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&hangs);
    thread::spawn(move || {
        loop {
            if let Err(e) = pass(&mut connection, arch).and_then(|()| connection.tell_time()) {
                println!("the test host does not answer: {e:#}");
                told.store(true, Ordering::Relaxed);
                return;
            }
        }
    });
    hangs
}

/// Lets a [`CLOCK_PERIOD`] pass.
fn pass(connection: &mut Connection, arch: Arch) -> Result<()> {
    let Some(period) = arch.needs_pokes() else {
        thread::sleep(CLOCK_PERIOD);
        return Ok(());
    };
    let began = Instant::now();
    while began.elapsed() < CLOCK_PERIOD {
        thread::sleep(period);
        connection.poke()?;
    }
    Ok(())
}

fn write_state(state: &State) -> Result<()> {
    let part = state.plan.folder.join("state.part");
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    Ok(fs::rename(part, state.plan.folder.join("state.json"))?)
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
