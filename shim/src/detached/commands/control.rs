//! `stop`, `kill`, `wait`, `pause`, `resume` and `rm`: what is done to one container after the other.
//!
//! Each container that was dealt with is printed as it was named; what goes wrong with one is told, and the others are dealt
//! with nevertheless.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::super::client::{Client, ClientError};
use super::super::registry::{self, Entry};
use super::super::server::NAMESPACE;
use super::super::{Error, FAILED, complain, signal_number};
use crate::events::{Happening, announce};
use crate::sandbox::folder::Places;

/// How long a server may take to end after its container, or after it was told to.
const SERVERS_END: Duration = Duration::from_secs(10);
/// How often that is looked at.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a container may take to end after KILL.
const KILLED: Duration = Duration::from_secs(10);

/// `tatami stop`.
#[derive(Args)]
#[command(after_help = "\
Sends the container's stop signal (TERM, or what the image or `run --stop-signal` says), waits, and then kills it.
A container whose first process handles no TERM, such as a plain `sleep`, is killed when the time is over.

Examples:
  tatami stop web
  tatami stop -t 1 web db")]
pub struct StopArguments {
    /// How long to wait before it is killed [default: what `run --stop-timeout` says, or 10]
    #[arg(short, long = "time", alias = "timeout", value_name = "SECONDS")]
    time: Option<u64>,
    /// The signal to send first [default: the container's]
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// `tatami kill`.
#[derive(Args)]
#[command(after_help = "Examples:\n  tatami kill web\n  tatami kill -s HUP web")]
pub struct KillArguments {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// `tatami wait`.
#[derive(Args)]
#[command(after_help = "Examples:\n  test $(tatami wait job) = 0")]
pub struct WaitArguments {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// `tatami pause`.
#[derive(Args)]
pub struct PauseArguments {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// `tatami resume`.
#[derive(Args)]
pub struct ResumeArguments {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// `tatami rm`.
#[derive(Args)]
#[command(after_help = "Examples:\n  tatami rm web\n  tatami rm -f $(tatami ps -aq)      # everything")]
pub struct RmArguments {
    /// Kill what still runs; what is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn stop(places: &Places, arguments: StopArguments) -> Result<u8, Error> {
    let signal = arguments.signal.as_deref().map(signal).transpose()?;
    // All at once: each may take its time.
    let stops = arguments.containers.iter().map(|word| {
        let (places, word, time) = (places.clone(), word.clone(), arguments.time);
        tokio::spawn(async move { stop_one(&registry::find(&places, &word)?, signal, time).await })
    });
    let stops: Vec<_> = stops.collect();
    let mut status = 0;
    for (word, stop) in arguments.containers.iter().zip(stops) {
        let stopped = stop.await.map_err(|error| Error::System { action: "stop", source: error.into() })?;
        status = status.max(tell(word, stopped)?);
    }
    Ok(status)
}

async fn stop_one(entry: &Entry, signal: Option<u32>, time: Option<u64>) -> Result<(), Error> {
    if entry.ended().is_some() {
        return Ok(());
    }
    let client = connect(entry).await?;
    let signal = signal.or_else(|| signal_number(&entry.record.stop_signal)).unwrap_or(Signal::SIGTERM as u32);
    gone_is_fine(entry, client.kill("", signal, false).await)?;
    if client.is_paused().await.unwrap_or(false) {
        // It is to hear of it.
        gone_is_fine(entry, client.resume().await)?;
    }
    let time = Duration::from_secs(time.unwrap_or(entry.record.stop_timeout));
    if tokio::time::timeout(time, end(entry, &client)).await.is_err() {
        gone_is_fine(entry, client.kill("", Signal::SIGKILL as u32, true).await)?;
        let killed = tokio::time::timeout(KILLED, end(entry, &client)).await;
        killed.map_err(|_| {
            Error::State(format!("{} does not end, not even by KILL: try `tatami rm -f`", entry.name()))
        })?;
    }
    Ok(())
}

pub(super) async fn kill(places: &Places, arguments: KillArguments) -> Result<u8, Error> {
    let signal = signal(&arguments.signal)?;
    each(places, &arguments.containers, async |entry| {
        let client = running(entry, "kill").await?;
        client.kill("", signal, false).await.map_err(|error| refused(entry, error))
    })
    .await
}

pub(super) async fn wait(places: &Places, arguments: &WaitArguments) -> Result<u8, Error> {
    let mut status = 0;
    for word in &arguments.containers {
        match registry::find(places, word).map_err(Error::from) {
            Ok(entry) => say(&waited(&entry).await.to_string())?,
            Err(error) => {
                complain(&error);
                status = FAILED;
            }
        }
    }
    Ok(status)
}

pub(super) async fn pause(places: &Places, arguments: &PauseArguments) -> Result<u8, Error> {
    each(places, &arguments.containers, async |entry| {
        let client = running(entry, "pause").await?;
        client.pause().await.map_err(|error| refused(entry, error))
    })
    .await
}

pub(super) async fn resume(places: &Places, arguments: &ResumeArguments) -> Result<u8, Error> {
    each(places, &arguments.containers, async |entry| {
        let client = running(entry, "resume").await?;
        client.resume().await.map_err(|error| refused(entry, error))
    })
    .await
}

pub(super) async fn rm(places: &Places, arguments: RmArguments) -> Result<u8, Error> {
    let mut status = 0;
    for word in &arguments.containers {
        let removed = match registry::find(places, word) {
            Ok(entry) => remove(places, &entry, arguments.force).await,
            Err(registry::LookupError::None(_)) if arguments.force => continue,
            Err(error) => Err(error.into()),
        };
        status = status.max(tell(word, removed)?);
    }
    Ok(status)
}

async fn remove(places: &Places, entry: &Entry, force: bool) -> Result<(), Error> {
    let name = entry.name();
    if entry.ended().is_none() {
        if !force {
            return Err(Error::State(format!(
                "{name} runs: `tatami stop {name}` ends it, and `tatami rm -f` kills it"
            )));
        }
        if let Ok(client) = Client::connect(entry).await
            && client.kill("", Signal::SIGKILL as u32, true).await.is_ok()
        {
            let _ = tokio::time::timeout(KILLED, end(entry, &client)).await;
        } else {
            end_server(entry, Signal::SIGTERM);
        }
    }
    if !until(SERVERS_END, || !entry.lives()).await {
        if !force {
            return Err(Error::State(format!("the sandbox server of {name} does not end: `tatami rm -f` kills it")));
        }
        end_server(entry, Signal::SIGKILL);
        until(SERVERS_END, || !entry.lives()).await;
    }
    // Usually somebody is at it already.
    until(SERVERS_END, || !entry.found.remains()).await;
    entry.found.clear().map_err(|source| Error::System { action: "remove what is left of the sandbox", source })?;
    entry.kept.remove().map_err(|source| Error::System { action: "remove the record", source })?;
    let happening = Happening {
        at: SystemTime::now(),
        what: "remove".to_owned(),
        namespace: NAMESPACE.to_owned(),
        server: entry.found.server() as u32,
        container: entry.record.id.clone(),
        exec: None,
        status: None,
    };
    announce(&places.state, &happening);
    Ok(())
}

fn end_server(entry: &Entry, signal: Signal) {
    if entry.lives() && entry.found.server() > 0 {
        // One that ends already takes no notice.
        let _ = nix::sys::signal::kill(Pid::from_raw(entry.found.server()), signal);
    }
}

async fn until(limit: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
    }
    true
}

/// Does `work` for each of them.
async fn each(places: &Places, words: &[String], work: impl AsyncFn(&Entry) -> Result<(), Error>) -> Result<u8, Error> {
    let mut status = 0;
    for word in words {
        let done = match registry::find(places, word) {
            Ok(entry) => work(&entry).await,
            Err(error) => Err(error.into()),
        };
        status = status.max(tell(word, done)?);
    }
    Ok(status)
}

/// Prints who was dealt with, or what went wrong; the exit status of that.
fn tell(word: &str, result: Result<(), Error>) -> Result<u8, Error> {
    match result {
        Ok(()) => say(word).map(|()| 0),
        Err(error) => {
            complain(&error);
            Ok(FAILED)
        }
    }
}

fn say(text: &str) -> Result<(), Error> {
    writeln!(std::io::stdout(), "{text}").map_err(Error::Output)
}

/// A connection to a container that has not ended.
///
/// # Errors
/// [`Error::State`] says that it cannot be asked to `what` any more.
pub(super) async fn running(entry: &Entry, what: &str) -> Result<Client, Error> {
    if entry.ended().is_some() {
        return Err(Error::State(format!("cannot {what} {}: it does not run any more", entry.name())));
    }
    connect(entry).await
}

async fn connect(entry: &Entry) -> Result<Client, Error> {
    match Client::connect(entry).await {
        Ok(client) => Ok(client),
        Err(_)
            if entry.record.started.is_none() && entry.kept.read().is_some_and(|record| record.started.is_none()) =>
        {
            Err(Error::State(format!("{} is being started", entry.name())))
        }
        Err(error) => Err(refused(entry, error)),
    }
}

pub(super) fn refused(entry: &Entry, error: ClientError) -> Error {
    match super::super::command_failure(&error.to_string()) {
        Some((message, status)) => Error::Command(message.to_owned(), status),
        None => Error::Client(entry.name().to_owned(), error),
    }
}

/// What is refused because it has ended is done.
fn gone_is_fine(entry: &Entry, result: Result<(), ClientError>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_gone() || entry.ended().is_some() => Ok(()),
        result => result.map_err(|error| refused(entry, error)),
    }
}

/// Returns when the container has ended, and that is written down.
async fn end(entry: &Entry, client: &Client) {
    // Without an answer, the server went away because it has, and wrote it down before.
    drop(client.wait("").await);
    until_ended(entry).await;
}

/// The exit status, once there is one.
pub(super) async fn waited(entry: &Entry) -> u32 {
    if let Some(ended) = entry.ended() {
        return ended.status;
    }
    if let Ok(client) = Client::connect(entry).await
        && let Ok(status) = client.wait("").await
        && (entry.record.auto_remove || entry.record.foreground)
    {
        // What is written down may be gone before it is read.
        return status;
    }
    until_ended(entry).await
}

async fn until_ended(entry: &Entry) -> u32 {
    loop {
        if let Some(ended) = entry.ended() {
            return ended.status;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn signal(text: &str) -> Result<u32, Error> {
    signal_number(text).ok_or_else(|| Error::Usage(format!("there is no signal {text}")))
}
