//! Volumes that become larger while a guest has them, for whoever of this host's root asks: a socket in the sandbox's folder, whatever the
//! front end.
//!
//! Who connects says in a line which volume, and how large; is told in a line what came of it; and is hung up on. One at a time, as the
//! volumes are. Knows nothing of disks.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::figures::socket;
use super::guest::Guest;
use super::volumes::Volumes;

/// The socket's name in the sandbox's folder.
const SOCKET: &str = "volumes.sock";
/// The longest line, in bytes.
const MOST: u64 = 16 << 10;
/// How long who connects may take to say what is to be done.
const ASKING: Duration = Duration::from_secs(2);
/// How long to wait where there are no descriptors for another client.
const PAUSE: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The volume, as the host knows it.
    pub volume: PathBuf,
    /// How many bytes it is to have: as many as its disk has by now, at most.
    pub length: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It has become so large.
    Done,
    /// The sandbox has no such volume.
    Elsewhere,
    /// Why not.
    Failed(String),
}

/// Listens until it is dropped.
#[derive(Debug)]
pub(super) struct Enlarger {
    task: JoinHandle<()>,
}

impl Enlarger {
    /// Begins to listen for `guest`, which has `volumes`, in the folder `state`. Call it inside a runtime.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub(super) fn start(state: &Path, guest: Guest, volumes: Volumes) -> io::Result<Enlarger> {
        Enlarger::of(state, move |Wish { volume, length }| {
            let (guest, volumes) = (guest.clone(), volumes.clone());
            async move {
                match volumes.grow(&guest, &volume, length).await {
                    Ok(true) => Outcome::Done,
                    Ok(false) => Outcome::Elsewhere,
                    Err(error) => Outcome::Failed(error.to_string()),
                }
            }
        })
    }

    fn of<F>(state: &Path, carry_out: impl Fn(Wish) -> F + Send + Sync + 'static) -> io::Result<Enlarger>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (path, _folder) = socket(state, SOCKET)?;
        let listener = UnixListener::bind(path)?;
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        serve(stream, &carry_out)
                            .await
                            .unwrap_or_else(|error| log::debug!("a volume's growth: {error}"));
                    }
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        });
        Ok(Enlarger { task })
    }
}

impl Drop for Enlarger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks the sandbox whose folder is `state`. Who may not wait for ever sets a limit.
///
/// # Errors
/// When nobody answers.
pub async fn ask(state: &Path, wish: &Wish) -> io::Result<Outcome> {
    let mut stream = {
        let (path, _folder) = socket(state, SOCKET)?;
        UnixStream::connect(path).await?
    };
    say(&mut stream, wish).await?;
    hear(&mut stream).await
}

async fn serve<F: Future<Output = Outcome>>(mut stream: UnixStream, carry_out: impl Fn(Wish) -> F) -> io::Result<()> {
    let wish = tokio::time::timeout(ASKING, hear(&mut stream)).await??;
    say(&mut stream, &carry_out(wish).await).await
}

async fn say(stream: &mut UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn hear<T: for<'a> Deserialize<'a>>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MOST)).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_told_and_who_says_nothing_holds_nobody_up_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("x".repeat(200));
        std::fs::create_dir(&state).unwrap();
        let wish = |volume: &str| Wish { volume: volume.into(), length: 4096 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert!(ask(&state, &wish("/data")).await.is_err());
            let enlarger = Enlarger::of(&state, |wish| async move {
                match wish.volume.to_str() {
                    Some("/data") => Outcome::Done,
                    Some("/small") => Outcome::Failed(format!("not {} bytes", wish.length)),
                    _ => Outcome::Elsewhere,
                }
            })
            .unwrap();
            let (path, _folder) = socket(&state, SOCKET).unwrap();
            let _silent = UnixStream::connect(&path).await.unwrap();
            let mut nonsense = UnixStream::connect(&path).await.unwrap();
            nonsense.write_all(&[b'['; 2 * MOST as usize]).await.unwrap();
            assert_eq!(ask(&state, &wish("/data")).await.unwrap(), Outcome::Done);
            assert_eq!(ask(&state, &wish("/other")).await.unwrap(), Outcome::Elsewhere);
            let why = Outcome::Failed("not 4096 bytes".to_owned());
            assert_eq!(ask(&state, &wish("/small")).await.unwrap(), why);
            drop(enlarger);
            tokio::task::yield_now().await;
            assert!(ask(&state, &wish("/data")).await.is_err());
        });
    }
}
