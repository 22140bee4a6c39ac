//! `tatami run -d`: leaves a server behind, waits until its container's command runs, and prints the container's id.
//!
//! The server is a fork of this process, which tells over a socket pair what became of it. If this process is interrupted
//! meanwhile, the pair's end tells the server, and there is no container.

#![allow(unsafe_code, reason = "fork, and the standard streams of the process that becomes the server")]

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::SystemTime;

use nix::unistd::ForkResult;
use serde::{Deserialize, Serialize};

use super::server::{self, StartError};
use crate::containerd::hooks::HostNamespaces;
use crate::journal;
use crate::log_files::Limits;
use crate::run::compose::Recipe;
use crate::run::network::Network;
use crate::sandbox::folder::Places;
use crate::sandbox::kept::{Kept, Record};
use crate::sandbox::saving::Saved;
use crate::sandbox::{Ground, Settings};

/// What is to be started.
pub(crate) struct Order {
    pub(crate) work: Work,
    pub(crate) settings: Settings,
    /// All but what only the server knows.
    pub(crate) record: Record,
    pub(crate) limits: Limits,
}

/// What the server does.
pub(crate) enum Work {
    /// Makes a container, and the network that it has.
    Run(Box<(Recipe, Network)>),
    /// Goes on with the container that was saved in this folder, with a network of its own.
    GoOn(Box<(Saved, Network)>, PathBuf),
}

/// Why there is no container.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct LaunchError {
    message: String,
    /// The exit status that says so.
    pub(crate) status: u8,
}

/// What the server tells.
#[derive(Serialize, Deserialize)]
enum Report {
    Runs(String),
    Failed(LaunchError),
}

/// Starts it; the container's id. In the process that becomes the server this does not return. Call it while the process has
/// one thread.
///
/// # Errors
/// Why its command does not run; nothing is left of it.
pub(crate) fn launch(order: Order) -> Result<String, LaunchError> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed("cannot start a server", &error))?;
    // SAFETY: this process has one thread, so the child may do whatever the parent could.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => {
            drop(ours);
            std::process::exit(become_server(order, theirs))
        }
        Ok(ForkResult::Parent { .. }) => {
            drop(theirs);
            let mut text = Vec::new();
            // Cut short, it is no report.
            let _ = BufReader::new(ours).read_until(b'\n', &mut text);
            match serde_json::from_slice(&text) {
                Ok(Report::Runs(id)) => Ok(id),
                Ok(Report::Failed(error)) => Err(error),
                Err(_) => Err(failed("cannot start the container", &"its sandbox server was killed")),
            }
        }
        Err(error) => Err(failed("cannot start a server", &error)),
    }
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> LaunchError {
    LaunchError { message: format!("{what}: {why}"), status: crate::run::TATAMI_FAILED }
}

fn become_server(order: Order, mut caller: UnixStream) -> i32 {
    let _ = nix::sys::prctl::set_name(c"tatami-server");
    let result = leave_session().map_err(|error| failed("cannot leave the session", &error));
    let result = result.and_then(|()| caller.try_clone().map_err(|error| failed("cannot start a server", &error)));
    match result.and_then(|copy| live(order, copy)) {
        Ok(()) => 0,
        Err(error) => {
            // Nobody may be waiting any more.
            let _ = caller.write_all(&line(&Report::Failed(error)));
            1
        }
    }
}

fn live(order: Order, caller: UnixStream) -> Result<(), LaunchError> {
    let Order { work, settings, mut record, limits } = order;
    let places = Places::from_environment();
    let host = HostNamespaces::current().map_err(|error| failed("the host's namespaces", &error))?;
    let ground = Ground::prepare(&places, record.name.as_deref(), None).map_err(|error| told(&error.into()))?;
    record.id = ground.id().to_owned();
    record.created = SystemTime::now();
    let kept = Kept::create(&places, &record.id).and_then(|kept| kept.write(&record).map(|()| kept));
    let kept = match kept {
        Ok(kept) => kept,
        Err(error) => {
            let _ = Kept::at(&places, &record.id).remove();
            return Err(failed(&format!("cannot keep a record below {}", places.root.display()), &error));
        }
    };
    journal::begin(kept.folder());
    let (id, auto_remove) = (record.id.clone(), record.auto_remove);
    let prepared = server::Prepared { ground, host, work, settings, kept: kept.clone(), record, limits };
    let mut runs = false;
    let result = runtime().and_then(|runtime| {
        let result = runtime.block_on(async {
            caller
                .set_nonblocking(true)
                .and_then(|()| tokio::net::UnixStream::from_std(caller))
                .map_err(|source| StartError::System { action: "talk to the caller", source })
                .map(|caller| {
                    server::serve(prepared, caller, |caller| {
                        runs = true;
                        tell_and_let_go(caller, &id);
                    })
                })?
                .await
        });
        // A layer that is still being unpacked is not waited for.
        runtime.shutdown_background();
        result
    });
    if (auto_remove || !runs)
        && let Err(error) = kept.remove()
    {
        log::error!("cannot remove {}: {error}", kept.folder().display());
    }
    match result {
        Err(error) if !runs => Err(told(&error)),
        Err(error) => {
            log::error!("{error}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|source| StartError::System { action: "start the runtime", source })
}

/// The error with the exit status that docker's users expect.
fn told(error: &StartError) -> LaunchError {
    let text = error.to_string();
    match error {
        StartError::Task(_) => match super::command_failure(&text) {
            Some((message, status)) => LaunchError { message: message.to_owned(), status },
            None => LaunchError { message: text, status: crate::run::TATAMI_FAILED },
        },
        _ => LaunchError { message: text, status: crate::run::TATAMI_FAILED },
    }
}

/// The container runs: from here on the caller has nothing to do with the server.
fn tell_and_let_go(caller: tokio::net::UnixStream, id: &str) {
    if let Err(error) = let_go_of_streams() {
        log::warn!("the server keeps its caller's streams: {error}");
    }
    let report = line(&Report::Runs(id.to_owned()));
    let told = caller.into_std().and_then(|caller| {
        caller.set_nonblocking(false)?;
        (&caller).write_all(&report)
    });
    // A caller that went away in this very moment sees the container in `tatami ps`.
    drop(told);
}

fn line(report: &Report) -> Vec<u8> {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Out of the caller's session, so that its terminal's end is not this process's.
fn leave_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    replace_stream(0)
}

fn let_go_of_streams() -> io::Result<()> {
    nix::unistd::chdir("/")?;
    replace_stream(1)?;
    replace_stream(2)
}

fn replace_stream(stream: i32) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // SAFETY: replaces a standard stream, which nobody in this process has a handle to that would be confused by it.
    if unsafe { libc::dup2(null.as_raw_fd(), stream) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
