//! One process of a container, its first or one that joined it: streams, start, end.
//!
//! A process's exit is told only when its output has been handed over, and then to everyone who asks, until it is deleted.
//! How a process comes to be is its container's affair.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tatami_protocol::agent::Stdio;
use tatami_protocol::stream::Kind;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use crate::error::Error;
use crate::launch::{Launched, Launcher};
use crate::pump::{pump_input, pump_output};
use crate::reaper::{Exit, Reaper};
use crate::stdio::{Attachments, End, Ends, TerminalSocket, pipes};
use crate::transport::Stream;
use crate::wire::{Request, Size, Terminal};

/// A process, shared by the requests about it.
pub(crate) struct Process {
    stdio: Stdio,
    state: Mutex<State>,
    /// It ended; its output may still be on the way.
    ended: watch::Sender<bool>,
    /// It ended, and its output is handed over.
    exit: watch::Sender<Option<Exit>>,
}

struct State {
    started: bool,
    pid: Option<i32>,
    size: Size,
    attachments: Attachments,
    /// How the pumps get connections, once there are pumps.
    feeds: HashMap<Kind, Feed>,
    ends: Ends,
    input: Option<AbortHandle>,
    outputs: Vec<(AbortHandle, Option<oneshot::Receiver<()>>)>,
}

/// What the pumps of one stream are given connections by.
#[derive(Default)]
struct Feed {
    input: Option<UnboundedSender<ReadHalf<Stream>>>,
    output: Option<UnboundedSender<WriteHalf<Stream>>>,
    /// The last one leads nowhere any more.
    lost: bool,
}

impl Feed {
    /// A pump that has ended takes nothing any more, and the connection closes.
    fn give(&mut self, stream: Stream) {
        self.lost = false;
        let (reader, writer) = tokio::io::split(stream);
        let _ = self.input.as_ref().map(|input| input.send(reader));
        let _ = self.output.as_ref().map(|output| output.send(writer));
    }
}

impl Process {
    /// A process that will have the streams of `stdio`.
    pub(crate) fn new(stdio: Stdio) -> Arc<Self> {
        let state = State {
            started: false,
            pid: None,
            size: size(stdio.rows, stdio.columns),
            attachments: Attachments::new(&stdio),
            feeds: HashMap::new(),
            ends: Ends::default(),
            input: None,
            outputs: Vec::new(),
        };
        let (ended, exit) = (watch::Sender::new(false), watch::Sender::new(None));
        Arc::new(Self { stdio, state: Mutex::new(state), ended, exit })
    }

    /// Has a creator make it, by the request that `describe` builds around its terminal.
    ///
    /// # Errors
    /// Why it could not be made.
    pub(crate) async fn launch(
        &self,
        launcher: &Launcher,
        owner: (u32, u32),
        describe: impl FnOnce(Option<Terminal>) -> Request,
    ) -> Result<Launched, Error> {
        let failed = "make the process's streams";
        if !self.stdio.terminal {
            let (ends, streams) = pipes(&self.stdio, owner).map_err(Error::internal(failed))?;
            self.lock().ends = ends;
            return self.create(launcher, &describe(None), &streams).await;
        }
        let socket = TerminalSocket::new().map_err(Error::internal(failed))?;
        let terminal = Terminal { socket: socket.path().to_path_buf(), size: self.lock().size };
        let launched = self.create(launcher, &describe(Some(terminal.clone())), &[]).await?;
        let master = socket.receive().map_err(Error::internal("receive the process's terminal"))?;
        let mut state = self.lock();
        if state.size != terminal.size {
            // Changed while the creator was at work.
            resize(&master, state.size)?;
        }
        state.ends.terminal = Some(Arc::new(master));
        drop(state);
        Ok(launched)
    }

    async fn create(&self, launcher: &Launcher, request: &Request, streams: &[OwnedFd]) -> Result<Launched, Error> {
        let launched = launcher.create(request, streams).await?;
        self.lock().pid = Some(launched.pid);
        Ok(launched)
    }

    /// Whether a stream of this kind is needed: by the start, or because the last one was lost.
    pub(crate) fn awaits(&self, kind: Kind) -> bool {
        let state = self.lock();
        state.attachments.awaits(kind) || state.feeds.get(&kind).is_some_and(|feed| feed.lost)
    }

    /// Keeps `stream` for the start, or has it take the place of a lost one.
    pub(crate) fn attach(&self, kind: Kind, stream: Stream) {
        let mut state = self.lock();
        match state.feeds.get_mut(&kind) {
            Some(feed) => feed.give(stream),
            None => state.attachments.attach(kind, stream),
        }
    }

    /// Nobody is at the other end of its streams any more; whoever comes may attach to them.
    pub(crate) fn lose_streams(&self) {
        let mut state = self.lock();
        state.attachments.lose();
        state.feeds.values_mut().for_each(|feed| feed.lost = true);
    }

