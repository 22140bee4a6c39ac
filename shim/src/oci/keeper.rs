//! The process that stands on the host for a container's first process, or for one that joins: whoever waits for it, signals it or
//! kills it means that one.
//!
//! It is a child of the command that made it, which ends, so that a reaper above that (conmon, containerd's shim) adopts it. It moves
//! the process's streams, passes signals on, and ends with the process's exit status; the server kills the process should this one
//! end first. Where the command itself waits for the process, it does all that in its own process.

#![allow(unsafe_code, reason = "fork, and the standard streams of the process that stays")]

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid};

use super::namespaces::{Files, in_new_process_namespace};
use super::streams::{self, Console, Fifos};
use crate::containerd::lifecycle::KILLED;
use crate::detached::client::Client;
use crate::run::pump;
use crate::run::signals::Signals;
use crate::run::terminal::RawMode;

/// How long output may take to be read after the process's end.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// What is kept.
pub(super) struct Duty {
    pub(super) socket: PathBuf,
    pub(super) container: String,
    /// Empty for the container's first process.
    pub(super) exec: String,
    pub(super) fifos: Fifos,
    /// Of one that joins: its folder, which goes with it.
    pub(super) folder: Option<PathBuf>,
}

/// A keeper that waits for the process that it is for.
pub(super) enum Keeper {
    /// A child, which begins at a word from us, and ends without.
    Child(Pid, UnixStream),
    /// This process itself.
    Own(Duty),
}

impl Keeper {
    /// Leaves one behind, on the terminal `console` if on any; in namespaces of its own with `files`, if it has any. Call it while this
    /// process has one thread.
    ///
    /// # Errors
    /// When there is no process to be had, or no such namespaces.
    pub(super) fn leave(duty: Duty, console: Option<&Console>, files: Option<&Files>) -> io::Result<Keeper> {
        let fork = || {
            let (ours, theirs) = UnixStream::pair()?;
            // SAFETY: this process has one thread, so the child may do whatever the parent could.
            match unsafe { nix::unistd::fork() }? {
                ForkResult::Child => {
                    let _ = nix::sys::prctl::set_name(c"tatami-keeper");
                    drop(ours);
                    std::process::exit(live(duty, console, files, theirs).unwrap_or(1).into())
                }
                ForkResult::Parent { child } => Ok((child, ours)),
            }
        };
        let (child, mut ours) = if files.is_some() { in_new_process_namespace(fork) } else { fork() }?;
        let mut answer = String::new();
        let refused = match BufReader::new(&mut ours).read_line(&mut answer) {
            Ok(0) => "it ended".to_owned(),
            Ok(_) => answer.trim_end().to_owned(),
            Err(error) => error.to_string(),
        };
        let keeper = Keeper::Child(child, ours);
        if !refused.is_empty() {
            keeper.dismiss();
            return Err(io::Error::other(refused));
        }
        Ok(keeper)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> i32 {
        match self {
            Keeper::Child(pid, _) => pid.as_raw(),
            Keeper::Own(_) => std::process::id() as i32,
        }
    }

    /// The process exists: has the child begin, or begins, and returns at the end; the exit status for this process.
    pub(super) fn begin(self) -> u8 {
        match self {
            Keeper::Child(_, mut word) => {
                // One that was killed meanwhile is seen as such.
                let _ = word.write_all(b"!");
                0
            }
            Keeper::Own(duty) => stand(duty),
        }
    }

    /// There is no such process after all.
    pub(super) fn dismiss(self) {
        if let Keeper::Child(pid, word) = self {
            drop(word);
            let _ = kill(pid, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, None);
        }
    }
}

/// The life of a child: it leaves the caller's session, says with an empty line that it is there, or why it is not, and waits for the word
/// to begin. Its exit status is the process's.
fn live(duty: Duty, console: Option<&Console>, files: Option<&Files>, mut word: UnixStream) -> io::Result<u8> {
    nix::unistd::setsid()?;
    if let Some(console) = console {
        console.take()?;
    }
    nix::unistd::chdir("/")?;
    // The work is done where the host's paths are; others see the first thread.
    let (begin, begun) = std::sync::mpsc::channel();
    let work = std::thread::Builder::new().spawn(move || begun.recv().map_or(1, |()| stand(duty)))?;
    let entered = files.map(Files::enter).transpose();
    let answer = match &entered {
        Ok(_) => String::new(),
        Err(error) => format!("its namespaces: {error}").replace('\n', " "),
    };
    word.write_all(format!("{answer}\n").as_bytes())?;
    word.read_exact(&mut [0])?;
    if let Some(entered) = entered? {
        entered.bind();
    }
    let _ = begin.send(());
    work.join().map_err(|_| io::Error::other("the work has panicked"))
}

/// Keeps the process until its end; the exit status that says how that was.
fn stand(duty: Duty) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let folder = duty.folder.clone();
    let status = match runtime {
        Ok(runtime) => {
            let status = runtime.block_on(follow(duty));
            runtime.shutdown_background();
            status
        }
        Err(error) => {
            log::error!("no runtime: {error}");
            KILLED as u8
        }
    };
    if let Some(folder) = folder {
        // The container's removal may have been faster.
        let _ = std::fs::remove_dir_all(folder);
    }
    status
}

