//! What the guest uses, for whoever of this host's root asks: a socket in the sandbox's folder, whatever the front end.
//!
//! Who connects is told once, as the agent tells it, and hung up on. One at a time, and each for a bounded time: an agent that
//! does not answer is asked for one of them only, and what is asked of it does not add up. Knows nothing of what the figures are for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protobuf::Message;
use rustix::fs::{Mode, OFlags};
use tatami_protocol::agent::Figures;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::guest::Guest;
use super::volumes::Volumes;

/// The socket's name in the sandbox's folder.
const SOCKET: &str = "figures.sock";
/// How long it takes at most to ask the agent and to tell one client.
const PATIENCE: Duration = Duration::from_millis(900);
/// How long to wait where there are no descriptors for another client.
const PAUSE: Duration = Duration::from_millis(100);
/// The most that is told, in bytes. Who is told wants to see that many sandboxes at once.
const MOST: usize = 1 << 20;

/// Tells until it is dropped.
#[derive(Debug)]
pub(super) struct Teller {
    task: JoinHandle<()>,
}

impl Teller {
    /// Begins to tell of `guest`, which has `volumes`, in the folder `state`. Call it inside a runtime.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub(super) fn start(state: &Path, guest: Guest, volumes: Volumes) -> io::Result<Teller> {
        Teller::of(state, move || {
            let (guest, volumes) = (guest.clone(), volumes.clone());
            async move {
                let mut figures = guest.call(guest.agent().figures()).await.map_err(io::Error::other)?;
                volumes.identify(&mut figures.volumes).await;
                Ok(figures)
            }
        })
    }

    fn of<F>(state: &Path, figures: impl Fn() -> F + Send + Sync + 'static) -> io::Result<Teller>
    where
        F: Future<Output = io::Result<Figures>> + Send + 'static,
    {
        let (path, _folder) = socket(state, SOCKET)?;
        let listener = UnixListener::bind(path)?;
        Ok(Teller { task: tokio::spawn(tell(listener, figures)) })
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the sandbox whose folder is `state` tells.
///
/// # Errors
/// When nobody tells. Who may not wait for ever sets a limit.
pub async fn ask(state: &Path) -> io::Result<Figures> {
    let mut stream = {
        let (path, _folder) = socket(state, SOCKET)?;
        UnixStream::connect(path).await?
    };
    let length = stream.read_u32().await? as usize;
    if length > MOST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Figures::parse_from_bytes(&bytes)?)
}

async fn tell<F: Future<Output = io::Result<Figures>>>(listener: UnixListener, figures: impl Fn() -> F) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let told = async {
            let bytes = figures().await?.write_to_bytes()?;
            if bytes.len() > MOST {
                return Err(io::Error::other("the agent tells too much"));
            }
            stream.write_u32(bytes.len() as u32).await?;
            stream.write_all(&bytes).await
        };
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("figures: {error}"),
            Err(_) => log::debug!("figures: the agent does not answer"),
        }
    }
}

/// The path of the socket `name` in `state`, which is good as long as the folder is open: short however long the folder's is, as the address of a unix
/// socket must be.
pub(super) fn socket(state: &Path, name: &str) -> io::Result<(PathBuf, OwnedFd)> {
    let folder = rustix::fs::open(state, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())), folder))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::time::Instant;

    /// A sandbox in `state` that tells this, or that does not answer.
    pub(crate) fn sandbox(state: &Path, figures: Option<Figures>) -> impl Drop + use<> {
        let figures = move || {
            let figures = figures.clone();
            async move {
                match figures {
                    Some(figures) => Ok(figures),
                    None => std::future::pending().await,
                }
            }
        };
        Teller::of(state, figures).unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn what_the_agent_says_is_told_as_often_as_somebody_asks() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("x".repeat(200));
        std::fs::create_dir(&state).unwrap();
        block_on(async {
            assert!(ask(&state).await.is_err());
            let figures = Figures { mem_total: 7, ..Default::default() };
            let teller = sandbox(&state, Some(figures.clone()));
            for _ in 0..3 {
                assert_eq!(ask(&state).await.unwrap(), figures);
            }
            drop(teller);
            tokio::task::yield_now().await;
            assert!(ask(&state).await.is_err());
        });
    }

    #[test]
    fn an_agent_that_is_silent_holds_nobody_up_for_long() {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let _teller = sandbox(dir.path(), None);
            let start = Instant::now();
            let (one, other) = tokio::join!(ask(dir.path()), ask(dir.path()));
            assert!(one.is_err() && other.is_err());
            assert!(start.elapsed() >= 2 * PATIENCE, "one after the other");
        });
    }

    #[test]
    fn what_is_too_much_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let much = Figures { load: vec![u64::MAX; MOST / 10 + 10], ..Default::default() };
            let _teller = sandbox(dir.path(), Some(much));
            assert!(ask(dir.path()).await.is_err());
        });
    }
}
