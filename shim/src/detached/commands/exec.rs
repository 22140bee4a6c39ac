//! `tatami exec`: a further process in a running container, with this process's streams, signals and exit status.
//!
//! Knows nothing of how the process comes to join.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use clap::Args;
use oci_spec::runtime::Process;
use tokio::sync::oneshot;

use super::super::Error;
use super::super::client::{Client, ExecStreams};
use super::super::registry::{self, Entry};
use super::control::{refused, running};
use super::fifos::{Fifos, open_fifo};
use super::session::{self, Outcome};
use crate::run::pump;
use crate::run::terminal::{self, RawMode};
use crate::sandbox::folder::{Places, new_id};
use crate::spec::{self, Accounts, JoinOptions};

/// `tatami exec`.
#[derive(Args)]
#[command(
    override_usage = "tatami exec [OPTIONS] CONTAINER COMMAND [ARG...]",
    after_help = "\
Environment and working folder are the container's unless something else is said.

Examples:
  tatami exec web ps
  tatami exec -it web sh
  tatami exec -u nobody -w /tmp -e DEBUG=1 web id
  tar c src | tatami exec -i web tar x -C /tmp

Exit status: the command's; 1 when Tatami itself fails (the container does not run, for instance), 126 when the command
cannot be executed, 127 when it is not found. Signals that this process receives are passed on to the command."
)]
pub struct ExecArguments {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for the command's end; its output goes nowhere
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Set an environment variable; without a value, take the caller's
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Run in this folder of the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Name, id, or beginning of an id; then the command
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true, value_names = ["CONTAINER", "COMMAND"])]
    words: Vec<String>,
}

pub(super) async fn exec(places: &Places, mut arguments: ExecArguments) -> Result<u8, Error> {
    let command = arguments.words.split_off(1);
    let word = &arguments.words[0];
    if arguments.interactive && arguments.tty && !io::stdin().is_terminal() {
        return Err(Error::Usage(
            "the input device is not a terminal: leave out -t, or run it in a terminal".to_owned(),
        ));
    }
    let entry = registry::find(places, word)?;
    let client = running(&entry, "run a command in").await?;
    if client.is_paused().await.unwrap_or(false) {
        return Err(Error::State(format!("{0} is paused: `tatami resume {0}` has it go on", entry.name())));
    }
    let process = process(&entry, command, &arguments)?;
    let exec = new_id().map_err(|error| Error::State(error.to_string()))?;
    if arguments.detach {
        let started = client.exec(&exec, process, &ExecStreams::default()).await;
        return started.map(|()| 0).map_err(|error| refused(&entry, error));
    }
    let fifos = Fifos::make(entry.found.state(), &exec, arguments.interactive, arguments.tty)
        .map_err(|source| Error::System { action: "make the command's streams", source })?;
    let signals = session::catch_signals()?;
    let raw = match arguments.interactive && arguments.tty {
        true => Some(RawMode::enter().map_err(|source| Error::System { action: "set up the terminal", source })?),
        false => None,
    };
    let outputs = open_outputs(&fifos.streams)
        .map_err(|source| Error::System { action: "open the command's streams", source })?;
    client.exec(&exec, process, &fifos.streams).await.map_err(|error| refused(&entry, error))?;
    let result = follow(&client, &exec, &fifos, outputs, signals).await;
    drop(raw);
    client.delete(&exec).await;
    match result? {
        Outcome::Ended(status) => Ok(status),
        // The container has ended, and the command with it.
        Outcome::Lost => Ok(128 + libc::SIGKILL as u8),
    }
}

