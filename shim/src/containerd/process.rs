//! A process as containerd sees it: a container's first, or one that joined it.
//!
//! Its end is told once, after its output is written and after its start was told; and as 137 when its machine is gone.
//! Knows nothing of the other processes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task::TaskExit;
use tokio::sync::{MutexGuard as OrderGuard, watch};

use super::error::TaskError;
use super::events::{Events, Topic};
use super::lifecycle::{Exit, KILLED, Lifecycle, Phase};
use super::memory_watch::MemoryWatch;
use super::pump::Io;
use super::stdio::StdioPaths;
use crate::sandbox;
use crate::sandbox::guest::Guest;

/// How long after its machine's end a process's own may take to be told.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A process, shared by the calls about it.
pub(crate) struct Process {
    container: String,
    /// Empty for the container's first process.
    exec: String,
    stdio: StdioPaths,
    life: Mutex<Lifecycle>,
    exit: watch::Sender<Option<Exit>>,
    /// Held while it is being started, so that its end is told afterwards.
    order: tokio::sync::Mutex<()>,
    io: Mutex<Streaming>,
}

/// A process's streams, which clients may talk of before they move.
#[derive(Default)]
struct Streaming {
    io: Option<Io>,
    stdin_closed: bool,
}

impl Process {
    /// A process that is created.
    pub(super) fn new(container: &str, exec: &str, stdio: StdioPaths) -> Arc<Process> {
        Arc::new(Process {
            container: container.to_owned(),
            exec: exec.to_owned(),
            stdio,
            life: Mutex::new(Lifecycle::new()),
            exit: watch::Sender::new(None),
            order: tokio::sync::Mutex::default(),
            io: Mutex::default(),
        })
    }

    /// Its id among the processes that joined; empty for the first.
    pub(super) fn exec(&self) -> &str {
        &self.exec
    }

    /// What the client named for its streams.
    pub(super) fn stdio(&self) -> &StdioPaths {
        &self.stdio
    }

    /// Its life. Not to be held across an await.
    pub(super) fn life(&self) -> MutexGuard<'_, Lifecycle> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is in its life.
    pub(crate) fn phase(&self) -> Phase {
        self.life().phase()
    }

    /// Its streams move from here on.
    pub(super) fn connect(&self, mut io: Io) {
        let mut streaming = self.io();
        if streaming.stdin_closed {
            io.close_stdin();
        }
        streaming.io = Some(io);
    }

    /// Claims the time in which it is started.
    pub(super) async fn starting(&self) -> OrderGuard<'_, ()> {
        self.order.lock().await
    }

    /// Gives up our part in keeping its standard input open.
    pub(super) fn close_stdin(&self) {
        let mut streaming = self.io();
        streaming.stdin_closed = true;
        if let Some(io) = streaming.io.as_mut() {
            io.close_stdin();
        }
    }

    /// It is being killed: nobody can hold it up by not reading its output.
    pub(super) fn relieve(&self) {
        if let Some(io) = self.io().io.as_ref() {
            io.relieve();
        }
    }

    /// Returns when it has ended and all was told.
    pub(crate) async fn wait(&self) -> Exit {
        let mut exits = self.exit.subscribe();
        // The sender is in `self`, so it cannot be gone.
        let exit = exits.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        exit.unwrap_or_else(|| Exit::now(KILLED))
    }

    /// What it means that a signal was not delivered because of `error`.
    ///
    /// # Errors
    /// [`TaskError::NotFound`] when that is because it has ended; otherwise `error`.
    pub(super) async fn explain_signal(&self, error: sandbox::Error) -> Result<(), TaskError> {
        if error.is_of_dead_guest() {
            // Its end is told in a moment, and then it is what clients understand.
            // One that was never started has nobody who tells.
            let _ = tokio::time::timeout(LAST_WORDS, self.wait()).await;
        }
        self.life().may_signal()?;
        match error.into() {
            // It has ended in the guest; that is not told yet, because its output is on the way.
            TaskError::NotFound(_) => Ok(()),
            error => Err(error),
        }
    }

    /// Follows it, in a task, to its end; `pid` is what events call it. With `memory`, what is to be told of that comes first.
    pub(super) fn follow(
        self: &Arc<Process>,
        guest: Guest,
        events: Events,
        pid: u32,
        memory: Option<Arc<MemoryWatch>>,
    ) {
        let process = Arc::clone(self);
        tokio::spawn(async move {
            let result = guest.call(guest.agent().wait(&process.container, &process.exec)).await;
            let exit = process.explain(result.map(|response| Exit::now(response.exit_status)));
            let rest = process.io().io.as_mut().map(Io::end);
            if let Some(rest) = rest {
                rest.written().await;
            }
            if let Some(memory) = memory.filter(|_| exit.status != 0) {
                memory.all_told().await;
            }
            let _started = process.order.lock().await;
            if process.life().ended(exit) {
                events.publish(Topic::Exit, &process.told(exit, pid));
                process.exit.send_replace(Some(exit));
            }
        });
    }

    /// It is over, which nobody [follows](Process::follow): it could not be started, or its front end has seen to it itself. Who waits for
    /// it is told, but nobody else.
    pub(crate) fn over(&self, status: u32) {
        let exit = Exit::now(status);
        if self.life().ended(exit) {
            self.io().io = None;
            self.exit.send_replace(Some(exit));
        }
    }

    fn explain(&self, result: Result<Exit, sandbox::Error>) -> Exit {
        result.unwrap_or_else(|error| {
            log::error!("process {:?} of container {} is lost: {error}", self.exec, self.container);
            self.relieve();
            Exit::now(KILLED)
        })
    }

    /// Its end, as events tell it.
    pub(super) fn told(&self, exit: Exit, pid: u32) -> TaskExit {
        TaskExit {
            container_id: self.container.clone(),
            // containerd calls the first process as its container.
            id: if self.exec.is_empty() { self.container.clone() } else { self.exec.clone() },
            pid,
            exit_status: exit.status,
            exited_at: Some(exit.at.into()).into(),
            ..Default::default()
        }
    }

    fn io(&self) -> MutexGuard<'_, Streaming> {
        self.io.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