    /// Claims the start, which happens once, before the end, and with all streams attached.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] otherwise.
    pub(crate) fn claim_start(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if *self.ended.borrow() {
            return Err(Error::FailedPrecondition("the process has ended".to_owned()));
        }
        if state.started {
            return Err(Error::FailedPrecondition("the process has been started already".to_owned()));
        }
        if let Some(kind) = state.attachments.missing() {
            let kind = format!("{kind:?}").to_lowercase();
            return Err(Error::FailedPrecondition(format!("attach the {kind} stream before starting the process")));
        }
        state.started = true;
        Ok(())
    }

    /// Joins the attached streams with the process's.
    pub(crate) fn connect(&self) {
        let mut state = self.lock();
        let streams = [Kind::STDIN, Kind::STDOUT, Kind::STDERR, Kind::TERMINAL];
        for kind in streams {
            let (input, output) = state.ends.sides(kind);
            let Some(stream) = state.attachments.take(kind) else { continue };
            let mut feed = Feed::default();
            if let Some(end) = input {
                let (sender, readers) = mpsc::unbounded_channel();
                feed.input = Some(sender);
                state.input = Some(tokio::spawn(pump_input(readers, end)).abort_handle());
            }
            if let Some(end) = output {
                let (sender, writers) = mpsc::unbounded_channel();
                feed.output = Some(sender);
                let (drained, receiver) = oneshot::channel();
                let pump = pump_output(end, writers, self.ended.subscribe(), drained);
                state.outputs.push((tokio::spawn(pump).abort_handle(), Some(receiver)));
            }
            feed.give(stream);
            state.feeds.insert(kind, feed);
        }
        // From here on the pumps own the pipes; a terminal stays, to be resized.
        state.ends = Ends { terminal: state.ends.terminal.take(), ..Ends::default() };
    }

    /// Follows the process to its end.
    pub(crate) fn supervise(self: &Arc<Self>, exit: oneshot::Receiver<Exit>) {
        let process = Arc::clone(self);
        tokio::spawn(async move {
            let exit = exit.await.unwrap_or_else(|_| Exit::now(255));
            process.finish(exit).await;
        });
    }

    /// It has ended with `exit`: hands over what is left of its output, then tells.
    pub(crate) async fn finish(&self, exit: Exit) {
        self.ended.send_replace(true);
        let outputs: Vec<_> = {
            let mut state = self.lock();
            state.attachments.close();
            state.ends = Ends { terminal: state.ends.terminal.take(), ..Ends::default() };
            state.input.take().inspect(AbortHandle::abort);
            state.outputs.iter_mut().filter_map(|(_, drained)| drained.take()).collect()
        };
        for drained in outputs {
            // An error is a pump that was stopped: the process is being deleted.
            let _ = drained.await;
        }
        self.exit.send_replace(Some(exit));
    }

    /// Sends it signal `number`.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] before it exists, [`Error::NotFound`] after it ended.
    pub(crate) fn signal(&self, reaper: &Reaper, number: i32) -> Result<(), Error> {
        if *self.ended.borrow() {
            return Err(Error::NotFound("the process has ended".to_owned()));
        }
        let Some(pid) = self.lock().pid else {
            return Err(Error::FailedPrecondition("the process has not been started".to_owned()));
        };
        reaper.signal(pid, number).map_err(|cause| match cause.raw_os_error() {
            Some(libc::ESRCH) => Error::NotFound("the process has ended".to_owned()),
            Some(libc::EINVAL) => Error::InvalidArgument(format!("{number} is no signal")),
            _ => Error::internal(format!("send signal {number}"))(cause),
        })
    }

    /// Sets the size of its terminal, now or, if there is none yet, from the start.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when it has no terminal.
    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        if !self.stdio.terminal {
            return Err(Error::InvalidArgument("the process has no terminal".to_owned()));
        }
        let mut state = self.lock();
        state.size = size(rows, columns);
        state.ends.terminal.as_ref().map_or(Ok(()), |master| resize(master, state.size))
    }

    /// Its process id, once it has one.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.lock().pid
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Whether it is there to be deleted: never started, or ended.
    pub(crate) fn deletable(&self) -> bool {
        *self.ended.borrow() || !self.lock().started
    }

    /// Waits for its end, its output still on the way.
    pub(crate) async fn ended(&self) {
        // The sender is in `self`, so it cannot be gone.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Waits for its end and the last byte of its output.
    pub(crate) async fn wait(&self) -> Exit {
        let mut exits = self.exit.subscribe();
        let exit = exits.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        exit.unwrap_or_else(|| Exit::now(255))
    }

    /// Gives up what is still on the way, in either direction.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.attachments.close();
        state.feeds.clear();
        state.ends = Ends::default();
        state.input.take().inspect(AbortHandle::abort);
        for (pump, _) in state.outputs.drain(..) {
            pump.abort();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn resize(master: &End, size: Size) -> Result<(), Error> {
    master.resize(size).map_err(Error::internal("resize the terminal"))
}

/// The size of a terminal, as far as one can have it.
pub(crate) fn size(rows: u32, columns: u32) -> Size {
    let limit = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    Size { rows: limit(rows), columns: limit(columns) }
}