async fn follow(duty: Duty) -> u8 {
    let Duty { socket, container, exec, fifos, .. } = duty;
    let terminal = fifos.names.terminal;
    // Where a person's own terminal is the process's.
    let raw = (terminal && io::stdin().is_terminal()).then(RawMode::enter).and_then(Result::ok);
    let (Ok(mut signals), Ok(client)) = (Signals::catch(), Client::at(&socket, &container).await) else {
        // The server is gone, and the process with it.
        return KILLED as u8;
    };
    send_input(&client, &exec, &fifos.names.stdin);
    let mut outputs = Vec::new();
    for (fifo, stream) in fifos.outputs {
        outputs.push(write_output(&client, &exec, fifo, stream));
    }
    let mut waiting = Box::pin(client.wait(&exec));
    let resized = || if terminal { streams::size(io::stdin()) } else { None };
    if let Some((rows, columns)) = resized() {
        // One that has ended already needs no size.
        drop(client.resize(&exec, rows, columns).await);
    }
    let status = loop {
        let signal = tokio::select! {
            status = &mut waiting => break status.unwrap_or(KILLED),
            signal = signals.next() => signal,
        };
        let passed_on = match (signal, resized()) {
            (libc::SIGWINCH, Some((rows, columns))) => client.resize(&exec, rows, columns).await,
            (libc::SIGWINCH, None) => Ok(()),
            (signal, _) => client.kill(&exec, signal as u32, false).await,
        };
        if let Err(error) = passed_on {
            log::info!("signal {signal} was not passed on: {error}");
        }
    };
    let through = async {
        for output in outputs {
            // An error is a panic, which was logged.
            let _ = output.await;
        }
    };
    if tokio::time::timeout(LAST_WORDS, through).await.is_err() {
        log::warn!("the output of a process that has ended is not read");
    }
    drop(raw);
    if !exec.is_empty() {
        client.delete(&exec).await;
    }
    status.min(255) as u8
}

/// Moves standard input to the process, and tells the server of its end.
fn send_input(client: &Client, exec: &str, fifo: &str) {
    // Without the server's end, the process has ended.
    let Ok(fifo) = streams::open_input(fifo) else { return };
    let Some(through) = stream(0).and_then(|source| pump::input_of("stdin", source, fifo)).ok() else { return };
    let (client, exec) = (client.clone(), exec.to_owned());
    tokio::spawn(async move {
        if through.await.is_ok()
            && let Err(error) = client.close_stdin(&exec).await
        {
            log::debug!("standard input: {error}");
        }
    });
}

/// Moves output to the standard stream; a reader that left is told to the process as a pipe would.
fn write_output(client: &Client, exec: &str, fifo: File, target: i32) -> tokio::task::JoinHandle<()> {
    let (client, exec) = (client.clone(), exec.to_owned());
    tokio::spawn(async move {
        let again = fifo.try_clone();
        let moved = match stream(target).and_then(|target| pump::output("output", fifo, target)) {
            Ok(moved) => moved.await,
            Err(error) => return log::error!("a stream cannot be moved: {error}"),
        };
        if matches!(moved, Ok(Ok(true) | Err(_))) {
            drop(client.kill(&exec, libc::SIGPIPE as u32, false).await);
            // Nobody waits for its being read.
            let drained = || pump::output("drain", again?, File::options().write(true).open("/dev/null")?.into());
            drop(drained());
        }
    })
}

fn stream(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the standard streams are open as long as this process lives.
    unsafe { BorrowedFd::borrow_raw(number) }.as_fd().try_clone_to_owned()
}
