//! The command server: accepts connections, checks their secret, and hands them to sessions.
//!
//! Also what a restored host must be told anew: clock, randomness, shared folders. It does not know how a command is run
//! (`session.rs`, `command.rs`).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::syncfs;
use tatami_testhost::wire::{self, CLOCK_SLACK, FromHost, GREETING, Hello, PORT, Setup, Share, Stream, ToHost, Token};

use crate::{boot, session};

/// How long a session waits for its streams: they are opened together with it.
const STREAMS_DEADLINE: Duration = Duration::from_secs(20);

/// Programs whose pages every test needs soon; run once before the snapshot, so that they are in memory after a restore.
const WARM_UP: &str =
    "cat /proc/self/mountinfo | grep -c / ; ls -l /dev/kvm; ip link; ps; mkdir -p /tmp/w; rm -r /tmp/w; sync";

/// Runs the server; returns only on failure.
///
/// # Errors
/// The port cannot be listened on.
pub(crate) fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listening for clients")?;
    let server = Arc::new(Server::default());
    // The client waits for this line on the console.
    println!("testhost-init: ready");
    for connection in listener.incoming() {
        let connection = connection.context("accepting a client")?;
        let server = Arc::clone(&server);
        thread::spawn(move || {
            if let Err(e) = server.connection(connection) {
                eprintln!("testhost-init: connection: {e:#}");
            }
        });
    }
    Ok(())
}

/// What connections share.
#[derive(Default)]
pub(crate) struct Server {
    token: Mutex<Option<Token>>,
    /// Stream connections that came before their session took them.
    waiting: Mutex<HashMap<(u64, Stream), TcpStream>>,
    arrived: Condvar,
    /// The shared folders that commands may write to.
    writable: Mutex<Vec<File>>,
}

impl Server {
    /// Takes the connection of one stream of a session, waiting for it if need be.
    pub(crate) fn take_stream(&self, session: u64, stream: Stream) -> Result<TcpStream> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut waiting, _) = self
            .arrived
            .wait_timeout_while(waiting, STREAMS_DEADLINE, |w| !w.contains_key(&(session, stream)))
            .unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&(session, stream)).with_context(|| format!("the client did not connect {stream:?}"))
    }

    fn connection(self: &Arc<Self>, mut connection: TcpStream) -> Result<()> {
        connection.set_nodelay(true)?;
        connection.write_all(&[GREETING])?;
        let Some(hello) = wire::receive::<Hello>(&mut connection)? else {
            return Ok(());
        };
        match hello {
            Hello::Control { token } => {
                let mut known = self.token.lock().unwrap_or_else(PoisonError::into_inner);
                if *known.get_or_insert(token) != token {
                    bail!("refused: wrong token");
                }
                drop(known);
                self.control(connection)
            }
            Hello::Stream { token, session, stream } => {
                if *self.token.lock().unwrap_or_else(PoisonError::into_inner) != Some(token) {
                    bail!("refused: wrong token");
                }
                self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert((session, stream), connection);
                self.arrived.notify_all();
                Ok(())
            }
        }
    }

    fn control(self: &Arc<Self>, mut connection: TcpStream) -> Result<()> {
        while let Some(message) = wire::receive::<ToHost>(&mut connection)? {
            let answer = match message {
                ToHost::Setup(setup) => answer(self.set_up(&setup)),
                ToHost::Clock(time) => answer(set_clock(Duration::from_nanos(time))),
                ToHost::Compare(time) => answer(compare_clock(Duration::from_nanos(time))),
                ToHost::Poke => FromHost::Done,
                ToHost::Prepare => answer(self.prepare()),
                ToHost::Run(run) => {
                    session::run(self, connection, &run)?;
                    return Ok(());
                }
                ToHost::Signal(_) | ToHost::Kill | ToHost::Resize(_) | ToHost::Deaf(_) => {
                    bail!("{message:?} without a session")
                }
            };
            wire::send(&mut connection, &answer)?;
        }
        Ok(())
    }

    fn set_up(&self, setup: &Setup) -> Result<()> {
        fs::write("/dev/urandom", &setup.seed).context("seeding /dev/urandom")?;
        for share in &setup.shares {
            let folder = mount_share(share)?;
            if share.writable {
                self.writable.lock().unwrap_or_else(PoisonError::into_inner).push(folder);
            }
        }
        Ok(())
    }

    /// Writes back what commands wrote into shared folders: when the client returns, it is there.
    pub(crate) fn write_back(&self) {
        for folder in self.writable.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Err(e) = syncfs(folder) {
                eprintln!("testhost-init: writing back a shared folder: {e}");
            }
        }
    }

    /// Last step before the snapshot: the next secret is another one.
    fn prepare(&self) -> Result<()> {
        Command::new("bash").args(["-c", WARM_UP]).envs(boot::ENVIRONMENT).output().context("warming up")?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

fn answer(result: Result<()>) -> FromHost {
    match result {
        Ok(()) => FromHost::Done,
        Err(e) => FromHost::Failed { status: 125, message: format!("{e:#}") },
    }
}

fn set_clock(time: Duration) -> Result<()> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
    if now.abs_diff(time) > CLOCK_SLACK {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time)).context("setting the clock")?;
    }
    Ok(())
}

fn compare_clock(time: Duration) -> Result<()> {
    let off = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?).abs_diff(time);
    if off > wire::CLOCK_DRIFT {
        bail!("the clock is {:.1} s off", off.as_secs_f32());
    }
    Ok(())
}

fn mount_share(share: &Share) -> Result<File> {
    let path = Path::new(OsStr::from_bytes(&share.path));
    fs::create_dir_all(path).with_context(|| format!("the mount point {}", path.display()))?;
    let access = if share.writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    // cache=mmap: pages of files are cached only while something holds the file open or mapped, and names not at all, so
    // what the developer rebuilds is what the next command sees. cache=loose would be faster, and stale.
    let options = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=any";
    mount(Some(share.tag.as_str()), path, Some("9p"), access | MsFlags::MS_NOATIME, Some(options))
        .with_context(|| format!("mounting the shared folder {}", path.display()))?;
    Ok(File::open(path)?)
}
