//! `tatami attach`: a running container's output as it comes, and its input, until it ends or the person leaves.
//!
//! Output is read from the container's log, so any number of people can watch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use tokio::sync::oneshot;

use super::super::{Error, output_log, registry, server};
use super::control::{running, waited};
use super::logs::Show;
use super::session;
use crate::log_files::Changes;
use crate::run::terminal::{self, RawMode};
use crate::sandbox::folder::Places;

/// `tatami attach`.
#[derive(Args)]
#[command(after_help = "\
Ends with the container's exit status. Signals that this process receives are passed on to the container's command; three
of INT or TERM in a row kill it. With a container of `run -dit`, keys go to its terminal; Ctrl-P Ctrl-Q, or closing this
terminal, leaves it running.

Example:
  tatami run -dit --name box image.tar sh
  tatami attach box")]
pub struct AttachArguments {
    /// Do not send standard input, even if the container was started with -i
    #[arg(long)]
    no_stdin: bool,
    /// Name, id, or beginning of an id
    container: String,
}

pub(super) async fn attach(places: &Places, arguments: &AttachArguments) -> Result<u8, Error> {
    let entry = registry::find(places, &arguments.container)?;
    let client = running(&entry, "attach to").await?;
    if entry.record.foreground {
        return Err(Error::State(format!("{} runs in the foreground: its terminal has it already", entry.name())));
    }
    let signals = session::catch_signals()?;
    let system = |source| Error::System { action: "connect the container's streams", source };
    let mut reader = output_log::read_on(entry.kept.folder()).map_err(system)?;
    let changes = Changes::of(entry.kept.folder());
    let input = entry.record.interactive && !arguments.no_stdin;
    let raw = match input && entry.record.tty && terminal::saved().is_some() {
        true => Some(RawMode::enter().map_err(|source| Error::System { action: "set up the terminal", source })?),
        false => None,
    };
    let (leave, left) = oneshot::channel();
    if input {
        let path = entry.found.state().join(server::STDIN);
        // Its end is not the container's input's: others may come.
        drop(session::send_input(&path.display().to_string(), raw.is_some().then_some(leave)).map_err(system)?);
    }
    let over = Arc::new(AtomicBool::new(false));
    let (done, written) = oneshot::channel();
    let ending = over.clone();
    std::thread::spawn(move || {
        let mut show = Show::new(false);
        let result = loop {
            let last = ending.load(Ordering::Acquire);
            match reader.read(&mut |line| show.line(line)) {
                Ok(Ok(())) if !last => changes.wait(),
                Ok(result) => break result,
                Err(error) => break Err(error),
            }
        };
        let _ = done.send(result);
    });
    if entry.record.tty
        && let Some((rows, columns)) = terminal::size()
    {
        let _ = client.resize("", rows, columns).await;
    }
    let left = async {
        if left.await.is_err() {
            // Nobody can say so.
            std::future::pending::<()>().await;
        }
    };
    let outcome = tokio::select! {
        outcome = session::wait(&client, "", signals, session::Hangup::Leaves) => outcome,
        () = left => {
            drop(raw);
            return Ok(0);
        }
    };
    let status = if outcome.is_ok() { waited(&entry).await } else { 0 };
    over.store(true, Ordering::Release);
    let result = written.await.unwrap_or(Ok(()));
    drop(raw);
    outcome?;
    result.map_err(|error: io::Error| Error::Output(error))?;
    Ok(status.min(255) as u8)
}
