//! `tatami console`: a shell in the guest of a sandbox itself, outside its containers, for whoever looks for a fault there.
//!
//! Knows sandboxes of all clients by what they call them. Whether there is such a shell the guest's agent says.

use std::io;
use std::os::fd::AsFd;

use clap::Args;

use super::super::Error;
use super::{sandboxes, session};
use crate::run::pump;
use crate::run::terminal::{self, RawMode};
use crate::sandbox::door::Door;
use crate::sandbox::folder::Places;

/// `tatami console`.
#[derive(Args)]
#[command(after_help = "\
The sandbox's configuration.toml must allow it (debug_console_enabled in [agent.kata]), and the guest's own root must have a shell, as
that of `make distribution` has: `image` in [hypervisor.tatami] names it.

Examples:
  tatami console 3f1c            # beginning of a pod's id
  echo 'dmesg | tail' | tatami console 3f1c")]
pub struct ConsoleArguments {
    /// Id or name, or beginning of an id, as its client calls it
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
}

/// The size of a terminal that does not tell.
const USUAL: (u16, u16) = (24, 80);

pub(super) async fn console(places: &Places, arguments: &ConsoleArguments) -> Result<u8, Error> {
    let system = |action| move |source| Error::System { action, source };
    let found = sandboxes::find(places, &arguments.sandbox)?;
    let door = Door::of(found.state()).map_err(system("find the sandbox's guest"))?;
    // Who types nothing needs no terminal: what is read is what the shell is to do.
    let saved = terminal::saved();
    let size = saved.as_ref().map_or((0, 0), |_| terminal::size().unwrap_or(USUAL));
    let stream = door.console(size).await.map_err(|error| Error::State(format!("{}: {error}", arguments.sandbox)))?;
    let mut signals = session::catch_signals()?;
    let stream = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
    let stream = stream.map_err(system("connect the terminal"))?;
    let keys = stream.try_clone().map_err(system("connect the terminal"))?;
    let raw = saved.map(|_| RawMode::enter()).transpose().map_err(system("set up the terminal"))?;
    let [stdin, stdout] = [io::stdin().as_fd().try_clone_to_owned(), io::stdout().as_fd().try_clone_to_owned()];
    pump::input("stdin", stdin.map_err(system("read"))?, keys).map_err(system("read"))?;
    let shown = pump::output("stdout", stream, stdout.map_err(system("write"))?).map_err(system("write"))?;
    let result = tokio::select! {
        shown = shown => shown.map_or(Ok(0), |shown| shown.map(|_| 0).map_err(Error::Output)),
        signal = async {
            loop {
                match signals.next().await {
                    libc::SIGWINCH => {}
                    signal => break signal,
                }
            }
        } => Err(Error::Interrupted(signal)),
    };
    drop(raw);
    result
}