/// Moves bytes and signals until the command has ended and its output is through.
async fn follow(
    client: &Client,
    exec: &str,
    fifos: &Fifos,
    outputs: Vec<(&'static str, File, OwnedFd)>,
    signals: crate::run::signals::Signals,
) -> Result<Outcome, Error> {
    let system = |source| Error::System { action: "connect the command's streams", source };
    if !fifos.streams.stdin.is_empty() {
        let (client, exec) = (client.clone(), exec.to_owned());
        let through = session::send_input(&fifos.streams.stdin, None).map_err(system)?;
        tokio::spawn(async move {
            // Without an answer the thread still waits for a key, and nobody for it.
            if through.await.is_ok()
                && let Err(error) = client.close_stdin(&exec).await
            {
                log::debug!("standard input: {error}");
            }
        });
    }
    let mut through: Vec<(&str, oneshot::Receiver<io::Result<bool>>)> = Vec::new();
    for (path, (name, fifo, target)) in [&fifos.streams.stdout, &fifos.streams.stderr].into_iter().zip(outputs) {
        through.push((path, pump::output(name, fifo, target).map_err(system)?));
    }
    if fifos.streams.terminal
        && let Some((rows, columns)) = terminal::size()
    {
        // One that has ended already needs no size.
        let _ = client.resize(exec, rows, columns).await;
    }
    let written = async {
        for (fifo, output) in through {
            match output.await {
                // Nobody reads any more: the command hears of it as it would from a pipe.
                Ok(Ok(true)) => {
                    drop(client.kill(exec, libc::SIGPIPE as u32, false).await);
                    drain(fifo)?;
                }
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(error)) => return Err(Error::Output(error)),
            }
        }
        Ok(())
    };
    let (outcome, ()) = tokio::try_join!(session::wait(client, exec, signals, session::Hangup::PassedOn), written)?;
    Ok(outcome)
}

/// Reads and forgets what is still written: nobody waits for the fifo's being empty.
fn drain(fifo: &str) -> Result<(), Error> {
    let system = |source| Error::System { action: "drain the command's output", source };
    let null = File::options().write(true).open("/dev/null").map_err(system)?;
    pump::output("drain", open_fifo(fifo).map_err(system)?, null.into()).map(drop).map_err(system)
}

/// Our ends, with what they lead to. They are to be read when the server has opened its ends.
fn open_outputs(streams: &ExecStreams) -> io::Result<Vec<(&'static str, File, OwnedFd)>> {
    let mut outputs = vec![("stdout", open_fifo(&streams.stdout)?, io::stdout().as_fd().try_clone_to_owned()?)];
    if !streams.stderr.is_empty() {
        outputs.push(("stderr", open_fifo(&streams.stderr)?, io::stderr().as_fd().try_clone_to_owned()?));
    }
    Ok(outputs)
}

/// The process, as a specification describes it: the container's first, with what was asked for.
fn process(entry: &Entry, command: Vec<String>, arguments: &ExecArguments) -> Result<Vec<u8>, Error> {
    let wrong = |error: &dyn std::fmt::Display| Error::State(error.to_string());
    // It is being written while the container starts.
    let record = entry.kept.read().unwrap_or_else(|| entry.record.clone());
    let first: Process = serde_json::from_value(record.spec["process"].clone()).map_err(|error| wrong(&error))?;
    let accounts = match (&arguments.user, &record.host_root) {
        // Mounted in the server's own namespace.
        (Some(_), Some(root)) => {
            let root = root.strip_prefix("/").unwrap_or(root);
            let server = Path::new("/proc").join(entry.found.server().to_string()).join("root");
            Accounts::read(&server.join(root)).map_err(|error| wrong(&error))?
        }
        _ => Accounts::default(),
    };
    let options = JoinOptions {
        args: command,
        env: crate::run::options::variables(arguments.env.clone(), |name| std::env::var(name).ok())
            .map_err(|error| wrong(&error))?,
        workdir: arguments.workdir.clone(),
        user: arguments.user.clone(),
        tty: arguments.tty,
        size: terminal::size().filter(|_| arguments.tty),
    };
    let process = spec::joining(first, &accounts, &options).map_err(|error| wrong(&error))?;
    serde_json::to_vec(&process).map_err(|error| wrong(&error))
}
